"""Tagging, any number of labels per clip: binary cross-entropy with logits (GAFX section 4.2.3)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.objectives.base import Objective, at_least_float32
from gafx.registry import OBJECTIVES


@OBJECTIVES.register
class Tag(Objective):
    """Binary cross-entropy with logits, averaged over the labels; validation metric: mean average precision.

    Args:
        model: what is trained.
        class_counts: `(classes,)` number of training clips of each label.
        label_smoothing: moves each target from 0 or 1 towards 1/2, in [0, 1): 0.1 gives 0.05 and 0.95.

    Raises:
        UsageError: label smoothing out of range.
    """

    multi_label = True
    metric = "mean_average_precision"

    def __init__(self, model: GAFX, class_counts: npt.NDArray[np.int64], /, *, label_smoothing: float = 0.0):
        super().__init__(model, class_counts)
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"objective.label_smoothing={label_smoothing} must be in [0, 1)")
        self.label_smoothing = label_smoothing

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        logits = self.model(wave, masks, time_masks)
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), smoothed, reduction="none")
        return {"loss": (losses.mean(dim=1) * weight).sum(), "logits": logits}

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        return at_least_float32(logits).sigmoid()
