"""What a picture shows of a file: envelope, the model's map and the mel spectrogram, reduced as they are computed.

The file is read a second time, in blocks, and only what fits into the picture's columns is kept: ten hours take no more
memory than ten minutes.
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
    """Something that goes on through a file, in columns of equal length from its begin on.

    Attributes:
        values: `(..., columns)`.
        step: seconds a column; the last may reach beyond the file's end.
    """

    values: Array
    step: float


@dataclass(frozen=True)
class Observed:
    """What a model is given of a file and what its front-end makes of it, small enough to be drawn.

    Attributes:
        seconds: the file's length.
        envelope: `(2, columns)` least and largest sample of all channels.
        map: `(parts, frequency, columns)` mean of the model's own map; channels, and planes that lie one after another
            in the map, are parts.
        mel: `(bands, columns)` mean of the log-mel spectrogram of the same file.
        map_name: the front-end's name.
        mel_edges: lowest and highest frequency of the mel bands, in Hz.
    """

    seconds: float
    envelope: Strip
    map: Strip
    mel: Strip
    map_name: str
    mel_edges: tuple[float, float]


class _Columns:
    """Values over time, reduced as they come to at most so many columns: when these are full, each two become one."""

    def __init__(self, reduce: np.ufunc, most: int):
        self.reduce, self.most, self.width = reduce, most, 1
        self.used, self.filled = 0, 0  # columns begun; values in the last of them
        self.cells: Array | None = None

    def add(self, values: Array) -> None:
        """Take `(rows, n)` more values."""
        rows, count = values.shape
        if self.cells is None:
            self.cells = np.zeros((rows, self.most))
        at = 0
        while at < count:
            if self.used == 0 or self.filled == self.width:
                if self.used == self.most:
                    halved = self.reduce(self.cells[:, ::2], self.cells[:, 1::2])
                    self.used, self.width = self.most // 2, 2 * self.width
                    self.cells[:, : self.used] = halved
                self.used, self.filled = self.used + 1, 0
            taken = values[:, at : at + self.width - self.filled]
            part = self.reduce.reduce(taken, axis=1, dtype=np.float64)
            last = self.cells[:, self.used - 1]
            last[:] = self.reduce(last, part) if self.filled else part
            self.filled += taken.shape[1]
            at += taken.shape[1]

    def values(self) -> Array:
        """The columns that were begun, `(rows, columns)`."""
        assert self.cells is not None
        return self.cells[:, : self.used].astype(np.float32)

    def means(self) -> Array:
        """Of sums: means, the last column's over as many values as it has."""
        assert self.cells is not None
        counts = np.full(self.used, float(self.width))
        counts[-1] = self.filled
        return (self.cells[:, : self.used] / counts).astype(np.float32)


@torch.inference_mode()
def observe(
    model: GAFX,
    file: AudioFile,
    *,
    any_format: bool = True,
    columns: int = 1200,
    progress: Callable[[float], object] | None = None,
) -> Observed:
    """Read a file once more for its picture.

    Map and mel spectrogram are computed in segments of the length that the model was built for, the last one at its own
    length, and averaged into columns. What is left at the end may be too short for the model: there the map ends.

    Args:
        model: from `gafx.load`, on any device.
        file: as for `predict_files`.
        any_format: take whatever can be decoded, not only the formats of data sets.
        columns: at most so many for each strip; an even number.
        progress: called with the seconds of sound that each segment adds.

    Raises:
        UnreadableAudio: the file cannot be decoded, or is too short for the model.
        UsageError: the model does not know its length of clips, or `columns` is odd or below 2.
    """
    if model.info is None:
        raise UsageError(
            "nothing says how long the clips of this model are: load it with gafx.load, or build it by name with "
            "gafx.create_model(..., segment_seconds=10.0)"
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
            length += segment.shape[1]
            low.add(segment.min(axis=0, keepdims=True))
            high.add(segment.max(axis=0, keepdims=True))
            wave = torch.from_numpy(segment)[None].to(device)
            bands = mel(wave.mean(dim=1, keepdim=True))[0, 0].float().cpu().numpy()
            mel_step = mel_step or segment.shape[1] / bands.shape[1] / rate
            mels.add(bands)
            if segment.shape[1] >= least:
                own = front_end.planes_to_channels(model.features(wave)[0].float().cpu().numpy())
                map_step = map_step or segment.shape[1] / own.shape[2] / rate
                shape = own.shape[:2]
                maps.add(own.reshape(-1, own.shape[2]))
            if progress is not None:
                progress(segment.shape[1] / rate)
    finally:
        model.train(was_training)
    if not shape:
        raise UnreadableAudio(f"is too short: {length / rate:.3f} s, and the model needs {least / rate:.3f} s")
    return Observed(
        seconds=length / rate,
        envelope=Strip(np.concatenate([low.values(), high.values()]), low.width / rate),
        map=Strip(maps.means().reshape(*shape, -1), maps.width * map_step),
        mel=Strip(mels.means(), mels.width * mel_step),
        map_name=str((front_end.built or {}).get("name", type(front_end).__name__)),
        mel_edges=(20.0, rate / 2),
    )


def _segments(blocks: Iterable[Array], length: int) -> Iterator[Array]:
    """Blocks `(channels, any)` joined and cut anew to `(channels, length)`; the last may be shorter."""
    waiting: list[Array] = []
    have = 0
    for block in blocks:
        waiting.append(block)
        have += block.shape[1]
        if have < length:
            continue
        joined = np.concatenate(waiting, axis=1)
        whole = have // length * length
        for start in range(0, whole, length):
            yield np.ascontiguousarray(joined[:, start : start + length])
        waiting, have = [joined[:, whole:].copy()], have - whole
    if have:
        yield np.concatenate(waiting, axis=1)
