"""Files to shares of labels: reading, computing and answering at the same time, in memory that no length fills."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import AudioFile
from gafx.deploy.files import find_files
from gafx.deploy.windows import Computed, Finished, compute, file_slots, layout_for
from gafx.inference import Probabilities
from gafx.loading import load
from gafx.model import GAFX

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file.

    Attributes:
        file: as it was given.
        classes: the model's labels.
        seconds: its length; None where it could not be read.
        shares: `(classes,)` mean over the windows; they sum to 1 with one label a clip. None where the file could not
            be read.
        windows: `(windows, 2)` begin and end of each window in seconds; None unless `over_time` was asked for.
        window_shares: `(windows, classes)`, likewise.
        error: why the file could not be read, or None.
    """

    file: str
    classes: tuple[str, ...]
    seconds: float | None = None
    shares: Array | None = None
    windows: Array | None = None
    window_shares: Array | None = None
    error: str | None = None

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The labels with the largest shares, largest first; all of them without a `count`."""
        return [] if self.shares is None else ranked(self.classes, self.shares, count)


def ranked(classes: tuple[str, ...], shares: Array, count: int | None = None) -> list[tuple[str, float]]:
    """Labels and shares, largest first, the first `count` of them."""
    order = np.argsort(-shares, kind="stable")[:count]
    return [(classes[index], float(shares[index])) for index in order]


def predict(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: str | os.PathLike[str] | GAFX | Probabilities,
    **options: Any,
) -> Iterator[Prediction]:
    """Label files, in their order, each as soon as it is known: `for found in gafx.predict("album/", "outputs/RUN")`.

    A file that cannot be read gives a `Prediction` with an `error`, and the rest goes on.

    Args:
        files: a file, folder (every audio file below it) or glob pattern, or several of these; wav, flac, ogg, opus,
            mp3, au, aiff, caf, w64 or whatever else libsndfile plays, of any length.
        model: a run's folder, a folder that `GAFX.save` wrote, a hub repository (`owner/name`), or a loaded model.
        **options: of `predict_files`: `overlap`, `window_seconds`, `batch_size`, `over_time`, `device`, `precision`,
            `readers`, `progress`.

    Raises:
        UsageError: no model there, one that tells no labels, or options out of range.
    """
    words = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found = find_files([os.fspath(word) for word in words])
    return predict_files(probabilities(model), found.files, **options)


def probabilities(model: str | os.PathLike[str] | GAFX | Probabilities) -> Probabilities:
    """Calibrated probabilities of a model, or of one that is loaded first; see `predict`."""
    if isinstance(model, Probabilities):
        return model
    return Probabilities(model if isinstance(model, GAFX) else load(model))


def predict_files(
    model: Probabilities,
    files: Iterable[AudioFile],
    *,
    overlap: float = 0.5,
    window_seconds: float | None = None,
    batch_size: int = 16,
    over_time: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    readers: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Iterator[Prediction]:
    """Label files; answers come in the order of the files, one as soon as it is known.

    A file's shares are the mean over its windows (`gafx.deploy.windows.Layout`), each divided by the model's
    temperature. With `overlap=0` the windows are the segments that evaluate.py tests.

    Args:
        model: `Probabilities(gafx.load(...))`; it is moved to the device and put into eval mode.
        files: paths; any number of any length.
        overlap: share of a window that the next one repeats, in [0, 1).
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        batch_size: windows computed at once, of several files together.
        over_time: keep every window's shares.
        device: `auto` (the GPU where there is one) or `cpu`.
        precision: `fp32`, which is what exported models compute in too; `bf16`, `fp16`, or `auto` (the fastest here).
        readers: threads that read and resample.
        progress: called with the seconds of audio that each batch adds.

    Raises:
        UsageError: options out of range, before the first answer.
    """
    layout = layout_for(model.model, overlap=overlap, window_seconds=window_seconds)
    model.eval()
    return _answers(
        model, files, layout, over_time,
        {"batch_size": batch_size, "device": device, "precision": precision, "readers": readers, "progress": progress},
    )  # fmt: skip


@dataclass
class _Open:
    """A file whose windows are being computed."""

    total: Array
    count: int = 0
    windows: list[tuple[float, float]] = field(default_factory=list)
    shares: list[Array] = field(default_factory=list)
    finite: bool = True


def _answers(
    model: Probabilities, files: Iterable[AudioFile], layout: Any, over_time: bool, how: dict[str, Any]
) -> Iterator[Prediction]:
    classes = tuple(model.info.classes)
    names: dict[int, str] = {}
    waiting: dict[int, Prediction] = {}
    files_open: dict[int, _Open] = {}
    slots, turn = file_slots(), 0

    def named() -> Iterator[AudioFile]:
        for number, file in enumerate(files):
            names[number] = os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else f"file {number}"
            yield file

    for found in compute(_on_device(model, how["device"]), named(), layout, emitted=slots, **how):
        if isinstance(found, Computed):
            _add(files_open.setdefault(found.file, _Open(np.zeros(len(classes)))), found, layout.sample_rate, over_time)
            continue
        waiting[found.file] = _answer(names.pop(found.file), classes, files_open.pop(found.file, None), found, layout)
        while turn in waiting:
            yield waiting.pop(turn)
            slots.release()
            turn += 1


def _on_device(model: Probabilities, device: str) -> Probabilities:
    from gafx.nn.precision import pick_device

    return model.to(pick_device(device))


def _add(file: _Open, window: Computed, sample_rate: int, over_time: bool) -> None:
    shares = window.values.double().numpy()
    file.total += shares
    file.count += 1
    file.finite &= bool(np.isfinite(shares).all())
    if over_time:
        file.windows.append((window.start / sample_rate, (window.start + window.samples) / sample_rate))
        file.shares.append(shares)


def _answer(name: str, classes: tuple[str, ...], file: _Open | None, end: Finished, layout: Any) -> Prediction:
    if end.error is not None or file is None:
        return Prediction(name, classes, error=end.error or "holds no window")
    if not file.finite:
        return Prediction(name, classes, error="the model's output for it is not finite: try precision=fp32")
    seconds = end.samples / layout.sample_rate
    windows = np.minimum(np.array(file.windows), seconds) if file.windows else None
    shares = np.stack(file.shares) if file.shares else None
    return Prediction(name, classes, seconds, file.total / file.count, windows, shares)
