"""`gafx fit`: a linear head on a frozen model, cross-validated by recordings, saved as a model with its report."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from gafx.classifiers.base import ProbeFeatures
from gafx.config import DataConfig, EvaluateConfig, TrainConfig, to_dict
from gafx.data.dataset import ClipDataset
from gafx.data.leaks.check import FOLDER
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.protocols import Protocol
from gafx.data.readers import FileReader
from gafx.data.segments import OVERLAP, Segments
from gafx.errors import UsageError
from gafx.evaluation.evaluate import make_section, write_evaluation
from gafx.evaluation.misjudged import excerpts
from gafx.evaluation.result import Cost, Evaluation, Result
from gafx.evaluation.runs import describe_device
from gafx.fitting.data import check_folder, check_leaks, open_data, read_table, with_notes
from gafx.fitting.features import (
    VERSION,
    cache_file,
    cached,
    data_digest,
    probe_run,
    segment_features,
    weights_digest,
    with_level,
)
from gafx.fitting.head import OUT_OF_FOLD, attach_head, fit_calibration
from gafx.fitting.testing import predicted_fold, write_part_scores
from gafx.fitting.tune import METHODS, Tuned, tune
from gafx.inference import Predictions
from gafx.io import digest, write_json
from gafx.memory import peak_memory, reset_peak_memory
from gafx.model import GAFX
from gafx.nn.flops import count_flops
from gafx.nn.precision import device_of
from gafx.registry import reads_labels
from gafx.report import format as fmt
from gafx.saving.card import CROSS_VALIDATED
from gafx.saving.hub import write_calibration

HEADS = {"logistic": "logistic regression", "svm": "linear SVM"}
RECORD = "fit.json"
_INNER_FOLDS = 5


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit, besides the model and the data.

    Attributes:
        head: `logistic` regression, or linear `svm`.
        features: what the head reads of the frozen model: its `outputs` (logits), its `embedding`, or `both`.
        class_weights: `balanced` lets each class count alike, however many clips it has.
        seed: of the inner folds.
        batch_size: segments per batch, at least 1.

    Raises:
        UsageError: another value.
    """

    head: Literal["logistic", "svm"] = "logistic"
    features: ProbeFeatures = "both"
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        choices = {"head": HEADS, "features": get_args(ProbeFeatures), "class_weights": ("none", "balanced")}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in tuple(known):
                raise UsageError(f"{name}={value!r} must be one of: {', '.join(known)}")
        for name, least in (("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name}={value!r} must be a whole number of at least {least}")


@dataclass(frozen=True)
class Fit:
    """Result of `fit_head`.

    Attributes:
        folder: with the model in `model/`.
        evaluation: of the test part, or of all folds; for `gafx.report.evaluation.write_reports`.
        clips: number of readable clips of each class.
        fitted_on: the clips that the saved head was fitted on, in words.
        notes: sentences for the user.
        seconds: `data and leak check`, `features` and `fitting`.
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
    model: GAFX, name: str, data: DataConfig, folder: str | os.PathLike[str], config: FitConfig | None = None, *,
    asked_folds: bool = False,
) -> Fit:  # fmt: skip
    """Fit a linear head on a frozen model's features of a data set, and save it as a model.

    Each fold of the protocol is tested by a head that was fitted, tuned and calibrated on the other folds. The saved
    head is fitted on all clips. Under a protocol with a test part instead of folds it is fitted on the training part,
    and its scores on the test part are saved with it. The penalty is chosen in inner folds over recordings (or on the
    protocol's validation part), and the temperature fitted on the predictions made there.

    Writes `model/`, `fit.json`, `result.json`, `predictions.npz`, `predictions.csv`, `segments.csv`, and the features
    into `features/`, which a further fit with other settings reads. What an earlier fit of the same model and data
    wrote is replaced. The windows of a long clip are those of `gafx predict`.

    Args:
        model: the frozen one, on the device to use.
        name: of it, for tables.
        data: data set and protocol; an empty protocol takes the default.
        folder: to write into; new, empty, or of an earlier fit of this model on these data.
        config: of the head.
        asked_folds: whether the user chose `data.folds`; otherwise there are at most as many as recordings.

    Raises:
        UsageError: the data cannot be read or split, a clip has several labels, the folder contains other files or
            cannot be written, or the model was not trained on labels.
    """
    config, folder = config or FitConfig(), Path(folder)
    info = model.info
    if info is None or not reads_labels(info.objective):
        raise UsageError(
            f"{name} was not trained on labels, so its classifier is random: name a model that was trained by "
            "objective=classify or tag, e.g. audioset-crnn"
        )
    weights = weights_digest({"frontend": info.frontend, "classifier": info.classifier}, model)
    root = None if data.root is None else str(Path(data.root).expanduser().resolve())
    check_folder(folder, {"weights": weights, "root": root}, RECORD)
    opened, fingerprints = time.perf_counter(), folder / FOLDER
    manifest, data, splits = open_data(data, info.segment_seconds, fingerprints, asked_folds=asked_folds)
    leaks = check_leaks(manifest, splits, data, fingerprints)
    begin = time.perf_counter()
    found, levels, cost = _features(model, config, manifest, folder / "features", weights)
    computed = time.perf_counter()
    skipped = [*manifest.skipped, *found.skipped]
    check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict, skipped=skipped)
    outputs = len(info.classes)
    columns = {"outputs": slice(0, outputs), "embedding": slice(outputs, None), "both": slice(None)}[config.features]
    table = read_table(replace(found, values=found.values[:, columns]), manifest, "the model's output")
    rate = model.frontend.sample_rate
    random = info.provenance.is_random and not info.training
    notes = ["the frozen model records neither training nor loaded weights: its features may be random"] * random
    manifest, notes = with_notes(manifest, table, levels, model.min_samples() / rate, notes)
    method = METHODS[HEADS[config.head]]

    def tuned_on(rows: np.ndarray, val: np.ndarray) -> tuple[Tuned, dict[str, Any]]:
        part = table.take(table.rows_of(np.concatenate([rows, val])))
        sides = [(part.rows_of(rows), part.rows_of(val))] if len(val) else None
        balanced = config.class_weights == "balanced"
        tuned = tune(method, part, folds=_INNER_FOLDS, sides=sides, balanced=balanced, seed=config.seed)
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
    cost = replace(
        cost, parameters=sum(p.numel() for p in probe.parameters()),
        train_seconds=round((fitted - computed) / len(splits), 1),
    )  # fmt: skip
    about = {"model": name, "weights": weights, "root": root, **vars(config), "data": to_dict(data)}
    write_json(folder / RECORD, about)  # so that this command may write here again if it dies on the way
    run_id = digest(json.dumps([to_dict(train), vars(config)], sort_keys=True, default=str), size=4)
    settings = EvaluateConfig(batch_size=config.batch_size)
    reader, tested = FileReader(manifest, rate, model.frontend.channels), []
    for fold, parts in splits.items():
        head, own = tuned[fold]
        rows = table.rows_of(parts.test)
        test = predicted_fold(
            folder, replace(train, data=replace(data, fold=fold)), {"run_id": run_id, "leaks": leaks[fold]}, manifest,
            replace(probe.info, calibration=own), found, rows, head.fitted.outputs(table.values[rows]), cost,
        )  # fmt: skip
        windows = test.segments
        length = np.full(len(rows), round(info.segment_seconds * rate), np.int64)
        clips = ClipDataset(manifest, Segments(windows.row, windows.start, length), reader)
        heard = excerpts(clips, windows, 10**6 * settings.audio_mb)
        tested.append(replace(test, windows=windows, excerpts=heard))
    evaluation = write_evaluation(Evaluation(folder, [make_section(tested, settings)]), tested, settings)
    result = evaluation.results[0]
    chosen = {f"fold {fold}" if has_folds else "test": head.fitted.settings["C"] for fold, (head, _) in tuned.items()}
    _save(probe, folder, result, config, calibration, name, final.fitted.settings["C"], has_folds=has_folds)
    write_json(folder / RECORD, {
        **about, "clips": len(np.unique(table.clip)),
        "setting": "C", "saved": final.fitted.settings["C"], "chosen": chosen, "calibration": calibration,
        "skipped": [clip.as_dict() for clip in skipped], "notes": notes,
    })  # fmt: skip
    counts = np.bincount(table.label[table.by_clip(table.values[:, :0])[0]], minlength=table.classes).tolist()
    learned = f"all {sum(counts)} clips" if has_folds else "the training part"
    return Fit(
        folder, evaluation, dict(zip(manifest.classes, counts, strict=True)), learned, notes,
        {"data and leak check": begin - opened, "features": computed - begin, "fitting": fitted - computed},
    )  # fmt: skip


def _features(
    model: GAFX, config: FitConfig, manifest: Manifest, folder: Path, weights: str
) -> tuple[Predictions, np.ndarray, Cost]:
    """Logits and embedding of each window of `gafx predict`, from the cache in `folder` where they are there.

    Files of earlier states of the data are removed.

    Returns:
        the features, the level `(rows,)` of each window in dBFS, and what computing them took.
    """
    info, device, front_end = model.info, device_of(model), model.frontend
    assert info is not None
    key = (VERSION, weights, data_digest(manifest), info.segment_seconds, OVERLAP)
    run = with_level(probe_run(model, "both"), front_end.sample_rate)

    def make() -> tuple[dict[str, Any], Sequence[Skipped]]:
        reset_peak_memory(device)
        begin = time.perf_counter()
        found = segment_features(
            model, run, manifest, np.arange(len(manifest)), info.segment_seconds, batch_size=config.batch_size,
            overlap=OVERLAP,
        )  # fmt: skip
        took = np.array([time.perf_counter() - begin, peak_memory(device)])
        return {"row": found.row, "start": found.start, "values": found.values, "took": took}, found.skipped

    arrays, skipped = cached(folder, "both", key, make, device)
    for path in set(folder.glob("both-*.npz")) - {cache_file(folder, "both", key, device)}:
        path.unlink(missing_ok=True)
    seconds, memory = arrays.pop("took").tolist()
    values = arrays.pop("values")
    samples = round(info.segment_seconds * front_end.sample_rate)
    cost = Cost(
        parameters=0, frontend_parameters=sum(p.numel() for p in front_end.parameters()),
        flops_per_clip=count_flops(model, torch.zeros(1, front_end.channels, samples, device=device)),
        clips_per_second=round(len(values) / seconds, 2), peak_memory_bytes=int(memory),
        device=describe_device(device), precision="fp32",
    )  # fmt: skip
    return Predictions(**arrays, values=values[:, :-1], skipped=skipped), values[:, -1], cost


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
        **({CROSS_VALIDATED: f"{scored}, of heads fitted on the other folds"} if has_folds else {}),
    }  # fmt: skip
    target = probe.save(folder / "model")
    if calibration:
        write_calibration(target, calibration)
    if not has_folds:
        write_part_scores(target, result)
