"""Find the origin of a non-finite loss."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gafx.data.batches import Batch
from gafx.data.dataset import ClipDataset
from gafx.errors import UsageError


def first_nonfinite(module: nn.Module, run: Callable[[], Tensor]) -> str:
    """Name the first parameter, activation or gradient of `module` that is NaN or infinite.

    Args:
        module: its parameters are checked first, then the activations in the order of the forward pass.
        run: repeats the forward pass and returns the loss.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not _is_finite(tensor):
            return f"parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, inputs: tuple, output: object) -> None:
            if not found and not _is_finite(output):
                where = "activation" if all(map(_is_finite, inputs)) else "input"
                found.append(f"{where} of {name} ({type(part).__name__})")

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        loss = run()
        if found:
            return found[0]
        if not _is_finite(loss):
            return "the loss itself, from finite logits"
        module.zero_grad(set_to_none=True)
        loss.backward()
        # Backward runs from output to input: the last parameter in order has the first bad gradient.
        bad = [name for name, p in module.named_parameters() if not _is_finite(p.grad)]
        return f"gradient of parameter {bad[-1]}" if bad else "nothing when the step was repeated"
    finally:
        for handle in handles:
            handle.remove()


def nonfinite_step(
    step: int, batches: Sequence[Batch], clips: ClipDataset, module: nn.Module, run: Callable[[], Tensor]
) -> UsageError:
    """Make the error that ends a run at a non-finite loss, with the step, its clips and the first bad tensor.

    Args:
        step: counted from 0.
        batches: of the step.
        clips: that the batches' indices refer to.
        module, run: see `first_nonfinite`.
    """
    origin = first_nonfinite(module, run)
    rows = [int(clips.segments.row[i]) for batch in batches for i in batch.index.tolist() if i >= 0]
    names = ", ".join(clips.manifest.relative_path(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
    return UsageError(
        f"the loss or its gradient is not finite at step {step + 1} (first: {origin}; clips: {names}). Lower "
        "optim.lr, set optim.clip_norm=1.0, raise optim.warmup_steps, try precision=fp32, or skip such steps "
        "with stop_on_nonfinite=false"
    )


def _is_finite(value: object) -> bool:
    """False for a floating-point tensor with a NaN or an infinity."""
    return not (isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all())
