"""Clamping of learned parameters with a gradient that can bring them back into the range."""

from typing import Any

import torch
from torch import Tensor


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,), (gradient,) = ctx.saved_tensors, gradients
        outwards = ((value < ctx.low) & (gradient > 0)) | ((value > ctx.high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0), None, None


def clip(value: Tensor, low: float, high: float) -> Tensor:
    """Clamp `value`; the gradient is zero only outside the range, and only where descent would lead further outside.

    `Tensor.clamp` has no gradient outside its range: a parameter that once left it would never return.
    """
    clipped: Tensor = _Clip.apply(value, low, high)
    return clipped
