"""Finished runs: opened, checked against each other, and predicted on the test part of their own protocol and fold."""

import glob
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from gafx.audio.views import average_views
from gafx.config import EvaluateConfig, TrainConfig, read_config, read_mapping, what_counts
from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest, check_readable
from gafx.data.open import open_reader, open_split
from gafx.data.protocols import Protocol
from gafx.data.segments import OVERLAP, Segments, evaluation_segments
from gafx.errors import UsageError
from gafx.evaluation.maps import map_pictures
from gafx.evaluation.misjudged import Excerpt, excerpts
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Cost
from gafx.inference import Predictions, pool, predict_segments, to_tracks
from gafx.loading import load
from gafx.memory import peak_memory, reset_peak_memory
from gafx.model import GAFX
from gafx.nn.flops import count_flops
from gafx.nn.precision import pick_device, resolve_precision
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES
from gafx.report.figures import MapPicture
from gafx.saving.info import ModelInfo
from gafx.stats.calibration import temper

_log = logging.getLogger("gafx")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its configuration, and its record (run.json)."""

    folder: Path
    config: TrainConfig
    record: dict[str, Any]

    @property
    def objective(self) -> type[Objective]:
        return OBJECTIVES.get(self.config.objective["name"])  # type: ignore[return-value]

    @property
    def kept_epoch(self) -> int | None:
        """Epoch with the best validation score, whose model is the run's, counted from 1; None without validation."""
        best = self.record.get("best")
        return best["epoch"] + 1 if best else None

    @property
    def protocol(self) -> Protocol:
        return Protocol.parse(self.config.data.protocol)


@dataclass(frozen=True)
class TestedRun:
    """A run with the predictions of its test part.

    Attributes:
        run: that was tested.
        manifest: of its data.
        info: of its model.
        segments: predictions of the test part's segments.
        cost: of the evaluation, with that of the training.
        pictures: front-end maps of a few test tracks.
        windows: predictions of the windows of `gafx predict`, which overlap; None where nothing compares with it.
        excerpts: audio of misjudged tracks by row.
        members: of an ensemble the runs whose predictions are averaged here; `run` and `info` are then the first's,
            except for the folder.
        whole_tracks: the predictions in `segments` are those of whole tracks: the members' segments differ in length.
    """

    run: Run
    manifest: Manifest
    info: ModelInfo
    segments: Predictions
    cost: Cost
    pictures: list[MapPicture] = field(default_factory=list)
    windows: Predictions | None = None
    excerpts: dict[int, Excerpt] = field(default_factory=dict)
    members: "tuple[TestedRun, ...]" = ()
    whole_tracks: bool = False

    @property
    def sources(self) -> "tuple[TestedRun, ...]":
        """The single runs: the members of an ensemble, or this run."""
        return self.members or (self,)

    def tempered(self, found: Predictions) -> Predictions:
        """Probabilities at the model's temperature."""
        multi_label, temperature = self.run.objective.multi_label, self.info.temperature
        return replace(found, values=temper(found.values, temperature, multi_label=multi_label))

    def as_predicted(self, *, calibrated: bool = True) -> Predictions | None:
        """Tracks' probabilities as `gafx predict` gives them by default, an ensemble's as the mean over its members.

        Args:
            calibrated: at each model's temperature; otherwise at temperature 1.

        Returns:
            tracks whose windows could all be read, by row; None without `windows`.
        """
        if not self.members:
            if self.windows is None:
                return None
            return to_tracks(self.tempered(self.windows) if calibrated else self.windows)
        parts = [found for each in self.members if (found := each.as_predicted(calibrated=calibrated)) is not None]
        if len(parts) < len(self.members):
            return None
        rows = reduce(np.intersect1d, [found.row for found in parts])
        values = np.mean([found.values[np.isin(found.row, rows)] for found in parts], axis=0)
        return Predictions(rows, np.zeros(len(rows), np.int64), values)

    def table(self, *, segments: bool = False) -> PredictionTable:
        """Predictions of the tracks, or of their segments, with names, labels and recordings."""
        manifest, data = self.manifest, self.run.config.data
        found = self.segments if segments else to_tracks(self.segments)
        rows = found.row
        groups, first = np.unique(manifest.group, return_index=True)
        names = {
            number: manifest.relative_path(row) for number, row in zip(groups.tolist(), first.tolist(), strict=True)
        }
        labels = (manifest.labels[row] for row in rows.tolist())
        by_segment = data.group_by == "segment"
        # Segments that are treated as recordings are distinguished by their start in the track.
        start = found.start / self.info.sample_rate + (manifest.start[rows] if by_segment else 0.0)
        count, predicted = len(found), None
        multi_label = self.run.objective.multi_label
        if not (segments or multi_label) and (as_predicted := self.as_predicted()) is not None:
            predicted = np.full_like(found.values, np.nan)
            predicted[np.isin(rows, as_predicted.row)] = as_predicted.values[np.isin(as_predicted.row, rows)]
        return PredictionTable(
            row=rows, clip=_texts(manifest.relative_path(row) for row in rows.tolist()),
            track=_texts(names[number] for number in manifest.group[rows].tolist()), group=manifest.group[rows],
            fold=np.full(count, data.fold if self.run.protocol.has_folds else -1, np.int64),
            run=_texts([self.run.folder.name] * count),
            label=_texts(";".join(manifest.classes[number] for number in entry) for entry in labels),
            targets=manifest.targets(rows).astype(np.uint8), values=found.values, classes=tuple(manifest.classes),
            columns=tuple(self.run.objective.columns(manifest.classes)),
            start_seconds=start if segments or by_segment else None, predicted=predicted,
        )  # fmt: skip


def _texts(texts: Iterator[str] | list[str]) -> np.ndarray:
    return np.array(list(texts), object)


def expand(folders: Sequence[Path]) -> list[Path]:
    """Folders with glob patterns resolved to the run folders that match, each once."""
    found: list[Path] = []
    for folder in folders:
        matches = [folder]
        if not folder.exists() and glob.has_magic(str(folder)):
            matches = [Path(path) for path in sorted(glob.glob(str(folder))) if (Path(path) / "config.yaml").is_file()]
            if not matches:
                raise UsageError(f"{str(folder)!r} matches no run folder")
        found += [match for match in matches if match not in found]
    if not found:
        raise UsageError("no run given; write gafx evaluate outputs/<run> [outputs/<run> ...]")
    return found


def open_run(folder: Path) -> Run:
    """Read a finished run's configuration and record.

    Raises:
        UsageError: it is not a run folder, or the run is not finished.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        around = folder if any(folder.glob("*/config.yaml")) else folder.parent
        others = sorted(path.parent.name for path in around.glob("*/config.yaml"))
        listed = f"; runs in {around}: {', '.join(others[:10])}" if others else ""
        raise UsageError(f"{str(folder)!r} is no run folder (it lacks config.yaml or run.json){listed}")
    if not (folder / "model").is_dir():
        raise UsageError(
            f"{folder} is not finished: run its training command again, it continues from the last checkpoint"
        )
    return Run(
        folder,
        read_config(folder / "config.yaml"),
        read_mapping(folder / "run.json", "data", "run_id", "environment", "skipped"),
    )


def group_key(config: TrainConfig) -> str:
    """Key that groups the cross-validation folds of one configuration: equal for runs that differ only in the fold."""
    values = what_counts(config)
    values["data"].pop("fold")
    if "extend" in values:  # each fold extends its own run
        values["extend"] = True
    return json.dumps(values, sort_keys=True)


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose scores cannot be compared in one table; warn where models were tested on different folds.

    Raises:
        UsageError: they differ in data, protocol, split or objective, or two are the same fold of the same run.
    """
    first = runs[0]
    for run in runs[1:]:
        here, there = _must_agree(run), _must_agree(first)
        for what in here:
            if here[what] != there[what]:
                raise UsageError(
                    f"{first.folder} and {run.folder} have different {what} ({there[what]} and {here[what]}): their "
                    "numbers cannot be compared in one table; evaluate them separately"
                )
    folds: dict[str, dict[int, Run]] = {}
    for run in runs:
        same = folds.setdefault(group_key(run.config), {})
        if other := same.get(run.config.data.fold):
            raise UsageError(f"{other.folder} and {run.folder} are the same run of the same fold; give one of them")
        same[run.config.data.fold] = run
    if len({frozenset(tested) for tested in folds.values()}) > 1:
        _log.warning(
            "not every model was tested on the same folds: %s", sorted(sorted(tested) for tested in folds.values())
        )


def _must_agree(run: Run) -> dict[str, Any]:
    data = run.config.data
    return {
        "data sets": data.name,
        "protocols": data.protocol,
        "recordings (data.group_by)": data.group_by,
        "objectives": run.config.objective["name"],
        "copies of the data": run.record["data"]["fingerprint"],
        **{f"splits (data.{key})": getattr(data, key) for key in run.protocol.settings},
    }


def open_part(
    run: Run, config: EvaluateConfig, part: Literal["train", "val", "test"] = "test"
) -> tuple[GAFX, ClipDataset]:
    """The run's model and the segments of one part of the run's protocol and fold; no other clips are opened.

    Raises:
        UsageError: the data are missing, or are not those that the run was trained on.
    """
    data = run.config.data
    data.root = config.root or data.root
    if config.max_unreadable is not None:
        data.max_unreadable, data.strict = config.max_unreadable, False
    if data.root is not None and not Path(data.root).expanduser().exists():
        raise UsageError(f"the data of {run.folder} are not at {data.root}; name their folder with root=<folder>")
    manifest, parts = open_split(
        data, multi_label=run.objective.multi_label, objective=run.config.objective["name"],
        reads_labels=run.objective.reads_labels,
    )  # fmt: skip
    model = load(run.folder)
    assert model.info is not None
    _check_data(run, manifest, model.info)
    front_end = model.frontend
    segment_length = round(data.segment_seconds * front_end.sample_rate)
    rows = getattr(parts, part)
    segments = evaluation_segments(manifest, rows, front_end.sample_rate, segment_length, model.min_samples())
    reader, _ = open_reader(data, manifest, sample_rate=front_end.sample_rate, channels=front_end.channels, build=False)
    kind = run.objective
    return model, ClipDataset(manifest, segments, reader, numbers=kind.takes_numbers, others=kind.takes_others)


def _check_data(run: Run, manifest: Manifest, info: ModelInfo) -> None:
    """Refuse data whose labels or clips are not those of the run's training."""
    if list(manifest.classes) != info.classes:
        missing = sorted(set(info.classes) - set(manifest.classes))
        new = sorted(set(manifest.classes) - set(info.classes))
        raise UsageError(
            f"the labels under {manifest.root} do not match the model in {run.folder}: not in the data: "
            f"{missing or 'none'}, unknown to the model: {new or 'none'}; name the data it was trained on with "
            "root=<folder>"
        )
    if changed := manifest.changed_since(run.record["data"]):
        raise UsageError(
            f"the data under {manifest.root} are not those that {run.folder} was trained on ({changed}), so test clips "
            "may have been trained on; name the right ones with root=<folder>"
        )


def predict_part(
    run: Run, model: GAFX, clips: ClipDataset, config: EvaluateConfig, device: torch.device
) -> Predictions:
    """Run a model over the segments of a part, shared by all processes, each of which gets all predictions.

    Raises:
        UsageError: more clips than `max_unreadable` cannot be read.
    """
    ranks, data = PartialState(), run.config.data
    loader = evaluation_loader(
        clips, batch_size=config.batch_size, workers=config.workers, pin=device.type == "cuda",
        rank=ranks.process_index, world=ranks.num_processes,
    )  # fmt: skip
    objective = objective_around(run, model).to(device)
    quiet = not (ranks.is_main_process and sys.stderr.isatty())
    predict = average_views(objective.predict, config.views)
    with tqdm(total=len(clips), desc=run.folder.name, unit="segment", disable=quiet) as bar:
        segments = predict_segments(
            model, loader, clips.segments, predict, device=device,
            precision=run_precision(config.precision, run, device), progress=bar.update,
        )  # fmt: skip
    check_readable(
        clips.manifest, max_unreadable=data.max_unreadable, strict=data.strict,
        skipped=[*clips.manifest.skipped, *segments.skipped],
    )  # fmt: skip
    return segments


def predict_windows(
    run: Run, model: GAFX, clips: ClipDataset, segments: Predictions, config: EvaluateConfig, device: torch.device
) -> Predictions:
    """Predictions of the windows of `gafx predict` with its default options; those that are segments are not repeated.

    Args:
        run, model, clips, config, device: as of `predict_part`.
        segments: predictions of the segments of `clips`.
    """
    manifest, front_end = clips.manifest, model.frontend
    length = round(run.config.data.segment_seconds * front_end.sample_rate)
    windows = evaluation_segments(
        manifest, np.unique(segments.row), front_end.sample_rate, length, model.min_samples(), overlap=OVERLAP
    )
    base = int(max(windows.start.max(initial=0), segments.start.max(initial=0))) + 1
    wanted = windows.row * base + windows.start
    new = ~np.isin(wanted, segments.row * base + segments.start)
    parts = [segments]
    if new.any():
        more = replace(clips, segments=Segments(windows.row[new], windows.start[new], windows.length[new]))
        parts.append(predict_part(run, model, more, config, device))
    found = pool(parts)
    keys = found.row * base + found.start
    incomplete = windows.row[~np.isin(wanted, keys)]  # a window could not be read
    kept = np.isin(keys, wanted) & ~np.isin(found.row, incomplete)
    return Predictions(found.row[kept], found.start[kept], found.values[kept], found.skipped)


def predict_run(run: Run, config: EvaluateConfig) -> TestedRun | None:
    """Predict the test part of the run's own protocol and fold; None on all processes but the main one.

    Raises:
        UsageError: as `open_part`, or the test part cannot be read.
    """
    model, clips = open_part(run, config)
    assert model.info is not None
    ranks = PartialState()
    device = ranks.device if ranks.num_processes > 1 else pick_device(config.device)
    model.to(device)
    reset_peak_memory(device)
    begin = time.perf_counter()
    segments = predict_part(run, model, clips, config, device)
    seconds = time.perf_counter() - begin
    if not len(segments):
        count = len(np.unique(clips.segments.row))
        raise UsageError(f"not one of the {count} test clips under {clips.manifest.root} could be read")
    labelled = run.objective.reads_labels and config.views == 1
    windows = predict_windows(run, model, clips, segments, config, device) if labelled else None
    if not ranks.is_main_process:
        return None
    samples = round(run.config.data.segment_seconds * model.frontend.sample_rate)
    flops = count_flops(model, torch.zeros(1, model.frontend.channels, samples, device=device))
    cost = Cost(
        parameters=_count(model), frontend_parameters=_count(model.frontend), flops_per_clip=config.views * flops,
        clips_per_second=round(len(segments) / seconds, 2), peak_memory_bytes=peak_memory(device),
        train_seconds=run.record["train_seconds"], train_steps=run.record["steps"], device=describe_device(device),
        precision=run_precision(config.precision, run, device), processes=ranks.num_processes,
    )  # fmt: skip
    pictures = map_pictures(run.objective, model, clips, to_tracks(segments), config.pictures)
    heard = excerpts(clips, segments, 10**6 * config.audio_mb) if run.objective.reads_labels else {}
    return TestedRun(run, clips.manifest, model.info, segments, cost, pictures, windows, heard)


def describe_device(device: torch.device) -> str:
    """Name of a GPU, or processor and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run_precision(wanted: str, run: Run, device: torch.device) -> str:
    """The precision to evaluate in: for `auto` that of the training where the device has it, otherwise fp32."""
    if wanted == "auto":
        trained: str = run.record["environment"]["precision"]
        if trained == "fp16" and device.type == "cuda":
            return trained
        return trained if trained == resolve_precision("auto", device) else "fp32"
    return resolve_precision(wanted, device)


def objective_around(run: Run, model: GAFX) -> Objective:
    """The run's objective around its model, for its probabilities and scores (which do not depend on class counts)."""
    arguments = {key: value for key, value in run.config.objective.items() if key != "name"}
    counts = np.ones(model.classifier.num_classes, np.int64)
    objective: Objective = OBJECTIVES.create(run.config.objective["name"], model, counts, **arguments)
    objective.load_own(run.folder / "model")
    return objective
