"""Processes and devices: start Accelerate, check what it gives, gather tensors and objects over ranks, end a rank."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

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
from gafx.report.format import plural

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Variables in which launchers give the number of processes they started. Accelerate reads only some of them.
_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# Timeout of collectives: the other ranks wait while the main one downloads, makes, checks or packs the data.
_TIMEOUT = timedelta(hours=2)
# Seconds that a rank waits before it reports an error that another rank may have caused or met as well.
_GRACE = 2.0


def run_rank(work: Callable[[], None]) -> None:
    """Run the work of this process, which may be one rank of several.

    Under torchrun an exception is written to the rank's error file: torchrun then ends the other ranks and prints the
    error that came first. One of several ranks ends its process here when the work is done, or after the traceback of
    an unexpected exception, without destroying the process group: torch does that holding the interpreter's lock, for
    which a thread of the group that still frees a tensor waits, and occasionally both deadlock.

    Raises:
        Exception: of the work, for the command line to print.
    """
    if max(_world_sizes().values(), default=1) == 1:
        return work()
    from torch.distributed.elastic.multiprocessing.errors import record

    def unless_another_failed() -> None:
        try:
            work()
        except (RuntimeError, UsageError) as error:
            # Most often a connection that a failed rank closed, or a mistake that every rank meets: the launcher ends
            # this rank meanwhile, and the error is shown once.
            if isinstance(error, RuntimeError) or os.environ.get("RANK", "0") != "0":
                time.sleep(_GRACE)
            raise

    def end_with_traceback(*error: Any) -> None:
        traceback.print_exception(*error)
        _end_process(1)

    sys.excepthook = end_with_traceback
    record(unless_another_failed)()
    _end_process(0)


def start_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """Start Accelerate; return it and the resolved precision.

    Raises:
        UsageError: a launcher started several processes that Accelerate does not join; `parallel`, `device` or
            `precision` requires something that this machine or launcher does not have.
    """
    world_sizes = _world_sizes()
    wants_fsdp = _wants_fsdp(config)
    precision = resolve_precision(config.precision, pick_device(config.device))
    with _accelerate_device(config.device, world_sizes) as cpu:
        try:
            accelerator = Accelerator(
                cpu=cpu,
                mixed_precision="no" if precision == "fp32" else precision,
                log_with=list(config.tracking.trackers) or None,
                project_dir=str(config.folder),
                fsdp_plugin=_fsdp_plugin() if wants_fsdp else None,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
            )
        except ValueError as error:
            raise UsageError(f"Accelerate could not start: {error}") from error
    if wants_fsdp:
        _check_fsdp(config, accelerator, precision)
    _check_world_size(world_sizes, accelerator.num_processes)
    if config.parallel == "ddp" and accelerator.num_processes == 1:
        raise UsageError(
            "parallel=ddp, but there is one process: launch several with torchrun --nproc_per_node <GPUs> train.py ... "
            "or accelerate launch --config_file configs/accelerate/ddp.yaml train.py ..., or leave parallel=auto"
        )
    return accelerator, precision


def start_ranks(device: str) -> PartialState:
    """Join the processes of an evaluation; each evaluates a part of the clips.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        UsageError: a launcher started several processes that Accelerate does not join.
    """
    world_sizes = _world_sizes()
    with _accelerate_device(device, world_sizes) as cpu:
        # Unlike an Accelerator, a PartialState does not read this variable.
        ranks = PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_TIMEOUT)
    _check_world_size(world_sizes, ranks.num_processes)
    return ranks


def is_sharded(accelerator: Accelerator) -> bool:
    """True if parameters are sharded over the ranks (FSDP2)."""
    return bool(accelerator.is_fsdp2)


def strategy(accelerator: Accelerator) -> str:
    """`FSDP2`, `DDP` or `one process`."""
    if is_sharded(accelerator):
        return "FSDP2"
    return "DDP" if accelerator.num_processes > 1 else "one process"


def by_strategy(accelerator: Accelerator) -> str:
    """` by DDP` or ` by FSDP2`, to follow the number of processes in a text; empty for one process."""
    return f" by {strategy(accelerator)}" if strategy(accelerator) != "one process" else ""


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a DTensor: sharded or replicated by FSDP. Does not import `torch.distributed.tensor`,
    which takes half a second: if nothing has imported it, no tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """All-gather a DTensor into a plain tensor on every rank (collective); return any other tensor as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def full_tensor_on_cpu(tensor: Tensor) -> Tensor:
    """As `full_tensor`, with a gathered tensor moved to the CPU: all moments together may not fit on the GPU."""
    return tensor.full_tensor().cpu() if is_dtensor(tensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard or copy a full tensor with the device, placements and strides of `other`.

    All ranks hold the same full tensor. Strides matter to a fused optimiser, which walks through weights and moments in
    memory order.
    """
    if is_dtensor(other):
        from torch.distributed.tensor import distribute_tensor

        tensor = tensor.to(other.device).contiguous()
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)


@torch.no_grad()
def broadcast_buffers(module: nn.Module, accelerator: Accelerator) -> None:
    """Broadcast rank 0's buffers: where batch norm is not synchronised, each rank has its own running statistics."""
    if accelerator.num_processes > 1:
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in module.state_dict().items():
            if name not in parameters:
                torch.distributed.broadcast(tensor, src=0)


def gather_object(value: object) -> list[Any]:
    """Gather an object of every process, in the order of ranks (collective)."""
    return accelerate_gather([value])


def check_equal(value: object, what: str, cure: str) -> None:
    """Raise `UsageError` on every rank unless all have the same value (collective).

    Args:
        value: of this rank.
        what: text between rank and value in the message, e.g. `the checkpoint of step`.
        cure: end of the message.
    """
    values = gather_object(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise UsageError(f"rank {rank} has {what} {other!r}, rank 0 has {values[0]!r}: {cure}")


def _end_process(status: int) -> NoReturn:
    """End this process at once, with its data loader workers."""
    for child in multiprocessing.active_children():
        with suppress(Exception):
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


@contextmanager
def _accelerate_device(name: str, world_sizes: dict[str, int]) -> Iterator[bool]:
    """Make Accelerate choose the configured device while it starts; yield the value of its argument `cpu`."""
    device = pick_device(name)
    if device.index is None:
        # Without `cpu` Accelerate takes MPS wherever it is available.
        yield name == "cpu" or (device.type == "cpu" and torch.backends.mps.is_available())
        return
    if (processes := max(world_sizes.values(), default=1)) > 1:
        raise UsageError(
            f"device={name}, but there are {processes} processes, each on its own GPU: set device=cuda and choose "
            f"GPUs by CUDA_VISIBLE_DEVICES, or start one process"
        )
    torch.cuda.set_device(device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        yield False
    finally:
        del os.environ["ACCELERATE_TORCH_DEVICE"]


def _wants_fsdp(config: TrainConfig) -> bool:
    """Return whether configuration or launcher request FSDP; raises `UsageError` where they contradict each other."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if launched and config.parallel == "ddp":
        raise UsageError(
            "parallel=ddp, but the launcher requests FSDP (ACCELERATE_USE_FSDP=true): launch with "
            "--config_file configs/accelerate/ddp.yaml, or leave parallel=auto"
        )
    if launched and (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UsageError(
            f"the launcher requests FSDP version {version}, and only version 2 is supported: set fsdp_version: 2 under "
            "fsdp_config, as in configs/accelerate/fsdp2.yaml, or FSDP_VERSION=2"
        )
    return launched or config.parallel == "fsdp"


def _fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 with full tensors in checkpoints; what is not set here is left to the launcher (`FSDP_...`).

    Parameters stay float32 under autocast, as with DDP: casting them would reach parts that are kept in float32 on
    purpose, and a run would compute something else under FSDP.
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


def _world_sizes() -> dict[str, int]:
    """Numbers of processes according to launchers. Read before Accelerate starts, which changes some of them."""
    # torchrun and Accelerate's launcher set WORLD_SIZE. Where another launcher starts one of them on each machine, its
    # own variables count machines.
    names = _WORLD_SIZES[:1] if os.environ.get(_WORLD_SIZES[0], "").isdigit() else _WORLD_SIZES
    return {name: int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()}


def _check_world_size(world_sizes: dict[str, int], processes: int) -> None:
    """Raise `UsageError` if a launcher started another number of processes than Accelerate has joined."""
    for name, count in world_sizes.items():
        if count != processes:
            on_cpu = " On a machine without a GPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
            raise UsageError(
                f"{name}={count}, but Accelerate reports {plural(processes, 'process', 'processes')}: each would train "
                f"on all data. Launch with `accelerate launch` or `torchrun`."
                f"{'' if torch.cuda.is_available() else on_cpu}"
            )


def _check_fsdp(config: TrainConfig, accelerator: Accelerator, precision: str) -> None:
    """Raise `UsageError` unless Accelerate gives FSDP2, which was asked for, and the configuration allows it."""
    if not is_sharded(accelerator):
        asked = (
            "parallel=fsdp" if config.parallel == "fsdp" else "the launcher requests FSDP (ACCELERATE_USE_FSDP=true)"
        )
        # Accelerate sets it when it is given a plugin; another run of this process has not asked for FSDP.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        processes = accelerator.num_processes
        obtained = "DDP" if accelerator.use_distributed else "single processes"
        raise UsageError(
            f"{asked}, but Accelerate gives {obtained} ({processes} process{'es' * (processes > 1)} on "
            f"{accelerator.device.type}): FSDP2 needs GPUs and a launcher, torchrun --nproc_per_node <GPUs> train.py "
            "parallel=fsdp ... or accelerate launch --config_file configs/accelerate/fsdp2.yaml train.py ...; "
            "otherwise use parallel=ddp, or parallel=auto for what the launcher gives"
        )
    if precision == "fp16":
        raise UsageError(
            "precision=fp16 is not supported with FSDP2; use precision=bf16 or precision=fp32, or parallel=ddp"
        )
    if config.compile:
        raise UsageError("compile=true is not supported with FSDP2; set compile=false, or use parallel=ddp")
