"""Bound the memory of a network that a file's configuration describes by the size of the file's weights."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gafx.errors import UsageError
from gafx.saving import weights

# Elements that a model may have beyond twice those of its file: 512 MB in float32.
_FREE_ELEMENTS = 2**27
# In-place random functions. The other functions of nn.init call these; those listed here hide the call from `NoInit`.
_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


def room(path: Path) -> int:
    """Return how many elements a network with the weights `path` may have.

    Twice those of the file, for parts that it lacks, and some more: for a head of other labels, say.
    """
    return 2 * sum(math.prod(shape) for shape in weights.shapes(path).values()) + _FREE_ELEMENTS


def elements(build: Callable[[], nn.Module], name: str, most: int) -> int:
    """Return the elements of a network, built on the meta device, where tensors take no memory.

    0 if it cannot be built there: errors of the network itself are raised again when it is built.

    Raises:
        UsageError: it has more than `most`.
    """
    try:
        with torch.device("meta"), NoInit():
            part = build()
    except (RuntimeError, NotImplementedError, TypeError):
        return 0
    count = sum(tensor.numel() for tensor in (*part.parameters(), *part.buffers()))
    if count > most:
        raise UsageError(f"{name} would have {count:,} elements, far more than its weights file")
    return count


class NoInit(TorchFunctionMode):
    """Skip the random initialisation of parameters, whose values are undefined then: a file replaces all of them.

    On the meta device that of all tensors is skipped: it would import `torch._dynamo`, which takes over a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta or isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)
