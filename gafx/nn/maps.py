"""Operations on the map between front-end and classifier: normalisation and masking."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.nn.precision import Float32

Over = Literal["clip", "scalar", "band", "feature", "none"]


class MapNorm(Float32):
    """Normalise a map to mean 0 and std 0.5, the scale of the maps that AST was trained with.

    `over` says which values share a mean and a std:

    - `clip`: all values of one clip, also in evaluation. The std is at least 0.001, so that a silent clip gives zeros
      rather than amplified noise.
    - `scalar`: all values of the training split.
    - `band`: the values of one frequency band (of each channel) of the training split.
    - `feature`: as `band`, for rows that are quantities of different units: the std of each is its own, however small.
      For fixed front-ends only.
    - `none`: the map stays as it is, in its own type: its values are token ids.

    The statistics of the training split are buffers: for a fixed front-end computed once (see `fit`), for a learned
    one, whose maps change during training, those of the batch in training and their running mean afterwards, as in
    batch norm. In evaluation a prediction therefore never depends on the other clips of a batch.

    With `band` the std of a band is at least a quarter of the mean std (of a learned map about 0.1): in recordings
    without high frequencies these bands are constant, and the first sound that has them would otherwise be amplified a
    thousand times. Batches of a learned map need more than one value per band.

    Args:
        learned: whether the front-end learns.
        over: see above; by default `clip` for a learned front-end and `scalar` for a fixed one.
        shape: (channels, frequency) of the map; needed for `band` and `feature` only.
    """

    FLOOR = 1e-3
    LEARNED_FLOOR, FIXED_FLOOR = 0.1, 0.25  # for `band`
    CONSTANT = 1e-6  # for `feature`: a std below this fraction of the mean is rounding
    mean: Tensor
    std: Tensor

    def __init__(self, learned: bool, over: Over | None = None, shape: tuple[int, int] = (1, 1)):
        super().__init__()
        self.learned = learned
        self.over = over or ("clip" if learned else "scalar")
        self.running: nn.BatchNorm1d | None = None
        if self.over in ("clip", "none"):
            return
        if learned:
            count = shape[0] * shape[1] if self.over == "band" else 1
            floor = self.LEARNED_FLOOR if self.over == "band" else self.FLOOR
            self.running = nn.BatchNorm1d(count, eps=floor**2, affine=False)
        else:
            size = (*shape, 1) if self.by_row else ()
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("std", torch.ones(size))

    @property
    def by_row(self) -> bool:
        """Whether each row of the map has a mean and a std of its own."""
        return self.over in ("band", "feature")

    @property
    def is_fitted_before(self) -> bool:
        """Whether it uses statistics that `fit` sets before training."""
        return not self.learned and self.over not in ("clip", "none")

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics that `fit` sets differ from those before: mean 0 and std 1."""
        return not (bool((self.mean == 0).all()) and bool((self.std == 1).all()))

    def fit(self, mean: float | Tensor, std: float | Tensor) -> None:
        """Set the statistics of the training split: numbers, or `(channels, frequency, 1)` by row."""
        if not self.is_fitted_before:
            raise ValueError("this map is normalised by statistics of each clip or batch; there are none to set")
        std = torch.as_tensor(std)
        self.mean.copy_(torch.as_tensor(mean))
        if self.over == "feature":  # one that is constant in the training split, but for rounding, is not amplified
            self.std.copy_(std)
            self.std[self.std <= self.CONSTANT * self.mean.abs()] = 1.0
            return
        floor = max(self.FLOOR, self.FIXED_FLOOR * float(std.mean())) if self.over == "band" else self.FLOOR
        self.std.copy_(std.clamp(min=floor))

    def parts(self) -> "list[MapNorm]":
        """Return the norms of the groups of channels, here one."""
        return [self]

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> the same shape, float32 (float64 stays float64)."""
        if self.over == "none":
            return feature_map
        with torch.autocast(feature_map.device.type, enabled=False):
            feature_map = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
            if self.running is not None:
                flat = feature_map.flatten(1, 2) if self.over == "band" else feature_map.flatten(1)[:, None]
                return self.running(flat).view_as(feature_map) / 2
            if self.is_fitted_before:
                return (feature_map - self.mean) / (2 * self.std)
            centred = feature_map - feature_map.mean(dim=(1, 2, 3), keepdim=True)
            # The variance is clamped before the square root: std() has an infinite gradient at a constant map.
            variance = centred.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=self.FLOOR**2)
            return centred / (2 * variance.sqrt())


class FusedMapNorm(nn.Module):
    """One `MapNorm` for each group of channels: the maps of a fused front-end differ in scale and in `learned`.

    Args:
        norms: of the groups.
        channels: of the groups.
    """

    def __init__(self, norms: Sequence[MapNorm], channels: Sequence[int]):
        super().__init__()
        self.channels = list(channels)
        self.norms = nn.ModuleList(norms)

    def parts(self) -> list[MapNorm]:
        """Return the norms in the order of the channels."""
        return list(self.norms)  # type: ignore[arg-type]

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> the same shape, float32."""
        maps = feature_map.split(self.channels, dim=1)
        return torch.cat([norm(part) for norm, part in zip(self.norms, maps, strict=True)], dim=1)


def mask_map(feature_map: Tensor, masks: Tensor, time_masks: int, planes: int = 1) -> Tensor:
    """Set bands of a normalised map to 0, its mean (SpecAugment, Park et al., 2019).

    Args:
        feature_map: `(batch, channels, frequency, time)`.
        masks: `(batch, masks, 2)`, (start, width) as fractions of the axis; see `gafx.data.augment.draw_masks`.
        time_masks: number of masks along time, which are the first ones; the others are along frequency.
        planes: maps concatenated along time: a time mask hides the same moment in each of them.
    """
    if masks.shape[1] == 0:
        return feature_map
    kept = torch.ones((), dtype=torch.bool, device=feature_map.device)
    for axis, bands in ((3, masks[:, :time_masks]), (2, masks[:, time_masks:])):
        size = feature_map.shape[axis] // (planes if axis == 3 else 1)
        index = torch.arange(feature_map.shape[axis], device=feature_map.device) % size
        start = (bands[..., 0:1] * size).round()
        hidden = ((index >= start) & (index < start + (bands[..., 1:2] * size).round())).any(dim=1)
        kept = kept & ~(hidden[:, None, None, :] if axis == 3 else hidden[:, None, :, None])
    return feature_map * kept


def fit_length(feature_map: Tensor, frames: int) -> Tensor:
    """Average a map along time to `frames` frames, for a layer that reads maps of one length.

    `(batch, channels, frequency, time)` -> `(batch, channels, frequency, frames)`. A frame of the result is the mean
    over its part of the time: a longer map is averaged, frames of a shorter one are repeated, and a map of this length
    stays as it is.
    """
    if feature_map.shape[-1] == frames:
        return feature_map
    return nn.functional.adaptive_avg_pool2d(feature_map, (feature_map.shape[-2], frames))
