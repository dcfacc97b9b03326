"""What a run needs before its first step: processes that know of each other, a folder of its own, model and clips."""

import fcntl
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object as accelerate_gather
from torch.utils.data import DataLoader

from gafx.config import DataConfig, TrainConfig, to_dict
from gafx.data.dataset import ClipDataset, Pieces, Sample, evaluation_pieces, training_pieces
from gafx.data.loader import class_balance, collate
from gafx.data.manifest import Manifest
from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.nn.precision import pick_device, resolve_precision

# Where launchers say how many processes they started. Accelerate reads only some of them.
_WORLDS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# Clips that the statistics of a fixed front-end are taken from.
_STATISTICS_CLIPS = 256


def start_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """Start Accelerate and return it with the resolved precision.

    Raises:
        UsageError: a launcher started several processes that Accelerate does not join, or a precision that is not to be had.
    """
    # Read before Accelerate starts: it rewrites some of them.
    asked = {name: int(os.environ[name]) for name in _WORLDS if os.environ.get(name, "").isdigit()}
    precision = resolve_precision(config.precision, pick_device(config.device))
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=list(config.tracking.trackers) or None,
            project_dir=str(config.folder),
        )
    except ValueError as error:
        raise UsageError(f"Accelerate could not start: {error}") from error
    for name, world in asked.items():
        if world != accelerator.num_processes:
            cure = (
                ""
                if torch.cuda.is_available()
                else " On a machine without a GPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py ..."
            )
            raise UsageError(
                f"{name}={world}, but Accelerate reports {accelerator.num_processes} process(es): each would train alone on everything. "
                f"Launch with `accelerate launch` or `torchrun`.{cure}"
            )
    return accelerator, precision


def claim_folder(folder: Path) -> TextIO:
    """Lock a run's folder for this process; the lock ends with the returned file or the process, however that ends.

    Raises:
        UsageError: another process is writing this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UsageError(
            f"{folder} is being written by another process: wait for it, or, if several processes were meant to train together, "
            "start them with `accelerate launch` or `torchrun` so that they know of each other"
        ) from error
    return lock


def environment(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """What bit-identical repetition depends on beside configuration and data."""
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine(),
        "precision": precision,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def write_config(config: TrainConfig) -> None:
    """config.yaml of the run folder."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_text(config.folder / "config.yaml", text)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file, or `None` if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def training_clips(config: TrainConfig, manifest: Manifest, rows: np.ndarray, model: GAFX) -> ClipDataset:
    """Training pieces with crops, mixup and masks as configured."""
    front_end, segment = model.frontend, segment_samples(config.data, model)
    random_crop = config.data.crop == "random"
    pieces = training_pieces(manifest, rows, front_end.sample_rate, segment)
    if random_crop:
        pieces = Pieces(rows, np.zeros(len(rows), np.int64), np.full(len(rows), segment, np.int64))
    return ClipDataset(
        manifest, pieces, sample_rate=front_end.sample_rate, channels=front_end.channels, seed=config.seed, random_crop=random_crop,
        fixed_length=segment, augment=config.augment, strict=config.data.strict,
    )  # fmt: skip


def evaluation_clips(config: TrainConfig, manifest: Manifest, rows: np.ndarray, model: GAFX) -> ClipDataset:
    """Every piece of every track."""
    front_end = model.frontend
    pieces = evaluation_pieces(manifest, rows, front_end.sample_rate, segment_samples(config.data, model))
    return ClipDataset(
        manifest, pieces, sample_rate=front_end.sample_rate, channels=front_end.channels, strict=config.data.strict
    )


def segment_samples(data: DataConfig, model: GAFX) -> int:
    return round(data.segment_seconds * model.frontend.sample_rate)


def sampling_weights(config: TrainConfig, clips: ClipDataset) -> np.ndarray | None:
    """Probability of each training piece, unnormalised; `None` for every piece once an epoch."""
    rows, manifest = clips.pieces.row, clips.manifest
    if config.data.sampling == "balanced":
        return class_balance(manifest.targets()[rows])
    if config.data.sampling == "weighted":
        return manifest.weight[rows]
    return None


@torch.no_grad()
def fit_statistics(model: GAFX, clips: ClipDataset, device: torch.device) -> None:
    """Give a fixed front-end's map the mean and deviation of (up to 256, evenly chosen) training pieces; no-op if learned."""
    if model.frontend.learned:
        return
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), _STATISTICS_CLIPS)).round().astype(int))
    plain = ClipDataset(
        clips.manifest,
        clips.pieces,
        sample_rate=clips.sample_rate,
        channels=clips.channels,
        fixed_length=clips.fixed_length,
    )
    loader: DataLoader[Sample] = DataLoader(
        plain, batch_size=16, sampler=[(0, int(i)) for i in chosen], collate_fn=collate
    )  # type: ignore[arg-type]
    count, total, squares = 0, 0.0, 0.0
    for batch in loader:
        wave = batch.wave[batch.weight > 0].to(device)
        if len(wave):
            values = model.frontend(wave).double()
            count += values.numel()
            total += float(values.sum())
            squares += float(values.square().sum())
    if count:
        mean = total / count
        model.map_norm.fit(mean, max(squares / count - mean**2, 0.0) ** 0.5)


def gather_object(value: object) -> list[Any]:
    """A value of every process, in the order of their ranks."""
    return accelerate_gather([value])


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)
