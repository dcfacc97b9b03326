"""Where a non-finite value comes from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def first_nonfinite(module: nn.Module, run: Callable[[], Tensor]) -> str:
    """Name the first parameter, activation or gradient of `module` that is NaN or infinite.

    Args:
        module: whose parameters and activations are looked at, in the order in which they are used.
        run: repeats the forward pass and returns the loss.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, inputs: tuple, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                kind = type(part).__name__
                bad_input = any(
                    isinstance(i, Tensor) and i.is_floating_point() and not torch.isfinite(i).all() for i in inputs
                )
                found.append(f"input of {name} ({kind})" if bad_input else f"activation of {name} ({kind})")

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        loss = run()
        if not found and not torch.isfinite(loss).all():
            return "the loss itself, from finite logits"
        if not found:
            module.zero_grad(set_to_none=True)
            loss.backward()
            # Backward runs from the output to the input: the last parameter in order is where it began.
            bad = [
                name for name, p in module.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()
            ]
            return f"gradient of parameter {bad[-1]}" if bad else "nothing when the step was repeated"
    finally:
        for handle in handles:
            handle.remove()
    return found[0]
