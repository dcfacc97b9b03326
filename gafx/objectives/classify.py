"""Single-label classification: cross-entropy."""

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.objectives.base import Objective, at_least_float32
from gafx.registry import OBJECTIVES


@OBJECTIVES.register
class Classify(Objective):
    """Cross-entropy on soft labels; validation metric: accuracy, or macro-F1.

    Args:
        model: what is trained.
        class_counts: `(classes,)` number of training clips of each class.
        label_smoothing: fraction of each target that is spread evenly over all classes, in [0, 1).
        class_weights: `balanced` weights a class by clips / (classes * clips of the class), so that rare classes count
            as much as frequent ones.
        metric: validation score that selects the epoch to keep: `accuracy`, or `macro_f1`, in which every class counts
            the same.

    Raises:
        UsageError: label smoothing out of range.
    """

    multi_label = False
    metric = "accuracy"
    hash_if_changed: ClassVar[tuple[str, ...]] = ("metric",)
    class_weights: Tensor

    def __init__(
        self,
        model: GAFX,
        class_counts: npt.NDArray[np.int64],
        /,
        *,
        label_smoothing: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        metric: Literal["accuracy", "macro_f1"] = "accuracy",
    ):
        super().__init__(model, class_counts)
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"objective.label_smoothing={label_smoothing} must be in [0, 1)")
        self.label_smoothing, self.metric = label_smoothing, metric
        weights = np.ones(len(class_counts))
        if class_weights == "balanced":
            weights = class_counts.sum() / (len(class_counts) * class_counts)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def loss_weight(self, target: Tensor, weight: Tensor) -> Tensor:
        return weight * (target @ self.class_weights)

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        logits = self.model(wave, masks, time_masks)
        smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / target.shape[1]
        losses = -(smoothed * self.class_weights * logits.float().log_softmax(dim=1)).sum(dim=1)
        return {"loss": (losses * weight).sum(), "logits": logits}

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        return at_least_float32(logits).softmax(dim=1)
