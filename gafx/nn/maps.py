"""Operations on the map between front-end and classifier: normalisation and masking."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MapNorm(nn.Module):
    """Normalise a map to mean 0 and std 0.5, the scale of the maps that AST was trained with.

    Fixed front-ends (`learned=False`): by mean and std of the training split, kept as buffers (see `fit`). Learned
    front-ends (`learned=True`): by mean and std of each clip, since theirs change during training; the std is at least
    0.001, so that a silent clip gives zeros rather than amplified noise. No batch statistics: a prediction never
    depends on the other clips of a batch.
    """

    FLOOR = 1e-3
    mean: Tensor
    std: Tensor

    def __init__(self, learned: bool):
        super().__init__()
        self.learned = learned
        if not learned:
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("std", torch.ones(()))

    def fit(self, mean: float, std: float) -> None:
        """Set the statistics of the training split."""
        if self.learned:
            raise ValueError("the map of a learned front-end is normalised clip by clip; it has no statistics to set")
        self.mean.fill_(mean)
        self.std.fill_(max(std, self.FLOOR))

    def parts(self) -> "list[MapNorm]":
        """Return the norms of the groups of channels, here one."""
        return [self]

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> the same shape, float32 (float64 stays float64)."""
        with torch.autocast(feature_map.device.type, enabled=False):
            feature_map = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
            if not self.learned:
                return (feature_map - self.mean) / (2 * self.std)
            centred = feature_map - feature_map.mean(dim=(1, 2, 3), keepdim=True)
            # The variance is clamped before the square root: std() has an infinite gradient at a constant map.
            variance = centred.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=self.FLOOR**2)
            return centred / (2 * variance.sqrt())


class FusedMapNorm(nn.Module):
    """One `MapNorm` for each group of channels: the maps of a fused front-end differ in scale and in `learned`.

    Args:
        groups: (channels, learned) of each group.
    """

    def __init__(self, groups: Sequence[tuple[int, bool]]):
        super().__init__()
        self.channels = [channels for channels, _ in groups]
        self.norms = nn.ModuleList(MapNorm(learned) for _, learned in groups)

    def parts(self) -> list[MapNorm]:
        """Return the norms in the order of the channels."""
        return list(self.norms)  # type: ignore[arg-type]

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> the same shape, float32."""
        maps = feature_map.split(self.channels, dim=1)
        return torch.cat([norm(part) for norm, part in zip(self.norms, maps, strict=True)], dim=1)


def map_norm(groups: Sequence[tuple[int, bool]]) -> MapNorm | FusedMapNorm:
    """Return the norm of a map that consists of these (channels, learned) groups."""
    return MapNorm(groups[0][1]) if len(groups) == 1 else FusedMapNorm(groups)


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
