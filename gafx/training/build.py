"""Parts of a run before its first step: lock on its folder, objective, training and validation clips, statistics."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from gafx.config import DataConfig, TrainConfig, run_id
from gafx.data.augment import check_augment
from gafx.data.batches import TrainingOrder, class_balance, collate
from gafx.data.dataset import ClipDataset, Sample
from gafx.data.manifest import Manifest
from gafx.data.open import open_split
from gafx.data.readers import Reader
from gafx.data.segments import Segments, evaluation_segments, training_segments
from gafx.data.splits import Split
from gafx.errors import UsageError
from gafx.io import locked, remove_leftovers
from gafx.model import GAFX, create_model
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.saving.hub import without_pretrained
from gafx.saving.info import ModelInfo, Provenance
from gafx.training import distributed

# Training segments from which the map statistics of a fixed front-end are computed.
_STATISTICS_CLIPS = 256


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Create a run's folder and lock it for this process; remove what a killed process was writing into it.

    Raises:
        UsageError: another process is writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"{folder} is being written by another process: wait for it, or, if several processes were meant to train "
        "together, start them with `accelerate launch` or `torchrun` so that they know of each other"
    )
    with locked(folder / ".lock", busy, wait=False):
        remove_leftovers(folder, locked=True)
        yield


def open_data(config: TrainConfig) -> tuple[Manifest, Split]:
    """Open the configured data and split it as the objective needs."""
    name = config.objective["name"]
    kind: Any = OBJECTIVES.get(name)
    return open_split(config.data, multi_label=kind.multi_label, objective=name, reads_labels=kind.reads_labels)


def environment(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """Conditions of a bit-identical repetition besides configuration and data."""
    return {
        "processes": accelerator.num_processes,
        "parallel": distributed.strategy(accelerator),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine(),
        "precision": precision,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def build_model(config: TrainConfig, classes: list[str], *, plain: bool = False) -> GAFX:
    """Build the configured model for these labels; `plain` without pretrained weights, which a checkpoint replaces."""
    parts = (config.frontend, config.classifier)
    frontend, classifier = map(without_pretrained, parts) if plain else parts
    model = create_model(frontend, classifier, classes=classes, segment_seconds=config.data.segment_seconds)
    if config.pretrained is not None and not plain:
        model.load_pretrained(config.pretrained)
    return model


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
    """Build the configured objective around a model.

    Raises:
        UsageError: masks that the objective does not apply.
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
    """Order in which this process reads its training segments."""
    return TrainingOrder(
        len(clips), batch_size=config.batch_size, epochs=config.epochs, seed=config.seed,
        grad_accumulation=config.grad_accumulation, rank=accelerator.process_index, world=accelerator.num_processes,
        weights=sampling_weights(config, clips),
    )  # fmt: skip


def total_steps(config: TrainConfig, order: TrainingOrder) -> int:
    """Optimiser steps of the whole run."""
    all_steps = config.epochs * order.steps_per_epoch
    return min(all_steps, config.max_steps or all_steps)


def training_clips(
    config: TrainConfig, manifest: Manifest, rows: np.ndarray, reader: Reader, model: GAFX
) -> ClipDataset:
    """Training segments with the configured crops and augmentations.

    Raises:
        UsageError: between-class learning where all clips have the same labels; augmentations of other data; a
            front-end of other tokens.
    """
    check_augment(config.augment, midi=manifest.scheme is not None)
    if manifest.scheme and manifest.scheme != getattr(model.frontend, "scheme", manifest.scheme):
        raise UsageError(
            f"frontend.scheme={model.frontend.scheme} and data.options.scheme={manifest.scheme} must be the same"
        )
    if config.augment.between_class_probability > 0 and np.isin(manifest.label_counts(rows), (0, len(rows))).all():
        raise UsageError(
            f"augment.between_class_probability={config.augment.between_class_probability}, but the {len(rows):,} "
            "training clips all have the same labels, and a clip is mixed with one of others: set it to 0, or use "
            "augment.mixup_probability"
        )
    segment_length = segment_samples(config.data, model)
    random_crop = config.data.crop == "random"
    segments = training_segments(manifest, rows, reader.sample_rate, segment_length)
    if config.data.crop != "segments":
        segments = Segments(rows, np.zeros(len(rows), np.int64), np.full(len(rows), segment_length, np.int64))
    return ClipDataset(
        manifest, segments, reader, seed=config.seed, random_crop=random_crop, fixed_length=segment_length,
        pad=config.data.short_clips == "pad", augment=config.augment, numbers=_objective(config).takes_numbers,
    )  # fmt: skip


def evaluation_clips(
    config: TrainConfig, manifest: Manifest, rows: np.ndarray, reader: Reader, model: GAFX
) -> ClipDataset:
    """All segments of the tracks in `rows`."""
    segment_length = segment_samples(config.data, model)
    segments = evaluation_segments(manifest, rows, reader.sample_rate, segment_length, model.min_samples())
    kind = _objective(config)
    return ClipDataset(manifest, segments, reader, numbers=kind.takes_numbers, others=kind.takes_others)


def _objective(config: TrainConfig) -> type[Objective]:
    return OBJECTIVES.get(config.objective["name"])  # type: ignore[return-value]


def segment_samples(data: DataConfig, model: GAFX) -> int:
    """Samples of a segment at the front-end's rate."""
    return round(data.segment_seconds * model.frontend.sample_rate)


def sampling_weights(config: TrainConfig, clips: ClipDataset) -> np.ndarray | None:
    """Unnormalised sampling probability of each training segment; `None` where each is read once per epoch."""
    rows, manifest = clips.segments.row, clips.manifest
    if config.data.sampling == "balanced":
        return class_balance(manifest, rows)
    if config.data.sampling == "weighted":
        if not manifest.weight[rows].sum() > 0:
            raise UsageError("data.sampling=weighted, but every training clip has weight 0; correct the weight column")
        return manifest.weight[rows]
    return None


def fit_statistics(model: GAFX, clips: ClipDataset, device: torch.device) -> None:
    """Fit the map normalisation of fixed front-ends to training segments (up to 256, evenly spaced)."""
    if not any(norm.is_fitted_before for norm in model.map_norm.parts()):
        return
    model.eval()
    # Segments of whole tracks, also where training draws random crops.
    rows, length = np.unique(clips.segments.row), int(clips.segments.length[0])
    segments = training_segments(clips.manifest, rows, clips.reader.sample_rate, length)
    chosen = np.unique(np.linspace(0, len(segments) - 1, min(len(segments), _STATISTICS_CLIPS)).round().astype(int))
    plain = ClipDataset(clips.manifest, segments, clips.reader, fixed_length=clips.fixed_length, pad=clips.pad)
    loader: DataLoader[Sample] = DataLoader(
        plain, batch_size=16, sampler=[(0, int(i)) for i in chosen], collate_fn=collate
    )
    model.fit_statistics(batch.wave[batch.weight > 0].to(device) for batch in loader)
