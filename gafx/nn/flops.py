"""Floating-point operations of a forward pass."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_flops(module: nn.Module, *inputs: Tensor) -> float:
    """Count the multiplications and additions (two operations a pair) of one call.

    Convolutions, matrix products and attention as PyTorch's counter counts them, attention on the unfused path, which
    it can see; LSTMs, which it cannot, by their matrix products. Transforms (STFT), norms and activations are left out:
    a few per cent at most in the models here.
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
    counter = FlopCounterMode(display=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return float(counter.get_total_flops() + recurrent)
