"""Any number of labels a clip: binary cross-entropy with logits (GAFX section 4.2.3)."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.model import GAFX
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES


@OBJECTIVES.register
class Tag(Objective):
    """Binary cross-entropy with logits, averaged over the labels; watched by mean average precision.

    Args:
        model: what is trained.
        class_counts: `(classes,)` training clips of each label.
    """

    multi_label = True
    metric = "mean_average_precision"

    def __init__(self, model: GAFX, class_counts: npt.NDArray[np.int64], /):
        super().__init__(model, class_counts)

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        logits = self.model(wave, masks, time_masks)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(
            dim=1
        )
        return {"loss": (losses * weight).sum(), "logits": logits}

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()
