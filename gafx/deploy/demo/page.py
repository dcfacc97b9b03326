"""Content of the page: its head, and for each upload a result or a message that explains why there is none."""

import base64
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from gafx.audio.formats import NAMES
from gafx.data.protocols import PROTOCOLS
from gafx.deploy import plot
from gafx.deploy.predict import Prediction, predict_files
from gafx.deploy.uploads import MAX_BYTES, MAX_SECONDS, Limits, memory_error
from gafx.errors import UnreadableAudio, UsageError
from gafx.inference import Probabilities
from gafx.model import GAFX
from gafx.nn.precision import pick_device
from gafx.report.format import decibels, label, lowered, plural, score
from gafx.report.html import render
from gafx.saving.card import CROSS_VALIDATED, describe_calibration
from gafx.saving.info import ModelInfo

# For the checks in the browser, which fills in the names in braces.
_SENTENCES = {
    "empty": "{name} is empty (0 bytes): choose another file",
    "wrong": "{name} is not an audio file: drop a wav, flac, ogg, opus or mp3; unpack archives first",
    "many": "One file at a time, please: {name} and {more} more were dropped",
}


class Page:
    """The page's head, its script, and the answer to each upload.

    Args:
        model: from `gafx.load`.
        name: title of the page.
        max_bytes: largest file.
        max_seconds: longest audio.
        device: as for `predict_files`.

    Raises:
        UsageError: a limit that admits no file, or a model that predicts no labels.
    """

    def __init__(
        self, model: GAFX, *, name: str = "", max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS,
        device: str = "auto",
    ):  # fmt: skip
        self.limits = Limits(max_bytes, max_seconds)
        self.probabilities = Probabilities(model).eval()
        self.info = self.probabilities.info
        self.name = name or str(self.info.frontend.get("name", "model"))
        self.device = device
        # One computation at a time, also where the page is embedded in another application.
        self._busy = threading.Lock()
        self._ended = False

    def close(self, seconds: float = 60.0) -> None:
        """End the computation in progress and wait for it: a process that exits while torch computes is aborted."""
        self._ended = True
        if self._busy.acquire(timeout=seconds):
            self._busy.release()

    def head(self) -> str:
        """HTML of the page's head: labels, parts, training data, scores and limits."""
        info = self.info
        training = describe_data(info.training) if info.training.get("data") else "not recorded"
        return render(
            "demo.html.j2", part="head", style=_file("page.css"), name=self.name, info=info, training=training,
            scores=_scores(info), formats=NAMES, limits=self.limits,
        )  # fmt: skip

    def script(self) -> str:
        """JavaScript that refuses files that are too large or not audio before they are uploaded."""
        texts = json.dumps({"large": self.limits.large, **_SENTENCES})
        return _file("page.js").strip().replace("$LIMIT", str(self.limits.max_bytes)).replace("$TEXTS", texts)

    def answer(
        self, path: str | None, *, narrow: bool = False, progress: Callable[[float, str], object] | None = None
    ) -> str:
        """Label one upload and delete it.

        Args:
            path: of the upload; None if nothing was uploaded.
            narrow: draw for a narrow screen.
            progress: called with the fraction that is done, in [0, 1], and the current step.

        Returns:
            HTML: the result, or a message that explains why there is none.
        """
        if path is None:
            return refusal("Nothing arrived: drop a file again, or record for at least a second.")
        report = progress or (lambda *_: None)
        name = Path(path).name
        try:
            with self._busy:
                if self._ended:
                    return refusal("The demo has ended.")
                prediction, observed = self._label(Path(path), report)
                report(0.85, "drawing")
                return self._result(prediction, observed, narrow)
        except UsageError as error:
            return refusal(f"{name} {error}." if isinstance(error, UnreadableAudio) else f"{error}.")
        except (MemoryError, RuntimeError) as error:
            return refusal(f"{memory_error(error, name)}.")
        finally:
            with suppress(OSError):
                os.unlink(path)
            with suppress(OSError):
                os.rmdir(os.path.dirname(path))

    def _label(self, path: Path, report: Callable[[float, str], object]) -> tuple[Prediction, plot.Observed]:
        seconds = self.limits.check(path, path.name)

        def step(begin: float, name: str) -> Callable[[float], None]:
            done = 0.0

            def add(more: float) -> None:
                nonlocal done
                done += more
                if self._ended:
                    raise UsageError("The demo has ended before the file was labelled")
                report(begin + 0.4 * min(1.0, done / seconds), name)

            add(0.0)
            return add

        model = self.probabilities.model.to(pick_device(self.device))
        observed = plot.observe(model, path, progress=step(0.02, "reading"))
        (prediction,) = predict_files(
            self.probabilities, [path], over_time=True, device=self.device, progress=step(0.44, "labelling")
        )  # fmt: skip
        if prediction.error is not None:
            raise UnreadableAudio(prediction.error)
        if prediction.silent:
            assert prediction.level is not None
            raise UsageError(
                f"{path.name} is silent ({decibels(prediction.level)}): choose another file, or check that the "
                "microphone is on and allowed"
            )
        return prediction, observed

    def _result(self, prediction: Prediction, observed: plot.Observed, narrow: bool) -> str:
        windows = list(prediction.by_window())
        width = 4.2 if narrow else 10.0
        images = {}
        for kind in ("light", "dark"):
            figure = plot.draw(prediction, observed, mel=True, width=width, dark=kind == "dark")
            images[kind] = "data:image/webp;base64," + base64.b64encode(plot.encode(figure, "webp")).decode("ascii")
        calibration = self.info.calibration
        return render(
            "demo.html.j2", part="result", ranked=prediction.top(), name=Path(prediction.file).name,
            seconds=observed.seconds, windows=len(windows), window_seconds=windows[0][1] - windows[0][0],
            images=images, sums_to_one=self.probabilities.sums_to_one,
            calibration=describe_calibration(calibration) if calibration else "",
        )  # fmt: skip


def refusal(sentence: str) -> str:
    """HTML of an error message in place of a result."""
    return render("demo.html.j2", part="refusal", sentence=sentence)


def _scores(info: ModelInfo) -> str:
    """Scores of the model, or else of its cross-validation by `gafx fit`."""
    if not info.scores and (accuracy := info.training.get(CROSS_VALIDATED)):
        return f"{CROSS_VALIDATED} {accuracy}; of this model itself none"
    return describe_scores(info.scores, info.evaluated_on)


def describe_scores(scores: Mapping[str, Any], on: Mapping[str, Any]) -> str:
    """Scores with their intervals, as in the report, and the test part that they were measured on."""
    known = [
        f"{lowered(label(name))} {score(found, name)}"
        for name, found in scores.items()
        if found.get("value") is not None
    ]
    if not known:
        return "not evaluated"
    tracks = plural(on["tracks"], "track") if "tracks" in on else "unknown tracks"
    part = f"{tracks} of the {on.get('part', 'test')} part of {describe_data(on)}"
    return f"{'; '.join(known)}; on {part}; 95 % intervals"


def describe_data(facts: Mapping[str, Any]) -> str:
    """Data set, protocol and fold of a training or an evaluation."""
    parts = [str(facts.get("data") or "unknown data")]
    if protocol := facts.get("protocol"):
        parts.append(f"protocol {protocol}")
    if facts.get("fold") and (protocol not in PROTOCOLS or PROTOCOLS[protocol].has_folds):
        parts.append(f"fold {facts['fold']}")
    return ", ".join(parts)


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
