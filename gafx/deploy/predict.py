"""Label files: reading, computing and the caller's own work run at the same time, in memory of bounded size."""

import itertools
import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gafx.audio.level import SILENCE, check_silence
from gafx.audio.read import AudioSource
from gafx.audio.views import average_views
from gafx.data.segments import OVERLAP
from gafx.deploy.exported import ExportedModel, is_exported
from gafx.deploy.inputs import Inputs, open_inputs
from gafx.deploy.labels import Choice, Labels, label_of
from gafx.deploy.windows import Array, Computed, FileDone, Layout, Run, compute, layout_for, on_device
from gafx.errors import UsageError, check_options, require
from gafx.report.format import column_names
from gafx.saving.catalogue import default_model

if TYPE_CHECKING:
    from torch import Tensor

    from gafx.inference import Ensemble, Probabilities
    from gafx.model import GAFX

# Nothing here imports torch before a model of PyTorch is used: exported ones are labelled with without it.
Source: TypeAlias = "str | os.PathLike[str] | GAFX | Probabilities | ExportedModel"
Model: TypeAlias = "Probabilities | Ensemble | ExportedModel"
# Files that may be read before the first of them is answered; more than `windows._PATIENCE`, or both would wait.
_MAX_FILES_AHEAD = 256
# Decimals of probabilities as text: rounded, those of 500 labels still sum to 1 within a millionth.
DIGITS = 8


@dataclass(frozen=True)
class Segment:
    """A part of a file with one label, see `Prediction.segments`.

    Attributes:
        start, end: in seconds.
        label: as `Prediction.label`; None where it is silent.
        probabilities: `(classes,)` mean over its windows; None where it is silent.
        windows: number of windows.
        level: of its loudest window in dBFS.
    """

    start: float
    end: float
    label: str | None
    probabilities: Array | None
    windows: int
    level: float


@dataclass(frozen=True)
class Prediction:
    """Label probabilities of one file, or of one sound in memory.

    Attributes:
        file: path as given, or the name of a sound in memory (`clip 0`).
        classes: labels of the model, or the chosen ones.
        seconds: length; None if the file could not be read.
        probabilities: `(classes,)` mean over the windows that are not silent; sums to 1 for single-label models and for
            chosen labels. None if the file could not be read or is silent.
        windows: `(windows, 2)` start and end of each window in seconds; None without `over_time`.
        window_probabilities: `(windows, classes)`, those of silent windows among them; None without `over_time`.
        error: reason why the file could not be read, or None.
        level: of the loudest 50 ms in dBFS, see `gafx.audio.level`; None if the file could not be read.
        window_count: number of windows.
        silent_windows: number of windows whose level is below `silence`.
        window_levels: `(windows,)` level of each in dBFS; None without `over_time`.
        window_silent: `(windows,)` True where a window is silent; None without `over_time`.
        model_probabilities: `(classes,)` the model's own probabilities of chosen labels, before they are divided by
            their sum; None if no labels were chosen, and where `probabilities` is None.
        window_model_probabilities: `(windows, classes)` the same of each window.
        threshold: least of the model's probabilities with which a label applies; None: the most probable one always
            does.
        note: what is doubtful about the file (damaged, incomplete, several recordings joined), of which that was
            labelled which can be read; None for a whole file.
    """

    file: str
    classes: tuple[str, ...]
    seconds: float | None = None
    probabilities: Array | None = None
    windows: Array | None = None
    window_probabilities: Array | None = None
    error: str | None = None
    level: float | None = None
    window_count: int = 0
    silent_windows: int = 0
    window_levels: Array | None = None
    window_silent: Array | None = None
    model_probabilities: Array | None = None
    window_model_probabilities: Array | None = None
    threshold: float | None = None
    note: str | None = None

    @property
    def silent(self) -> bool:
        """Whether all windows are silent: the file then has a level and no probabilities."""
        return 0 < self.window_count == self.silent_windows

    @property
    def label(self) -> str | None:
        """The most probable label, `none of these` below the threshold; None for a silent or unreadable file."""
        if self.probabilities is None:
            return None
        return self._label_of(self.probabilities, self.model_probabilities)

    def _label_of(self, probabilities: Array, model_probabilities: Array | None) -> str:
        """As `label`, for other probabilities of these classes, such as those of a window."""
        return label_of(self.classes, probabilities, model_probabilities, self.threshold)

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` most probable labels (default: all) and their probabilities, largest first."""
        return [] if self.probabilities is None else ranked(self.classes, self.probabilities, count)

    def by_window(self) -> Iterator[tuple[float, float, Array]]:
        """Start, end and probabilities of each window, silent ones among them; nothing without `over_time`."""
        if self.windows is not None and self.window_probabilities is not None:
            for (start, end), values in zip(self.windows, self.window_probabilities, strict=True):
                yield float(start), float(end), values

    def segments(self, *, merge: bool = False, overlap: bool = False) -> list[Segment]:
        """The windows as segments that follow each other without gap and overlap; nothing without `over_time`.

        Each window represents the time that is nearer to its centre than to any other window's; the first begins with
        the file, and the last ends with the last window (a remainder that no window covers is in no segment).

        Args:
            merge: join neighbours of the same label, and neighbours that are silent.
            overlap: keep the windows' own starts and ends; not together with `merge`.
        """
        windows, values, own = self.windows, self.window_probabilities, self.window_model_probabilities
        if windows is None or values is None:
            return []
        bounds = edges(windows)
        spans = windows if overlap else np.stack([bounds[:-1], bounds[1:]], axis=1)
        silent = np.zeros(len(spans), bool) if self.window_silent is None else self.window_silent
        levels = np.full(len(spans), np.nan) if self.window_levels is None else self.window_levels
        labels = [
            None if quiet else self._label_of(values[number], None if own is None else own[number])
            for number, quiet in enumerate(silent)
        ]
        starts = [n for n in range(len(labels)) if not (merge and n and labels[n] == labels[n - 1])]
        return [
            Segment(
                float(spans[first, 0]), float(spans[end - 1, 1]), labels[first],
                None if silent[first] else values[first:end].mean(axis=0), end - first, float(levels[first:end].max()),
            )
            for first, end in zip(starts, [*starts[1:], len(labels)], strict=True)
        ]  # fmt: skip

    def labelled(self, *, merge: bool = False) -> list[tuple[Segment, str, float]]:
        """Segments with their label and its probability, without silent ones and `none of these`."""
        return [
            (segment, segment.label, float(segment.probabilities[self.classes.index(segment.label)]))
            for segment in self.segments(merge=merge)
            if segment.probabilities is not None and segment.label in self.classes
        ]

    def to_dict(self, top: int | None = None, *, over_time: bool = True, merge: bool = False) -> dict[str, Any]:
        """The entry of `gafx predict --json`: built-in types alone, probabilities rounded to 8 decimals.

        Args:
            top: number of labels, the most probable first; None for all.
            over_time: include the probabilities of each window, if they were kept.
            merge: of segments of one label, see `segments`, instead of each window.
        """
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        doubt = {} if self.note is None else {"note": self.note}

        def rounded(values: Array) -> dict[str, float]:
            return {label: round(value, DIGITS) for label, value in ranked(self.classes, values, top)}

        def result(label: str | None, values: Array | None, level: float | None) -> dict[str, Any]:
            # JSON has no infinity: None is the level of a constant.
            finite = {"level_db": round(level, 2) if level is not None and math.isfinite(level) else None}
            if values is None:
                return {"silent": True, **finite}
            return {"label": label, "probabilities": rounded(values), **finite}

        entry: dict[str, Any] = {"file": self.file, "seconds": round(self.seconds or 0.0, 3), **doubt}
        entry |= result(self.label, self.probabilities, self.level)
        if self.model_probabilities is not None:
            entry["model_probabilities"] = rounded(self.model_probabilities)
        if self.silent_windows:
            entry |= {"windows": self.window_count, "silent_windows": self.silent_windows}
        if over_time and self.windows is not None:
            entry["over_time"] = [
                {"start": round(part.start, 3), "end": round(part.end, 3)}
                | result(part.label, part.probabilities, part.level)
                for part in self.segments(merge=merge, overlap=not merge)
            ]
        return entry

    def rows(self, *, over_time: bool = False, merge: bool = False) -> Iterator[list[Any]]:
        """Rows of a table with the columns `columns(classes, over_time)`: one, or one per window or merged segment."""
        if self.error is not None:
            yield [
                self.file,
                *[None] * (1 + over_time),
                None,
                *[None] * len(self.classes),
                None,
                None,
                self.error,
                None,
            ]
            return
        none = [None] * len(self.classes)
        if not over_time:
            silent = self.silent_windows / max(self.window_count, 1)
            values = none if self.probabilities is None else self.probabilities.tolist()
            yield [self.file, self.seconds, self.label, *values, self.level, silent, None, self.note]
            return
        for part in self.segments(merge=merge, overlap=not merge):
            values = none if part.probabilities is None else part.probabilities.tolist()
            row = [self.file, part.start, part.end, part.label, *values, part.level, float(part.label is None)]
            yield [*row, None, self.note]


def edges(windows: Array) -> Array:
    """Boundaries halfway between the centres of windows: `(windows, 2)` starts and ends -> `(windows + 1,)` seconds."""
    centres = windows.mean(axis=1)
    return np.concatenate([windows[:1, 0], (centres[1:] + centres[:-1]) / 2, windows[-1:, 1]])


def columns(classes: Sequence[str], over_time: bool) -> list[str]:
    """Columns of `Prediction.rows`: file, length or start and end in seconds, label, one per label, level, silence.

    Last come `error` and `note`.
    """
    before = ["file", *(["start", "end"] if over_time else ["seconds"]), "label"]
    after = ["level_db", "silent", "error", "note"]
    return [*before, *column_names(classes, [*before, *after]), *after]


class PredictionIterator(Iterator[Prediction]):
    """Predictions of `predict`, each as soon as it is computed.

    Args:
        found: the predictions.
        classes: labels of the model.
        over_time: whether they keep the probabilities of each window.
    """

    def __init__(self, found: Generator[Prediction, None, None], classes: tuple[str, ...], over_time: bool = False):
        self._found, self.classes, self.over_time = found, classes, over_time
        self._is_begun = False

    def __next__(self) -> Prediction:
        self._is_begun = True
        return next(self._found)

    def close(self) -> None:
        """End the computation; leaving a loop early does so, too, once the iterator is no longer referenced."""
        self._found.close()

    def to_pandas(self) -> Any:
        """Compute the predictions and return them as a `pandas.DataFrame`.

        Columns: `file`, `seconds`, `label` (the most probable one), one per label of the model with its probability,
        `level_db`, `silent` (fraction of the windows that are; a silent file has no label), `error` (None, or why it
        could not be read: its numbers are NaN then). One row per file or sound; with `over_time` one per window, and
        `start` and `end` in seconds instead of `seconds`.

        Raises:
            UsageError: pandas is not installed; or predictions were taken already, which the table would lack.
        """
        pandas = require("pandas", "to_pandas()")
        if self._is_begun:
            raise UsageError(
                "predictions were taken from this iterator already, and the table would lack them: call to_pandas() "
                "first, on gafx.predict(...) itself"
            )
        rows = [row for found in self for row in found.rows(over_time=self.over_time)]
        names = columns(self.classes, self.over_time)
        numbers = {name: "float64" for name in names if name not in ("file", "label", "error", "note")}
        return pandas.DataFrame(rows, columns=names).astype(numbers)


def ranked(classes: tuple[str, ...], probabilities: Array, count: int | None = None) -> list[tuple[str, float]]:
    """The `count` most probable labels (default: all) and their probabilities, largest first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(classes[index], float(probabilities[index])) for index in order]


def predict(
    inputs: Inputs, model: "Source | Sequence[Source] | Ensemble | None" = None, *, sample_rate: float | None = None,
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
        model: a run's folder, a folder written by `GAFX.save`, a hub repository (`owner/name`), a loaded model, or a
            `.onnx` file of `gafx export`, which needs no PyTorch; of several models, an ensemble, the probabilities are
            averaged. Default: the published `audioset-crnn`, once it is in the cache.
        sample_rate: in Hz, of arrays and tensors; any, they are resampled to the model's.
        **options: of `predict_files`: `overlap`, `window_seconds`, `batch_size`, `over_time`, `device`, `precision`,
            `readers`, `views`, `silence`, `labels`, `threshold`, `progress`.

    Raises:
        UsageError: inputs of another form, no model there, one that predicts no labels, models of different labels, or
            an option out of range.
    """
    check_options(options, predict_files, "predict")
    sources = open_inputs(inputs, sample_rate)
    run = probabilities(default_model() if model is None else model)
    found, labels = predict_files(run, sources, **options), options.get("labels")
    return PredictionIterator(found, run.classes if labels is None else tuple(labels), options.get("over_time", False))


def probabilities(model: "Source | Sequence[Source] | Ensemble") -> Model:
    """Calibrated probabilities of a model, or of several, which are loaded where they are names; see `predict`.

    Raises:
        UsageError: as `predict`, one name is given twice, which would count that model twice, or an exported model is
            one of several.
    """
    given: list[Any] = list(model) if isinstance(model, (list, tuple)) else [model]
    if exported := [each for each in given if is_exported(each)]:
        found = exported[0] if isinstance(exported[0], ExportedModel) else ExportedModel(exported[0])
        if len(given) == 1:
            return found
        raise UsageError(
            f"the exported model {found.path} cannot be one of several whose probabilities are averaged: give the run "
            "that it was exported from"
        )
    from gafx.saving import hub

    named = [os.fspath(source) if isinstance(source, (str, os.PathLike)) else "" for source in given]
    same = [os.path.normpath(name) if name else str(id(source)) for name, source in zip(named, given, strict=True)]
    if twice := next((number for number, one in enumerate(same) if one in same[:number]), None):
        what = named[twice] or f"model {twice + 1}"
        raise UsageError(f"{what} is given twice, and would count twice in the average: give each model once")
    for name in filter(None, named):
        hub.check_exists(name)
    from gafx.inference import Ensemble, Probabilities
    from gafx.loading import load
    from gafx.model import GAFX

    if isinstance(model, (Probabilities, Ensemble)):
        return model
    if isinstance(model, (str, os.PathLike, GAFX)):
        return Probabilities(model if isinstance(model, GAFX) else load(model))
    sources: list[Any] = list(model)  # type: ignore[arg-type]
    if any(isinstance(source, Ensemble) for source in sources):
        raise UsageError("an ensemble cannot be a member of another: give the models of both in one list")
    members = [source if isinstance(source, Probabilities) else probabilities(source) for source in sources]
    if len(members) == 1:
        return members[0]
    return Ensemble(members, [name or f"model {number}" for number, name in enumerate(named, 1)])  # type: ignore[arg-type]


def predict_files(
    model: "Model", files: Iterable[AudioSource], *, overlap: float = OVERLAP,
    window_seconds: float | None = None, batch_size: int = 16, over_time: bool = False, device: str = "auto",
    precision: str = "fp32", readers: int = 1, views: int = 1, silence: float | None = SILENCE,
    labels: Labels | None = None, threshold: float | None = None,
    progress: Callable[[float], object] | None = None,
) -> Generator[Prediction, None, None]:  # fmt: skip
    """Label files; predictions come in the order of the files, each as soon as it is computed.

    The probabilities of a file are the mean over its windows (`gafx.deploy.windows.Layout`), whose logits are divided
    by the model's temperature. With `overlap=0` the windows are the segments that `gafx evaluate` tests.

    The probabilities of an `Ensemble` are the mean over its models. Models of the same windows (rate, channels, length)
    share one reading of the files; each other kind of windows reads and decodes them again, at the same time.

    Args:
        model: `Probabilities(gafx.load(...))` or an `Ensemble`, which is moved to the device and set to eval mode; or
            an `ExportedModel`, which is run on the CPU in fp32.
        files: paths, or sounds in memory; any number of any length.
        overlap: of consecutive windows, as a fraction of a window in [0, 1).
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        batch_size: windows per batch, of several files together.
        over_time: keep the probabilities of each window. The models of an ensemble need windows of one length, which
            are averaged by their time (with the nearest window where rates shift the starts by a fraction of a sample).
        device: `auto` (the GPU if there is one), `cpu`, `cuda`, `cuda:<index>` or `mps`.
        precision: `fp32`, as in exported models; `bf16`, `fp16`, or `auto` (the fastest on this device).
        readers: number of threads that read and resample, for each kind of windows.
        views: number of circular shifts of each window that are averaged (`gafx.audio.views`).
        silence: level in dBFS (`gafx.audio.level`) below which a window is silent: it does not count in the mean, and a
            file of such windows alone is `silent` and has no probabilities. None: every window counts.
        labels: labels of the model to choose from, or a mapping of names to a label or several labels that count as
            one. The probabilities are then fractions among them: of the file, the means over its windows divided by
            their sum; of a window, its own divided by their sum.
        threshold: where the model's probability of every label is below it, the label is `none of these`; in [0, 1].
        progress: called with the seconds of audio that each batch adds.

    Raises:
        UsageError: an option out of range, a label that the model does not have, or `over_time` of models whose windows
            differ in length; before the first prediction.
    """
    choice = choose(model, labels, threshold)
    check_silence(silence)
    passes = _passes(model, over_time, device, precision, views, overlap=overlap, window_seconds=window_seconds)
    if len(passes) > 1:
        progress = _shared(progress, len(passes))
    sources = _tee(files, len(passes))

    def labelled(each: _Pass, files: Iterable[AudioSource]) -> Generator[Prediction, None, None]:
        slots = threading.Semaphore(_MAX_FILES_AHEAD)
        computed = compute(
            each.run, files, each.layout, batch_size=batch_size, readers=readers, slots=slots, progress=progress
        )
        return _in_order(computed, model.classes, each.layout.sample_rate, over_time, slots, silence)

    found = [labelled(each, files) for each, files in zip(passes, sources, strict=True)]
    answers = found[0] if len(found) == 1 else _averaged(found, [each.models for each in passes])
    return answers if choice is None and threshold is None else _chosen(answers, choice, threshold)


def choose(model: "Model", labels: Labels | None, threshold: float | None) -> Choice | None:
    """The choice of labels that `predict_files` describes, None without one; the arguments are checked."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"threshold={threshold} must be a probability in [0, 1]")
    if labels is None:
        return None
    choice = Choice.of(model.classes, labels, exclusive=model.sums_to_one)
    if len(choice.names) == 1 and threshold is None:
        raise UsageError(
            f"{choice.names[0]!r} alone would have a fraction of 100 % in any audio: choose two labels or more, or "
            "give a threshold (--threshold 0.1) below which the label is 'none of these'"
        )
    return choice


def _chosen(
    answers: Generator[Prediction, None, None], choice: Choice | None, threshold: float | None
) -> Generator[Prediction, None, None]:
    with closing(answers):
        for found in answers:
            yield replace(choice.apply(found) if choice else found, threshold=threshold)


@dataclass(frozen=True)
class _Pass:
    """One reading of the files: the windows, the mean probabilities of the models that share them, their number."""

    layout: Layout
    run: Run
    models: int


def layout_of(model: "Probabilities | ExportedModel", **options: Any) -> Layout:
    """The windows of a model, see `gafx.deploy.windows.layout_for`."""
    return model.layout(**options) if isinstance(model, ExportedModel) else layout_for(model.model, **options)


def runner(model: "Probabilities | ExportedModel", device: str, precision: str, views: int = 1) -> Run:
    """Function that computes a model's probabilities of waves, on a device in a precision, averaged over views."""
    if isinstance(model, ExportedModel):
        return model.runner(device, precision, views)
    from gafx.nn.precision import pick_device

    run = on_device(average_views(model, views), device, precision)
    model.eval().to(pick_device(device))
    return run


def _passes(
    model: "Model", over_time: bool, device: str, precision: str, views: int, **options: Any
) -> list[_Pass]:  # fmt: skip
    """One reading of the files for a model; for an ensemble one for each group of models with the same windows."""
    if isinstance(model, ExportedModel):
        return [_Pass(layout_of(model, **options), runner(model, device, precision, views), 1)]
    from gafx.inference import Ensemble

    if not isinstance(model, Ensemble):
        return [_Pass(layout_of(model, **options), runner(model, device, precision, views), 1)]
    import torch

    from gafx.nn.precision import pick_device

    ensemble = model
    groups: dict[Layout, list[int]] = {}
    lengths: dict[float, str] = {}
    for index, (member, name) in enumerate(zip(ensemble.members, ensemble.names, strict=True)):
        groups.setdefault(layout_for(member.model, **options), []).append(index)
        lengths.setdefault(options["window_seconds"] or member.info.segment_seconds, name)
    if over_time and len(lengths) > 1:
        (first, one), (second, other), *_ = lengths.items()
        raise UsageError(
            f"the windows of {one} are {first:g} s long and those of {other} {second:g} s, so they cannot be averaged "
            f"over time (--over-time, --plot, over_time=True): give all models one length, e.g. --window {first:g} "
            f"(window_seconds={first:g})"
        )

    def mean_of(members: list[int]) -> Run:
        def mean(wave: "Tensor") -> "Tensor":
            return torch.stack([ensemble.member(index, wave).float() for index in members]).mean(dim=0)

        return on_device(average_views(mean, views), device, precision)

    passes = [_Pass(layout, mean_of(members), len(members)) for layout, members in groups.items()]
    ensemble.eval().to(pick_device(device))
    return passes


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
            # At another rate a window near the limit may be silent for one model alone; then the others count.
            heard = [number for number, each in enumerate(found) if not each.silent]
            values = None
            if heard:
                first = found[heard[0]]
                values = np.average([found[number].probabilities for number in heard], axis=0, weights=weights[heard])
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
    slots: threading.Semaphore, silence: float | None,
) -> Generator[Prediction, None, None]:  # fmt: skip
    in_progress: dict[int, _File] = {}
    waiting: dict[int, Prediction] = {}
    turn = 0
    for found in computed:
        if isinstance(found, Computed):
            in_progress.setdefault(found.file, _File(np.zeros(len(classes)))).add(found, over_time, silence)
            continue
        waiting[found.file] = _prediction(in_progress.pop(found.file, None), found, classes, sample_rate)
        while turn in waiting:
            yield waiting.pop(turn)
            slots.release()
            turn += 1


@dataclass
class _File:
    """Sum of the probabilities of a file's windows that are not silent, and all windows if they are kept."""

    total: Array
    count: int = 0
    silent: int = 0
    level: float = -math.inf
    spans: list[tuple[int, int]] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)

    def add(self, window: Computed, keep: bool, silence: float | None) -> None:
        values = window.values.astype(np.float64)
        is_silent = silence is not None and window.level < silence
        self.count += 1
        self.silent += is_silent
        self.level = max(self.level, window.level)
        if not is_silent:
            self.total += values
        if keep:
            self.spans.append((window.start, window.start + window.samples))
            self.values.append(values)
            self.levels.append(window.level)
            self.flags.append(is_silent)


def _prediction(file: _File | None, end: FileDone, classes: tuple[str, ...], sample_rate: int) -> Prediction:
    if end.error is not None or file is None:
        return Prediction(end.name, classes, error=end.error or "has no windows")
    if not np.isfinite(file.total).all():
        return Prediction(end.name, classes, error="the model's output for it is not finite: try precision=fp32")
    seconds, heard = end.samples / sample_rate, file.count - file.silent
    windows = np.minimum(np.array(file.spans) / sample_rate, seconds) if file.spans else None
    return Prediction(
        end.name, classes, seconds, file.total / heard if heard else None, windows,
        np.stack(file.values) if file.values else None, level=file.level, window_count=file.count,
        silent_windows=file.silent, window_levels=np.array(file.levels) if file.levels else None,
        window_silent=np.array(file.flags) if file.flags else None, note=end.note,
    )  # fmt: skip
