"""Which device and which arithmetic to use."""

from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch

from gafx.errors import UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """`auto`: the GPU where there is one, else the CPU."""
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic to use: `fp32`, `bf16` or `fp16`.

    `auto` becomes bf16 where the processor computes in it (Ampere GPUs and later; CPUs with AMX or AVX-512 bf16), else
    fp32.

    Raises:
        UsageError: fp16 on a CPU, bf16 on a GPU without it.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise UsageError(
            "precision=fp16 needs a GPU, and there is none here; use precision=bf16 or precision=fp32 (or auto)"
        )
    if device.type == "cuda":
        fits = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not fits:
            raise UsageError(
                "precision=bf16 needs a GPU of compute capability 8.0; use precision=fp16 or precision=fp32 (or auto)"
            )
        return ("bf16" if fits else "fp32") if wanted == "auto" else wanted
    return ("bf16" if _cpu_has_bf16() else "fp32") if wanted == "auto" else wanted


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a resolved precision; no-op for fp32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


@cache
def _cpu_has_bf16() -> bool:
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))
