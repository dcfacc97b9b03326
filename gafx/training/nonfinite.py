"""Where a non-finite value comes from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gafx.data.batches import Batch
from gafx.data.dataset import ClipDataset
from gafx.errors import UsageError


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


def nonfinite_step(
    step: int, batches: Sequence[Batch], clips: ClipDataset, module: nn.Module, run: Callable[[], Tensor]
) -> UsageError:
    """The error that ends a run at a non-finite loss: it names the step, the clips and the culprit.

    Args:
        step: counted from 0.
        batches: that the step was made from.
        clips: what their indices mean.
        module, run: see `first_nonfinite`.
    """
    culprit = first_nonfinite(module, run)
    rows = [int(clips.segments.row[i]) for batch in batches for i in batch.index.tolist() if i >= 0]
    names = ", ".join(clips.manifest.relative_path(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
    return UsageError(
        f"the loss or its gradient is not finite at step {step + 1} (first: {culprit}; clips: {names}). Lower "
        "optim.lr, set optim.clip_norm=1.0, lengthen optim.warmup_steps, try precision=fp32, or skip such steps "
        "with stop_on_nonfinite=false"
    )
