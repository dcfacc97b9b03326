"""Segments as samples: waveform, target and masks of one segment, read, augmented and turned into tensors."""

from dataclasses import KW_ONLY, dataclass, replace

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

PADDING = -1  # index of a sample that fills a batch


@dataclass
class Sample:
    """One segment ready for a batch. `weight` is 0 for a clip that could not be read; `error` is then the reason."""

    wave: torch.Tensor  # (channels, samples)
    target: torch.Tensor  # (classes,)
    masks: torch.Tensor  # (masks, 2): start and width as fractions of the axis
    weight: float
    index: int
    error: Skipped | None = None


@dataclass(eq=False)
class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Reads segments. A key is `(epoch, index)`; its sample does not depend on the worker that reads it.

    The index `PADDING` gives the first segment at weight 0.

    Args:
        manifest: the data set.
        segments: index i is the i-th of these.
        reader: gives the samples, at the model's rate and channel count.
        seed: of crops, mixup and masks.
        random_crop: draw each segment's start again every epoch, anywhere in its track, instead of `segments.start`.
        fixed_length: length in samples to which shorter tracks are repeated (training); `None` keeps their own length
            (evaluation).
        augment: mixup and masks; `None` for none.
    """

    manifest: Manifest
    segments: Segments
    reader: Reader
    _: KW_ONLY
    seed: int = 0
    random_crop: bool = False
    fixed_length: int | None = None
    augment: AugmentConfig | None = None

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if index == PADDING:
            return replace(self[epoch, 0], weight=0.0, index=PADDING, error=None)
        masks, mixup = np.zeros((0, 2), np.float32), None
        if self.augment is not None:
            masks = draw_masks(self.augment, self.seed, epoch, index)
            mixup = draw_mixup(self.augment, len(self), self.seed, epoch, index)
        target, reading, error = self._target(index), index, None
        try:
            wave = self._wave(epoch, index)
            if mixup is not None:
                reading = mixup.partner
                wave = mixup.weight * wave + (1 - mixup.weight) * self._wave(epoch, reading)
                target = mixup.weight * target + (1 - mixup.weight) * self._target(reading)
        except UnreadableAudio as reason:
            wave = np.zeros((self.reader.channels, int(self.segments.length[index])), np.float32)
            error = Skipped(self.manifest.relative_path(int(self.segments.row[reading])), str(reason))
        weight = 0.0 if error else 1.0
        return Sample(torch.from_numpy(wave), target, torch.from_numpy(masks), weight, index, error)

    def _target(self, index: int) -> torch.Tensor:
        target = torch.zeros(len(self.manifest.classes))
        target[torch.from_numpy(self.manifest.labels[int(self.segments.row[index])].astype(np.int64))] = 1.0
        return target

    def _wave(self, epoch: int, index: int) -> npt.NDArray[np.float32]:
        """Read segment `index` as float32 `(channels, samples)`."""
        row, start, length = (
            int(column[index]) for column in (self.segments.row, self.segments.start, self.segments.length)
        )
        if self.random_crop:
            begin, end = clip_span(self.manifest, row, self.reader.sample_rate)
            room = end - begin - length
            start = int(stream(CROP, self.seed, epoch, index).integers(room + 1)) if room > 0 else 0
        wave = self.reader.read(row, start, length)
        # Snapping moves a start back by less than one step of the rate ratio and can leave a length one sample off.
        wanted = self.fixed_length if self.fixed_length is not None else length
        return fit_length(wave, wanted) if wave.shape[1] != wanted else wave
