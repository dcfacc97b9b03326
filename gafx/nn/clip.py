"""Keeping a learned value inside a range without losing it at the border."""

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
    """`value.clamp(low, high)` whose gradient vanishes only where a step against it would lead further outside.

    `clamp` has no gradient at all outside its range: a parameter that once stepped over the border would stay there
    for good.
    """
    clipped: Tensor = _Clip.apply(value, low, high)
    return clipped
