"""Constant tables of a module (windows, filters), computed on the CPU whatever the default device is."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def on_cpu(make: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Decorate a function that computes a table: run it on the CPU and move the result to the default device.

    A table then has the same values on every device, and it can be made on the meta device, where its values are
    discarded. Without this decorator, functions such as `torch.linspace` run as Python decompositions on the meta
    device, and the first one imports `torch._dynamo`, which takes as long as importing torch.
    """

    @wraps(make)
    def table(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        device = torch.get_default_device()
        with torch.device("cpu"):
            values = make(*args, **kwargs)
        return values.to(device)

    return table
