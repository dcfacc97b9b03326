"""Base class of objectives: the training loop, evaluation and reports know a task through it alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.model import GAFX
from gafx.nn.precision import float64
from gafx.report.format import probability
from gafx.saving import weights
from gafx.stats.scores import Score, label_scores

Array = npt.NDArray[Any]


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


class Objective(nn.Module):
    """A model with its loss; defines the prediction, its columns and units, and its scores.

    A subclass registers itself (`@OBJECTIVES.register`) under its module's name; its constructor takes the model and
    the number of training clips of each class by position and its configuration as keyword-only arguments.

    Attributes:
        model: what is trained.
        multi_label: whether a clip may have several labels, or none.
        reads_labels: whether labels are used; if not, the data need none.
        trains_classifier: whether the classifier is trained, all of it or all but its output layer.
        takes_masks: whether masks on the map (`augment.time_masks`, `augment.frequency_masks`) are supported.
        takes_numbers: whether `forward` and `predict` take `numbers` by keyword, one random integer per clip that is a
            function of (seed, epoch, index): all random draws of an objective are derived from them.
        takes_others: whether `predict` takes `others` by keyword, for each clip one of another recording of the same
            part, as long as it.
        metric: name of the validation score that selects the epoch to keep (`*_val` protocols).
        higher_is_better: direction of `metric`.
    """

    multi_label: bool
    reads_labels: bool = True
    trains_classifier: bool = True
    takes_masks: bool = True
    takes_numbers: bool = False
    takes_others: bool = False
    metric: str
    higher_is_better: bool = True

    def __init__(self, model: GAFX, class_counts: npt.NDArray[np.int64]):
        super().__init__()
        self.model = model
        if self.reads_labels and not self.multi_label and (class_counts <= 0).any():
            raise ValueError("every class needs a training clip")

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers that are saved: the model's by their names in it, then the objective's own
        (e.g. of a prediction head), which are part of checkpoints and of the run's model folder, but not of the model.
        """
        return {name.removeprefix("model."): tensor for name, tensor in self.state_dict().items()}

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that the objective adds to the model's; their names differ from those."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}

    def load_tensors(self, values: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned, in place."""
        own = self.own_tensors()
        self.model.load_state_dict({name: tensor for name, tensor in values.items() if name not in own})
        self.load_state_dict({name: values[name] for name in own}, strict=False)

    def load_own(self, folder: Path) -> None:
        """Load the objective's own tensors from a run's model folder, if it has any.

        Raises:
            UsageError: the file is missing or damaged.
        """
        if own := self.own_tensors():
            path = folder / weights.OBJECTIVE_FILE
            others = {name: tensor for name, tensor in self.state_dict().items() if name not in own}
            weights.fit(self, others | weights.read(path), path, cure="evaluate it with the settings of its training")

    def loss_weight(self, target: Tensor, weight: Tensor) -> Tensor:
        """Per-clip denominator of the weighted mean loss; summed over ranks and micro-batches.

        A step's loss is the sum of its clips' losses divided by the sum of these weights, so that neither the number of
        ranks and micro-batches nor an unreadable clip changes what is minimised.

        Args:
            target: `(batch, classes)`, soft labels.
            weight: `(batch,)`, 0 for clips that could not be read.

        Returns:
            `(batch,)`.
        """
        return weight

    def at_step(self, step: int) -> None:
        """Prepare for an optimiser step, counted from 0: for a loss that changes during training."""

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        """Compute loss and logits of a batch.

        Args:
            wave: `(batch, channels, samples)`.
            target: `(batch, classes)`, soft labels.
            weight: `(batch,)`, 0 for clips that could not be read.
            masks, time_masks: see `GAFX.forward`.

        Returns:
            `loss`: sum over clips of the loss times `loss_weight`; `logits`: `(batch, classes)`.
        """
        raise NotImplementedError

    def predict(self, wave: Tensor) -> Tensor:
        """Compute the values that are stored for each clip: `(batch, channels, samples)` -> `(batch, columns)`.

        Probabilities of the classes in float64 (so that logits can be recovered from confident ones), unless an
        objective measures something else. A track's values are the mean over its segments.
        """
        return self.probabilities(float64(self.model(wave)))

    @classmethod
    def probabilities(cls, logits: Tensor) -> Tensor:
        """Convert logits to probabilities: float32, or float64 for float64 logits."""
        raise NotImplementedError

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        """Names of the columns of `predict`: the classes, unless an objective measures something else.

        Columns after those that are named are in predictions.npz, not in predictions.csv.
        """
        return list(classes)

    @classmethod
    def describe(cls, values: Array, classes: Sequence[str]) -> str:
        """Describe the prediction of one track, the caption below its map.

        Args:
            values: `(columns,)` of `predict`.
            classes: names of the labels.
        """
        best = int(values.argmax())
        return f"predicted {classes[best]} ({probability(float(values[best]))})"

    @classmethod
    def scores(cls, values: Array, targets: Array, groups: Array, *, resamples: int) -> dict[str, Score]:
        """Score predictions; `metric` is one of the keys.

        Args:
            values: `(clips, columns)` of `predict`.
            targets: `(clips, classes)` of zeros and ones.
            groups: `(clips,)` recording of each clip.
            resamples: of the bootstrap over groups.
        """
        return label_scores(values, targets, groups, multi_label=cls.multi_label, resamples=resamples)
