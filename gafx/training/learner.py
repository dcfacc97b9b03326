"""An objective in Accelerate's wrappers with its optimiser, rebuilt when a part is unfrozen."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from gafx.config import TrainConfig
from gafx.data.batches import Batch
from gafx.errors import UsageError
from gafx.nn.precision import autocast
from gafx.objectives.base import Objective
from gafx.training import distributed
from gafx.training.ema import EMA
from gafx.training.optim import NamedState, build_optimizer, load_named_state, named_state, set_lr, set_trainable


class Learner:
    """An objective in Accelerate's wrappers, with an optimiser over the parts that are trained in the current epoch.

    Call `start_epoch` first: it builds `module` and `optimizer`, and rebuilds them when a part is unfrozen.

    Under FSDP2 a copy of the objective is sharded and trained. The objective itself keeps full tensors; `collect`
    copies the trained weights into it, so that validation and saving need not know of shards.

    Args:
        objective: what is trained.
        config: of the run.
        accelerator: of the run.
        precision: resolved; fp16 excludes the fused optimiser.

    Attributes:
        module: the wrapped objective, called in training.
        live: the objective whose parameters the optimiser updates: `objective`, or its sharded copy.
        optimizer: the wrapped optimiser.
    """

    module: nn.Module
    live: Objective
    optimizer: AcceleratedOptimizer

    def __init__(self, objective: Objective, config: TrainConfig, accelerator: Accelerator, precision: str):
        self.objective, self.config, self.accelerator, self.precision = objective, config, accelerator, precision
        self.sharded = distributed.is_sharded(accelerator)
        self._frozen: set[str] | None = None
        # Parameters of parts that were built frozen (`frozen=true` of a pretrained front-end).
        self._fixed = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        self._buffers: list[Tensor] = []

    def start_epoch(self, epoch: int) -> None:
        """Build requires_grad, optimiser groups, wrapper and compilation for an epoch, if its frozen parts changed.

        Raises:
            UsageError: everything is frozen.
        """
        optim = self.config.optim
        parts = (("frontend", optim.frontend), ("classifier", optim.classifier))
        frozen = {name for name, part in parts if epoch < part.frozen_epochs}
        if frozen == self._frozen:
            return
        state: NamedState = {}
        if self._frozen is not None:
            state = self.state()
            self._unwrap()
        self._frozen = frozen
        set_trainable(self.objective, frozen, self._fixed)
        if not any(p.requires_grad for p in self.objective.parameters()):
            if not frozen:
                name = self.config.classifier["name"]
                raise UsageError(
                    f"frontend={self.config.frontend['name']} with classifier={name} has no parameter to train: choose "
                    "a classifier that learns, or fit an estimator with gafx classical"
                )
            raise UsageError(
                f"no parameter is trained in epoch {epoch + 1}: {' and '.join(sorted(frozen))} frozen; lower "
                "optim.frontend.frozen_epochs or optim.classifier.frozen_epochs, or set frontend.frozen=false"
            )
        if self.config.compile:
            self.objective.model.compile()
        self.live = self.objective
        if self.sharded:
            self.live = copy.deepcopy(self.objective)
            for parameter in self.live.parameters():  # FSDP2 takes row-major parameters, not channels-last ones
                parameter.data = parameter.data.contiguous()
            units = sorted(unit.__name__ for unit in self.live.model.fsdp_units())
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = units
        optimizer = build_optimizer(self.live, optim, fused=self.precision != "fp16")
        self.module, self.optimizer = self.accelerator.prepare(self.live, optimizer)
        self.load_state(state)

    def _unwrap(self) -> None:
        """Remove all wrappers: DDP never all-reduces parameters that were frozen when it was built, and FSDP shards
        keep the requires_grad they were made with."""
        self.collect()
        if not self.sharded:
            self.accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        # Unwrapping removed autocast but not this mark, because of which `prepare` would not add it again.
        vars(self.objective).pop("_is_accelerate_prepared", None)
        del self.module, self.live, self.optimizer
        self.accelerator.free_memory()

    def train(self) -> None:
        """Set training mode; frozen parts, and batch norm that is frozen, stay in eval mode."""
        self.module.train()
        self.objective.train()
        for objective in (self.live, self.objective):
            for part in self._frozen or ():
                getattr(objective.model, part).eval()
            for part in ("frontend", "classifier"):
                if getattr(self.config.optim, part).frozen_batch_norm:
                    for module in getattr(objective.model, part).modules():
                        if isinstance(module, nn.modules.batchnorm._BatchNorm):
                            module.eval()

    def loss(self, batch: Batch) -> Tensor:
        """Sum of the losses of a batch's clips, a scalar with gradient."""
        # Accelerate adds autocast to what it wraps, except under FSDP2.
        with autocast(self.precision, batch.wave.device) if self.sharded else nullcontext():
            return sum_of_losses(self.module, batch, self.config)

    def no_sync(self) -> AbstractContextManager[None]:
        """Context manager that skips the gradient all-reduce; use it for every micro-batch but the last."""
        return self.accelerator.no_sync(self.module)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the gradient down to a norm of at most `max_norm`; return the norm before."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
        return distributed.full_tensor(torch.as_tensor(norm))

    def remember_buffers(self) -> None:
        """Copy the buffers (batch norm's running statistics) before a step."""
        self._buffers = [buffer.clone() for buffer in self.live.buffers()]

    def restore_buffers(self) -> None:
        """Restore the buffers copied by `remember_buffers`."""
        for buffer, kept in zip(self.live.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, scaled for each part."""
        set_lr(self._bare_optimizer(), lr)

    def at_step(self, step: int) -> None:
        """Tell the objective which optimiser step is next."""
        for objective in (self.live, self.objective):
            objective.at_step(step)

    # -- collectives: all ranks call these ---------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> None:
        """Copy the trained weights and rank 0's buffers into the objective."""
        if self.sharded:
            state = self.live.state_dict()
            for name, tensor in self.objective.state_dict().items():
                tensor.copy_(distributed.full_tensor(state[name]))
        distributed.broadcast_buffers(self.objective, self.accelerator)

    def swap_in_ema(self, ema: EMA | None) -> None:
        """Load the EMA weights, if there are any, into the model for validation or saving; undone by `swap_out_ema`."""
        if self.sharded:
            self.collect()
            if ema is not None:
                self.objective.load_tensors(ema.state_dict())
        elif ema is not None:
            ema.swap(self.objective.tensors())
        distributed.broadcast_buffers(self.objective.model, self.accelerator)

    def swap_out_ema(self, ema: EMA | None) -> None:
        """Undo `swap_in_ema` before training continues."""
        # Under FSDP the full copy is overwritten by the next `collect`.
        if ema is not None and not self.sharded:
            ema.swap(self.objective.tensors())

    def state(self) -> NamedState:
        """The optimiser's state by parameter name."""
        return named_state(self.live, self._bare_optimizer())

    def load_state(self, state: NamedState) -> None:
        """Load what `state` returned."""
        load_named_state(self.live, self._bare_optimizer(), state)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser inside Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)


def sum_of_losses(objective: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    """Sum of the losses of a batch's clips, a scalar."""
    masks = (batch.masks, config.augment.time_masks)
    return objective(batch.wave, batch.target, batch.weight, *masks, **batch.draws)["loss"]
