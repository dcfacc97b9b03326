"""Arithmetic that an exported model must spell out to compute what PyTorch does.

While a model is exported (`torch.compiler.is_exporting()`) it is written down in operations that other runtimes have.
"""

import torch
from torch import Tensor


def log1p(x: Tensor) -> Tensor:
    """log(1 + x). ONNX has no such operation, and the sum in float32 would lose what is small; float64 keeps it."""
    return torch.log(1 + x.double()).to(x.dtype) if torch.compiler.is_exporting() else torch.log1p(x)


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, likewise."""
    return (torch.exp(x.double()) - 1).to(x.dtype) if torch.compiler.is_exporting() else torch.expm1(x)


def add_small(x: Tensor, value: float) -> Tensor:
    """`x + value` for a value next to nothing, such as the energy of silence.

    The optimiser of ONNX models drops the addition of a number up to 1e-8, taking it for 0; not that of a vector.
    """
    return x + x.new_full((1,), value) if torch.compiler.is_exporting() else x + value
