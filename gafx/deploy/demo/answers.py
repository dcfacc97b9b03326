"""An answer to every file that is dropped: labelled, refused in a sentence, and deleted either way."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from gafx.audio.read import probe
from gafx.deploy import plot
from gafx.deploy.demo import page
from gafx.deploy.predict import Prediction, predict_files
from gafx.errors import UnreadableAudio, UsageError
from gafx.inference import Probabilities
from gafx.model import GAFX
from gafx.nn.precision import pick_device

MAX_BYTES = 50 * 2**20
MAX_SECONDS = 1200.0
# 80 dB below full scale: what a muted microphone gives lies below it, the softest music above.
_SILENCE = 1e-4


class Page:
    """What the page says: a model's head, and an answer to every file.

    Args:
        model: from `gafx.load`.
        name: what the page calls it.
        max_bytes: of a file.
        max_seconds: of a file's sound.
        device: as for `predict_files`.

    Raises:
        UsageError: a limit that lets nothing pass, or a model that was not trained to tell labels.
    """

    def __init__(
        self,
        model: GAFX,
        *,
        name: str = "",
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        device: str = "auto",
    ):
        if max_bytes < 1:
            raise UsageError(f"max_bytes={max_bytes} lets no file pass: give at least 1, e.g. {MAX_BYTES}")
        if not max_seconds > 0:
            raise UsageError(f"max_seconds={max_seconds} lets no file pass: give more than 0, e.g. {MAX_SECONDS:g}")
        self.probabilities = Probabilities(model).eval()
        self.info = self.probabilities.info
        self.name = name or str(self.info.frontend.get("name", "model"))
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self.device = device
        # One computation at a time, also for those who embed the page beside others.
        self._busy = threading.Lock()
        self._ended = False

    def close(self, seconds: float = 60.0) -> None:
        """Stop what is being computed and wait for it: a process that ends while torch computes is aborted."""
        self._ended = True
        if self._busy.acquire(timeout=seconds):
            self._busy.release()

    def answer(
        self, path: str | None, *, narrow: bool = False, progress: Callable[[float, str], object] | None = None
    ) -> str:
        """Label one upload and delete it.

        Args:
            path: of the upload; None where nothing came.
            narrow: draw for a narrow screen.
            progress: called with the share that is done, in [0, 1], and a word for what is being done.

        Returns:
            HTML: the result, or a sentence that says why there is none.
        """
        if path is None:
            return page.refusal("Nothing arrived: drop a file again, or record for at least a second.")
        say = progress or (lambda *_: None)
        try:
            with self._busy:
                if self._ended:
                    return page.refusal("The demo has ended.")
                prediction, observed = self._label(Path(path), say)
                say(0.85, "drawing")
                return page.result(prediction, observed, self.probabilities, narrow=narrow)
        except UnreadableAudio as error:
            return page.refusal(f"{Path(path).name} {error}.")
        except UsageError as error:
            return page.refusal(f"{error}.")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            return page.refusal(f"{Path(path).name} takes more memory than there is: try a shorter file.")
        finally:
            forget(path)

    def _label(self, path: Path, say: Callable[[float, str], object]) -> tuple[Prediction, plot.Observed]:
        size = path.stat().st_size if path.is_file() else 0
        if size > self.max_bytes:
            raise UsageError(page.too_large(path.name, size, self.max_bytes))
        # The usual formats alone: whoever reaches the page may drop anything, and rarer parsers are less tried.
        seconds = probe(path).seconds
        if seconds > self.max_seconds:
            raise UsageError(page.too_long(path.name, seconds, self.max_seconds))

        def step(begin: float, word: str) -> Callable[[float], None]:
            done = 0.0

            def add(more: float) -> None:
                nonlocal done
                done += more
                if self._ended:
                    raise UsageError("The demo has ended before the answer was found")
                say(begin + 0.4 * min(1.0, done / seconds), word)

            return add

        add = step(0.02, "reading")
        add(0.0)
        model = self.probabilities.model.to(pick_device(self.device))
        observed = plot.observe(model, path, progress=add)
        peak = float(np.abs(observed.envelope.values).max())
        if peak < _SILENCE:
            raise UsageError(
                f"{path.name} is silent (its peak is {peak:.1g} of full scale): choose another file, or check that the "
                "microphone is on and allowed"
            )
        (prediction,) = predict_files(
            self.probabilities, [path], over_time=True, device=self.device, progress=step(0.42, "labelling")
        )  # fmt: skip
        if prediction.error is not None:
            raise UnreadableAudio(prediction.error)
        return prediction, observed

    def head(self) -> str:
        """The page's head: what the model is, knows and scores."""
        return page.head(self.info, self.name, self.max_bytes, self.max_seconds)

    def script(self) -> str:
        """JavaScript that refuses what is too large or no sound before it is uploaded, with the server's sentences."""
        return page.script(self.max_bytes)


def forget(path: str | os.PathLike[str]) -> None:
    """Delete an upload, and its folder if nothing else is in it."""
    path = Path(path)
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        path.parent.rmdir()
