"""The front-end learns to emit the clip's log-mel spectrogram (GAFX section 4.2.3, its second reading)."""

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
from gafx.stats.scores import Score, mean_score

# Mel power that counts as silence, and one that a full-scale sine or square wave does not reach (it has 4e3 to 8e3).
_FLOOR, _CEILING = 1e-8, 1e4
RANGE_DB = 10 * math.log10(_CEILING / _FLOOR)
# With these a map equal to the target stands for probabilities close to it: 0.02 at 0, 0.5 at 0.5, 0.98 at 1.
_LOGITS_A_UNIT = 8.0
_COLUMNS = ("absolute_error", "squared_error", "target_variance")


@OBJECTIVES.register
class MelRegression(Objective):
    """Make a learned front-end emit the log-mel map of its input; watched by the mean absolute error in decibels.

    The target is the `mel` front-end's map on the front-end's own grid (same bins, frames and rate: 128 x 1024 from
    204,800 samples for GAFX-R), scaled to [0, 1]: 0 is a mel power of 1e-8, 1 one of 1e4, which is 120 dB more. The
    front-end's map itself has to become it: nothing is learned beside the front-end and thrown away afterwards. Of a
    map with several channels, or planes in time (GAFX-U's four sources), the mean has to.

    The paper says "spectrogram with the shape (1024, 128) as output" and binary cross-entropy: `loss=bce` is as close
    to that as a spectrogram allows, the others are ours. Labels play no part, and the classifier does not learn: a run
    hands its front-end over (`frontend.pretrained=<run>`), nothing else.

    Args:
        model: what is trained; its front-end must be learned, and not fused with a fixed one.
        class_counts: ignored.
        loss: `l1`; `huber` (quadratic below `delta`); or `bce`: 8 * (map - 0.5) are logits of the target.
        delta: of `huber`, on the scale of [0, 1]; the default is 6 dB.

    Raises:
        UsageError: a front-end that does not learn, or whose frames no hop of a spectrogram gives; a delta of 0.
    """

    multi_label = True
    reads_labels = False
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
                "objective=mel_regression teaches a front-end that learns; this one is fixed, or fused with a fixed "
                "one. Choose gafx_r, gafx_a, gafx_u or leaf"
            )
        self.mel = create_frontend("mel", **_grid(model))
        model.classifier.requires_grad_(False)

    def forward(
        self, wave: Tensor, target: Tensor, weight: Tensor, masks: Tensor, time_masks: int
    ) -> dict[str, Tensor]:
        """As every objective's; `logits` is the map that was emitted, `(batch, bins, frames)`."""
        emitted, wanted = self.emitted(wave), self.wanted(wave)
        if self.loss == "l1":
            errors = (emitted - wanted).abs()
        elif self.loss == "huber":
            errors = torch.nn.functional.huber_loss(emitted, wanted, reduction="none", delta=self.delta)
        else:
            errors = torch.nn.functional.binary_cross_entropy_with_logits(
                _LOGITS_A_UNIT * (emitted - 0.5), wanted, reduction="none"
            )
        return {"loss": (errors.mean(dim=(1, 2)) * weight).sum(), "logits": emitted}

    def emitted(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> what the front-end says, `(batch, bins, frames)` float32."""
        return self.model.frontend.planes_to_channels(self.model.frontend(wave).float()).mean(dim=1)

    @torch.no_grad()
    def wanted(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> the log-mel map in [0, 1], `(batch, bins, frames)` float32."""
        with torch.autocast(wave.device.type, enabled=False):
            log_mel = self.mel(wave.float().mean(dim=1, keepdim=True))[:, 0]
            return ((log_mel - math.log(_FLOOR)) / math.log(_CEILING / _FLOOR)).clamp(0, 1)

    def predict(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> `(batch, 3)`: mean absolute and squared error, and variance of the target."""
        emitted, wanted = self.emitted(wave), self.wanted(wave)
        if self.loss == "bce":
            emitted = (_LOGITS_A_UNIT * (emitted - 0.5)).sigmoid()
        error = emitted - wanted
        cells = (error.abs(), error.square(), (wanted - wanted.mean(dim=(1, 2), keepdim=True)).square())
        return torch.stack([cell.mean(dim=(1, 2)) for cell in cells], dim=1)

    @classmethod
    def columns(cls, classes: Sequence[str]) -> list[str]:
        return list(_COLUMNS)

    @classmethod
    def said(cls, values: npt.NDArray[Any], classes: Sequence[str]) -> str:
        return f"mean error {RANGE_DB * values[0]:.1f} dB"

    @classmethod
    def scores(
        cls, values: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any], *, resamples: int,
        tracks: bool = True,
    ) -> dict[str, Score]:  # fmt: skip
        """Mean absolute error in dB, and the share of the variance within clips that is explained: 1 is perfect, 0 is
        what each clip's own mean level explains."""
        unexplained = mean_score(values[:, 1], groups, resamples=resamples, ratio_to=values[:, 2])
        low, high = (None if bound is None else 1 - bound for bound in (unexplained.high, unexplained.low))
        return {
            cls.metric: mean_score(RANGE_DB * values[:, 0], groups, resamples=resamples),
            "explained_variance": Score(1 - unexplained.value, low, high, unexplained.interval),
        }


def _grid(model: GAFX) -> dict[str, Any]:
    """Arguments of the `mel` front-end whose maps have the bins and frames of a model's front-end, for every length."""
    front_end = model.frontend
    long = 10**9  # only counted: so long that a last frame filled in part does not move the quotient
    _, bins, frames = front_end.output_shape(long)
    hop = round(long * front_end.planes / frames)
    for samples in (1, hop - 1, hop, hop + 1, long):
        if samples > 0 and front_end.output_shape(samples)[2] != -(-samples // hop) * front_end.planes:
            raise UsageError(
                f"objective=mel_regression: no hop of a spectrogram gives this front-end's frames (about {hop} samples "
                "each); choose gafx_r, gafx_a, gafx_u or leaf"
            )
    window = max(1024, hop)
    return {
        "sample_rate": front_end.sample_rate, "n_mels": bins, "hop_length": hop, "win_length": window,
        "n_fft": max(2048, 2 ** math.ceil(math.log2(window))), "floor": _FLOOR,
    }  # fmt: skip
