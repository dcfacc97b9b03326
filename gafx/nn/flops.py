"""Floating-point operations of a forward pass."""

import logging

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

# Without Triton the import warns about Triton kernels, of which gafx has none.
logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
from torch.utils.flop_counter import flop_registry  # noqa: E402


class FlopCounter(TorchDispatchMode):
    """Count floating-point operations with PyTorch's table of operators, `total` in all.

    Equal to `torch.utils.flop_counter.FlopCounterMode`, but without its table by module, and without `torch._dynamo`,
    which that class imports at its first operator and which takes over a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # read by torch: whether to import torch._dynamo to disable it in this mode
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:  # an operator that consists of others
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=out)
        return out


@torch.no_grad()
def count_flops(module: nn.Module, *inputs: Tensor) -> float:
    """Count the floating-point operations of one call of `module`; a multiply-add is two operations.

    Convolutions, matrix products and attention are counted by PyTorch's table of operators. Attention is computed
    unfused, since the fused operator of the CPU is not in the table; LSTMs, which are not in it either, are counted by
    their matrix products. Transforms (STFT), norms and activations are not counted: a few per cent at most in the
    models here.
    """
    recurrent = 0

    def count(layer: nn.LSTM, given: tuple[Tensor, ...], _: object) -> None:
        nonlocal recurrent
        steps = given[0].shape[0] * given[0].shape[1]
        directions = 2 if layer.bidirectional else 1
        for number in range(layer.num_layers):
            width = layer.input_size if number == 0 else directions * layer.hidden_size
            recurrent += 2 * steps * directions * 4 * layer.hidden_size * (width + layer.hidden_size)

    hooks = [part.register_forward_hook(count) for part in module.modules() if isinstance(part, nn.LSTM)]
    counter = FlopCounter()
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return float(counter.total + recurrent)
