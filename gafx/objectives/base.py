"""The seam between a model and what it is trained for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.model import GAFX
from gafx.stats.scores import Score, label_scores

Array = npt.NDArray[Any]


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


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
        if self.reads_labels and not self.multi_label and (class_counts <= 0).any():
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

    def predict(self, wave: Tensor) -> Tensor:
        """What is written down of each clip: `(batch, channels, samples)` -> `(batch, columns)`.

        Probabilities of the classes in float64, from which outputs can be had back however sure they are, unless an
        objective measures something else. A track's are the mean over its segments.
        """
        return self.probabilities(self.model(wave).double())

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        """Logits as probabilities: float32, or float64 for such logits."""
        raise NotImplementedError

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        """What the columns of `predict` are called: the classes, unless an objective measures something else."""
        return list(classes)

    @classmethod
    def said(cls, values: Array, classes: Sequence[str]) -> str:
        """What `predict` said of one track, in words below its picture."""
        best = int(values.argmax())
        return f"predicted {classes[best]} ({100 * values[best]:.1f} %)"

    @classmethod
    def scores(
        cls, values: Array, targets: Array, groups: Array, *, resamples: int, tracks: bool = True
    ) -> dict[str, Score]:
        """Scores of what `predict` said, the one that `metric` names among them.

        Args:
            values: `(clips, columns)`.
            targets: `(clips, classes)` of zeros and ones.
            groups: `(clips,)` recording of each clip.
            resamples: of the bootstrap over groups.
            tracks: whether clips are whole tracks, or segments of them.
        """
        return label_scores(values, targets, groups, multi_label=cls.multi_label, resamples=resamples, tracks=tracks)
