"""What a run needs before its first step: processes that know of each other, a folder of its own, model and clips."""

import fcntl
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from gafx.config import DataConfig, TrainConfig, run_id
from gafx.data.batches import TrainingOrder, class_balance, collate
from gafx.data.dataset import ClipDataset, Sample
from gafx.data.manifest import Manifest
from gafx.data.readers import Reader
from gafx.data.segments import Segments, evaluation_segments, training_segments
from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.saving.info import ModelInfo, Provenance
from gafx.training import distributed

# Clips that the statistics of a fixed front-end are taken from.
_STATISTICS_CLIPS = 256


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
            f"{folder} is being written by another process: wait for it, or, if several processes were meant to train "
            "together, start them with `accelerate launch` or `torchrun` so that they know of each other"
        ) from error
    return lock


def environment(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """What bit-identical repetition depends on beside configuration and data."""
    return {
        "processes": accelerator.num_processes,
        "parallel": distributed.kind(accelerator),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine(),
        "precision": precision,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def model_info(config: TrainConfig, model: GAFX, provenance: Provenance | None = None) -> ModelInfo:
    """Return the model's info with its training; `provenance` replaces that of a model built without its weights."""
    data = config.data
    assert model.info is not None
    return replace(
        model.info, objective=config.objective["name"], provenance=provenance or model.info.provenance,
        training={
            "run_id": run_id(config), "data": data.name, "protocol": data.protocol, "fold": data.fold,
            "folds": data.folds, "split_seed": data.split_seed, "seed": config.seed,
            **({"group_by": data.group_by} if data.group_by != "recording" else {}),
        },
    )  # fmt: skip


def create_objective(config: TrainConfig, clips: ClipDataset, model: GAFX) -> Objective:
    """The configured objective around a model, told how many training segments each class has.

    Raises:
        UsageError: masks that the objective has no use for.
    """
    kind: Any = OBJECTIVES.get(config.objective["name"])
    masks = {"augment.time_masks": config.augment.time_masks, "augment.frequency_masks": config.augment.frequency_masks}
    if any(masks.values()) and not kind.takes_masks:
        asked = " ".join(f"{key}={value}" for key, value in masks.items() if value)
        zeros = " ".join(f"{key}=0" for key, value in masks.items() if value)
        raise UsageError(f"{asked}: objective {config.objective['name']!r} does not mask the map; set {zeros}")
    arguments = {key: value for key, value in config.objective.items() if key != "name"}
    return OBJECTIVES.create(
        config.objective["name"], model, clips.manifest.label_counts(clips.segments.row), **arguments
    )


def training_order(config: TrainConfig, clips: ClipDataset, accelerator: Accelerator) -> TrainingOrder:
    """Which segments this process reads, in which order."""
    return TrainingOrder(
        len(clips), batch_size=config.batch_size, epochs=config.epochs, seed=config.seed,
        grad_accumulation=config.grad_accumulation, rank=accelerator.process_index, world=accelerator.num_processes,
        weights=sampling_weights(config, clips),
    )  # fmt: skip


def training_clips(
    config: TrainConfig, manifest: Manifest, rows: np.ndarray, reader: Reader, model: GAFX
) -> ClipDataset:
    """Training segments with crops, mixup and masks as configured."""
    segment_length = segment_samples(config.data, model)
    random_crop = config.data.crop == "random"
    segments = training_segments(manifest, rows, reader.sample_rate, segment_length)
    if random_crop:
        segments = Segments(rows, np.zeros(len(rows), np.int64), np.full(len(rows), segment_length, np.int64))
    return ClipDataset(
        manifest, segments, reader, seed=config.seed, random_crop=random_crop, fixed_length=segment_length,
        augment=config.augment,
    )  # fmt: skip


def evaluation_clips(
    config: TrainConfig, manifest: Manifest, rows: np.ndarray, reader: Reader, model: GAFX
) -> ClipDataset:
    """Every segment of every track."""
    segment_length = segment_samples(config.data, model)
    segments = evaluation_segments(manifest, rows, reader.sample_rate, segment_length, model.least_samples())
    return ClipDataset(manifest, segments, reader)


def segment_samples(data: DataConfig, model: GAFX) -> int:
    """Samples of one segment at the front-end's rate."""
    return round(data.segment_seconds * model.frontend.sample_rate)


def sampling_weights(config: TrainConfig, clips: ClipDataset) -> np.ndarray | None:
    """Probability of each training segment, unnormalised; `None` for every segment once an epoch."""
    rows, manifest = clips.segments.row, clips.manifest
    if config.data.sampling == "balanced":
        return class_balance(manifest, rows)
    if config.data.sampling == "weighted":
        if not manifest.weight[rows].sum() > 0:
            raise UsageError("data.sampling=weighted, but every training clip has weight 0; mend the weight column")
        return manifest.weight[rows]
    return None


def fit_statistics(model: GAFX, clips: ClipDataset, device: torch.device) -> None:
    """Give the maps of fixed front-ends the statistics of training segments (up to 256, evenly chosen)."""
    if all(part.learned for part in model.frontend.groups()):
        return
    model.eval()
    # Whole tracks, not only where random crops are drawn from at first.
    rows, length = np.unique(clips.segments.row), int(clips.segments.length[0])
    segments = training_segments(clips.manifest, rows, clips.reader.sample_rate, length)
    chosen = np.unique(np.linspace(0, len(segments) - 1, min(len(segments), _STATISTICS_CLIPS)).round().astype(int))
    plain = ClipDataset(clips.manifest, segments, clips.reader, fixed_length=clips.fixed_length)
    loader: DataLoader[Sample] = DataLoader(
        plain, batch_size=16, sampler=[(0, int(i)) for i in chosen], collate_fn=collate
    )
    model.fit_statistics(batch.wave[batch.weight > 0].to(device) for batch in loader)


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)
