"""Clips as samples: which segments a track has, and how one segment becomes a tensor."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gafx.audio.read import fit_length
from gafx.config import AugmentConfig
from gafx.data.augment import CROP, draw_masks, draw_mixup, stream
from gafx.data.manifest import Manifest, Skipped
from gafx.data.readers import Reader, clip_lengths, clip_span
from gafx.errors import UnreadableAudio

# A remainder at a track's end shorter than this share of a segment is dropped in evaluation.
_SMALL_REMAINDER = 0.1


@dataclass(frozen=True)
class Segments:
    """Segments of tracks: for each its row in the manifest, and first sample and length at the model's rate."""

    row: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)


@dataclass
class Sample:
    """One clip ready for a batch. `weight` is 0 for a clip that could not be read; `error` then says why."""

    wave: torch.Tensor  # (channels, samples)
    target: torch.Tensor  # (classes,)
    masks: torch.Tensor  # (masks, 2), shares of the axis
    weight: float
    index: int
    error: Skipped | None = None


def training_segments(
    manifest: Manifest, rows: npt.NDArray[np.int64], sample_rate: int, segment_length: int
) -> Segments:
    """As many whole segments of each track as fit, at least one (GAFX section 4.2.4: three of 10 s from 30 s)."""
    lengths = clip_lengths(manifest, rows, sample_rate)
    # A track that misses a whole number of segments by a hair (GTZAN's 29.93 s) still gives its last one, moved back.
    counts = np.maximum(1, (lengths + segment_length // 50) // segment_length)
    row, number = _numbered(counts)
    start = np.maximum(0, np.minimum(number * segment_length, lengths[row] - segment_length))
    return Segments(rows[row], start, np.full(len(row), segment_length, np.int64))


def evaluation_segments(
    manifest: Manifest, rows: npt.NDArray[np.int64], sample_rate: int, segment_length: int, least: int = 1
) -> Segments:
    """Segments that cover each track.

    The last is moved back to end with the track, a remainder under a tenth of a segment is dropped. A track shorter than
    a segment is one segment of its own length: nothing is padded inside a track. Only a track shorter than `least` samples,
    of which a model can make no map, is repeated until it is that long.
    """
    lengths = clip_lengths(manifest, rows, sample_rate)
    whole = np.maximum(lengths // segment_length, 1)
    rest = lengths - whole * segment_length
    counts = whole + (rest >= max(_SMALL_REMAINDER * segment_length, 1))
    row, number = _numbered(counts)
    last = np.maximum(lengths - segment_length, 0)
    length = np.where(lengths <= segment_length, np.maximum(lengths, least), segment_length)
    return Segments(rows[row], np.minimum(number * segment_length, last[row]), length[row])


def _numbered(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For `counts[i]` segments of each track i: the track of each segment, and its number within the track."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Reads segments. Its key is `(epoch, index)`, so that what a key gives never depends on the worker that reads it.

    Args:
        manifest: the data set.
        segments: what index i means.
        reader: gives the samples, at the model's rate and channel count.
        seed: of crops, mixup and masks.
        random_crop: draw each segment's start anew an epoch, anywhere in its track, instead of taking `segments.start`.
        fixed_length: bring shorter tracks to this many samples by repeating them (training); `None` leaves them
            (evaluation).
        augment: mixup and masks; `None` for none.
    """

    def __init__(
        self,
        manifest: Manifest,
        segments: Segments,
        reader: Reader,
        *,
        seed: int = 0,
        random_crop: bool = False,
        fixed_length: int | None = None,
        augment: AugmentConfig | None = None,
    ):
        self.manifest, self.segments, self.reader, self.seed = manifest, segments, reader, seed
        self.random_crop, self.fixed_length, self.augment = random_crop, fixed_length, augment

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        target = self._target(index)
        masks = torch.zeros(0, 2)
        if self.augment is not None:
            masks = torch.from_numpy(draw_masks(self.augment, self.seed, epoch, index))
        try:
            wave = self._wave(epoch, index)
            mixup = draw_mixup(self.augment, len(self), self.seed, epoch, index) if self.augment else None
            if mixup is not None:
                wave = mixup.share * wave + (1 - mixup.share) * self._wave(epoch, mixup.partner)
                target = mixup.share * target + (1 - mixup.share) * self._target(mixup.partner)
        except _UnreadableClip as clip:
            silence = np.zeros((self.reader.channels, int(self.segments.length[index])), np.float32)
            return Sample(torch.from_numpy(silence), target, masks, 0.0, index, clip.skipped)
        return Sample(torch.from_numpy(wave), target, masks, 1.0, index)

    def _target(self, index: int) -> torch.Tensor:
        target = torch.zeros(len(self.manifest.classes))
        target[torch.from_numpy(self.manifest.labels[int(self.segments.row[index])].astype(np.int64))] = 1.0
        return target

    def _wave(self, epoch: int, index: int) -> npt.NDArray[np.float32]:
        """Read segment `index`; errors name the file."""
        row, start, length = (
            int(column[index]) for column in (self.segments.row, self.segments.start, self.segments.length)
        )
        if self.random_crop:
            begin, end = clip_span(self.manifest, row, self.reader.sample_rate)
            room = end - begin - length
            start = int(stream(CROP, self.seed, epoch, index).integers(room + 1)) if room > 0 else 0
        try:
            wave = self.reader.read(row, start, length)
        except UnreadableAudio as error:
            raise _UnreadableClip(Skipped(self.manifest.relative_path(row), str(error))) from error
        if self.fixed_length is not None:
            return fit_length(wave, self.fixed_length)
        # Snapping moves a start back by less than one step of the rate ratio and can leave a length one sample off.
        return fit_length(wave, length) if wave.shape[1] != length else wave


class _UnreadableClip(Exception):
    def __init__(self, skipped: Skipped):
        super().__init__(skipped.reason)
        self.skipped = skipped
