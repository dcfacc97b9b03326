"""Exponential moving average of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gafx.training.distributed import distribute_like, full_tensor_on_cpu


class EMA:
    """Exponential moving average (EMA) of parameters and floating-point buffers; other buffers are copied.

    The running statistics of batch norm are averaged too: those of the live weights do not fit averaged ones, which
    makes an epoch look worse or better than it is.

    The decay is warmed up: at step t it is at most (1 + t) / (10 + t), so that early averages follow the weights
    closely. Under FSDP each rank averages its own shards.

    Args:
        tensors: by name; the average starts with their values.
        decay: of the average per step, in [0, 1].
        values: full tensors to start with instead, from a checkpoint.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float, values: dict[str, Tensor] | None = None):
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, tensor in (values or {}).items():
            self.values[name].copy_(distribute_like(tensor, self.values[name]))

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Average in the values after optimiser step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """Averaged values as full tensors (under FSDP a collective)."""
        return {name: full_tensor_on_cpu(tensor) for name, tensor in self.values.items()}

    @torch.no_grad()
    def swap(self, tensors: Mapping[str, Tensor]) -> None:
        """Exchange the tensors' values and the averaged ones, in place; a second call restores both."""
        for name, tensor in tensors.items():
            held = tensor.clone()
            tensor.copy_(self.values[name])
            self.values[name].copy_(held)
