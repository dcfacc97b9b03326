"""Optimiser, learning-rate schedule and the moving average of the weights."""

import math
from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from gafx.config import OptimConfig
from gafx.objectives.base import Objective
from gafx.training.distributed import aside, like


def rate_factor(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """What the base rate is multiplied by at optimiser step `step` (counted from 0).

    Linear warm-up over the first `warmup_steps`, on top of the schedule: `halving` multiplies by `decay` once for each
    milestone that is reached (in completed epochs), `cosine` falls along half a cosine towards 0 after the last step.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "halving":
        epoch = step // steps_per_epoch
        return warmup * config.lr_gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "cosine":
        span = max(1, total_steps - config.warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - config.warmup_steps) / span)))
    return warmup


def part_of(name: str) -> str:
    """Which part of an objective's model a parameter belongs to: `frontend` or `classifier`."""
    return "frontend" if name.startswith("model.frontend.") else "classifier"


def build_optimizer(module: Objective, config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that learn now; each group carries its part's `lr_scale`.

    Weight decay applies to weight matrices and kernels, but for those that the parts list in `no_weight_decay`; vectors
    and scalars (norms, biases) take none.
    """
    without = module.model.no_weight_decay()
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name.removeprefix("model.") not in without
            groups.setdefault((part_of(name), decays), []).append(parameter)
    scales = {"frontend": config.frontend.lr_scale, "classifier": config.classifier.lr_scale}
    options = [
        {
            "params": params,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": scales[part],
            "lr": config.lr * scales[part],
        }
        for (part, decays), params in groups.items()
    ]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(options, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, scaled for its part."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def named_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by parameter name, in whole tensors, so that it survives regrouping when a part is unfrozen
    and another number of ranks. Under FSDP all ranks call it together."""
    return {
        name: {key: aside(value) for key, value in optimizer.state[p].items()}
        for name, p in module.named_parameters()
        if p in optimizer.state
    }


def load_named_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `named_state` returned."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if name in state and parameter in held:
            # The step count stays where it was (Adam keeps it on the CPU unless fused); moments go to the parameter.
            optimizer.state[parameter] = {
                key: (value.to(parameter.device) if optimizer.defaults.get("fused") else value)
                if key == "step"
                else like(value, parameter)
                for key, value in state[name].items()
            }


class WeightAverage:
    """Exponential moving average of a model's parameters; buffers are copied as they are.

    Early averages follow the weights closely: the decay at step t is at most (1 + t) / (10 + t). Where each rank holds
    a share of the parameters it holds the same share of their average.

    Args:
        module: whose values it begins with.
        decay: of the average, a step.
        values: begin with these whole ones instead.
    """

    def __init__(self, module: nn.Module, decay: float, values: dict[str, Tensor] | None = None):
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        for name, tensor in (values or {}).items():
            self.values[name].copy_(like(tensor, self.values[name]))

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in module.state_dict().items():
            if name in parameters:
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def whole(self) -> dict[str, Tensor]:
        """The averaged values in whole tensors. Under FSDP all ranks call it together."""
        return {name: aside(tensor) for name, tensor in self.values.items()}

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's values and the averaged ones; call it twice to restore."""
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                held = tensor.clone()
                tensor.copy_(self.values[name])
                self.values[name].copy_(held)


def freeze(module: nn.Module, frozen: Iterable[str], fixed: Container[str] = ()) -> None:
    """Let the named parts not learn and the others learn, but for parameters that are `fixed` by their part."""
    frozen = set(frozen)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen and name not in fixed)
