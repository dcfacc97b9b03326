"""Checkpoints: full weights and all state that a run needs to resume bit-identically.

A checkpoint is a folder `step-00001234` with `model.safetensors`, `average.safetensors` (the EMA, if there is one) and
`state.pt`. It is written under a temporary name, flushed to the disk and renamed, so a folder of that name is complete.
"""

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gafx.errors import UsageError, first_line
from gafx.io import apply_umask, atomic_folder
from gafx.report.format import size
from gafx.saving.weights import read as read_tensors

_log = logging.getLogger("gafx")
_PREFIX = "step-"
Weights = dict[str, Tensor]
Checkpoint = tuple[Weights, Weights | None, dict[str, Any]]


def write(folder: Path, step: int, weights: Weights, average: Weights | None, state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of `step` into `folder` and delete all but the newest `keep`.

    Args:
        folder: of the checkpoints; it is created.
        step: number of finished optimiser steps.
        weights: of the objective with its model, as full tensors.
        average: their EMA, if there is one.
        state: what else a run resumes from; loadable by `torch.load(weights_only=True)`.
        keep: number of checkpoints.

    Raises:
        UsageError: the disk is full or refuses the files; earlier checkpoints are intact.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder / f"{_PREFIX}{step:08d}", replace=True, sync=True) as part:
            for name, tensors in (("model", weights), ("average", average)):
                if tensors is not None:
                    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                    save_file(contiguous, part / f"{name}.safetensors")
                    apply_umask(part / f"{name}.safetensors")
            torch.save(state, part / "state.pt")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"the checkpoint of step {step} cannot be written into {folder} ({error}; "
            f"{size(shutil.disk_usage(folder.parent).free)} free): make room, raise the file-size limit or set another "
            "output_dir; earlier checkpoints are intact, and the same command resumes from them"
        ) from error
    for _, old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete checkpoints that were being written when a process was killed; the run must be locked."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def latest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint, `None` without one."""
    complete = _complete(folder)
    return complete[-1][0] if complete else None


def read_latest(folder: Path) -> Checkpoint | None:
    """Read weights, EMA weights and state of the newest readable checkpoint, `None` without one.

    Raises:
        UsageError: every checkpoint is damaged.
    """
    complete = _complete(folder)
    for _, path in reversed(complete):
        try:
            # The file is our own, from `write`; weights_only keeps even a planted one from running code.
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or "step" not in state:
                raise ValueError("state.pt holds no state of a run")
            average = path / "average.safetensors"
            return read_tensors(path / "model.safetensors"), read_tensors(average) if average.is_file() else None, state
        except Exception as error:  # a damaged or planted file can make the readers stumble over anything
            _log.warning("%s is damaged (%s); trying the one before", path, first_line(error))
    if complete:
        raise UsageError(f"every checkpoint in {folder} is damaged; delete that folder to start again")
    return None


def random_state() -> dict[str, Any]:
    """State of this process's global random generators, in types that `torch.load(weights_only=True)` accepts."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries may use the global generator
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [random.getstate()[0], list(random.getstate()[1]), random.getstate()[2]],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of the complete checkpoints, oldest first."""
    return sorted((int(p.name.removeprefix(_PREFIX)), p) for p in folder.glob(f"{_PREFIX}{'[0-9]' * 8}"))
