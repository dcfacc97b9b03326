"""`gafx fit`: a linear head on a frozen model, cross-validated by recordings, saved as a model with its report."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import softmax

from gafx.classifiers.base import ProbeFeatures
from gafx.config import DataConfig, EvaluateConfig, TrainConfig, to_dict
from gafx.data.manifest import Manifest, check_readable
from gafx.data.protocols import Protocol
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, default_protocol, split
from gafx.errors import UsageError
from gafx.evaluation.evaluate import make_section, write_evaluation
from gafx.evaluation.result import Cost, Evaluation, Result
from gafx.evaluation.runs import Run, TestedRun, describe_device
from gafx.fitting.features import (
    VERSION,
    cached_predictions,
    data_digest,
    device_of,
    probe_run,
    segment_features,
    weights_digest,
)
from gafx.fitting.head import OUT_OF_FOLD, attach_head, fit_calibration
from gafx.fitting.table import Table
from gafx.fitting.tune import METHODS, Tuned, tune
from gafx.inference import Predictions
from gafx.io import digest, write_json
from gafx.memory import peak_memory, reset_peak_memory
from gafx.model import GAFX
from gafx.nn.flops import count_flops
from gafx.registry import reads_labels
from gafx.report import format as fmt
from gafx.saving.hub import write_calibration, write_scores
from gafx.saving.info import ModelInfo

HEADS = {"logistic": "logistic regression", "svm": "linear SVM"}
RECORD = "fit.json"
_INNER_FOLDS = 5
_MAX_FOLDS = 5


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit, besides the model and the data.

    Attributes:
        head: `logistic` regression, or linear `svm`.
        features: what the head reads of the frozen model: its `outputs` (logits), its `embedding`, or `both`.
        class_weights: `balanced` lets each class count alike, however many clips it has.
        seed: of the inner folds.
        batch_size: segments per batch.
    """

    head: Literal["logistic", "svm"] = "logistic"
    features: ProbeFeatures = "both"
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = 0
    batch_size: int = 16


@dataclass(frozen=True)
class Fit:
    """What `fit_head` made.

    Attributes:
        folder: with the model in `model/`.
        evaluation: of the test part, or of all folds; for `gafx.report.evaluation.write_reports`.
        clips: number of readable clips of each class.
        fitted_on: the clips that the saved head was fitted on, in words.
        notes: sentences for the user.
        seconds: `features` and `fitting`.
    """

    folder: Path
    evaluation: Evaluation
    clips: dict[str, int]
    fitted_on: str
    notes: list[str]
    seconds: dict[str, float]

    @property
    def result(self) -> Result:
        """The scores."""
        return self.evaluation.results[0]


def fit_head(
    model: GAFX, name: str, data: DataConfig, folder: Path, config: FitConfig | None = None, *,
    asked_folds: bool = False,
) -> Fit:  # fmt: skip
    """Fit a linear head on a frozen model's features of a data set, and save it as a model.

    Each fold of the protocol is tested by a head that was fitted, tuned and calibrated on the other folds. The saved
    head is fitted on all clips. Under a protocol with a test part instead of folds it is fitted on the training part,
    and its scores on the test part are saved with it. The penalty is chosen in inner folds over recordings (or on the
    protocol's validation part), and the temperature fitted on the predictions made there.

    Writes `model/`, `fit.json`, `result.json`, `predictions.npz`, `predictions.csv`, `segments.csv`, and the features
    into `features/`, which a further fit with other settings reads. What an earlier fit wrote is replaced.

    Args:
        model: the frozen one, on the device to use.
        name: of it, for tables.
        data: data set and protocol; an empty protocol takes the default.
        folder: to write into; new, empty, or of an earlier fit.
        config: of the head.
        asked_folds: whether the user chose `data.folds`; otherwise there are at most as many as recordings.

    Raises:
        UsageError: the data cannot be read or split, a clip has several labels, the folder contains other files, or the
            model was not trained on labels.
    """
    config = config or FitConfig()
    _check_folder(folder)
    info = model.info
    if info is None or not reads_labels(info.objective):
        raise UsageError(
            f"{name} was not trained on labels, so its classifier is random: name a model that was trained by "
            "objective=classify or tag, e.g. audioset-crnn"
        )
    manifest, data, splits = open_data(data, info, asked_folds=asked_folds)
    begin = time.perf_counter()
    reset_peak_memory(device_of(model))
    found = _features(model, config, manifest, folder / "features")
    computed = time.perf_counter()
    skipped = [*manifest.skipped, *found.skipped]
    check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict, skipped=skipped)
    table = _table(found, manifest, info, config.features)
    manifest, notes = _with_notes(manifest, table)
    method = METHODS[HEADS[config.head]]

    def tuned_on(rows: np.ndarray, val: np.ndarray) -> tuple[Tuned, dict[str, Any]]:
        part = table.take(table.rows_of(np.concatenate([rows, val])))
        sides = [(part.rows_of(rows), part.rows_of(val))] if len(val) else None
        balanced = config.class_weights == "balanced"
        tuned = tune(
            method, part, folds=_INNER_FOLDS, sides=sides, balanced=balanced, seed=config.seed
        )  # fmt: skip
        return tuned, fit_calibration(tuned, part, "validation" if len(val) else OUT_OF_FOLD)

    tuned = {fold: tuned_on(parts.train, parts.val) for fold, parts in splits.items()}
    has_folds = bool(Protocol.parse(data.protocol).folds(data.folds, manifest.official_folds))
    everything = np.unique(table.clip), np.zeros(0, np.int64)
    final, calibration = tuned_on(*everything) if has_folds else next(iter(tuned.values()))
    probe = attach_head(model, final.fitted, manifest.classes, config.features)
    fitted = time.perf_counter()
    assert probe.info is not None
    train = TrainConfig(
        name=f"{name} + {HEADS[config.head]}", seed=config.seed, frontend=probe.info.frontend,
        classifier=probe.info.classifier, data=data,
    )  # fmt: skip
    cost = _cost(model, probe, len(found), computed - begin, (fitted - computed) / len(splits))
    record = {"run_id": digest(json.dumps([to_dict(train), vars(config)], sort_keys=True, default=str), size=4),
              "skipped": [clip.as_dict() for clip in manifest.skipped]}  # fmt: skip
    tested = []
    for fold, parts in splits.items():
        head, own = tuned[fold]
        rows = table.rows_of(parts.test)
        values = softmax(head.fitted.outputs(table.values[rows]), axis=1)
        run = Run(folder, replace(train, data=replace(data, fold=fold)), record)
        predictions = Predictions(found.row[rows], found.start[rows], values, found.skipped)
        tested.append(TestedRun(run, manifest, replace(probe.info, calibration=own), predictions, cost))
    settings = EvaluateConfig(batch_size=config.batch_size)
    evaluation = write_evaluation(Evaluation(folder, [make_section(tested, settings)]), tested, settings)
    result = evaluation.results[0]
    chosen = {f"fold {fold}" if has_folds else "test": head.fitted.setting for fold, (head, _) in tuned.items()}
    _save(probe, folder, result, config, calibration, name, final.fitted.setting, has_folds=has_folds)
    write_json(folder / RECORD, {
        "model": name, **vars(config), "data": to_dict(data), "clips": len(np.unique(table.clip)),
        "setting": method.setting, "saved": final.fitted.setting, "chosen": chosen, "calibration": calibration,
        "skipped": [clip.as_dict() for clip in skipped], "notes": notes,
    })  # fmt: skip
    counts = np.bincount(table.label[table.by_clip(table.values[:, :0])[0]], minlength=table.classes).tolist()
    learned = f"all {sum(counts)} clips" if has_folds else "the training part"
    return Fit(
        folder, evaluation, dict(zip(manifest.classes, counts, strict=True)), learned, notes,
        {"features": computed - begin, "fitting": fitted - computed},
    )  # fmt: skip


def open_data(data: DataConfig, info: ModelInfo, *, asked_folds: bool) -> tuple[Manifest, DataConfig, dict[int, Split]]:
    """Read a data set and divide it by each fold of its protocol.

    A class without a clip in the training part of a fold is accepted: a class of one recording cannot be on both sides.

    Raises:
        UsageError: it cannot be read or split, or has clips with several labels.
    """
    manifest = load_manifest(data.name, data.root, download=data.download, **data.options)
    check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict)
    if manifest.multi_label:
        row = int((manifest.labels.lengths() != 1).argmax())
        raise UsageError(
            f"{manifest.relative_path(row)!r} has {len(manifest.labels[row])} labels, and gafx fit takes exactly one a "
            "clip; use gafx train objective=tag"
        )
    data = replace(data, protocol=data.protocol or default_protocol(manifest), segment_seconds=info.segment_seconds)
    protocol = Protocol.parse(data.protocol, "--protocol")
    if not asked_folds:
        data.folds = max(2, min(_MAX_FOLDS, len(np.unique(manifest.group))))
    folds = protocol.folds(data.folds, manifest.official_folds) or [1]
    splits = {
        fold: split(
            manifest, data.protocol, fold=fold, folds=data.folds, seed=data.split_seed,
            test_fraction=data.test_fraction, val_fraction=data.val_fraction, every_class=False,
        )
        for fold in folds
    }  # fmt: skip
    return manifest, data, splits


def _check_folder(folder: Path) -> None:
    """Raise `UsageError` unless a folder is new, empty or of an earlier fit."""
    if folder.is_dir() and not (folder / RECORD).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.name != "features")
        if others:
            raise UsageError(
                f"{folder} holds other things ({', '.join(others[:3])}): name a new folder for the model with --output"
            )
    elif folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder for the model with --output")


def _features(model: GAFX, config: FitConfig, manifest: Manifest, folder: Path) -> Predictions:
    """Logits and embedding of each segment, from the cache in `folder` where they are there."""
    info = model.info
    assert info is not None
    parts = {"frontend": info.frontend, "classifier": info.classifier}
    key = (VERSION, weights_digest(parts, model), data_digest(manifest), info.segment_seconds)
    rows = np.arange(len(manifest))

    def make() -> Predictions:
        return segment_features(
            model, probe_run(model, "both"), manifest, rows, info.segment_seconds, batch_size=config.batch_size
        )

    return cached_predictions(folder, "both", key, make, device_of(model))


def _table(found: Predictions, manifest: Manifest, info: ModelInfo, features: ProbeFeatures) -> Table:
    """Table of the wanted features.

    Raises:
        UsageError: a value is not finite, or a class has no readable clip.
    """
    outputs = len(info.classes)
    columns = {"outputs": slice(0, outputs), "embedding": slice(outputs, None), "both": slice(None)}[features]
    table = Table.of(replace(found, values=found.values[:, columns]), manifest)
    if not np.isfinite(table.values).all():
        row = int(table.clip[~np.isfinite(table.values).all(axis=1)][0])
        raise UsageError(f"the model's output for {manifest.relative_path(row)!r} is not finite: remove that file")
    empty = [label for number, label in enumerate(manifest.classes) if number not in table.label]
    if empty:
        raise UsageError(f"no clip of {', '.join(map(repr, empty))} can be read: repair or remove these folders")
    return table


def _with_notes(manifest: Manifest, table: Table) -> tuple[Manifest, list[str]]:
    """Add notes on classes that a cross-validation cannot judge."""
    recordings = [len(np.unique(table.group[table.label == number])) for number in range(table.classes)]
    single = [repr(label) for label, count in zip(manifest.classes, recordings, strict=True) if count == 1]
    notes = list(manifest.notes)
    if single:
        notes.append(
            f"{', '.join(single)}: one recording each, which cannot be on both sides of a fold: their clips count as "
            "errors wherever they are tested, and the saved model has learned them from that recording alone"
        )
    return replace(manifest, notes=tuple(notes)), notes


def _cost(model: GAFX, probe: GAFX, segments: int, computing: float, fitting: float) -> Cost:
    device, front_end = device_of(model), model.frontend
    assert model.info is not None
    samples = round(model.info.segment_seconds * front_end.sample_rate)
    return Cost(
        parameters=sum(p.numel() for p in probe.parameters()),
        frontend_parameters=sum(p.numel() for p in front_end.parameters()),
        flops_per_clip=count_flops(model, torch.zeros(1, front_end.channels, samples, device=device)),
        clips_per_second=round(segments / computing, 2), peak_memory_bytes=peak_memory(device),
        train_seconds=round(fitting, 1), device=describe_device(device), precision="fp32",
    )  # fmt: skip


def _save(
    probe: GAFX, folder: Path, result: Result, config: FitConfig, calibration: Mapping[str, Any], name: str,
    setting: float, *, has_folds: bool,
) -> None:  # fmt: skip
    """Save the model with its calibration; with its scores where they are those of these weights."""
    assert probe.info is not None
    accuracy = fmt.score(result.track_scores["accuracy"], "accuracy")
    scored = f"{accuracy}, {fmt.plural(result.tracks, 'track')}, protocol {result.protocol}"
    probe.info.training = {
        "data": result.data, "protocol": result.protocol, "frozen model": name, "head": HEADS[config.head],
        "features": config.features, "penalty": f"C {setting:g}", "class_weights": config.class_weights,
        "seed": config.seed,
        **({"cross-validated accuracy": f"{scored}, of heads fitted on the other folds"} if has_folds else {}),
    }  # fmt: skip
    target = probe.save(folder / "model")
    if calibration:
        write_calibration(target, calibration)
    if not has_folds:
        write_scores(target, result.as_dict()["scores"]["track"], {
            "data": result.data, "protocol": result.protocol, "part": result.part, "tracks": result.tracks,
            "recordings": result.groups, "segment_seconds": result.segment_seconds, "precision": "fp32",
        })  # fmt: skip
