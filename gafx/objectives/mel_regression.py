"""Pretraining: the front-end's map regresses the clip's log-mel spectrogram (GAFX section 4.2.3, second reading)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.model import GAFX, create_frontend
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.format import number
from gafx.stats.scores import Score, explained_variance, mean_score

# Mel power of the target's 0 (silence) and 1; a full-scale sine or square wave has 4e3 to 8e3.
_FLOOR, _CEILING = 1e-8, 1e4
RANGE_DB = 10 * math.log10(_CEILING / _FLOOR)
# Logits per unit of the map. A map equal to the target gives probabilities near it: 0.02 at 0, 0.5 at 0.5, 0.98 at 1.
_LOGIT_SCALE = 8.0
_COLUMNS = ("absolute_error", "squared_error", "target_variance")


@OBJECTIVES.register
class MelRegression(Objective):
    """Regress the log-mel map of the input with a learned front-end; validation metric: mean absolute error in dB.

    The target is the `mel` front-end's map on the front-end's own grid (same bins, frames and rate: 128 x 1024 from
    204,800 samples for GAFX-R), scaled to [0, 1]: 0 is a mel power of 1e-8, 1 a mel power of 1e4, 120 dB above. The
    front-end's map itself is regressed, without an output layer that would be discarded afterwards; of a map with
    several channels, or planes in time (GAFX-U's four sources), their mean.

    The paper says "spectrogram with the shape (1024, 128) as output" and binary cross-entropy: `loss=bce` is as close
    to that as a spectrogram allows, the others are ours. Labels are not used, and the classifier is not trained: only
    the front-end of such a run is of use (`frontend.pretrained=<run>`).

    Args:
        model: what is trained; its front-end must be learned, and not fused with a fixed one.
        class_counts: ignored.
        loss: `l1`; `huber` (quadratic below `delta`); or `bce`: 8 * (map - 0.5) are logits of the target.
        delta: of `huber`, on the scale of [0, 1]; the default is 6 dB.

    Raises:
        UsageError: a fixed front-end, or one whose number of frames no hop length of a spectrogram gives; a delta that
            is not positive.
    """

    multi_label = True
    reads_labels = False
    trains_classifier = False
    takes_masks = False
    metric = "mean_absolute_error_db"
    higher_is_better = False

    def __init__(
        self,
        model: GAFX,
        class_counts: npt.NDArray[np.int64],
        /,
        *,
        loss: Literal["l1", "huber", "bce"] = "l1",
        delta: float = 0.05,
    ):
        super().__init__(model, class_counts)
        if not delta > 0:
            raise UsageError(f"objective.delta={delta} must be above 0")
        self.loss, self.delta = loss, delta
        front_end = model.frontend
        if not all(part.learned for part in front_end.groups()):
            raise UsageError(
                "objective=mel_regression trains a learned front-end; this one is fixed, or fused with a fixed one. "
                "Choose a learned one, e.g. gafx_r"
            )
        self.mel = create_frontend("mel", **_grid(model))
        model.classifier.requires_grad_(False)

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        """See `Objective.forward`; `logits` is the map, `(batch, bins, frames)`."""
        feature_map, target_map = self.feature_map(wave), self.target_map(wave)
        if self.loss == "l1":
            errors = (feature_map - target_map).abs()
        elif self.loss == "huber":
            errors = torch.nn.functional.huber_loss(feature_map, target_map, reduction="none", delta=self.delta)
        else:
            errors = torch.nn.functional.binary_cross_entropy_with_logits(
                _LOGIT_SCALE * (feature_map - 0.5), target_map, reduction="none"
            )
        return {"loss": (errors.mean(dim=(1, 2)) * weight).sum(), "logits": feature_map}

    def feature_map(self, wave: Tensor) -> Tensor:
        """Compute the front-end's map: `(batch, channels, samples)` -> `(batch, bins, frames)` float32."""
        return self.model.frontend.planes_to_channels(self.model.frontend(wave).float()).mean(dim=1)

    @torch.no_grad()
    def target_map(self, wave: Tensor) -> Tensor:
        """Compute the log-mel map in [0, 1]: `(batch, channels, samples)` -> `(batch, bins, frames)` float32."""
        with torch.autocast(wave.device.type, enabled=False):
            log_mel = self.mel(wave.float().mean(dim=1, keepdim=True))[:, 0]
            return ((log_mel - math.log(_FLOOR)) / math.log(_CEILING / _FLOOR)).clamp(0, 1)

    def predict(self, wave: Tensor) -> Tensor:
        """Compute mean absolute error, mean squared error and variance of the target, on the scale of [0, 1].

        `(batch, channels, samples)` -> `(batch, 3)`.
        """
        feature_map, target_map = self.feature_map(wave), self.target_map(wave)
        if self.loss == "bce":
            feature_map = (_LOGIT_SCALE * (feature_map - 0.5)).sigmoid()
        error = feature_map - target_map
        centred = target_map - target_map.mean(dim=(1, 2), keepdim=True)
        cells = (error.abs(), error.square(), centred.square())
        return torch.stack([cell.mean(dim=(1, 2)) for cell in cells], dim=1)

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        return list(_COLUMNS)

    @classmethod
    def describe(cls, values: npt.NDArray[Any], classes: Sequence[str]) -> str:
        return f"mean absolute error {number(RANGE_DB * float(values[0]), cls.metric)}"

    @classmethod
    def scores(
        cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any], *, resamples: int
    ) -> dict[str, Score]:  # fmt: skip
        """Mean absolute error in dB, and the explained fraction of the variance within clips: 1 is perfect, 0 is what
        the constant map of each clip's mean level explains."""
        return {
            cls.metric: mean_score(RANGE_DB * values[:, 0], groups, resamples=resamples),
            "explained_variance": explained_variance(values[:, 1], values[:, 2], groups, resamples),
        }


def _grid(model: GAFX) -> dict[str, Any]:
    """Arguments of a `mel` front-end with the bins and frames of a model's front-end, at every length."""
    front_end = model.frontend
    long = 10**9  # samples, only counted: so many that a partly filled last frame does not change the quotient
    _, bins, frames = front_end.output_shape(long)
    hop = round(long * front_end.planes / frames)
    for samples in (1, hop - 1, hop, hop + 1, long):
        if samples > 0 and front_end.output_shape(samples)[2] != -(-samples // hop) * front_end.planes:
            raise UsageError(
                f"objective=mel_regression: no hop length gives this front-end's number of frames (about {hop} samples "
                "each); choose another, e.g. gafx_r"
            )
    window = max(1024, hop)
    return {
        "sample_rate": front_end.sample_rate, "n_mels": bins, "hop_length": hop, "win_length": window,
        "n_fft": max(2048, 2 ** math.ceil(math.log2(window))), "floor": _FLOOR,
    }  # fmt: skip
