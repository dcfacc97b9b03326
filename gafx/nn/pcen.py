"""Per-channel energy normalisation (Wang et al., 2017) with learned coefficients, as in LEAF's sPCEN."""

import math

import torch
from torch import Tensor, nn

from gafx.nn.clip import clip
from gafx.nn.exported import add_small, expm1, log1p

_CHUNK = 64
# Doublings of an exported recurrence, whose number of steps is unknown: 2^18 steps are 40 minutes at 9 ms.
_DOUBLINGS = 18


def recurrence(inputs: Tensor, log_decay: Tensor) -> Tensor:
    """Compute `y[t] = exp(log_decay) * y[t - 1] + x[t]` with `y[-1] = 0`, without a loop over time.

    Runs of 64 steps are products with a triangular matrix of decays; the last values of the runs obey the same
    recurrence over runs, with 64 times the logarithm of the decay. For non-negative inputs all terms are non-negative,
    so there is no cancellation.

    Args:
        inputs: `(batch, channels, time)`.
        log_decay: `(channels,)`, finite and below 0.

    Returns:
        `(batch, channels, time)`.
    """
    if torch.compiler.is_exporting():
        return _doubled(inputs, log_decay)
    time = inputs.shape[-1]
    size = min(time, _CHUNK)
    steps = torch.arange(size, device=inputs.device)
    lags = steps[:, None] - steps
    # Lags are clamped before exp: above the diagonal it would overflow, and infinity times zero is not a number.
    decays = torch.exp(lags.clamp(min=0) * log_decay[:, None, None]) * (lags >= 0)
    runs = nn.functional.pad(inputs, (0, -time % size)).unflatten(-1, (-1, size))
    outputs = torch.einsum("bcrj,cij->bcri", runs, decays)
    if runs.shape[2] > 1:
        ends = recurrence(outputs[..., -1], size * log_decay)
        carry = nn.functional.pad(ends[..., :-1], (1, 0))
        outputs = outputs + carry[..., None] * torch.exp((steps + 1) * log_decay[:, None])[:, None]
    return outputs.flatten(-2)[..., :time]


def _doubled(inputs: Tensor, log_decay: Tensor) -> Tensor:
    """Compute `recurrence` for up to 2^18 steps without a branch on their number: sums over 2, 4, 8, ... steps back."""
    time, outputs = inputs.shape[-1], inputs
    for lag in (2**doubling for doubling in range(_DOUBLINGS)):
        before = nn.functional.pad(outputs, (lag, 0)).narrow(-1, 0, time)
        outputs = outputs + torch.exp(lag * log_decay)[:, None] * before
    return outputs


class PCEN(nn.Module):
    """`(E / (floor + M)^alpha + delta)^root - delta^root`, M the running mean of the energy E (section 3.2).

    `M[t] = (1 - smooth) M[t - 1] + smooth E[t]`, `M[0] = E[0]`. The four coefficients are learned per channel as
    logarithms and clipped: alpha to [0.001, 1], delta to [0.001, 1000], root to [0.01, 1], smooth to [1e-5, 0.999].
    Gain and root are computed through logarithms, `delta^root * expm1(root * log1p(x / delta))`: exact for quiet
    sounds, where the difference of the two powers would cancel, and without infinite values in the backward pass.
    Always float32.

    Args:
        channels: number of channels.
        floor: added to the running mean; lower energies are not amplified further.
        alpha: initial exponent of the gain.
        delta: initial offset.
        root: initial exponent of the compression.
        smooth: initial weight of the newest frame in the running mean.
    """

    def __init__(
        self,
        channels: int,
        floor: float,
        alpha: float = 0.96,
        delta: float = 2.0,
        root: float = 0.5,
        smooth: float = 0.04,
    ):
        super().__init__()
        self.floor = floor
        self.log_alpha = nn.Parameter(torch.full((channels,), math.log(alpha)))
        self.log_delta = nn.Parameter(torch.full((channels,), math.log(delta)))
        self.log_root = nn.Parameter(torch.full((channels,), math.log(root)))
        self.log_smooth = nn.Parameter(torch.full((channels,), math.log(smooth)))

    def running_mean(self, energy: Tensor) -> Tensor:
        """Compute M of energies `(batch, channels, time)`, of the same shape."""
        smooth = _positive(self.log_smooth, 1e-5, 0.999)
        inputs = torch.cat([energy[..., :1], smooth[:, None] * energy[..., 1:]], dim=-1)
        return recurrence(inputs, log1p(-smooth))

    def forward(self, energy: Tensor) -> Tensor:
        """`(batch, channels, time)`, at least 0 -> the same shape, float32, at least 0."""
        with torch.autocast(energy.device.type, enabled=False):
            energy = energy.float()
            alpha = _positive(self.log_alpha, 1e-3, 1.0)[:, None]
            delta = _positive(self.log_delta, 1e-3, 1e3)[:, None]
            root = _positive(self.log_root, 1e-2, 1.0)[:, None]
            gain = torch.exp(-alpha * torch.log(add_small(self.running_mean(energy), self.floor)))
            return torch.exp(root * delta.log()) * expm1(root * log1p(energy * gain / delta))


def _positive(logarithm: Tensor, low: float, high: float) -> Tensor:
    return clip(logarithm, math.log(low), math.log(high)).exp()
