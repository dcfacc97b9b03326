"""An objective as it learns: which parts are frozen, and what is built around those that are not."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from gafx.config import OptimConfig, TrainConfig
from gafx.data.batches import Batch
from gafx.errors import UsageError
from gafx.nn.precision import autocast
from gafx.objectives.base import Objective
from gafx.training import distributed
from gafx.training.optim import (
    WeightAverage,
    build_optimizer,
    freeze,
    load_named_state,
    named_state,
    set_rate,
)


class Learner:
    """An objective inside Accelerate's wrappers, with an optimiser over the parts that learn in the present epoch.

    `start_epoch` comes first: it builds `module` and `optimizer`, and builds them anew when a part is unfrozen.

    Under FSDP2 a copy of the objective is what learns, each rank holding a share of every parameter; the objective
    itself stays whole, and `collect` brings the learned weights into it, so that nothing else knows of shares.

    Args:
        objective: what learns.
        config: of the run.
        accelerator: wraps.
        precision: resolved; fp16 rules out the fused optimiser.

    Attributes:
        module: the wrapped objective, to be called in training.
        live: the objective whose parameters the optimiser moves: the one given, or its sharded copy.
        optimizer: the wrapped optimiser.
    """

    module: nn.Module
    live: Objective
    optimizer: AcceleratedOptimizer

    def __init__(self, objective: Objective, config: TrainConfig, accelerator: Accelerator, precision: str):
        self.objective, self.config, self.accelerator, self.precision = objective, config, accelerator, precision
        self.sharded = distributed.shards(accelerator)
        self._frozen: set[str] | None = None
        # What a part was built never to learn (`frozen=true` of a pretrained front-end).
        self._fixed = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        self._buffers: list[Tensor] = []

    def start_epoch(self, epoch: int) -> None:
        """(Re)build what depends on which parts learn: requires_grad, optimiser groups, wrapper, compilation.

        Raises:
            UsageError: everything is frozen.
        """
        frozen = _frozen_parts(self.config.optim, epoch)
        if frozen == self._frozen:
            return
        state = {}
        if self._frozen is not None:
            state = self.state()
            self._unwrap()
        self._frozen = frozen
        freeze(self.objective, frozen, self._fixed)
        if not any(p.requires_grad for p in self.objective.parameters()):
            raise UsageError(
                f"nothing learns in epoch {epoch + 1}: {' and '.join(sorted(frozen))} frozen; lower "
                "optim.frontend.frozen_epochs or optim.classifier.frozen_epochs, or set frontend.frozen=false"
            )
        if self.config.compile:
            self.objective.model.compile()
        self.live = self.objective
        if self.sharded:
            self.live = copy.deepcopy(self.objective)
            distributed.lay_out(self.live)
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(
                unit.__name__ for unit in self.live.model.fsdp_units()
            )
        optimizer = build_optimizer(self.live, self.config.optim, fused=self.precision != "fp16")
        self.module, self.optimizer = self.accelerator.prepare(self.live, optimizer)
        self.load_state(state)

    def _unwrap(self) -> None:
        """Take everything off the objective: DDP never syncs parameters that were frozen when it was wrapped around
        them, and FSDP's shares keep the requires_grad they were made with."""
        self.collect()
        if not self.sharded:
            self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        # Unwrapping took autocast off but leaves this mark, on which `prepare` would not put it on again.
        vars(self.objective).pop("_is_accelerate_prepared", None)
        del self.module, self.live, self.optimizer
        self.accelerator.free_memory()

    def train(self) -> None:
        """Training mode, but for parts that are frozen: those stay in eval."""
        self.module.train()
        self.objective.train()
        for part in self._frozen or ():
            for objective in (self.live, self.objective):
                getattr(objective.model, part).eval()

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the losses of a batch's clips, to be differentiated."""
        # Accelerate puts autocast around what it wraps, but not with FSDP2.
        with autocast(self.precision, batch.wave.device) if self.sharded else nullcontext():
            return run(self.module, batch, self.config)

    def alone(self) -> AbstractContextManager[None]:
        """In a pass within it, gradients are summed on each rank and not yet over the ranks."""
        return self.accelerator.no_sync(self.module)

    def clip(self, largest: float) -> Tensor:
        """Scale the whole gradient down to a norm of `largest`, and return the norm that it had."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), largest)
        return distributed.whole(torch.as_tensor(norm))

    def remember_buffers(self) -> None:
        """Keep the buffers (running statistics) as they are before a step."""
        self._buffers = [buffer.clone() for buffer in self.live.buffers()]

    def restore_buffers(self) -> None:
        """Put the buffers back as they were at `remember_buffers`."""
        for buffer, kept in zip(self.live.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate, scaled for each part."""
        set_rate(self._bare_optimizer(), rate)

    # -- whole tensors: all ranks call these together ------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> None:
        """Bring what was learned into the objective."""
        if self.sharded:
            state = self.live.state_dict()
            for name, tensor in self.objective.state_dict().items():
                tensor.copy_(distributed.whole(state[name]))
        distributed.share_buffers(self.objective, self.accelerator)

    def present(self, average: WeightAverage | None) -> None:
        """Give the objective the weights that would be kept if training ended now: its own, or their average."""
        model = self.objective.model
        if self.sharded:
            self.collect()
            if average is not None:
                model.load_state_dict(average.whole())
        elif average is not None:
            average.swap(model)
        distributed.share_buffers(model, self.accelerator)

    def withdraw(self, average: WeightAverage | None) -> None:
        """Undo `present`, for training to go on."""
        # A whole copy beside the shares is filled anew whenever it is looked at.
        if average is not None and not self.sharded:
            average.swap(self.objective.model)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's state by parameter name."""
        return named_state(self.live, self._bare_optimizer())

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put back what `state` returned."""
        load_named_state(self.live, self._bare_optimizer(), state)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser inside Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def run(objective: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    """Sum of the losses of a batch's clips."""
    return objective(batch.wave, batch.target, batch.weight, batch.masks, config.augment.time_masks)["loss"]


def _frozen_parts(config: OptimConfig, epoch: int) -> set[str]:
    parts = (("frontend", config.frontend), ("classifier", config.classifier))
    return {name for name, part in parts if epoch < part.frozen_epochs}
