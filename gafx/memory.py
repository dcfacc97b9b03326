"""How much memory this process, or its GPU, has used at the most."""

import contextlib
import resource
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here on, where the system can do that (GPUs; Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process, at the most since `reset_peak_memory` (or its start)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
