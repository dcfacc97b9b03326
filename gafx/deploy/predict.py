"""Label files: reading, computing and the caller's own work run at the same time, in memory of bounded size."""

import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.audio.read import AudioSource
from gafx.deploy.inputs import Inputs, open_inputs
from gafx.deploy.windows import Computed, FileDone, Layout, compute, layout_for
from gafx.errors import UsageError, require
from gafx.inference import Ensemble, Probabilities, average_views
from gafx.loading import load
from gafx.model import GAFX
from gafx.nn.precision import pick_device
from gafx.report.format import column_names
from gafx.saving.catalogue import default_model

Array = npt.NDArray[Any]
Source = str | os.PathLike[str] | GAFX | Probabilities
# Files that may be read before the first of them is answered; more than `windows._PATIENCE`, or both would wait.
_MAX_FILES_AHEAD = 256
# Decimals of probabilities as text: rounded, those of 500 labels still sum to 1 within a millionth.
DIGITS = 8


@dataclass(frozen=True)
class Prediction:
    """Label probabilities of one file, or of one sound in memory.

    Attributes:
        file: path as given, or the name of a sound in memory (`clip 0`).
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

    def to_dict(self, top: int | None = None, *, over_time: bool = True) -> dict[str, Any]:
        """What `gafx predict --json` writes: built-in types alone, probabilities rounded to 8 decimals.

        Args:
            top: number of labels, the most probable first; None for all.
            over_time: include the probabilities of each window, if they were kept.
        """
        if self.probabilities is None:
            return {"file": self.file, "error": self.error}

        def rounded(values: Array) -> dict[str, float]:
            return {label: round(value, DIGITS) for label, value in ranked(self.classes, values, top)}

        entry: dict[str, Any] = {"file": self.file, "seconds": round(self.seconds or 0.0, 3)}
        entry["probabilities"] = rounded(self.probabilities)
        if over_time and self.windows is not None:
            entry["over_time"] = [
                {"start": round(start, 3), "end": round(end, 3), "probabilities": rounded(values)}
                for start, end, values in self.by_window()
            ]
        return entry

    def rows(self, *, over_time: bool = False) -> Iterator[list[Any]]:
        """Rows of a table with the columns `columns(classes, over_time)`: one, or one per window."""
        if self.probabilities is None:
            yield [self.file, *[None] * (1 + over_time), None, *[None] * len(self.classes), self.error]
            return
        whole = [((self.seconds,), self.probabilities)]
        windows = (((start, end), values) for start, end, values in self.by_window())
        for times, values in windows if over_time else whole:
            yield [self.file, *times, self.classes[int(np.argmax(values))], *values.tolist(), None]


def columns(classes: Sequence[str], over_time: bool) -> list[str]:
    """Columns of `Prediction.rows`: file, length or start and end in seconds, label, one per label, error."""
    before = ["file", *(["start", "end"] if over_time else ["seconds"]), "label"]
    return [*before, *column_names(classes, [*before, "error"]), "error"]


class PredictionIterator(Iterator[Prediction]):
    """Predictions of `predict`, each as soon as it is computed.

    Args:
        found: the predictions.
        classes: labels of the model.
        over_time: whether they keep the probabilities of each window.
    """

    def __init__(self, found: Generator[Prediction, None, None], classes: tuple[str, ...], over_time: bool = False):
        self._found, self.classes, self.over_time = found, classes, over_time

    def __next__(self) -> Prediction:
        return next(self._found)

    def close(self) -> None:
        """End the computation; leaving a loop early does so, too, once the iterator is no longer referenced."""
        self._found.close()

    def to_pandas(self) -> Any:
        """Compute the (other) predictions and return them as a `pandas.DataFrame`.

        Columns: `file`, `seconds`, `label` (the most probable one), one per label of the model with its probability,
        `error` (None, or why it could not be read: its numbers are NaN then). One row per file or sound; with
        `over_time` one per window, and `start` and `end` in seconds instead of `seconds`.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = require("pandas", "to_pandas()")
        rows = [row for found in self for row in found.rows(over_time=self.over_time)]
        names = columns(self.classes, self.over_time)
        numbers = {name: "float64" for name in names if name not in ("file", "label", "error")}
        return pandas.DataFrame(rows, columns=names).astype(numbers)


def ranked(classes: tuple[str, ...], probabilities: Array, count: int | None = None) -> list[tuple[str, float]]:
    """The `count` most probable labels (default: all) and their probabilities, largest first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(classes[index], float(probabilities[index])) for index in order]


def predict(
    inputs: Inputs, model: Source | Sequence[Source] | Ensemble | None = None, *, sample_rate: float | None = None,
    **options: Any,
) -> PredictionIterator:  # fmt: skip
    """Label sounds in order, each as soon as it is computed: `for found in gafx.predict("album/", "outputs/RUN")`.

    One that cannot be read gives a `Prediction` with an `error`; the others follow. `to_pandas` makes a table of all.

    Args:
        inputs: a file, a folder (all audio files below it) or a glob pattern; wav, flac, ogg, opus, mp3, au, aiff, caf,
            w64 and whatever else libsndfile plays, of any length; with PyAV (the extra `formats`) also m4a, aac, wma,
            webm and the sound of videos. Bytes, a file object, an array or tensor with its
            `sample_rate`, or `{"array", "sampling_rate"}`; a list of these, or an iterator, which is read in constant
            memory. All forms: `gafx.deploy.inputs.open_inputs`.
        model: a run's folder, a folder written by `GAFX.save`, a hub repository (`owner/name`), or a loaded model; of
            several, an ensemble, the probabilities are averaged. Default: the published `audioset-crnn`, once it is in
            the cache.
        sample_rate: in Hz, of arrays and tensors; any, they are resampled to the model's.
        **options: of `predict_files`: `overlap`, `window_seconds`, `batch_size`, `over_time`, `device`, `precision`,
            `readers`, `views`, `progress`.

    Raises:
        UsageError: inputs of another form, no model there, one that predicts no labels, models of different labels, or
            an option out of range.
    """
    sources = open_inputs(inputs, sample_rate)
    run = probabilities(default_model() if model is None else model)
    return PredictionIterator(predict_files(run, sources, **options), run.classes, options.get("over_time", False))


def probabilities(model: Source | Sequence[Source] | Ensemble) -> Probabilities | Ensemble:
    """Calibrated probabilities of a model, or of several, which are loaded where they are names; see `predict`.

    Raises:
        UsageError: as `predict`, or one name is given twice, which would count that model twice.
    """
    if isinstance(model, (Probabilities, Ensemble)):
        return model
    if isinstance(model, (str, os.PathLike, GAFX)):
        return Probabilities(model if isinstance(model, GAFX) else load(model))
    sources = list(model)
    named = [os.fspath(source) if isinstance(source, (str, os.PathLike)) else "" for source in sources]
    same = [os.path.normpath(name) if name else str(id(source)) for name, source in zip(named, sources, strict=True)]
    if twice := next((number for number, one in enumerate(same) if one in same[:number]), None):
        what = named[twice] or f"model {twice + 1}"
        raise UsageError(f"{what} is given twice, and would count twice in the average: give each model once")
    if any(isinstance(source, Ensemble) for source in sources):
        raise UsageError("an ensemble cannot be a member of another: give the models of both in one list")
    members = [source if isinstance(source, Probabilities) else probabilities(source) for source in sources]
    if len(members) == 1:
        return members[0]
    return Ensemble(members, [name or f"model {number}" for number, name in enumerate(named, 1)])  # type: ignore[arg-type]


def predict_files(
    model: Probabilities | Ensemble, files: Iterable[AudioSource], *, overlap: float = 0.5,
    window_seconds: float | None = None, batch_size: int = 16, over_time: bool = False, device: str = "auto",
    precision: str = "fp32", readers: int = 1, views: int = 1, progress: Callable[[float], object] | None = None,
) -> Generator[Prediction, None, None]:  # fmt: skip
    """Label files; predictions come in the order of the files, each as soon as it is computed.

    The probabilities of a file are the mean over its windows (`gafx.deploy.windows.Layout`), whose logits are divided
    by the model's temperature. With `overlap=0` the windows are the segments that `gafx evaluate` tests.

    The probabilities of an `Ensemble` are the mean over its models. Models of the same windows (rate, channels, length)
    share one reading of the files; each other kind of windows reads and decodes them again, at the same time.

    Args:
        model: `Probabilities(gafx.load(...))` or an `Ensemble`; it is moved to the device and set to eval mode.
        files: paths, or sounds in memory; any number of any length.
        overlap: of consecutive windows, as a fraction of a window in [0, 1).
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        batch_size: windows per batch, of several files together.
        over_time: keep the probabilities of each window. The models of an ensemble need windows of one length, which
            are averaged by their time (with the nearest window where rates shift the starts by a fraction of a sample).
        device: `auto` (the GPU if there is one), `cpu`, `cuda`, `cuda:<index>` or `mps`.
        precision: `fp32`, as in exported models; `bf16`, `fp16`, or `auto` (the fastest on this device).
        readers: number of threads that read and resample, for each kind of windows.
        views: number of circular shifts of each window that are averaged (`gafx.inference.average_views`).
        progress: called with the seconds of audio that each batch adds.

    Raises:
        UsageError: an option out of range, or `over_time` of models whose windows differ in length; before the first
            prediction.
    """
    if isinstance(model, Ensemble):
        passes = _passes(model, over_time, overlap=overlap, window_seconds=window_seconds)
    else:
        passes = [_Pass(layout_for(model.model, overlap=overlap, window_seconds=window_seconds), model, 1)]
    if len(passes) > 1:
        progress = _shared(progress, len(passes))
    sources = _tee(files, len(passes))
    model.eval().to(pick_device(device))

    def labelled(each: _Pass, files: Iterable[AudioSource]) -> Generator[Prediction, None, None]:
        slots = threading.Semaphore(_MAX_FILES_AHEAD)
        computed = compute(
            average_views(each.run, views), files, each.layout, batch_size=batch_size, device=device,
            precision=precision, readers=readers, slots=slots, progress=progress,
        )  # fmt: skip
        return _in_order(computed, model.classes, each.layout.sample_rate, over_time, slots)

    found = [labelled(each, files) for each, files in zip(passes, sources, strict=True)]
    return found[0] if len(found) == 1 else _averaged(found, [each.models for each in passes])


@dataclass(frozen=True)
class _Pass:
    """One reading of the files: the windows, the mean probabilities of the models that share them, their number."""

    layout: Layout
    run: Callable[[Tensor], Tensor]
    models: int


def _passes(ensemble: Ensemble, over_time: bool, **options: Any) -> list[_Pass]:
    """The models of an ensemble grouped by their windows."""
    groups: dict[Layout, list[int]] = {}
    lengths: dict[float, str] = {}
    for index, (model, name) in enumerate(zip(ensemble.members, ensemble.names, strict=True)):
        groups.setdefault(layout_for(model.model, **options), []).append(index)
        lengths.setdefault(options["window_seconds"] or model.info.segment_seconds, name)
    if over_time and len(lengths) > 1:
        (first, one), (second, other), *_ = lengths.items()
        raise UsageError(
            f"the windows of {one} are {first:g} s long and those of {other} {second:g} s, so they cannot be averaged "
            f"over time (--over-time, --plot, over_time=True): give all models one length, e.g. --window {first:g} "
            f"(window_seconds={first:g})"
        )

    def mean_of(members: list[int]) -> Callable[[Tensor], Tensor]:
        return lambda wave: torch.stack([ensemble.member(index, wave).float() for index in members]).mean(dim=0)

    return [_Pass(layout, mean_of(members), len(members)) for layout, members in groups.items()]


def _tee(files: Iterable[AudioSource], passes: int) -> list[Iterator[AudioSource]]:
    """The files for each of several passes, whose threads take them; those that one is behind are held in memory."""
    lock = threading.Lock()

    def locked(branch: Iterator[AudioSource]) -> Iterator[AudioSource]:
        while True:
            with lock:
                try:
                    file = next(branch)
                except StopIteration:
                    return
            yield file

    return [locked(branch) for branch in itertools.tee(files, passes)] if passes > 1 else [iter(files)]


def _shared(progress: Callable[[float], object] | None, passes: int) -> Callable[[float], object] | None:
    """Progress of several passes at the same time over the same audio, each of which counts for its part."""
    if progress is None:
        return None
    lock = threading.Lock()

    def advance(seconds: float) -> None:
        with lock:
            progress(seconds / passes)

    return advance


def _averaged(
    passes: Sequence[Generator[Prediction, None, None]], models: Sequence[int]
) -> Generator[Prediction, None, None]:
    """Mean over passes, weighted by their numbers of models; each pass is ahead by a bounded number of windows."""
    weights = np.array(models) / sum(models)
    with ExitStack() as stack:
        for each in passes:
            stack.enter_context(closing(each))
        for found in zip(*passes, strict=True):
            first = found[0]
            if failed := next((each for each in found if each.error is not None), None):
                yield failed
                continue
            values = np.average([each.probabilities for each in found], axis=0, weights=weights)
            over_time = None
            if first.windows is not None:
                aligned = [_at(first.windows[:, 0], each) for each in found]
                over_time = np.average(aligned, axis=0, weights=weights)
            yield replace(first, probabilities=values, window_probabilities=over_time)


def _at(starts: Array, other: Prediction) -> Array:
    """Probabilities of the windows of a prediction that begin nearest to `starts`."""
    assert other.windows is not None
    assert other.window_probabilities is not None
    begins = other.windows[:, 0]
    after = np.clip(np.searchsorted(begins, starts), 0, len(begins) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(begins[before] - starts) < np.abs(begins[after] - starts), before, after)
    return np.asarray(other.window_probabilities[nearest])


def _in_order(
    computed: Iterator[Computed | FileDone], classes: tuple[str, ...], sample_rate: int, over_time: bool,
    slots: threading.Semaphore,
) -> Generator[Prediction, None, None]:  # fmt: skip
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
