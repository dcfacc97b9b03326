"""Masked pretraining: spans of frames are hidden, and the classifier restores them (the Jukebox study, section IV)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.data.augment import draw_spans
from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.nn.transformer import INIT_STD
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.format import label, lowered, number
from gafx.stats.scores import Score, explained_variance, mean_score

_COLUMNS = ("masked_loss", "masked_accuracy", "squared_error", "target_variance")


@OBJECTIVES.register
class Masked(Objective):
    """Restore masked frames of the map from the others; validation metric: the loss on masked frames.

    Spans of `span` frames are drawn for each clip (`gafx.data.augment.draw_spans`), as a function of (seed, epoch,
    index); in evaluation they are the same every time. They are masked in the normalised map that the classifier reads;
    all other frames are unchanged. The outputs of `classifier.frames` go through a linear layer, and the loss is the
    mean over the masked frames:

    - spectrograms (SpectroFormer): masked frames are zeros; Huber loss on the normalised map. The front-end must be
      fixed: a learned one would learn maps that are easy to restore.
    - codes (a front-end with `num_codes`): cross-entropy on the codes of the masked frames. Codebook vectors
      (CodebookFormer) are replaced by zeros, learned embeddings (TokenFormer) by a learned vector.

    The study says "a larger proportion of tokens hidden" than BERT's 15 % for codes, and "static mask lengths and
    various masking percentages" for spectrograms, without numbers: `fractions`, of which one is drawn for each clip,
    and `span` are ours, the same for all. Unlike in BERT every masked frame is replaced (none is kept or exchanged).

    Labels are not used, and the classifier's output layer is not trained. `pretrained=<run>` hands front-end and
    classifier over. The linear layer and the mask vector belong to the run, and are no part of the model.

    Args:
        model: what is trained; its classifier must be `bert`, or another with `frames`.
        class_counts: ignored.
        fractions: of the frames that are masked, in (0, 1).
        span: frames of a masked span; at most half of a clip is.
        delta: of the Huber loss, on the scale of the normalised map, whose std is 0.5.

    Raises:
        UsageError: a classifier without `frames`, a learned front-end without codes, or an argument out of range.
    """

    multi_label = True
    reads_labels = False
    takes_masks = False
    takes_numbers = True
    metric = "masked_loss"
    higher_is_better = False

    def __init__(
        self,
        model: GAFX,
        class_counts: npt.NDArray[np.int64],
        /,
        *,
        fractions: tuple[float, ...] = (0.15, 0.3, 0.45),
        span: int = 10,
        delta: float = 1.0,
    ):
        super().__init__(model, class_counts)
        if not fractions or not all(0 < fraction < 1 for fraction in fractions):
            raise UsageError(f"objective.fractions={list(fractions)} must be numbers above 0 and below 1, at least one")
        for name, value in (("span", span), ("delta", delta)):
            if not value > 0:
                raise UsageError(f"objective.{name}={value} must be above 0")
        if not hasattr(model.classifier, "frames"):
            raise UsageError("objective=masked needs a classifier that gives outputs for every frame: classifier=bert")
        self.fractions, self.span, self.delta = fractions, span, delta
        front_end, classifier = model.frontend, model.classifier
        self.num_codes = front_end.num_codes
        if self.num_codes is None and any(part.learned for part in front_end.groups()):
            raise UsageError(
                "objective=masked restores the map of a fixed front-end, or codes; this front-end is learned and would "
                "learn maps that are easy to restore. Choose mel or vq, or objective=mel_regression"
            )
        channels, bins, _ = classifier.map_shape
        self.patch = getattr(classifier, "patch", 1)
        values = channels * bins
        if self.num_codes is not None:
            codes = front_end.codes(torch.zeros(1, front_end.channels, front_end.sample_rate // 4))
            values = self.num_codes * (1 if codes.ndim == 2 else codes.shape[1])
        self.head = nn.Linear(classifier.width, self.patch * values)
        nn.init.trunc_normal_(self.head.weight, std=INIT_STD)
        nn.init.zeros_(self.head.bias)
        self.mask_vector: nn.Parameter | None = None
        if self.num_codes is not None and front_end.learned:
            self.mask_vector = nn.Parameter(torch.empty(channels, bins, 1).normal_(std=0.5))  # the std of the map
        for name, parameter in classifier.named_parameters():
            if name.startswith(classifier.head_names()):
                parameter.requires_grad_(False)

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int,
        numbers: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `Objective.forward`; `logits` are the masked frames or the logits of their codes, see `restore`."""
        feature_map, target = self.read(wave)
        masked = self.draw(numbers, feature_map)
        restored = self.restore(self.mask(feature_map, masked), masked)
        losses = mean_over(self.losses(restored, target[masked]), masked)
        return {"loss": (losses * weight).sum(), "logits": restored}

    def read(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the normalised map of a wave, and what is restored: frames of the map, or codes.

        `(batch, channels, samples)` -> the map, and `(batch, frames, channels * frequency)` or int64
        `(batch, frames, quantizers)`.
        """
        if self.num_codes is None:
            feature_map = self.model.features(wave)
            return feature_map, feature_map.detach().flatten(1, 2).transpose(1, 2).float()
        codes = self.model.frontend.codes(wave)
        # `GAFX.features` from the codes, since encoding takes longer than the rest of it.
        feature_map = self.model.map_norm(self.model.frontend.map_of(codes)).to(self.model.dtype)
        return feature_map, codes[..., None] if codes.ndim == 2 else codes.transpose(1, 2)

    def draw(self, numbers: Tensor | None, feature_map: Tensor) -> Tensor:
        """Draw the masked frames of each clip of a map: `(batch,)` random numbers -> bool `(batch, frames)`.

        A moment is masked in all planes of a map. Without numbers, the clips' places in the batch are used.
        """
        planes = self.model.frontend.planes
        frames = feature_map.shape[-1] // planes
        drawn = range(len(feature_map)) if numbers is None else numbers.tolist()
        spans = np.stack([draw_spans(number, frames, self.fractions, self.span) for number in drawn])
        return torch.from_numpy(spans).to(feature_map.device).repeat(1, planes)

    def mask(self, feature_map: Tensor, masked: Tensor) -> Tensor:
        """Replace the masked frames of `(batch, channels, frequency, frames)` by zeros or by the mask vector."""
        fill = torch.zeros((), device=feature_map.device) if self.mask_vector is None else self.mask_vector
        return torch.where(masked[:, None, None], fill.to(feature_map.dtype), feature_map)

    def restore(self, feature_map: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked frames of a masked map, clip after clip; the linear layer sees no other tokens.

        `(batch, channels, frequency, frames)` and bool `(batch, frames)` -> `(masked frames, channels * frequency)`, or
        for codes `(masked frames, quantizers, num_codes)`; float32.
        """
        tokens = self.model.classifier.frames(feature_map)  # type: ignore[operator]
        padding = tokens.shape[1] * self.patch - masked.shape[1]
        in_token = nn.functional.pad(masked, (0, padding)).unflatten(1, (-1, self.patch))  # (batch, tokens, patch)
        chosen = in_token.any(dim=2)
        outputs = self.head(tokens[chosen]).float().unflatten(1, (self.patch, -1))
        restored = outputs[in_token[chosen]]
        return restored if self.num_codes is None else restored.unflatten(1, (-1, self.num_codes))

    def losses(self, restored: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of every masked frame, the mean over its values: `(masked frames,)`."""
        if self.num_codes is None:
            return nn.functional.huber_loss(restored, target, reduction="none", delta=self.delta).mean(dim=1)
        return nn.functional.cross_entropy(restored.transpose(1, 2), target, reduction="none").mean(dim=1)

    def predict(self, wave: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Compute the loss on the masked frames, and what scores are made of, each a mean over the masked frames.

        `(batch, channels, samples)` -> `(batch, 4)`: the loss; for codes the fraction that the largest logit restores,
        else 0; for spectrograms the squared error and the variance around each band's mean over the clip, else 0.
        """
        feature_map, target = self.read(wave)
        masked = self.draw(numbers, feature_map)
        restored, hidden = self.restore(self.mask(feature_map, masked), masked), target[masked]
        loss = self.losses(restored, hidden)
        none = torch.zeros_like(loss)
        if self.num_codes is None:
            centred = (target - target.mean(dim=1, keepdim=True))[masked]
            cells = (loss, none, (restored - hidden).square().mean(dim=1), centred.square().mean(dim=1))
        else:
            cells = (loss, (restored.argmax(dim=2) == hidden).float().mean(dim=1), none, none)
        return torch.stack([mean_over(cell, masked) for cell in cells], dim=1)

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        return list(_COLUMNS)

    @classmethod
    def describe(cls, values: npt.NDArray[Any], classes: Sequence[str]) -> str:
        return f"{lowered(label(cls.metric))} {number(float(values[0]), cls.metric)}"

    @classmethod
    def scores(
        cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any], *, resamples: int
    ) -> dict[str, Score]:  # fmt: skip
        """The loss; of codes the accuracy; of spectrograms the explained fraction of the variance: 1 is perfect, 0 is
        what each band's mean over the clip explains."""
        scores = {cls.metric: mean_score(values[:, 0], groups, resamples=resamples)}
        if not values[:, 3].any():
            return scores | {"masked_accuracy": mean_score(values[:, 1], groups, resamples=resamples)}
        return scores | {"explained_variance": explained_variance(values[:, 2], values[:, 3], groups, resamples)}


def mean_over(values: Tensor, masked: Tensor) -> Tensor:
    """Mean over the masked frames of each clip: `(masked frames,)` and bool `(batch, frames)` -> `(batch,)`."""
    cells = values.new_zeros(masked.shape)
    cells[masked] = values
    return cells.sum(dim=1) / masked.sum(dim=1)
