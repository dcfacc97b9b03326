"""Windows of files of any length: cut from streams and computed in batches while the next files are read."""

import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gafx.audio.decode import blocks, mix_channels
from gafx.audio.level import SILENCE, level
from gafx.audio.read import AudioSource, Samples, fit_length, stream
from gafx.audio.segments import keeps_remainder
from gafx.deploy.threads import ahead, background, stoppable
from gafx.errors import UnreadableAudio, UsageError
from gafx.report.format import decibels

if TYPE_CHECKING:
    from torch import Tensor

    from gafx.model import GAFX

Array = npt.NDArray[Any]
Run = Callable[[Array], Array]

# A window of an uncommon length waits for others of its length until this many later files have been read.
_PATIENCE = 64
_MIN_BLOCK_SECONDS = 5.0
_MAX_WINDOW_SECONDS = 3600.0
# Bytes of samples in a batch, and of those that wait for one: 16 windows of 30 s in stereo are an eighth.
_MAX_BATCH_BYTES = 2**28


@dataclass(frozen=True)
class Layout:
    """Division of files into windows, in samples at the model's rate.

    The last window is moved back to end with the file; a remainder under a tenth of a window is dropped. A file shorter
    than a window is one window of the file's length, without padding; one shorter than `least`, too short for a map, is
    repeated up to that length. Without overlap these are the segments that `gafx evaluate` tests, except that it snaps
    the start of a segment to a sample of the source, a few milliseconds away at most.

    Attributes:
        sample_rate: in Hz.
        channels: of the waves.
        window: length of a window.
        hop: distance of the starts of two windows.
        least: shortest length that the model accepts.
    """

    sample_rate: int
    channels: int
    window: int
    hop: int
    least: int

    @classmethod
    def of(
        cls, sample_rate: int, channels: int, window_seconds: float, *, overlap: float, least: int,
        most: int | None = None,
    ) -> "Layout":  # fmt: skip
        """Windows of `window_seconds`, of which consecutive ones overlap by the fraction `overlap`.

        Raises:
            UsageError: an overlap outside [0, 1), or a window shorter than `least` samples, or longer than `most` or an
                hour.
        """
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap={overlap} must be a fraction of a window in [0, 1), e.g. 0.5")
        longest = _MAX_WINDOW_SECONDS if most is None else most / sample_rate
        allowed = range(least, round(longest * sample_rate) + 1)
        if not 0 < window_seconds <= _MAX_WINDOW_SECONDS or round(window_seconds * sample_rate) not in allowed:
            shortest = f"{least / sample_rate:.3g} to " if least != most else ""
            raise UsageError(f"a window of {window_seconds:g} s is out of range: choose {shortest}{longest:g} s")
        window = round(window_seconds * sample_rate)
        return cls(sample_rate, channels, window, max(1, round(window * (1 - overlap))), least)

    def cut(self, blocks: Iterable[Samples]) -> Iterator[tuple[int, Samples]]:
        """Cut a stream of `(channels, any)` blocks into windows; at most two windows are held in memory.

        A window is given as soon as the block with its last sample has come; only the last one waits for the end.

        Yields:
            first sample and samples `(channels, window)` of each window.
        """
        held, base, start, total = np.zeros((self.channels, 0), np.float32), 0, 0, 0
        for block in blocks:
            total += block.shape[1]
            held = np.concatenate([held, block], axis=1)
            while start + self.window <= total:
                # Everything from the latest window on is kept: the last one may start right after its start.
                held, base = held[:, start - base :], start
                yield start, held[:, : self.window].copy()
                start += self.hop
        if total < self.window:
            yield 0, np.ascontiguousarray(fit_length(held, max(total, self.least)))
            return
        rest = total - (base + self.window)
        if keeps_remainder(rest, self.window):
            yield total - self.window, held[:, -self.window :].copy()


def layout_for(model: "GAFX", *, overlap: float = 0.0, window_seconds: float | None = None) -> Layout:
    """The windows of a model: of the length that it was built for, or of `window_seconds`.

    Raises:
        UsageError: an overlap outside [0, 1), or a window that is too short for the model.
    """
    if window_seconds is None:
        if model.info is None:
            raise UsageError("the length of this model's clips is unknown (model.info is None): pass window_seconds")
        window_seconds = model.info.segment_seconds
    front_end = model.frontend
    return Layout.of(
        front_end.sample_rate, front_end.channels, window_seconds, overlap=overlap, least=model.min_samples()
    )


def on_device(run: "Callable[[Tensor], Tensor]", device: str, precision: str) -> Run:
    """Wrap `run` of PyTorch to take waves and give float32 values as arrays, for inference.

    Args:
        run: `(batch, channels, samples)` waves on the device -> `(batch, ...)` values.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        precision: `fp32`, `bf16`, `fp16` or `auto`.

    Raises:
        UsageError: a device or precision that is not available.
    """
    import torch
    from torch import Tensor

    from gafx.nn.cpu import by_clips
    from gafx.nn.precision import autocast, pick_device, resolve_precision

    target = pick_device(device)
    arithmetic = resolve_precision(precision, target)

    def run_part(wave: Tensor) -> Array:
        with torch.inference_mode(), autocast(arithmetic, target):
            values: Array = run(wave.to(target, non_blocking=True)).float().cpu().numpy()
        return values

    def run_batch(wave: Array) -> Array:
        samples = torch.from_numpy(wave)
        return np.concatenate(by_clips(stoppable(run_part), samples)) if target.type == "cpu" else run_part(samples)

    return run_batch


@dataclass(frozen=True)
class Computed:
    """Output for one window.

    Attributes:
        file: position of its file among the files.
        name: of the file.
        start: first sample of the window at the model's rate.
        samples: length of the window.
        values: output for the window.
        level: of the window's wave in dBFS, see `gafx.audio.level`.
    """

    file: int
    name: str
    start: int
    samples: int
    values: Array
    level: float = math.nan


@dataclass(frozen=True)
class FileDone:
    """Sentinel after a file's last window. `samples` is the length that was read.

    `error` is set if decoding failed, `note` if what was read is doubtful: the file is damaged, incomplete or joined,
    or silent because its channels cancel out.
    """

    file: int
    name: str
    samples: int
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Window:
    file: int
    name: str
    start: int
    wave: Samples
    new_seconds: float  # of audio that no earlier window of the file covers
    level: float


def compute(
    run: Run, files: Iterable[AudioSource], layout: Layout, *, batch_size: int = 16, readers: int = 1,
    slots: threading.Semaphore | None = None, progress: Callable[[float], object] | None = None,
) -> Generator[Computed | FileDone, None, None]:  # fmt: skip
    """Compute all windows of all files in a thread, while others read and resample and the caller uses the values.

    Windows of equal length are batched together, from whichever file. The windows of a file come in order, files are
    interleaved, and a file's `FileDone` comes last. With one reader the batches, and so the last bits of all values,
    are the same in every run.

    Args:
        run: `(batch, channels, samples)` waves -> `(batch, ...)` values; `on_device` makes it of a PyTorch model.
        files: paths, or sounds in memory; each is taken when a reader is ready for it.
        layout: of the windows.
        batch_size: windows per batch; fewer where a batch of such long windows would exceed 256 MB.
        readers: number of reader threads; one keeps two cores busy, a GPU needs more.
        slots: acquired for each file before it is read; the caller releases it once it is done with the file, which
            bounds the number of files in progress.
        progress: called, in the computing thread, with the seconds of audio that each batch adds.

    Raises:
        UsageError: an argument out of range.
        Exception: of the iterator `files`, after the windows of the files that it gave before.
    """
    for name, value in (("batch_size", batch_size), ("readers", readers)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    batch_size = max(1, min(batch_size, _MAX_BATCH_BYTES // (4 * layout.channels * layout.window)))
    failures: list[Exception] = []
    numbered, lock = _numbered(files, failures), threading.Lock()
    free = slots or threading.Semaphore(sys.maxsize)

    sources = [_read(numbered, lock, layout, free) for _ in range(readers)]
    computed = _compute(run, sources, lambda: free.release(readers), batch_size, progress)
    return ahead(_then_raise(computed, failures), 2 * batch_size)


def _numbered(files: Iterable[AudioSource], failures: list[Exception]) -> Iterator[tuple[int, AudioSource]]:
    """Files with their positions, up to the one that cannot be taken from an iterator, whose error is kept."""
    try:
        yield from enumerate(files)
    except Exception as error:
        failures.append(error)


def _then_raise(
    computed: Generator[Computed | FileDone, None, None], failures: Sequence[Exception]
) -> Generator[Computed | FileDone, None, None]:
    """The windows of all files that were taken, and then the error that ended their iterator."""
    yield from computed
    if failures:
        raise failures[0]


def _compute(
    run: Run, sources: Sequence[Generator[_Window | FileDone, None, None]],
    wake: Callable[[], object], batch_size: int, progress: Callable[[float], object] | None,
) -> Generator[Computed | FileDone, None, None]:  # fmt: skip
    waiting: dict[int, list[_Window]] = {}  # by length
    left: Counter[int] = Counter()  # windows of each file that were read and are not computed
    ends: dict[int, FileDone] = {}

    def flush(length: int) -> Iterator[Computed | FileDone]:
        windows = waiting.pop(length)
        values = run(np.stack([window.wave for window in windows]))
        for window, value in zip(windows, values, strict=True):
            yield Computed(window.file, window.name, window.start, length, value, window.level)
            left[window.file] -= 1
            yield from finish(window.file)
        if progress is not None:
            progress(sum(window.new_seconds for window in windows))

    def finish(file: int) -> Iterator[FileDone]:
        if file in ends and not left[file]:
            del left[file]
            yield ends.pop(file)

    with background(sources, 2 * batch_size, wake) as found:
        for item in found:
            for length in [length for length, held in waiting.items() if held[0].file < item.file - _PATIENCE]:
                yield from flush(length)
            if isinstance(item, FileDone):
                ends[item.file] = item
                yield from finish(item.file)
                continue
            length = item.wave.shape[1]
            waiting.setdefault(length, []).append(item)
            left[item.file] += 1
            if len(waiting[length]) == batch_size:
                yield from flush(length)
            elif sum(map(len, waiting.values())) >= 4 * batch_size:  # many lengths: the longest wait ends first
                yield from flush(next(iter(waiting)))
        while waiting:
            yield from flush(next(iter(waiting)))


def _read(
    files: Iterator[tuple[int, AudioSource]], lock: threading.Lock, layout: Layout, slots: threading.Semaphore
) -> Generator[_Window | FileDone, None, None]:
    """Windows of one file after another; several threads take files from one iterator."""
    while True:
        slots.acquire()
        with lock:
            number, file = next(files, (-1, ""))
        if number < 0:
            return
        is_path = isinstance(file, (str, bytes, os.PathLike))
        name = os.fsdecode(file) if is_path else getattr(file, "name", "") or f"file {number}"  # type: ignore[arg-type]
        total = covered = 0
        notes: list[str] = []

        def counted(file: AudioSource = file, notes: list[str] = notes) -> Iterator[Samples]:
            nonlocal total
            seconds = max(_MIN_BLOCK_SECONDS, layout.hop / layout.sample_rate)
            for block in stream(
                file, sample_rate=layout.sample_rate, channels=layout.channels, any_format=True, block_seconds=seconds,
                note=notes.append,
            ):  # fmt: skip
                total += block.shape[1]
                yield block

        error = None
        loudest = -math.inf
        try:
            for start, wave in layout.cut(counted()):
                end = min(start + wave.shape[1], total)
                seconds = max(0, end - covered) / layout.sample_rate
                loudness = level(wave, layout.sample_rate)
                yield _Window(number, name, start, wave, seconds, loudness)
                covered, loudest = max(covered, end), max(loudest, loudness)
            if loudest < SILENCE and (cancelled := _level_cancelled(file)) is not None:
                notes.append(f"its channels cancel out where they are mixed ({decibels(cancelled)} before)")
        except UnreadableAudio as reason:
            error = _why_no_audio(name) if is_path and os.path.isdir(name) else str(reason)
        yield FileDone(number, name, total, error, "; ".join(notes) or None)


def _level_cancelled(file: AudioSource) -> float | None:
    """Level in dBFS of the loudest channel of a file whose channels are silent when they are mixed and not apart."""
    apart = mixed = -math.inf
    for rate, samples in blocks(file, None, _MIN_BLOCK_SECONDS, any_format=True, note=str):
        if samples.shape[1] == 1:
            return None
        apart = max(apart, level(samples.T, rate))
        mixed = max(mixed, level(mix_channels(samples, 1).T, rate))
    return apart if mixed < SILENCE <= apart else None


def _why_no_audio(folder: str) -> str:
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"is a folder that cannot be opened ({error.strerror})"
    return "is a folder without audio files"
