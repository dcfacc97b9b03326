"""Runs as evaluation sees them: opened, checked against each other, and predicted on their own test part."""

import glob
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from gafx.config import EvaluateConfig, TrainConfig, build, read_mapping, what_counts
from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset, evaluation_segments
from gafx.data.manifest import Manifest, check_readable
from gafx.data.open import open_reader, open_split
from gafx.errors import UsageError
from gafx.inference import Predictions, predict_segments, to_tracks
from gafx.loading import load
from gafx.memory import peak_memory, reset_peak_memory
from gafx.model import GAFX, create_frontend
from gafx.nn.flops import count_flops
from gafx.nn.precision import pick_device, resolve_precision
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.evaluation import MapPicture
from gafx.saving.info import ModelInfo


@dataclass
class Run:
    """A finished run and, once it has been evaluated, what its model says of its test part."""

    folder: Path
    config: TrainConfig
    record: dict[str, Any]
    manifest: Manifest | None = None
    info: ModelInfo | None = None
    segments: Predictions | None = None
    cost: dict[str, Any] | None = None
    pictures: list[MapPicture] | None = None

    @property
    def objective(self) -> type[Objective]:
        return OBJECTIVES.get(self.config.objective["name"])  # type: ignore[return-value]


def expand(folders: Sequence[Path]) -> list[Path]:
    """Folders with glob patterns resolved to the run folders that match, each once."""
    found: list[Path] = []
    for folder in folders:
        matches = [folder]
        if not folder.exists() and glob.has_magic(str(folder)):
            matches = [
                Path(match) for match in sorted(glob.glob(str(folder))) if (Path(match) / "config.yaml").is_file()
            ]
            if not matches:
                raise UsageError(f"{str(folder)!r} matches no run folder")
        found += [match for match in matches if match not in found]
    if not found:
        raise UsageError("no run given; write python evaluate.py outputs/<run> [outputs/<run> ...]")
    return found


def open_run(folder: Path) -> Run:
    """Read a finished run's configuration and record."""
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        around = folder if any(folder.glob("*/config.yaml")) else folder.parent
        beside = sorted(path.parent.name for path in around.glob("*/config.yaml"))
        listed = f"; runs in {around}: {', '.join(beside[:10])}" if beside else ""
        raise UsageError(f"{str(folder)!r} is no run folder (it lacks config.yaml or run.json){listed}")
    if not (folder / "model").is_dir():
        raise UsageError(
            f"{folder} is not finished: run its train.py command again, it continues from the last checkpoint"
        )
    values = read_mapping(folder / "config.yaml")
    return Run(
        folder,
        build(TrainConfig, values),
        read_mapping(folder / "run.json", "data", "run_id", "environment", "skipped"),
    )


def group_key(config: TrainConfig) -> str:
    """Equal for runs that differ in nothing but their fold and where they ran."""
    values = what_counts(config)
    values["data"].pop("fold")
    return json.dumps(values, sort_keys=True)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers cannot stand in one table; warn where models were tested on different folds."""
    first = runs[0]
    for run in runs[1:]:
        for what, here, there in (
            ("data sets", run.config.data.name, first.config.data.name),
            ("protocols", run.config.data.protocol, first.config.data.protocol),
            ("recordings (data.group_by)", run.config.data.group_by, first.config.data.group_by),
            ("objectives", run.config.objective["name"], first.config.objective["name"]),
            ("copies of the data", run.record["data"]["fingerprint"], first.record["data"]["fingerprint"]),
            *(
                (f"splits (data.{key})", getattr(run.config.data, key), getattr(first.config.data, key))
                for key in ("folds", "split_seed", "test_fraction", "val_fraction")
            ),
        ):
            if here != there:
                raise UsageError(
                    f"{first.folder} and {run.folder} have different {what} ({there} and {here}): their numbers cannot "
                    "stand in one table; evaluate them separately"
                )
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if group_key(run.config) == group_key(other.config) and run.config.data.fold == other.config.data.fold:
                raise UsageError(f"{other.folder} and {run.folder} are the same run of the same fold; give one of them")
    folds: dict[str, set[int]] = {}
    for run in runs:
        folds.setdefault(group_key(run.config), set()).add(run.config.data.fold)
    if len({frozenset(found) for found in folds.values()}) > 1:
        print(
            f"warning: not every model was tested on the same folds: {sorted(map(sorted, folds.values()))}",
            file=sys.stderr,
        )


def open_part(run: Run, config: EvaluateConfig, part: Literal["test", "val"] = "test") -> tuple[GAFX, ClipDataset]:
    """The run's model and the segments of one part of its own protocol and fold; no other clips are opened.

    Raises:
        UsageError: the data are not there, or not those that the run was trained on.
    """
    data = run.config.data
    data.root = config.root or data.root
    if config.max_unreadable is not None:
        data.max_unreadable, data.strict = config.max_unreadable, False
    if data.root is not None and not Path(data.root).expanduser().exists():
        raise UsageError(f"the data of {run.folder} are not at {data.root}; name where they lie now with root=<folder>")
    run.manifest, parts = open_split(
        data, multi_label=run.objective.multi_label, objective=run.config.objective["name"],
        reads_labels=run.objective.reads_labels,
    )  # fmt: skip
    model = load(run.folder)
    run.info = model.info
    assert run.info is not None
    if list(run.manifest.classes) != run.info.classes:
        missing = sorted(set(run.info.classes) - set(run.manifest.classes))
        new = sorted(set(run.manifest.classes) - set(run.info.classes))
        raise UsageError(
            f"the labels under {run.manifest.root} do not match the model in {run.folder}: not in the data: "
            f"{missing or 'none'}, unknown to the model: {new or 'none'}; name the data it was trained on with "
            "root=<folder>"
        )
    if run.manifest.fingerprint() != run.record["data"]["fingerprint"]:
        raise UsageError(
            f"the data under {run.manifest.root} are not those that {run.folder} was trained on (clips, labels, groups "
            "or folds differ), so test clips may have been trained on; name the right ones with root=<folder>"
        )
    front_end = model.frontend
    segment_length = round(data.segment_seconds * front_end.sample_rate)
    rows = getattr(parts, part)
    segments = evaluation_segments(run.manifest, rows, front_end.sample_rate, segment_length, model.min_samples())
    reader, _ = open_reader(
        data, run.manifest, sample_rate=front_end.sample_rate, channels=front_end.channels, build=False
    )
    return model, ClipDataset(run.manifest, segments, reader)


def predict(run: Run, config: EvaluateConfig) -> None:
    """Open the test part of the run's own protocol and fold, and run the model over it.

    Several processes share the clips, each of which is read by one of them; all learn what was predicted, and the main
    one also what it cost.
    """
    model, clips = open_part(run, config)
    data, front_end = run.config.data, model.frontend
    assert run.manifest is not None
    ranks = PartialState()
    device = ranks.device if ranks.num_processes > 1 else pick_device(config.device)
    precision = run_precision(config.precision, run, device)
    model.to(device)
    loader = evaluation_loader(
        clips, batch_size=config.batch_size, workers=config.workers, pin=device.type == "cuda",
        rank=ranks.process_index, world=ranks.num_processes,
    )  # fmt: skip
    objective = objective_around(run, model).to(device)
    reset_peak_memory(device)
    begin = time.perf_counter()
    with tqdm(
        total=len(clips),
        desc=run.folder.name,
        unit="segment",
        disable=not (ranks.is_main_process and sys.stderr.isatty()),
    ) as bar:
        run.segments = predict_segments(
            model, loader, clips.segments, objective.predict, device=device, precision=precision, progress=bar.update
        )
    seconds = time.perf_counter() - begin
    check_readable(
        run.manifest, max_unreadable=data.max_unreadable, strict=data.strict,
        skipped=[*run.manifest.skipped, *run.segments.skipped],
    )  # fmt: skip
    if not len(run.segments):
        count = len(np.unique(clips.segments.row))
        raise UsageError(f"not one of the {count} test clips under {run.manifest.root} could be read")
    if not ranks.is_main_process:
        return
    memory = peak_memory(device)
    run.cost = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "frontend_parameters": sum(p.numel() for p in front_end.parameters()),
        "flops_per_clip": _flops(model, round(data.segment_seconds * front_end.sample_rate)),
        "clips_per_second": round(len(run.segments) / seconds, 2),
        "peak_memory_bytes": memory,
        "train_seconds": run.record["train_seconds"],
        "train_steps": run.record["steps"],
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "precision": precision,
        "processes": ranks.num_processes,
    }
    run.pictures = map_pictures(run, model, clips, config.pictures, device)


def run_precision(wanted: str, run: Run, device: torch.device) -> str:
    """The training's own precision where this device has it, unless another is asked for."""
    if wanted == "auto":
        trained: str = run.record["environment"]["precision"]
        if trained == "fp16" and device.type == "cuda":
            return trained
        return trained if trained == resolve_precision("auto", device) else "fp32"
    return resolve_precision(wanted, device)


def objective_around(run: Run, model: GAFX) -> Objective:
    """The run's objective around a model, for its probabilities and scores (class counts play no part in these)."""
    arguments = {key: value for key, value in run.config.objective.items() if key != "name"}
    return OBJECTIVES.create(
        run.config.objective["name"], model, np.ones(model.classifier.num_classes, np.int64), **arguments
    )


def _flops(model: GAFX, segment_length: int) -> float:
    """Floating-point operations of one segment, forward."""
    return count_flops(
        model, torch.zeros(1, model.frontend.channels, segment_length, device=next(model.parameters()).device)
    )


@torch.inference_mode()
def map_pictures(run: Run, model: GAFX, clips: ClipDataset, count: int, device: torch.device) -> list[MapPicture]:
    """The maps of the first segments of a few test tracks, one of each class as far as they go."""
    assert run.manifest is not None
    assert run.segments is not None
    tracks = to_tracks(run.segments)
    labels = run.manifest.first_label()[tracks.row]
    _, first = np.unique(labels, return_index=True)
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)] if count else []
    mel = create_frontend("mel", sample_rate=model.frontend.sample_rate)
    pictures = []
    for track in chosen:
        row = int(tracks.row[track])
        sample = clips[(0, int(np.flatnonzero(clips.segments.row == row)[0]))]
        if sample.error is not None:
            continue
        pictures.append(
            MapPicture(
                clip=run.manifest.relative_path(row),
                label="; ".join(run.manifest.classes[label] for label in run.manifest.labels[row]),
                prediction=run.objective.said(tracks.values[track], run.manifest.classes),
                seconds=sample.wave.shape[1] / model.frontend.sample_rate,
                wave=sample.wave.mean(dim=0).numpy(),
                feature_map=model.frontend.planes_to_channels(
                    model.features(sample.wave[None].to(device))[0].float().cpu().numpy()
                ),
                mel=mel(sample.wave.mean(dim=0)[None, None])[0, 0].numpy(),
            )
        )
    return pictures
