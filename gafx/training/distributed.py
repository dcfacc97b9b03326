"""One process or many: Accelerate as it was asked for, and whole tensors where each rank holds a share of them."""

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from accelerate.utils import gather_object as accelerate_gather
from torch import Tensor, nn

from gafx.config import TrainConfig
from gafx.errors import UsageError
from gafx.nn.precision import pick_device, resolve_precision
from gafx.training import together

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Where launchers say how many processes they started. Accelerate reads only some of them.
_WORLDS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# The other ranks wait for the main one to fetch, make, look through or pack the data.
_PATIENCE = timedelta(hours=2)


def start_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """Start Accelerate and return it with the resolved precision.

    Raises:
        UsageError: a launcher started several processes that Accelerate does not join; `parallel` asks for what there
            is not; or a precision that is not to be had.
    """
    worlds = _worlds()
    wants_fsdp = _wants_fsdp(config)
    precision = resolve_precision(config.precision, pick_device(config.device))
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=list(config.tracking.trackers) or None,
            project_dir=str(config.folder),
            fsdp_plugin=_fsdp_plugin() if wants_fsdp else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    except ValueError as error:
        raise UsageError(f"Accelerate could not start: {error}") from error
    together.join(accelerator.process_index, accelerator.num_processes)
    if wants_fsdp:
        _check_fsdp(config, accelerator, precision)
    _check_world(worlds, accelerator.num_processes)
    if config.parallel == "ddp" and accelerator.num_processes == 1:
        raise UsageError(
            "parallel=ddp, but there is one process: launch several with torchrun --nproc_per_node <GPUs> train.py ... "
            "or accelerate launch --config_file configs/accelerate/ddp.yaml train.py ..., or leave parallel=auto"
        )
    return accelerator, precision


def start_ranks(*, cpu: bool) -> PartialState:
    """Let the processes of an evaluation know of each other; they share the clips.

    Raises:
        UsageError: a launcher started several processes that Accelerate does not join.
    """
    worlds = _worlds()
    # What an Accelerator reads of this variable, a bare state does not.
    ranks = PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    together.join(ranks.process_index, ranks.num_processes)
    _check_world(worlds, ranks.num_processes)
    return ranks


def shards(accelerator: Accelerator) -> bool:
    """Whether each rank holds a share of every parameter (FSDP2)."""
    return bool(accelerator.is_fsdp2)


def kind(accelerator: Accelerator) -> str:
    """How the processes share the work, in a word."""
    if shards(accelerator):
        return "FSDP2"
    return "DDP" if accelerator.num_processes > 1 else "one process"


def words(accelerator: Accelerator) -> str:
    """How several processes share the work, to follow their number."""
    return f" by {kind(accelerator)}" if kind(accelerator) != "one process" else ""


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a DTensor: sharded or replicated by FSDP. Does not import `torch.distributed.tensor`,
    which takes half a second: if nothing has imported it, no tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank holds a share as a plain one, on every rank; all ranks must call it together."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def aside(tensor: Tensor) -> Tensor:
    """As `whole`, but in main memory where it is made of shares: whole moments need not fit beside them on a GPU."""
    return tensor.full_tensor().cpu() if is_dtensor(tensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, laid out as `other` is: on its device, with its strides (a fused optimiser
    runs through weights and moments side by side), and shared out if that one is."""
    if is_dtensor(other):
        from torch.distributed.tensor import distribute_tensor

        tensor = tensor.to(other.device).contiguous()
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


def lay_out(module: nn.Module) -> None:
    """Lay a module's parameters out as FSDP takes them: row after row, not channels last."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


@torch.no_grad()
def share_buffers(module: nn.Module, accelerator: Accelerator) -> None:
    """Give all ranks the first one's buffers: where batch norm is not synchronised, each has statistics of its own."""
    if accelerator.num_processes > 1:
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in module.state_dict().items():
            if name not in parameters:
                torch.distributed.broadcast(tensor, src=0)


def gather_object(value: object) -> list[Any]:
    """A value of every process, in the order of their ranks."""
    return accelerate_gather([value])


def finish(accelerator: Accelerator) -> None:
    """Close trackers and leave the other processes, once all of them are done."""
    accelerator.wait_for_everyone()
    leave(accelerator)


def leave(accelerator: Accelerator) -> None:
    """Close trackers and leave the other processes, whatever they do."""
    together.part()
    if together.ends_processes():
        for tracker in accelerator.trackers:
            tracker.finish()
    else:
        accelerator.end_training()


def agree(value: object, what: str, cure: str) -> None:
    """Raise `UsageError` on every rank unless all of them have the same `value`."""
    values = gather_object(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise UsageError(f"rank {rank} has {what} {other!r}, rank 0 has {values[0]!r}: {cure}")


def _wants_fsdp(config: TrainConfig) -> bool:
    """Whether configuration or launcher ask for FSDP; raises `UsageError` where they contradict each other."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if launched and config.parallel == "ddp":
        raise UsageError(
            "parallel=ddp, but the launcher asks for FSDP (ACCELERATE_USE_FSDP=true): launch with "
            "--config_file configs/accelerate/ddp.yaml, or leave parallel=auto"
        )
    if launched and (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UsageError(
            f"the launcher asks for FSDP version {version}, and only version 2 is supported: set fsdp_version: 2 under "
            "fsdp_config, as in configs/accelerate/fsdp2.yaml, or FSDP_VERSION=2"
        )
    return launched or config.parallel == "fsdp"


def _fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 with whole weights in checkpoints; what is not said here is the launcher's to choose (`FSDP_...`).

    Parameters stay float32 and autocast does the rest, as under DDP: casting them would reach parts that are kept in
    float32 on purpose, and a run would not compute the same under FSDP as without.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
        activation_checkpointing=False,
    )


def _worlds() -> dict[str, int]:
    """How many processes launchers say there are. Read it before Accelerate starts, which rewrites some of this."""
    # torchrun and Accelerate's launcher set the first, also where one of them is started on each machine by another
    # launcher, whose variables then count machines.
    names = _WORLDS[:1] if os.environ.get(_WORLDS[0], "").isdigit() else _WORLDS
    return {name: int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()}


def _check_world(worlds: dict[str, int], processes: int) -> None:
    """Raise `UsageError` if a launcher started another number of processes than Accelerate has joined."""
    for name, world in worlds.items():
        if world != processes:
            cure = (
                ""
                if torch.cuda.is_available()
                else " On a machine without a GPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
            )
            raise UsageError(
                f"{name}={world}, but Accelerate reports {processes} process(es): each would do everything "
                f"alone. Launch with `accelerate launch` or `torchrun`.{cure}"
            )


def _check_fsdp(config: TrainConfig, accelerator: Accelerator, precision: str) -> None:
    """Raise `UsageError` unless FSDP2, which was asked for, is what there is, and can do what is asked of it."""
    asked = "parallel=fsdp" if config.parallel == "fsdp" else "the launcher asks for FSDP (ACCELERATE_USE_FSDP=true)"
    if not shards(accelerator):
        # Accelerate sets it where it is given a plugin; another run of this process has not asked for FSDP.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        processes = accelerator.num_processes
        obtained = "DDP" if accelerator.use_distributed else "single processes"
        raise UsageError(
            f"{asked}, but Accelerate gives {obtained} ({processes} process{'es' * (processes > 1)} on "
            f"{accelerator.device.type}): FSDP2 needs GPUs and a launcher, torchrun --nproc_per_node <GPUs> train.py "
            "parallel=fsdp ... or accelerate launch --config_file configs/accelerate/fsdp2.yaml train.py ...; else use "
            "parallel=ddp, or parallel=auto for whatever there is"
        )
    if precision == "fp16":
        raise UsageError(
            "precision=fp16 is not supported with FSDP2; use precision=bf16 or precision=fp32, or parallel=ddp"
        )
    if config.compile:
        raise UsageError("compile=true is not supported with FSDP2; set compile=false, or use parallel=ddp")
