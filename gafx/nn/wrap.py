"""Change how modules of another library run, without changing their parameters, names or code."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gafx.nn.precision import HALF_TYPES


def recompute(module: nn.Module) -> None:
    """Enable activation checkpointing: keep only the module's inputs and repeat its forward pass in the backward pass.

    Not for modules that draw random numbers.
    """
    # A partial of a bound method, not a closure: a deep copy of the module then runs the copy's method.
    module.forward = partial(_recomputed, module.forward)


def keep_float32(module: nn.Module) -> None:
    """Compute a module in the type of its parameters, float32 or float64, even under autocast."""
    module.forward = partial(_in_float32, module.forward)


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)


def _in_float32(forward: Callable[..., Any], *inputs: Any) -> Any:
    device = next(i.device.type for i in inputs if isinstance(i, Tensor))
    with torch.autocast(device, enabled=False):
        return forward(*(i.float() if isinstance(i, Tensor) and i.dtype in HALF_TYPES else i for i in inputs))
