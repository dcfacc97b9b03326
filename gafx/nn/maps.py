"""What happens to a map between front-end and classifier: normalisation and masks."""

import torch
from torch import Tensor, nn


class MapNorm(nn.Module):
    """Bring a map to mean 0 and deviation 0.5, the scale AST's classifier is fed with.

    Fixed front-ends (`learned=False`): by mean and deviation of the training split, kept as buffers (see `fit`).
    Learned front-ends (`learned=True`): by each clip's own, since theirs move while they learn; the deviation is
    floored, so a silent clip gives zeros rather than noise. There are no batch statistics: a prediction never depends
    on its neighbours.
    """

    FLOOR = 1e-3
    mean: Tensor
    deviation: Tensor

    def __init__(self, learned: bool):
        super().__init__()
        self.learned = learned
        if not learned:
            self.register_buffer("mean", torch.zeros(()))
            self.register_buffer("deviation", torch.ones(()))

    def fit(self, mean: float, deviation: float) -> None:
        """Set the statistics of the training split."""
        if self.learned:
            raise ValueError("a learned front-end's map is normalised clip by clip; it has no statistics to set")
        self.mean.fill_(mean)
        self.deviation.fill_(max(deviation, self.FLOOR))

    def forward(self, feature_map: Tensor) -> Tensor:
        """`(batch, channels, frequency, time)` -> the same shape, float32."""
        with torch.autocast(feature_map.device.type, enabled=False):
            feature_map = feature_map.float()
            if not self.learned:
                return (feature_map - self.mean) / (2 * self.deviation)
            centred = feature_map - feature_map.mean(dim=(1, 2, 3), keepdim=True)
            # sqrt of a floored variance: the gradient of std() is infinite where a clip's map is constant.
            variance = centred.square().mean(dim=(1, 2, 3), keepdim=True).clamp(min=self.FLOOR**2)
            return centred / (2 * variance.sqrt())


def mask_map(feature_map: Tensor, masks: Tensor, time_masks: int) -> Tensor:
    """Set bands of a normalised map to 0, its mean (SpecAugment, Park et al., 2019).

    Args:
        feature_map: `(batch, channels, frequency, time)`.
        masks: `(batch, masks, 2)` of (start, width) as shares of the axis; see `gafx.data.augment.draw_masks`.
        time_masks: the first so many masks lie along time, the others along frequency.
    """
    if masks.shape[1] == 0:
        return feature_map
    kept = torch.ones((), dtype=torch.bool, device=feature_map.device)
    for axis, bands in ((3, masks[:, :time_masks]), (2, masks[:, time_masks:])):
        size = feature_map.shape[axis]
        place = torch.arange(size, device=feature_map.device)
        start = (bands[..., 0:1] * size).round()
        hidden = ((place >= start) & (place < start + (bands[..., 1:2] * size).round())).any(dim=1)
        kept = kept & ~(hidden[:, None, None, :] if axis == 3 else hidden[:, None, :, None])
    return feature_map * kept
