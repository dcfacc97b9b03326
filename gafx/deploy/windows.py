"""Windows of files of any length: cut from streams, computed in batches, while the next files are read."""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gafx.audio.read import AudioFile, Samples, fit_length, stream
from gafx.data.segments import keeps_remainder
from gafx.deploy.threads import Background, ahead
from gafx.errors import UnreadableAudio, UsageError
from gafx.model import GAFX
from gafx.nn.precision import autocast, pick_device, resolve_precision

# Files that may be done before one that was begun earlier: what they say waits for its turn.
_AHEAD = 256
# Files behind which a window of an uncommon length waits for others of its length; less than `_AHEAD`, or both wait.
_PATIENCE = 64
_LEAST_BLOCK_SECONDS = 5.0
_LONGEST_WINDOW = 3600.0
# Bytes of samples that a batch may hold, and those that wait for one: 16 windows of 30 s in stereo are an eighth.
_MOST_BYTES = 2**28


@dataclass(frozen=True)
class Layout:
    """How files are cut into windows, in samples at the model's rate.

    The last window is moved back to end with the file; a remainder under a tenth of a window is left out. A file that
    is shorter than a window is one window of its own length, nothing is padded; only one that is shorter than `least`,
    of which the model can make no map, is repeated until it is that long. Without overlap these are the segments that
    evaluate.py tests, but that it moves a segment's begin to the source's own samples, by some milliseconds at most.
    """

    sample_rate: int
    channels: int
    window: int
    hop: int
    least: int

    @classmethod
    def of(cls, sample_rate: int, channels: int, window_seconds: float, *, overlap: float, least: int) -> "Layout":
        """Windows of so many seconds, each beginning in the last `overlap` of the one before.

        Raises:
            UsageError: an overlap outside [0, 1), or a window that is shorter than `least` samples or over an hour.
        """
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap={overlap} must be a share of a window in [0, 1), e.g. 0.5")
        if not 0 < window_seconds <= _LONGEST_WINDOW or round(window_seconds * sample_rate) < least:
            raise UsageError(
                f"a window of {window_seconds:g} s cannot be read here: choose {least / sample_rate:.3g} to "
                f"{_LONGEST_WINDOW:g} s"
            )
        window = round(window_seconds * sample_rate)
        return cls(sample_rate, channels, window, max(1, round(window * (1 - overlap))), least)

    def cut(self, blocks: Iterable[Samples]) -> Iterator[tuple[int, Samples]]:
        """First sample and samples `(channels, window)` of each window of a stream; keeps no more than two windows."""
        held, base, start, total = np.zeros((self.channels, 0), np.float32), 0, 0, 0
        for block in blocks:
            total += block.shape[1]
            held = np.concatenate([held, block], axis=1)
            while start + self.window <= total:
                # From the last window on everything is kept: the file's last one may begin right behind its start.
                held, base = held[:, start - base :], start
                yield start, held[:, : self.window].copy()
                start += self.hop
        if total < self.window:
            yield 0, np.ascontiguousarray(fit_length(held, max(total, self.least)))
            return
        rest = total - (base + self.window)
        if keeps_remainder(rest, self.window):
            yield total - self.window, held[:, -self.window :].copy()


def layout_for(model: GAFX, *, overlap: float = 0.0, window_seconds: float | None = None) -> Layout:
    """The windows for a model: of the length that it was built for, or of `window_seconds`.

    Raises:
        UsageError: an overlap outside [0, 1), or a window that the model cannot read.
    """
    if window_seconds is None:
        if model.info is None:
            raise UsageError("nothing says how long this model's clips are: pass window_seconds")
        window_seconds = model.info.segment_seconds
    front_end = model.frontend
    return Layout.of(
        front_end.sample_rate, front_end.channels, window_seconds, overlap=overlap, least=model.min_samples()
    )


@dataclass(frozen=True)
class Computed:
    """What was computed of one window: the number of its file, its first sample and length, and the values."""

    file: int
    start: int
    samples: int
    values: Tensor


@dataclass(frozen=True)
class Finished:
    """All of a file was computed, or what it holds cannot be read: `error` says why."""

    file: int
    samples: int
    error: str | None = None


@dataclass(frozen=True)
class _Window:
    file: int
    start: int
    wave: Samples
    fresh: int  # samples that no earlier window held


def compute(
    run: Callable[[Tensor], Tensor],
    files: Iterable[AudioFile],
    layout: Layout,
    *,
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "fp32",
    readers: int = 1,
    emitted: threading.Semaphore | None = None,
    progress: Callable[[float], object] | None = None,
) -> Generator[Computed | Finished, None, None]:
    """Compute every window of every file, in a thread, while others read and resample and the caller uses the values.

    Windows of equal length share a batch, whatever file they are of. Those of one file come in their order, files are
    interleaved, and `Finished` comes last of a file. With one reader the batches, and with them the last bits of every
    value, are the same each time.

    Args:
        run: waves `(batch, channels, samples)` on the device to one value a wave, of any shape.
        files: paths; taken one by one as they are needed.
        layout: of the windows.
        batch_size: windows computed at once; fewer where they are so long that a batch would hold over 256 MB.
        device, precision: where and how to compute.
        readers: threads; one keeps two cores busy, a GPU wants more.
        emitted: what is acquired for each file that is begun and released by whoever has answered it, so that no more
            than so many answers ever wait.
        progress: called, in that thread, with the seconds of sound that each batch adds.

    Raises:
        UsageError: arguments out of range.
    """
    for name, value in (("batch_size", batch_size), ("readers", readers)):
        if value < 1:
            raise UsageError(f"{name}={value} must be at least 1")
    batch_size = max(1, min(batch_size, _MOST_BYTES // (4 * layout.channels * layout.window)))
    return ahead(
        _compute(run, files, layout, batch_size, pick_device(device), precision, readers, emitted, progress),
        2 * batch_size,
    )


def _compute(
    run: Callable[[Tensor], Tensor],
    files: Iterable[AudioFile],
    layout: Layout,
    batch_size: int,
    device: torch.device,
    precision: str,
    readers: int,
    emitted: threading.Semaphore | None,
    progress: Callable[[float], object] | None,
) -> Generator[Computed | Finished, None, None]:
    arithmetic = resolve_precision(precision, device)
    numbered, lock = enumerate(files), threading.Lock()
    sources = [_windows_of(numbered, lock, layout, emitted) for _ in range(readers)]

    def wake() -> None:
        if emitted is not None:
            emitted.release(readers)

    with Background(sources, 2 * batch_size, wake) as found:
        pending: dict[int, list[_Window]] = {}
        open_windows: dict[int, int] = {}
        read: dict[int, Finished] = {}

        def flush(length: int) -> Iterator[Computed | Finished]:
            windows = pending.pop(length)
            wave = torch.from_numpy(np.stack([window.wave for window in windows]))
            with torch.inference_mode(), autocast(arithmetic, device):
                values = run(wave.to(device, non_blocking=True)).float().cpu()
            for window, value in zip(windows, values, strict=True):
                yield Computed(window.file, window.start, length, value)
                open_windows[window.file] -= 1
                if not open_windows[window.file] and window.file in read:
                    del open_windows[window.file]
                    yield read.pop(window.file)
            if progress is not None:
                progress(sum(window.fresh for window in windows) / layout.sample_rate)

        for item in found:
            for length in [length for length, held in pending.items() if held[0].file < item.file - _PATIENCE]:
                yield from flush(length)
            if isinstance(item, Finished):
                if open_windows.get(item.file):
                    read[item.file] = item
                else:
                    open_windows.pop(item.file, None)
                    yield item
                continue
            length = item.wave.shape[1]
            pending.setdefault(length, []).append(item)
            open_windows[item.file] = open_windows.get(item.file, 0) + 1
            if len(pending[length]) == batch_size:
                yield from flush(length)
            elif sum(map(len, pending.values())) >= 4 * batch_size:  # many lengths: the longest wait ends first
                yield from flush(next(iter(pending)))
        while pending:
            yield from flush(next(iter(pending)))


def _windows_of(
    files: Iterator[tuple[int, AudioFile]], lock: threading.Lock, layout: Layout, emitted: threading.Semaphore | None
) -> Generator[_Window | Finished, None, None]:
    """Windows of one file after another; several threads may take theirs from the same iterator of numbered files."""
    while True:
        if emitted is not None:
            emitted.acquire()
        with lock:
            number, path = next(files, (-1, ""))
        if number < 0:
            return
        yield from _windows_of_file(number, path, layout)


def _windows_of_file(number: int, path: AudioFile, layout: Layout) -> Generator[_Window | Finished, None, None]:
    total = told = 0

    def counted() -> Iterator[Samples]:
        nonlocal total
        blocks = stream(
            path, sample_rate=layout.sample_rate, channels=layout.channels, any_format=True,
            block_seconds=max(_LEAST_BLOCK_SECONDS, layout.hop / layout.sample_rate),
        )  # fmt: skip
        for block in blocks:
            total += block.shape[1]
            yield block

    try:
        for start, wave in layout.cut(counted()):
            end = min(start + wave.shape[1], total)
            yield _Window(number, start, wave, max(0, end - told))
            told = max(told, end)
    except UnreadableAudio as error:
        folder = isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path)
        yield Finished(number, total, "is a folder without audio files" if folder else str(error))
    else:
        yield Finished(number, total)


def file_slots() -> threading.Semaphore:
    """How many files may be begun before the first of them is answered, for `compute`'s `emitted`."""
    return threading.Semaphore(_AHEAD)
