"""An objective as it learns: which parts are frozen, and what is built around those that are not."""

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from gafx.config import OptimConfig, TrainConfig
from gafx.errors import UsageError
from gafx.objectives.base import Objective
from gafx.training.optim import build_optimizer, freeze, load_named_state, named_state, set_rate


class Learner:
    """An objective inside Accelerate's wrappers, with an optimiser over the parts that learn in the present epoch.

    `start_epoch` comes first: it builds `module` and `optimizer`, and builds them anew when a part is unfrozen.

    Args:
        objective: what learns.
        config: of the run.
        accelerator: wraps.
        precision: resolved; fp16 rules out the fused optimiser.

    Attributes:
        module: the wrapped objective, to be called in training.
        optimizer: the wrapped optimiser.
    """

    module: nn.Module
    optimizer: AcceleratedOptimizer

    def __init__(self, objective: Objective, config: TrainConfig, accelerator: Accelerator, precision: str):
        self.objective, self.config, self.accelerator, self.precision = objective, config, accelerator, precision
        self._frozen: set[str] | None = None
        # What a part was built never to learn (`frozen=true` of a pretrained front-end).
        self._fixed = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        self._buffers: list[Tensor] = []

    def start_epoch(self, epoch: int) -> None:
        """(Re)build what depends on which parts learn: requires_grad, optimiser groups, DDP wrapper, compilation.

        Raises:
            UsageError: everything is frozen.
        """
        frozen = _frozen_parts(self.config.optim, epoch)
        if frozen == self._frozen:
            return
        state = {}
        if self._frozen is not None:
            state = self.state()
            # DDP never syncs parameters that were frozen when it was wrapped around them.
            self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
            # Unwrapping took autocast off but leaves this mark, on which `prepare` would not put it on again.
            vars(self.objective).pop("_is_accelerate_prepared", None)
            self.accelerator.free_memory()
        self._frozen = frozen
        freeze(self.objective, frozen, self._fixed)
        if not any(p.requires_grad for p in self.objective.parameters()):
            raise UsageError(
                f"nothing learns in epoch {epoch + 1}: {' and '.join(sorted(frozen))} frozen; lower "
                "optim.frontend.frozen_epochs or optim.classifier.frozen_epochs, or set frontend.frozen=false"
            )
        if self.config.compile:
            self.objective.model.compile()
        optimizer = build_optimizer(self.objective, self.config.optim, fused=self.precision != "fp16")
        load_named_state(self.objective, optimizer, state)
        self.module, self.optimizer = self.accelerator.prepare(self.objective, optimizer)

    def train(self) -> None:
        """Training mode, but for parts that are frozen: those stay in eval."""
        self.module.train()
        for part in self._frozen or ():
            getattr(self.objective.model, part).eval()

    def remember_buffers(self) -> None:
        """Keep the buffers (running statistics) as they are before a step."""
        self._buffers = [buffer.clone() for buffer in self.objective.buffers()]

    def restore_buffers(self) -> None:
        """Put the buffers back as they were at `remember_buffers`."""
        for buffer, kept in zip(self.objective.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate, scaled for each part."""
        set_rate(self._bare_optimizer(), rate)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by parameter name."""
        return named_state(self.objective, self._bare_optimizer())

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put back what `state` returned."""
        load_named_state(self.objective, self._bare_optimizer(), state)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser inside Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def _frozen_parts(config: OptimConfig, epoch: int) -> set[str]:
    parts = (("frontend", config.frontend), ("classifier", config.classifier))
    return {name for name, part in parts if epoch < part.frozen_epochs}
