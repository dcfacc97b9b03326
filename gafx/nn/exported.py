"""Operations that an exported model needs in another form to be as exact as PyTorch.

The other form is used during export (`torch.compiler.is_exporting()`) and consists of operations of other runtimes.
"""

import torch
from torch import Tensor


def log1p(x: Tensor) -> Tensor:
    """Compute log(1 + x). ONNX has no such operation; the sum in float32 would lose small x, so float64 is used."""
    return torch.log(1 + x.double()).to(x.dtype) if torch.compiler.is_exporting() else torch.log1p(x)


def expm1(x: Tensor) -> Tensor:
    """Compute exp(x) - 1, see `log1p`."""
    return (torch.exp(x.double()) - 1).to(x.dtype) if torch.compiler.is_exporting() else torch.expm1(x)


def add_small(x: Tensor, value: float) -> Tensor:
    """Compute `x + value` for a tiny value, such as the energy of silence.

    The optimiser of ONNX models removes the addition of a scalar up to 1e-8, but not that of a vector.
    """
    return x + x.new_full((1,), value) if torch.compiler.is_exporting() else x + value
