"""Envelope, front-end map and mel spectrogram of a file, reduced while they are computed, for a figure.

The file is read once more, in blocks, and only the columns of the figure are kept: ten hours take no more memory than
ten minutes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gafx.audio.read import AudioFile, stream
from gafx.errors import UnreadableAudio, UsageError
from gafx.frontends.base import FrontEnd
from gafx.model import GAFX, create_frontend
from gafx.nn.precision import device_of

Array = npt.NDArray[Any]

_HOP = 0.75  # distance of the starts of two windows, as a fraction of a window


@dataclass(frozen=True)
class Strip:
    """A quantity over time, in columns of equal duration from the beginning of the file.

    Attributes:
        values: `(..., columns)`.
        step: seconds per column; the last one may extend beyond the end of the file.
    """

    values: Array
    step: float


@dataclass(frozen=True)
class Observed:
    """A file's waveform and the front-end's output for it, small enough to be drawn.

    Attributes:
        seconds: length of the file.
        envelope: `(2, columns)` minimum and maximum over all channels.
        map: `(parts, frequency, columns)` mean of the model's map; parts are channels, and planes that are concatenated
            in time.
        mel: `(bands, columns)` mean of the log-mel spectrogram.
        map_name: name of the front-end.
        mel_edges: lowest and highest frequency of the mel bands, in Hz.
    """

    seconds: float
    envelope: Strip
    map: Strip
    mel: Strip
    map_name: str
    mel_edges: tuple[float, float]


def _no_note(note: str) -> None:
    """A prediction has a note on what is doubtful about its file."""


class _Columns:
    """Reduction of a stream of values to at most `most` columns: when all are used, pairs are merged into one.

    Args:
        reduce: `np.minimum`, `np.maximum` or `np.add`.
        most: number of columns, even.
    """

    def __init__(self, reduce: np.ufunc, most: int):
        self.reduce, self.most, self.width = reduce, most, 1
        self.used, self.filled = 0, 0  # columns in use; values in the last of them
        self.cells = np.zeros((0, most))

    def add(self, values: Array) -> None:
        """Take `(rows, n)` more values."""
        rows, count = values.shape
        if not self.used:
            self.cells = np.zeros((rows, self.most))
        at = 0
        while at < count:
            if self.used == 0 or self.filled == self.width:
                if self.used == self.most:
                    self.used, self.width = self.most // 2, 2 * self.width
                    self.cells[:, : self.used] = self.reduce(self.cells[:, ::2], self.cells[:, 1::2])
                self.used, self.filled = self.used + 1, 0
            taken = values[:, at : at + self.width - self.filled]
            part = self.reduce.reduce(taken, axis=1, dtype=np.float64)
            last = self.cells[:, self.used - 1]
            last[:] = self.reduce(last, part) if self.filled else part
            self.filled += taken.shape[1]
            at += taken.shape[1]

    def values(self) -> Array:
        """float32 `(rows, columns)` in use; for `np.add` the means, the last over the values that it has."""
        counts = np.ones(self.used)
        if self.reduce is np.add:
            counts[:] = self.width
            counts[-1:] = self.filled
        return (self.cells[:, : self.used] / counts).astype(np.float32)


class _Joined:
    """Maps of overlapping windows as one map.

    At its borders a window lacks context, more so at its beginning (PCEN's average starts there), and a map that is
    normalised per clip has another scale in each window. So of the frames that two windows share the first half is the
    earlier window's, the last quarter the later one's, and they are crossfaded in between.

    Args:
        columns: for the frames.
        step: samples per frame.
    """

    def __init__(self, columns: _Columns, step: float):
        self.columns, self.step = columns, step
        self.tail: Array | None = None  # frames from the start of the next window on

    def add(self, values: Array, start: int, following: int | None) -> None:
        """Take the map `(rows, frames)` of a window; `following` is the first sample of the next one, if there is one.

        Windows come in order and begin at sample `start`; the next one begins before this one ends.
        """
        if self.tail is not None:
            shared = min(self.tail.shape[1], values.shape[1])
            weight = np.clip(4 * (np.arange(shared) + 0.5) / shared - 2, 0, 1)
            values = values.copy()
            values[:, :shared] = weight * values[:, :shared] + (1 - weight) * self.tail[:, :shared]
        kept = values.shape[1] if following is None else round(following / self.step) - round(start / self.step)
        self.columns.add(values[:, :kept])
        self.tail = values[:, kept:]


@torch.inference_mode()
def observe(
    model: GAFX, file: AudioFile, *, any_format: bool = True, columns: int = 1200,
    progress: Callable[[float], object] | None = None,
) -> Observed:  # fmt: skip
    """Read a file once more for its figure.

    Map and mel spectrogram are computed for windows of the length that the model was built for, which overlap by a
    quarter and are crossfaded there, and averaged into columns. The last window is up to twice as long.

    Args:
        model: from `gafx.load`, on any device.
        file: as for `predict_files`.
        any_format: accept everything that can be decoded, not only the formats of data sets.
        columns: maximum for each strip; even.
        progress: called with the seconds of audio that each window adds.

    Raises:
        UnreadableAudio: the file cannot be decoded, or is too short for the model.
        UsageError: the length of the model's clips is unknown, or `columns` is odd or below 2.
    """
    if model.info is None:
        raise UsageError(
            "the length of this model's clips is unknown (model.info is None): load it with gafx.load, or build it by "
            "name with gafx.create_model(..., segment_seconds=10.0)"
        )
    if columns < 2 or columns % 2:
        raise UsageError(f"columns={columns} must be an even number, at least 2")
    front_end = model.frontend
    rate, device = front_end.sample_rate, device_of(model)
    mel = create_frontend("mel", sample_rate=rate).to(device).eval()
    low, high = _Columns(np.minimum, columns), _Columns(np.maximum, columns)
    window = round(model.info.segment_seconds * rate)
    map_step = _samples_per_frame(front_end, window)
    maps = _Joined(_Columns(np.add, columns), map_step)
    mels = _Joined(_Columns(np.add, columns), _samples_per_frame(mel, window))
    hop = max(1, round(round(_HOP * window / map_step) * map_step))
    shape: tuple[int, ...] = ()
    length, least = 0, model.min_samples()

    def read() -> Iterator[Array]:
        for block in stream(file, sample_rate=rate, channels=front_end.channels, any_format=any_format, note=_no_note):
            low.add(block.min(axis=0, keepdims=True))
            high.add(block.max(axis=0, keepdims=True))
            yield block

    was_training = model.training
    model.eval()
    try:
        for start, samples, following in _windows(read(), window, hop):
            wave = torch.from_numpy(samples)[None].to(device)
            mels.add(mel(wave.mean(dim=1, keepdim=True))[0, 0].float().cpu().numpy(), start, following)
            end = start + samples.shape[1]
            if samples.shape[1] >= least:
                own = front_end.planes_to_channels(model.features(wave)[0].float().cpu().numpy())
                shape = own.shape[:2]
                maps.add(own.reshape(-1, own.shape[2]), start, following)
            if progress is not None:
                progress((end - length) / rate)
            length = end
    finally:
        model.train(was_training)
    if not shape:
        raise UnreadableAudio(f"is too short: {length / rate:.3f} s, and the model needs {least / rate:.3f} s")
    return Observed(
        seconds=length / rate,
        envelope=Strip(np.concatenate([low.values(), high.values()]), low.width / rate),
        map=Strip(maps.columns.values().reshape(*shape, -1), maps.columns.width * maps.step / rate),
        mel=Strip(mels.columns.values(), mels.columns.width * mels.step / rate),
        map_name=str((front_end.built or {}).get("name", type(front_end).__name__)),
        mel_edges=(20.0, rate / 2),
    )


def _samples_per_frame(front_end: FrontEnd, window: int) -> float:
    """Distance of frames, from the lengths of two maps, since a map may have frames beyond the ends of its wave."""
    longer, shorter = (front_end.output_shape(samples)[2] for samples in (2 * window, window))
    return window * front_end.planes / (longer - shorter) if longer > shorter else float(window)


def _windows(blocks: Iterable[Array], window: int, hop: int) -> Iterator[tuple[int, Array, int | None]]:
    """Divide a stream of `(channels, any)` blocks into windows that overlap; the last takes the rest.

    Yields:
        first sample, samples `(channels, window)`, and the first sample of the next window (None for the last one,
        which is shorter only if it is the first, and has less than `window + hop` samples).
    """
    held, start = np.zeros((0, 0), np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block], axis=1) if held.size else block
        while held.shape[1] >= window + hop:
            yield start, np.ascontiguousarray(held[:, :window]), start + hop
            held, start = held[:, hop:], start + hop
    if held.size:
        yield start, np.ascontiguousarray(held), None
