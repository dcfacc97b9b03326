"""Choice of device and of floating-point precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch

from gafx.config import DEVICE, Precision
from gafx.errors import UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF_TYPES = tuple(_DTYPES.values())


class Float32(torch.nn.Module):
    """A module whose tensors, with those of all modules in it, `bfloat16()`, `half()` and `to(dtype)` leave in float32.

    Transforms, logarithms, tables of filters and running statistics need more than the 8 or 11 significant bits of
    these types, and the FFT does not exist in them. The module is computed in them where autocast allows.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            converted = fn(tensor)
            if converted.dtype in HALF_TYPES and converted.dtype != tensor.dtype:
                return tensor.to(converted.device)
            return converted

        return super()._apply(keep, recurse)


def pick_device(name: str | torch.device) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`, or the device of a tensor.

    `auto` is a CUDA GPU if there is one, else the CPU: Apple's GPU lacks double precision and some operations that
    front-ends use, and is taken only by its name.

    Raises:
        UsageError: another name, or the device is not available here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device={name!r} must be {DEVICE.description}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UsageError(f"device={name}: PyTorch finds no CUDA GPU here; use device=auto or device=cpu")
        if (device.index or 0) >= count:
            raise UsageError(f"device={name}: there are {count} CUDA GPUs, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps: PyTorch finds no Apple GPU (MPS) here; use device=auto or device=cpu")
    return device


def device_of(module: torch.nn.Module) -> torch.device:
    """Device of a module's tensors; the CPU if it has none."""
    tensor = next((tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)
    return torch.device("cpu") if tensor is None else tensor.device


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Resolve a precision to `fp32`, `bf16` or `fp16`.

    `auto` is bf16 where the hardware computes in it (Ampere GPUs and later; CPUs with AMX or AVX-512 bf16), else fp32.

    Raises:
        UsageError: another name, fp16 without a CUDA GPU, or bf16 on a GPU without it.
    """
    if wanted not in (names := get_args(Precision)):
        raise UsageError(f"precision={wanted!r} must be one of {', '.join(names)}")
    if wanted == "fp16" and device.type != "cuda":
        raise UsageError(
            "precision=fp16 needs a GPU (CUDA), and there is none here; use precision=bf16 or precision=fp32 (or auto)"
        )
    if device.type == "mps":
        return "fp32" if wanted == "auto" else wanted
    if device.type == "cuda":
        fits = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not fits:
            raise UsageError(
                "precision=bf16 needs a GPU of compute capability 8.0; use precision=fp16 or precision=fp32 (or auto)"
            )
        return ("bf16" if fits else "fp32") if wanted == "auto" else wanted
    return ("bf16" if {"amx_bf16", "avx512_bf16"} & cpu_flags() else "fp32") if wanted == "auto" else wanted


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast context for a resolved precision; does nothing for fp32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def float64(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to float64; on the CPU if it is on MPS, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@cache
def cpu_flags() -> frozenset[str]:
    """Vendor and instruction sets of the processor as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    named = (next((line for line in lines if line.startswith(name)), "") for name in ("vendor_id", "flags"))
    return frozenset(word for line in named for word in line.partition(":")[2].split())
