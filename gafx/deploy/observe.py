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
from gafx.model import GAFX, create_frontend

Array = npt.NDArray[Any]


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


@torch.inference_mode()
def observe(
    model: GAFX, file: AudioFile, *, any_format: bool = True, columns: int = 1200,
    progress: Callable[[float], object] | None = None,
) -> Observed:  # fmt: skip
    """Read a file once more for its figure.

    Map and mel spectrogram are computed for segments of the length that the model was built for, the last one at its
    own length, and averaged into columns. If the last segment is too short for the model, the map ends before it.

    Args:
        model: from `gafx.load`, on any device.
        file: as for `predict_files`.
        any_format: accept everything that can be decoded, not only the formats of data sets.
        columns: maximum for each strip; even.
        progress: called with the seconds of audio that each segment adds.

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
    rate, device = front_end.sample_rate, next(model.parameters()).device
    mel = create_frontend("mel", sample_rate=rate).to(device).eval()
    low, high = _Columns(np.minimum, columns), _Columns(np.maximum, columns)
    maps, mels = _Columns(np.add, columns), _Columns(np.add, columns)
    shape: tuple[int, ...] = ()
    map_step = mel_step = 0.0
    length, least = 0, model.min_samples()
    was_training = model.training
    model.eval()
    try:
        blocks = stream(file, sample_rate=rate, channels=front_end.channels, any_format=any_format)
        for segment in _segments(blocks, round(model.info.segment_seconds * rate)):
            samples = segment.shape[1]
            length += samples
            low.add(segment.min(axis=0, keepdims=True))
            high.add(segment.max(axis=0, keepdims=True))
            wave = torch.from_numpy(segment)[None].to(device)
            bands = mel(wave.mean(dim=1, keepdim=True))[0, 0].float().cpu().numpy()
            mel_step = mel_step or samples / bands.shape[1] / rate
            mels.add(bands)
            if samples >= least:
                own = front_end.planes_to_channels(model.features(wave)[0].float().cpu().numpy())
                map_step = map_step or samples / own.shape[2] / rate
                shape = own.shape[:2]
                maps.add(own.reshape(-1, own.shape[2]))
            if progress is not None:
                progress(samples / rate)
    finally:
        model.train(was_training)
    if not shape:
        raise UnreadableAudio(f"is too short: {length / rate:.3f} s, and the model needs {least / rate:.3f} s")
    return Observed(
        seconds=length / rate,
        envelope=Strip(np.concatenate([low.values(), high.values()]), low.width / rate),
        map=Strip(maps.values().reshape(*shape, -1), maps.width * map_step),
        mel=Strip(mels.values(), mels.width * mel_step),
        map_name=str((front_end.built or {}).get("name", type(front_end).__name__)),
        mel_edges=(20.0, rate / 2),
    )


def _segments(blocks: Iterable[Array], length: int) -> Iterator[Array]:
    """Divide a stream of `(channels, any)` blocks into `(channels, length)`; the last may be shorter."""
    held = np.zeros((0, 0), np.float32)
    for block in blocks:
        held = np.concatenate([held, block], axis=1) if held.size else block
        while held.shape[1] >= length:
            yield np.ascontiguousarray(held[:, :length])
            held = held[:, length:]
    if held.size:
        yield np.ascontiguousarray(held)
