"""The seam between a model and what it is trained for."""

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gafx.model import GAFX


class Objective(nn.Module):
    """A model together with its loss; the trainer never asks which task it is.

    A subclass registers itself (`@OBJECTIVES.register`) under its module's name; its constructor takes the model and
    the number of training clips of each class by position and its configuration as keyword-only arguments.

    Attributes:
        model: what is trained.
        multi_label: whether a clip may have several labels, or none.
        reads_labels: whether labels play a part at all; where they do not, the data need none.
        takes_masks: whether masks on the map (`augment.time_masks`, `augment.frequency_masks`) make sense.
        metric: name of the validation score that decides which epoch is kept (`*_val` protocols).
        higher_is_better: its direction.
    """

    multi_label: bool
    reads_labels: bool = True
    takes_masks: bool = True
    metric: str
    higher_is_better: bool = True

    def __init__(self, model: GAFX, class_counts: npt.NDArray[np.int64]):
        super().__init__()
        self.model = model
        if self.multi_label is False and (class_counts <= 0).any():
            raise ValueError("every class needs a training clip")

    def share(self, target: Tensor, weight: Tensor) -> Tensor:
        """`(batch,)`: how much each clip counts in the loss.

        A step's loss is the sum over its clips divided by the sum of these, over all ranks and passes, so that neither
        their number nor a broken clip changes what is minimised.
        """
        return weight

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        """Loss and logits of a batch.

        Args:
            wave: `(batch, channels, samples)`.
            target: `(batch, classes)`, soft labels.
            weight: `(batch,)`, 0 for clips that could not be read.
            masks, time_masks: see `GAFX.forward`.

        Returns:
            `loss`: the sum (not the mean) over the clips of loss times `share`; `logits`: `(batch, classes)`.
        """
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits as probabilities, float32."""
        raise NotImplementedError
