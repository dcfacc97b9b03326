"""Optimiser, learning-rate schedule and frozen parts."""

import math
from collections.abc import Container

import torch
from torch import Tensor, nn

from gafx.config import OptimConfig
from gafx.objectives.base import Objective
from gafx.training.distributed import distribute_like, full_tensor_on_cpu

NamedState = dict[str, dict[str, Tensor]]


def lr_factor(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Factor on `optim.lr` at optimiser step `step`, counted from 0.

    Linear warm-up over the first `warmup_steps`, times the schedule: `halving` multiplies by `lr_gamma` at each
    milestone (in completed epochs), `cosine` and `linear` decay from 1 after the warm-up towards 0 after the last step,
    `constant` stays at 1.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "halving":
        epoch = step // steps_per_epoch
        return warmup * config.lr_gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "constant":
        return warmup
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return warmup * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def build_optimizer(objective: Objective, config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Build Adam or AdamW over the parameters with `requires_grad`; each group carries its part's or head's `lr_scale`.

    Weight decay applies to matrices and kernels, except those that the parts list in `no_weight_decay`; vectors and
    scalars (norms, biases) take none.
    """
    exempt = objective.model.no_weight_decay()
    heads = tuple(f"model.classifier.{name}" for name in objective.model.classifier.head_names())
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name.removeprefix("model.") not in exempt
            part = "head" if name.startswith(heads) else _part(name)
            groups.setdefault((part, decays), []).append(parameter)
    classifier = config.classifier
    scales = {
        "frontend": config.frontend.lr_scale, "classifier": classifier.lr_scale,
        "head": classifier.lr_scale * classifier.head_lr_scale,
    }  # fmt: skip
    options = [
        {
            "params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scales[part],
            "lr": config.lr * scales[part],
        }
        for (part, decays), parameters in groups.items()
    ]  # fmt: skip
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(options, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_trainable(objective: nn.Module, frozen: Container[str], fixed: Container[str] = ()) -> None:
    """Set `requires_grad`: False for the named parts, True for all others.

    Args:
        objective: whose parameters are set.
        frozen: parts, `frontend` or `classifier`.
        fixed: names of parameters that stay at False: their part was built frozen.
    """
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(_part(name) not in frozen and name not in fixed)


def named_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> NamedState:
    """Return the optimiser's state by parameter name, as full tensors (under FSDP a collective).

    Unlike `Optimizer.state_dict` it fits other parameter groups, after a part is unfrozen, and another number of ranks.
    """
    return {
        name: {key: full_tensor_on_cpu(value) for key, value in optimizer.state[p].items()}
        for name, p in module.named_parameters()
        if p in optimizer.state
    }


def load_named_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: NamedState) -> None:
    """Load what `named_state` returned; state of parameters that the optimiser does not hold is ignored."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if name in state and parameter in held:
            # Moments go to the parameter's device; the step count only if fused, otherwise Adam keeps it on the CPU.
            optimizer.state[parameter] = {
                key: (value.to(parameter.device) if optimizer.defaults.get("fused") else value)
                if key == "step"
                else distribute_like(value, parameter)
                for key, value in state[name].items()
            }


def _part(name: str) -> str:
    """Part of the model that a parameter of an objective belongs to."""
    return "frontend" if name.startswith("model.frontend.") else "classifier"
