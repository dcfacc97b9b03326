"""Label files: reading, computing and the caller's own work run at the same time, in memory of bounded size."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import AudioFile
from gafx.deploy.files import find_files
from gafx.deploy.windows import Computed, FileDone, compute, layout_for
from gafx.inference import Probabilities
from gafx.loading import load
from gafx.model import GAFX
from gafx.nn.precision import pick_device

Array = npt.NDArray[Any]
# Files that may be read before the first of them is answered; more than `windows._PATIENCE`, or both would wait.
_MAX_FILES_AHEAD = 256


@dataclass(frozen=True)
class Prediction:
    """Label probabilities of one file.

    Attributes:
        file: path as given.
        classes: labels of the model.
        seconds: length; None if the file could not be read.
        probabilities: `(classes,)` mean over the windows; sums to 1 for single-label models. None if the file could not
            be read.
        windows: `(windows, 2)` start and end of each window in seconds; None without `over_time`.
        window_probabilities: `(windows, classes)`; None without `over_time`.
        error: reason why the file could not be read, or None.
    """

    file: str
    classes: tuple[str, ...]
    seconds: float | None = None
    probabilities: Array | None = None
    windows: Array | None = None
    window_probabilities: Array | None = None
    error: str | None = None

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` most probable labels (default: all) and their probabilities, largest first."""
        return [] if self.probabilities is None else ranked(self.classes, self.probabilities, count)

    def by_window(self) -> Iterator[tuple[float, float, Array]]:
        """Start, end and probabilities of each window; nothing without `over_time`."""
        if self.windows is not None and self.window_probabilities is not None:
            for (start, end), values in zip(self.windows, self.window_probabilities, strict=True):
                yield float(start), float(end), values


def ranked(classes: tuple[str, ...], probabilities: Array, count: int | None = None) -> list[tuple[str, float]]:
    """The `count` most probable labels (default: all) and their probabilities, largest first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(classes[index], float(probabilities[index])) for index in order]


def predict(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: str | os.PathLike[str] | GAFX | Probabilities, **options: Any,
) -> Iterator[Prediction]:  # fmt: skip
    """Label files in order, each as soon as it is computed: `for found in gafx.predict("album/", "outputs/RUN")`.

    A file that cannot be read gives a `Prediction` with an `error`; the others follow.

    Args:
        files: a file, a folder (all audio files below it) or a glob pattern, or several of these; wav, flac, ogg, opus,
            mp3, au, aiff, caf, w64 and whatever else libsndfile plays, of any length.
        model: a run's folder, a folder written by `GAFX.save`, a hub repository (`owner/name`), or a loaded model.
        **options: of `predict_files`: `overlap`, `window_seconds`, `batch_size`, `over_time`, `device`, `precision`,
            `readers`, `progress`.

    Raises:
        UsageError: no model there, one that predicts no labels, or an option out of range.
    """
    paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    found = find_files([os.fspath(path) for path in paths])
    return predict_files(probabilities(model), found.files, **options)


def probabilities(model: str | os.PathLike[str] | GAFX | Probabilities) -> Probabilities:
    """Calibrated probabilities of a model, which is loaded if it is a name; see `predict`."""
    if isinstance(model, Probabilities):
        return model
    return Probabilities(model if isinstance(model, GAFX) else load(model))


def predict_files(
    model: Probabilities, files: Iterable[AudioFile], *, overlap: float = 0.5, window_seconds: float | None = None,
    batch_size: int = 16, over_time: bool = False, device: str = "auto", precision: str = "fp32", readers: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Iterator[Prediction]:  # fmt: skip
    """Label files; predictions come in the order of the files, each as soon as it is computed.

    The probabilities of a file are the mean over its windows (`gafx.deploy.windows.Layout`), whose logits are divided
    by the model's temperature. With `overlap=0` the windows are the segments that `gafx evaluate` tests.

    Args:
        model: `Probabilities(gafx.load(...))`; it is moved to the device and set to eval mode.
        files: paths; any number of any length.
        overlap: of consecutive windows, as a fraction of a window in [0, 1).
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        batch_size: windows per batch, of several files together.
        over_time: keep the probabilities of each window.
        device: `auto` (the GPU if there is one), `cpu`, `cuda`, `cuda:<index>` or `mps`.
        precision: `fp32`, as in exported models; `bf16`, `fp16`, or `auto` (the fastest on this device).
        readers: number of threads that read and resample.
        progress: called with the seconds of audio that each batch adds.

    Raises:
        UsageError: an option out of range, before the first prediction.
    """
    layout = layout_for(model.model, overlap=overlap, window_seconds=window_seconds)
    model.eval().to(pick_device(device))
    slots = threading.Semaphore(_MAX_FILES_AHEAD)
    computed = compute(
        model, files, layout, batch_size=batch_size, device=device, precision=precision, readers=readers, slots=slots,
        progress=progress,
    )  # fmt: skip
    return _in_order(computed, tuple(model.info.classes), layout.sample_rate, over_time, slots)


def _in_order(
    computed: Iterator[Computed | FileDone], classes: tuple[str, ...], sample_rate: int, over_time: bool,
    slots: threading.Semaphore,
) -> Iterator[Prediction]:  # fmt: skip
    in_progress: dict[int, _File] = {}
    waiting: dict[int, Prediction] = {}
    turn = 0
    for found in computed:
        if isinstance(found, Computed):
            in_progress.setdefault(found.file, _File(np.zeros(len(classes)))).add(found, over_time)
            continue
        waiting[found.file] = _prediction(in_progress.pop(found.file, None), found, classes, sample_rate)
        while turn in waiting:
            yield waiting.pop(turn)
            slots.release()
            turn += 1


@dataclass
class _File:
    """Sum of the probabilities of a file's windows, and the windows themselves if they are kept."""

    total: Array
    count: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    def add(self, window: Computed, keep: bool) -> None:
        values = window.values.double().numpy()
        self.total += values
        self.count += 1
        if keep:
            self.spans.append((window.start, window.start + window.samples))
            self.values.append(values)


def _prediction(file: _File | None, end: FileDone, classes: tuple[str, ...], sample_rate: int) -> Prediction:
    if end.error is not None or file is None:
        return Prediction(end.name, classes, error=end.error or "has no windows")
    if not np.isfinite(file.total).all():
        return Prediction(end.name, classes, error="the model's output for it is not finite: try precision=fp32")
    seconds = end.samples / sample_rate
    windows = np.minimum(np.array(file.spans) / sample_rate, seconds) if file.spans else None
    values = np.stack(file.values) if file.values else None
    return Prediction(end.name, classes, seconds, file.total / file.count, windows, values)
