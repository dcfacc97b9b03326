"""Segments as samples: waveform, target and masks of one segment, read, augmented and turned into tensors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gafx.audio.read import fit_length
from gafx.config import AugmentConfig
from gafx.data.augment import CROP, draw_masks, draw_mixup, stream
from gafx.data.manifest import Manifest, Skipped
from gafx.data.readers import Reader, clip_span
from gafx.data.segments import Segments
from gafx.errors import UnreadableAudio


@dataclass
class Sample:
    """One segment ready for a batch. `weight` is 0 for a clip that could not be read; `error` then says why."""

    wave: torch.Tensor  # (channels, samples)
    target: torch.Tensor  # (classes,)
    masks: torch.Tensor  # (masks, 2): start and width as fractions of the axis
    weight: float
    index: int
    error: Skipped | None = None


class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Reads segments. A key is `(epoch, index)`; its sample does not depend on the worker that reads it.

    Args:
        manifest: the data set.
        segments: index i is the i-th of these.
        reader: gives the samples, at the model's rate and channel count.
        seed: of crops, mixup and masks.
        random_crop: draw each segment's start anew every epoch, anywhere in its track, instead of `segments.start`.
        fixed_length: length in samples to which shorter tracks are repeated (training); `None` keeps their own length
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
                wave = mixup.weight * wave + (1 - mixup.weight) * self._wave(epoch, mixup.partner)
                target = mixup.weight * target + (1 - mixup.weight) * self._target(mixup.partner)
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
        # Snapping moves a start back by less than one step of the rate ratio and can leave a length one sample off.
        wanted = self.fixed_length if self.fixed_length is not None else length
        return fit_length(wave, wanted) if wave.shape[1] != wanted else wave


class _UnreadableClip(Exception):
    def __init__(self, skipped: Skipped):
        super().__init__(skipped.reason)
        self.skipped = skipped
