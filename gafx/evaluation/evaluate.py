"""Finished runs -> predictions, metrics, result.json and the report.

What is evaluated comes from the runs: data set, protocol, fold, test part. Runs that differ only in their fold are pooled
into one row; rows of different protocols, data or splits are refused, since their numbers cannot be compared.
"""

import csv
import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

import gafx
from gafx.config import EvaluateConfig, TrainConfig, build, to_dict
from gafx.data.dataset import ClipDataset, evaluation_pieces
from gafx.data.loader import evaluation_loader
from gafx.data.manifest import Manifest, Skipped
from gafx.data.open import open_split
from gafx.errors import UsageError
from gafx.evaluation.report import MapPicture, Section, write_report
from gafx.hub import ModelInfo, load
from gafx.inference import Predictions, predict_pieces, to_tracks
from gafx.metrics import calibration_bins, class_scores, confusion, label_scores
from gafx.model import GAFX, create_frontend
from gafx.nn.precision import pick_device, resolve_precision
from gafx.objectives.base import Objective
from gafx.registry import OBJECTIVES


@dataclass
class Run:
    """A finished run and, once it has been evaluated, what its model says of its test part."""

    folder: Path
    config: TrainConfig
    record: dict[str, Any]
    manifest: Manifest | None = None
    info: ModelInfo | None = None
    pieces: Predictions | None = None
    cost: dict[str, Any] | None = None
    pictures: list[MapPicture] | None = None

    @property
    def objective(self) -> type[Objective]:
        return OBJECTIVES.get(self.config.objective["name"])  # type: ignore[return-value]


def evaluate_runs(folders: Sequence[Path], config: EvaluateConfig) -> str:
    """Evaluate runs, write result.json, predictions.csv, pieces.csv and report.html, and return the table as text.

    Each run's files go into its folder; with several runs the joint ones go into `config.output` (default:
    `evaluation-<names>` beside the first run).

    Raises:
        UsageError: no run, an unfinished one, runs that cannot stand in one table, data or labels that no longer match.
    """
    runs = [_open(folder) for folder in _expand(folders)]
    _check_comparable(runs)
    for run in runs:
        _predict(run, config)
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(_row_key(run.config), []).append(run)
    sections = []
    for members in rows.values():
        section = _section(members, config)
        sections.append(section)
        for run in members:
            single = section if len(members) == 1 else _section([run], config)
            _write(run.folder, [single], [run])
    output = runs[0].folder
    if len(runs) > 1:
        names = "-".join(dict.fromkeys(run.folder.name for run in runs))
        output = Path(config.output) if config.output else runs[0].folder.parent / f"evaluation-{_short(names)}"
        _write(output, sections, runs)
    return _table([section.result for section in sections], output)


def _expand(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        matches = sorted(Path().glob(str(folder))) if "*" in str(folder) and not folder.is_absolute() else [folder]
        found += [match for match in matches if match not in found]
    if not found:
        raise UsageError("no run given; write python evaluate.py outputs/<run> [outputs/<run> ...]")
    return found


def _open(folder: Path) -> Run:
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        beside = sorted(p.parent.name for p in folder.parent.glob("*/config.yaml")) if folder.parent.is_dir() else []
        listed = f"; runs in {folder.parent}: {', '.join(beside[:10])}" if beside else ""
        raise UsageError(f"{str(folder)!r} is no run folder (it lacks config.yaml or run.json){listed}")
    if not (folder / "model").is_dir():
        raise UsageError(
            f"{folder} is not finished: run its train.py command again, it continues from the last checkpoint"
        )
    values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Run(folder, build(TrainConfig, values), json.loads((folder / "run.json").read_text(encoding="utf-8")))


def _row_key(config: TrainConfig) -> str:
    """Equal for runs that differ in nothing but their fold and where they ran."""
    values = to_dict(config)
    for key in (
        "name",
        "output_dir",
        "device",
        "workers",
        "compile",
        "tracking",
        "checkpoint_steps",
        "keep_checkpoints",
    ):
        values.pop(key)
    values["data"] = {k: v for k, v in values["data"].items() if k not in ("fold", "root")}
    return json.dumps(values, sort_keys=True)


def _check_comparable(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what, here, there in (
            ("data sets", run.config.data.name, first.config.data.name),
            ("protocols", run.config.data.protocol, first.config.data.protocol),
            ("objectives", run.config.objective["name"], first.config.objective["name"]),
            ("copies of the data", run.record["data"]["fingerprint"], first.record["data"]["fingerprint"]),
            *(
                (f"splits (data.{key})", getattr(run.config.data, key), getattr(first.config.data, key))
                for key in ("folds", "split_seed", "test_share", "val_share")
            ),
        ):
            if here != there:
                raise UsageError(
                    f"{first.folder} and {run.folder} have different {what} ({there} and {here}): their numbers cannot stand in one "
                    "table; evaluate them separately"
                )
    for number, run in enumerate(runs):
        for other in runs[:number]:
            if _row_key(run.config) == _row_key(other.config) and run.config.data.fold == other.config.data.fold:
                raise UsageError(f"{other.folder} and {run.folder} are the same run of the same fold; give one of them")
    folds: dict[str, set[int]] = {}
    for run in runs:
        folds.setdefault(_row_key(run.config), set()).add(run.config.data.fold)
    if len({frozenset(found) for found in folds.values()}) > 1:
        print(
            f"warning: not every model was tested on the same folds: {sorted(map(sorted, folds.values()))}",
            file=sys.stderr,
        )


def _predict(run: Run, config: EvaluateConfig) -> None:
    """Open the test part of the run's own protocol and fold, and run the model over it."""
    data = run.config.data
    data.root = config.root or data.root
    run.manifest, parts = open_split(
        data, multi_label=run.objective.multi_label, objective=run.config.objective["name"]
    )
    model, run.info = load(run.folder)
    if list(run.manifest.classes) != run.info.classes:
        missing = sorted(set(run.info.classes) - set(run.manifest.classes))
        new = sorted(set(run.manifest.classes) - set(run.info.classes))
        raise UsageError(
            f"the labels under {run.manifest.root} do not match the model in {run.folder}: not in the data: {missing or 'none'}, unknown "
            f"to the model: {new or 'none'}; name the data it was trained on with root=<folder>"
        )
    if run.manifest.fingerprint() != run.record["data"]["fingerprint"]:
        raise UsageError(
            f"the data under {run.manifest.root} are not those that {run.folder} was trained on (clips, labels, groups or folds differ), "
            "so test clips may have been trained on; name the right ones with root=<folder>"
        )
    device = pick_device(config.device)
    precision = _precision(config.precision, run, device)
    model.to(device)
    front_end = model.frontend
    segment = round(data.segment_seconds * front_end.sample_rate)
    clips = ClipDataset(
        run.manifest, evaluation_pieces(run.manifest, parts.test, front_end.sample_rate, segment),
        sample_rate=front_end.sample_rate, channels=front_end.channels, strict=data.strict,
    )  # fmt: skip
    loader = evaluation_loader(clips, batch_size=config.batch_size, workers=config.workers, pin=device.type == "cuda")
    probabilities = _objective(run, model).probabilities
    begin = time.perf_counter()
    with tqdm(total=len(clips), desc=run.folder.name, unit="piece", disable=not sys.stderr.isatty()) as bar:
        run.pieces = predict_pieces(
            model, loader, clips.pieces, probabilities, device=device, precision=precision, progress=bar.update
        )
    seconds = time.perf_counter() - begin
    if not len(run.pieces):
        raise UsageError(f"not one of the {len(parts.test)} test clips under {run.manifest.root} could be read")
    memory = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    run.cost = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "frontend_parameters": sum(p.numel() for p in front_end.parameters()),
        "flops_per_clip": _flops(model, segment),
        "clips_per_second": round(len(run.pieces) / seconds, 2),
        "peak_memory_bytes": memory,
        "train_seconds": run.record["train_seconds"],
        "train_steps": run.record["steps"],
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "precision": precision,
    }
    run.pictures = _pictures(run, model, clips, config.pictures, device)


def _precision(wanted: str, run: Run, device: torch.device) -> str:
    """The training's own precision where this device has it, unless another is asked for."""
    if wanted == "auto":
        trained = run.record["environment"]["precision"]
        return trained if trained == resolve_precision("auto", device) else "fp32"
    return resolve_precision(wanted, device)


def _objective(run: Run, model: GAFX) -> Objective:
    """The run's objective around a model, for its probabilities and scores (class counts play no part in these)."""
    arguments = {key: value for key, value in run.config.objective.items() if key != "name"}
    return OBJECTIVES.create(
        run.config.objective["name"], model, np.ones(model.classifier.num_classes, np.int64), **arguments
    )


def _flops(model: GAFX, segment: int) -> float:
    """Floating-point operations of one piece, forward; counted on the unfused attention, which the counter can see."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    wave = torch.zeros(1, model.frontend.channels, segment, device=next(model.parameters()).device)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        model(wave)
    return float(counter.get_total_flops())


@torch.inference_mode()
def _pictures(run: Run, model: GAFX, clips: ClipDataset, count: int, device: torch.device) -> list[MapPicture]:
    """The maps of the first pieces of a few test tracks, one of each class as far as they go."""
    assert run.manifest is not None and run.pieces is not None
    tracks = to_tracks(run.pieces)
    labels = run.manifest.first_label()[tracks.row]
    _, first = np.unique(labels, return_index=True)
    chosen = first[np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int)] if count else []
    mel = create_frontend("mel", sample_rate=model.frontend.sample_rate)
    pictures = []
    for track in chosen:
        row = int(tracks.row[track])
        sample = clips[(0, int(np.flatnonzero(clips.pieces.row == row)[0]))]
        if sample.error is not None:
            continue
        best = int(tracks.probabilities[track].argmax())
        pictures.append(
            MapPicture(
                clip=run.manifest.relative_path(row),
                label="; ".join(run.manifest.classes[label] for label in run.manifest.labels[row]),
                prediction=run.manifest.classes[best],
                probability=float(tracks.probabilities[track, best]),
                seconds=sample.wave.shape[1] / model.frontend.sample_rate,
                wave=sample.wave.mean(dim=0).numpy(),
                feature_map=model.features(sample.wave[None].to(device))[0].mean(dim=0).float().cpu().numpy(),
                mel=mel(sample.wave.mean(dim=0)[None, None])[0, 0].numpy(),
            )
        )
    return pictures


def _section(members: Sequence[Run], config: EvaluateConfig) -> Section:
    """One row: the pooled folds of one model."""
    members = sorted(members, key=lambda run: run.config.data.fold)
    first = members[0]
    manifest, info, cost = first.manifest, first.info, first.cost
    assert manifest is not None and info is not None and cost is not None
    pieces = _pool([run.pieces for run in members if run.pieces is not None])
    tracks = to_tracks(pieces)
    targets = manifest.targets()
    multi = first.objective.multi_label
    scores = {
        level: {
            name: score.as_dict()
            for name, score in label_scores(
                found.probabilities, targets[found.row], manifest.group[found.row], multi_label=multi,
                resamples=config.resamples, tracks=level == "track",
            ).items()
        }
        for level, found in (("track", tracks), ("piece", pieces))
    }  # fmt: skip
    truth = manifest.first_label()[tracks.row]
    matrix = None if multi else confusion(truth, tracks.probabilities.argmax(axis=1), len(manifest.classes))
    per_fold = []
    for run in members:
        assert run.pieces is not None
        own = to_tracks(run.pieces)
        hits = (
            {}
            if multi
            else {"accuracy": float((own.probabilities.argmax(axis=1) == manifest.first_label()[own.row]).mean())}
        )
        per_fold.append({"fold": run.config.data.fold, "tracks": len(own), **hits})
    data = first.config.data
    result: dict[str, Any] = {
        "gafx_version": gafx.__version__,
        "name": first.folder.name.rpartition("-")[0],
        "runs": [str(run.folder) for run in members],
        "run_ids": [run.record["run_id"] for run in members],
        "frontend": info.frontend, "classifier": first.config.classifier, "imagenet": info.imagenet,
        "objective": info.objective, "data": data.name, "protocol": data.protocol,
        "folds": [run.config.data.fold for run in members], "split_seed": data.split_seed, "seed": first.config.seed, "part": "test",
        "classes": list(manifest.classes), "tracks": len(tracks), "pieces": len(pieces),
        "groups": len(np.unique(manifest.group[tracks.row])), "segment_seconds": data.segment_seconds,
        "scores": scores, "chance": None if multi else 1 / len(manifest.classes),
        "per_class": _per_class(manifest, tracks, targets[tracks.row], matrix),
        "confusion": None if matrix is None else matrix.tolist(),
        "calibration_bins": None if multi else calibration_bins(tracks.probabilities, truth),
        "per_fold": per_fold,
        "cost": {
            **cost,
            "clips_per_second": round(float(np.mean([run.cost["clips_per_second"] for run in members if run.cost])), 2),
            "peak_memory_bytes": max(run.cost["peak_memory_bytes"] for run in members if run.cost),
            "train_seconds": round(sum(run.record["train_seconds"] for run in members), 1),
        },
        "skipped": [clip.as_dict() for clip in _skipped(members, pieces)],
    }  # fmt: skip
    return Section(result, [_curve(run) for run in members], list(first.pictures or []))


def _pool(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        tuple(clip for part in parts for clip in part.skipped),
    )


def _skipped(members: Sequence[Run], pieces: Predictions) -> list[Skipped]:
    """Every file that any run left out, in training or in the test, once."""
    trained = [Skipped(**clip) for run in members for clip in run.record["skipped"]]
    return list({clip.as_dict()["path"]: clip for clip in [*trained, *pieces.skipped]}.values())


def _per_class(
    manifest: Manifest, tracks: Predictions, targets: np.ndarray, matrix: np.ndarray | None
) -> list[dict[str, Any]]:
    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    if matrix is None:
        rows = []
        for index, name in enumerate(manifest.classes):
            scores = label_scores(
                tracks.probabilities[:, [index]], targets[:, [index]], tracks.row, multi_label=True, resamples=0
            )
            rows.append(
                {
                    "class": name, "average_precision": number(scores["mean_average_precision"].value),
                    "auc": number(scores["mean_auc"].value), "tracks": int(targets[:, index].sum()),
                }
            )  # fmt: skip
        return rows
    precision, recall, f1 = class_scores(matrix)
    return [
        {
            "class": name, "precision": number(precision[i]), "recall": number(recall[i]), "f1": number(f1[i]),
            "tracks": int(matrix[i].sum()), "predicted": int(matrix[:, i].sum()),
        }
        for i, name in enumerate(manifest.classes)
    ]  # fmt: skip


def _curve(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _write(folder: Path, sections: Sequence[Section], runs: Sequence[Run]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = [section.result for section in sections]
    value = results[0] if len(results) == 1 else {"models": results}
    (folder / "result.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_predictions(folder / "predictions.csv", runs, pieces=False)
    _write_predictions(folder / "pieces.csv", runs, pieces=True)
    first = results[0]
    write_report(
        folder / "report.html",
        sections,
        title=f"{first['data']}: {' and '.join(dict.fromkeys(r['name'] for r in results))}",
    )


def _write_predictions(path: Path, runs: Sequence[Run], *, pieces: bool) -> None:
    """A line a track (or piece): the run, file, recording, fold, label, prediction and each class's probability.

    `track` is the recording, named by the first of its clips; pieces of one recording share it.
    """
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        manifest = runs[0].manifest
        assert manifest is not None
        more = ["start_seconds"] if pieces else []
        writer.writerow(["clip", "track", "fold", "label", "prediction", *manifest.classes, *more, "run"])
        for run in runs:
            assert run.manifest is not None and run.pieces is not None and run.info is not None
            found = run.pieces if pieces else to_tracks(run.pieces)
            _, first_of_group = np.unique(run.manifest.group, return_index=True)
            name_of_group = dict(zip(np.unique(run.manifest.group).tolist(), first_of_group.tolist(), strict=True))
            for row, start, values in zip(found.row.tolist(), found.start.tolist(), found.probabilities, strict=True):
                label = ";".join(run.manifest.classes[number] for number in run.manifest.labels[row])
                track = run.manifest.relative_path(name_of_group[int(run.manifest.group[row])])
                prediction = run.manifest.classes[int(values.argmax())]
                cells = [f"{start / run.info.sample_rate:.3f}"] if pieces else []
                shares = [f"{value:.6f}" for value in values]
                writer.writerow(
                    [
                        run.manifest.relative_path(row),
                        track,
                        run.config.data.fold,
                        label,
                        prediction,
                        *shares,
                        *cells,
                        run.folder.name,
                    ]
                )


def _table(results: Sequence[dict[str, Any]], output: Path) -> str:
    """The table for a terminal: protocol and sample size above, a line a model."""
    first = results[0]
    folds = (
        f", fold{'s' if len(first['folds']) > 1 else ''} {', '.join(map(str, first['folds']))}"
        if "paper" not in first["protocol"]
        else ""
    )
    names = list(first["scores"]["track"])[:2]
    header = ["model", "tracks", *(name.replace("_", " ") for name in names), "training", "clips/s"]
    lines = [header]
    for result in results:
        cells = []
        for name in names:
            score = result["scores"]["track"][name]
            interval = f" ({100 * score['low']:.1f} to {100 * score['high']:.1f})" if score["low"] is not None else ""
            cells.append(f"{100 * score['value']:.1f} %{interval}")
        minutes, seconds = divmod(round(result["cost"]["train_seconds"]), 60)
        lines.append(
            [
                _model_name(result),
                str(result["tracks"]),
                *cells,
                f"{minutes} min {seconds:02d} s",
                f"{result['cost']['clips_per_second']:.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    chance = f", chance {100 * first['chance']:.1f} %" if first["chance"] else ""
    skipped = sum(len(result["skipped"]) for result in results)
    notes = [f"{skipped} unreadable files skipped; the report lists them"] if skipped else []
    return "\n".join(
        [
            f"{first['data']}, protocol {first['protocol']} (split seed {first['split_seed']}){folds}, test part, "
            f"{first['groups']} recordings, {len(first['classes'])} classes{chance}; 95 % intervals",
            *body,
            *notes,
            f"report: {output / 'report.html'}",
        ]
    )


def _model_name(result: dict[str, Any]) -> str:
    start = "ImageNet" if result["imagenet"] else "random start"
    return f"{result['name']} ({start})"


def _short(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
