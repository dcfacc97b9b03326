"""Checkpoints: whole weights and everything else that a run needs to continue to the same bits.

A checkpoint is a folder `step-00001234` with `model.safetensors` (and `average.safetensors`) and `state.pt`. It is
written under another name, flushed to the disk and renamed, so a folder of that name is always complete.
"""

import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gafx.errors import UsageError
from gafx.io import flush
from gafx.saving.weights import read as read_tensors

_PREFIX = "step-"


def write(
    folder: Path,
    step: int,
    weights: dict[str, Tensor],
    average: dict[str, Tensor] | None,
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint of `step` into `folder` and remove all but the newest `keep`."""
    aside = folder / f".writing-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, aside / "model.safetensors"
        )
        if average is not None:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in average.items()}, aside / "average.safetensors"
            )
        torch.save(state, aside / "state.pt")
        for path in [*aside.iterdir(), aside]:
            flush(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 1e6
        raise UsageError(
            f"the checkpoint of step {step} cannot be written into {folder} ({error}; {free:,.0f} MB are free there): "
            "make room, raise the file-size limit or choose another output_dir; what was written before is intact and "
            "the same command continues from it"
        ) from error
    final = folder / f"{_PREFIX}{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    flush(folder)
    for _, old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def exists(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint; unlike `read_latest` this touches nothing, so it needs no lock."""
    return bool(_complete(folder))


def latest_step(folder: Path) -> int | None:
    """Step of the newest checkpoint; touches nothing either."""
    complete = _complete(folder)
    return complete[-1][0] if complete else None


def read_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]] | None:
    """Weights, averaged weights and state of the newest checkpoint, or `None` without one; removes unfinished ones."""
    if not folder.is_dir():
        return None
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    complete = _complete(folder)
    for _, path in reversed(complete):
        try:
            # Our own file, written by `write`; weights_only keeps even that from running code.
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or "step" not in state:
                raise ValueError("state.pt holds no state of a run")
            average = path / "average.safetensors"
            return read_tensors(path / "model.safetensors"), read_tensors(average) if average.is_file() else None, state
        except Exception as error:  # a damaged or planted file can make the readers stumble over anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"warning: {path} is damaged ({reason}); trying the one before", file=sys.stderr)
    if complete:
        raise UsageError(f"every checkpoint in {folder} is damaged; remove that folder to begin again")
    return None


def random_state() -> dict[str, Any]:
    """State of the random generators of this process, in types that `torch.load(weights_only=True)` accepts."""
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
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _complete(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(p.name.removeprefix(_PREFIX)), p) for p in folder.glob(f"{_PREFIX}{'[0-9]' * 8}")]
    return sorted(found)
