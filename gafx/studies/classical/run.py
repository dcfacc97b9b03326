"""`gafx classical`: eight classical models on handcrafted features, tuned and tested fold by fold, and saved."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gafx.classifiers.estimator import Estimator
from gafx.config import DataConfig, EvaluateConfig, TrainConfig, to_dict
from gafx.data.leaks.check import FOLDER
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.packing.pool import progress_bar, run_all
from gafx.data.protocols import Protocol
from gafx.data.segments import NOTE
from gafx.data.splits import Split, split
from gafx.errors import UsageError
from gafx.evaluation.evaluate import make_section, write_evaluation
from gafx.evaluation.paired import compare_tables
from gafx.evaluation.predictions import PredictionTable, concatenate
from gafx.evaluation.result import Comparison, Cost, Evaluation, Result, Section
from gafx.evaluation.runs import TestedRun, describe_device
from gafx.fitting.data import check_folder, check_leaks, open_data, read_table, with_notes
from gafx.fitting.features import VERSION, cached, data_digest, segment_features, weights_digest, with_level
from gafx.fitting.head import fit_calibration
from gafx.fitting.table import Array, Table
from gafx.fitting.testing import predicted_fold, write_part_scores
from gafx.fitting.tune import Fitted, Tuned
from gafx.inference import Predictions
from gafx.io import digest, write_json
from gafx.memory import peak_memory
from gafx.model import GAFX, create_frontend, create_model
from gafx.objectives.classify import Classify
from gafx.report import format as fmt
from gafx.saving.card import CROSS_VALIDATED
from gafx.saving.hub import write_calibration
from gafx.stats.compare import Paired, compare_correct, holm
from gafx.stats.scores import Score, accuracy_score
from gafx.studies.classical.models import (
    ENSEMBLES,
    MEMBERS,
    TITLES,
    check_models,
    combine,
    parameters,
    short,
    tune_member,
)

Kind = Literal["track", "random"]  # how windows are split
Key = tuple[str, int]  # a `Kind` and a fold; ("all", 0) for everything
RECORD = "classical.json"
FLAG = "windows of a track on both sides"  # of numbers of the random split
_CLIPS = 8  # per job of the feature processes
_COSTLY_FIRST = ("xgboost", "random_forest", "svm", "knn", "logistic_regression", "naive_bayes")


@dataclass(frozen=True)
class ClassicalConfig:
    """Settings of `run_classical`, besides the data.

    Attributes:
        models: keys of `gafx.studies.classical.models.TITLES`.
        seconds: length of a window.
        features: of the front-end `handcrafted`.
        split: `track` keeps the windows of a track together; `random` splits them one by one, as the thesis did;
            `both` measures the difference.
        seed: of folds and estimators.
        jobs: processes.

    Raises:
        UsageError: another value.
    """

    models: tuple[str, ...] = tuple(TITLES)
    seconds: float = 3.0
    features: Literal["thesis", "full"] = "full"
    split: Literal["track", "random", "both"] = "track"
    seed: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        check_models(self.models)
        for name, known in (("split", ("track", "random", "both")), ("features", ("thesis", "full"))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r} must be one of: {', '.join(known)}")
        if not 0.1 <= self.seconds <= 600:
            raise UsageError(f"seconds={self.seconds!r} must be between 0.1 and 600, the length of a window")
        if self.seed < 0 or self.jobs < 1:
            raise UsageError(f"seed={self.seed} must be at least 0, and jobs={self.jobs} at least 1")

    @property
    def needed(self) -> list[str]:
        """Members to tune, the slowest first."""
        return [name for name in _COSTLY_FIRST if name in self.models]


@dataclass(frozen=True)
class Part:
    """A training part to tune models on: a fold of a split, or everything.

    Attributes:
        table: its rows.
        sides: rows to fit and to check of a validation part; None for inner folds.
    """

    table: Table
    sides: list[tuple[Array, Array]] | None = None


@dataclass(frozen=True)
class Side:
    """One of the two splits of a data set.

    Attributes:
        table: features of its windows.
        found: rows of its clips, which are windows in the random split.
        manifest: of these clips.
        splits: fold -> parts.
        leaks: fold -> record of the leak check, or None.
    """

    table: Table
    found: Predictions
    manifest: Manifest
    splits: Mapping[int, Split]
    leaks: Mapping[int, Any]


@dataclass(frozen=True)
class Tested:
    """One model under one split.

    Attributes:
        section: result and misjudged tracks.
        runs: of each fold.
        table: predictions of the tracks (of the windows, under the random split).
        outputs: `(rows, classes)` of the table of features; NaN where a row was not tested.
        chosen: settings of each fold.
        fit_seconds: of processor time, tuning included, mean over the folds.
        predict_seconds: of processor time for a window, without its features.
    """

    section: Section
    runs: list[TestedRun]
    table: PredictionTable
    outputs: Array
    chosen: dict[str, dict[str, Any]]
    fit_seconds: float
    predict_seconds: float

    @property
    def result(self) -> Result:
        """The scores."""
        return self.section.result


@dataclass(frozen=True)
class Inflation:
    """Difference that a random split of the windows makes, on the windows that both splits tested.

    Attributes:
        by_track, at_random: accuracy of the windows.
        paired: random minus by track.
        adjusted: p-value adjusted for all models (Holm).
    """

    by_track: Score
    at_random: Score
    paired: Paired
    adjusted: float


@dataclass(frozen=True)
class Classical:
    """Result of `run_classical`.

    Attributes:
        folder: with `models/`.
        config: that it was run with.
        data: the data set and its protocol.
        classes: labels.
        by_track, at_random: model -> its test; empty for a split that was not asked for.
        inflation: model -> difference of the splits; empty unless both were tested.
        versus: model -> the best model minus this one, under the first of the splits.
        table: features of all windows.
        feature_names: of its columns.
        held_out: model -> what was fitted for the first fold of `main`, and the rows that it was tested on.
        saved: model -> what was saved, for the page and the record.
        skipped: unreadable files.
        notes: sentences for the user.
        seconds: of each stage.
    """

    folder: Path
    config: ClassicalConfig
    data: DataConfig
    classes: tuple[str, ...]
    by_track: dict[str, Tested]
    at_random: dict[str, Tested]
    inflation: dict[str, Inflation]
    versus: dict[str, Comparison]
    table: Table
    feature_names: list[str]
    held_out: dict[str, tuple[Fitted, Table]]
    saved: dict[str, Any]
    skipped: list[Skipped]
    notes: list[str]
    seconds: dict[str, float]

    @property
    def main(self) -> dict[str, Tested]:
        """The tests that the models are compared by: those by track where there are any."""
        return self.by_track or self.at_random

    @property
    def best(self) -> str:
        """Model with the highest accuracy; the first of equal ones."""
        return max(self.main, key=lambda name: self.main[name].result.track_scores["accuracy"].value)

    @property
    def evaluation(self) -> Evaluation:
        """All models of `main`, for the table."""
        return Evaluation(self.folder, [tested.section for tested in self.main.values()])


def run_classical(
    data: DataConfig, folder: str | os.PathLike[str], config: ClassicalConfig | None = None, *,
    asked_folds: bool = False,
) -> Classical:  # fmt: skip
    """Tune, test and save classical models on handcrafted features of a data set.

    Each fold of the protocol is tested by models that were scaled, tuned (grid search with five inner folds over
    recordings, or the protocol's validation part) and fitted on the other folds. The saved models are fitted on all
    clips; under a protocol with a test part instead of folds on its training part.

    Writes for each model `models/<name>/` with `model/`, `result.json`, `predictions.npz`, `predictions.csv` and
    `segments.csv`; the results of all in `result.json`, those of the random split in `random/`; `classical.json`; and
    the features into `features/`, which a further call reads.

    Args:
        data: data set and protocol; an empty protocol takes the default.
        folder: to write into; new, empty, or of an earlier call on these data.
        config: models, windows and split.
        asked_folds: whether the user chose `data.folds`; otherwise there are at most as many as recordings.

    Raises:
        UsageError: the data cannot be read or split, a clip has several labels, the folder contains other files or
            cannot be written, or the random split is asked for under a protocol that does not draw.
    """
    config, folder = config or ClassicalConfig(), Path(folder)
    root = None if data.root is None else str(Path(data.root).expanduser().resolve())
    check_folder(folder, {"root": root}, RECORD)
    opened, fingerprints = time.perf_counter(), folder / FOLDER
    manifest, data, splits = open_data(
        data, config.seconds, fingerprints, asked_folds=asked_folds, command="gafx classical"
    )
    if config.split != "track" and not Protocol.parse(data.protocol).draws_test:
        raise UsageError(
            f"split={config.split} splits windows at random, and protocol {data.protocol!r} is a published split of "
            "whole clips: use protocol kfold, or split=track"
        )
    leaks = check_leaks(manifest, splits, data, fingerprints)
    begin = time.perf_counter()
    arguments: dict[str, Any] = {
        "name": "handcrafted", "features": config.features, "window_seconds": config.seconds
    }  # fmt: skip
    front_end: Any = create_frontend(**arguments).eval()
    found, levels, cost = _features(arguments, manifest, config, folder / "features")
    computed = time.perf_counter()
    skipped = [*manifest.skipped, *found.skipped]
    check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict, skipped=skipped)
    table = read_table(found, manifest, "the features")
    manifest, notes = with_notes(manifest, table, levels, 1 / front_end.sample_rate)
    record = {"model": "classical models", "root": root, **vars(config), "data": to_dict(data)}
    write_json(folder / RECORD, record)  # so that this command may write here again if it dies on the way
    sides, whole = _sides(found, table, manifest, data, config, front_end.sample_rate, splits, leaks)
    parts: dict[Key, Part] = {(kind, fold): _part(side.table, each) for kind, side in sides.items()
                              for fold, each in side.splits.items()}  # fmt: skip
    has_folds = bool(Protocol.parse(data.protocol).folds(data.folds, manifest.official_folds))
    final: Key = ("all", 0) if has_folds else ("track", 1)
    parts.setdefault(final, Part(table) if has_folds else _part(table, splits[1]))
    tuned, seconds = _tune(parts, config)
    fitted = time.perf_counter()
    model = create_model(arguments, "estimator", classes=manifest.classes, segment_seconds=config.seconds)
    testing = _Testing(folder, data, config, model, cost, has_folds)
    tests = {kind: {name: testing.test(kind, side, name, tuned[name], seconds[name]) for name in config.models}
             for kind, side in sides.items()}  # fmt: skip
    by_track, at_random = tests.get("track", {}), tests.get("random", {})
    versus = _versus_best(by_track or at_random)
    testing.write(by_track, at_random)
    saved = {name: testing.save(name, tuned[name][final], parts[final].table, tested)
             for name, tested in (by_track or at_random).items()}  # fmt: skip
    inflation = _inflation(by_track, at_random, whole, table) if by_track and at_random else {}
    kind, side = next(iter(sides.items()))
    first = min(side.splits)
    rows = side.table.take(side.table.rows_of(side.splits[first].test))
    done = Classical(
        folder, config, data, tuple(manifest.classes), by_track, at_random, inflation, versus, table,
        front_end.feature_names(), {name: (tuned[name][kind, first].fitted, rows) for name in config.models}, saved,
        skipped, notes,
        {"data and leak check": begin - opened, "features": computed - begin, "fitting": fitted - computed,
         "tests and models": time.perf_counter() - fitted},
    )  # fmt: skip
    write_json(folder / RECORD, {**record, **_record(done)})
    return done


def _part(table: Table, parts: Split) -> Part:
    """Training and validation rows of a fold."""
    own = table.take(table.rows_of(np.concatenate([parts.train, parts.val])))
    return Part(own, [(own.rows_of(parts.train), own.rows_of(parts.val))] if len(parts.val) else None)


def _sides(
    found: Predictions, table: Table, manifest: Manifest, data: DataConfig, config: ClassicalConfig, rate: int,
    splits: Mapping[int, Split], leaks: Mapping[int, Any],
) -> tuple[dict[Kind, Side], Array]:  # fmt: skip
    """Return the splits that were asked for, the one by track first, and the rows of whole windows.

    The random split takes windows for clips of their own. Those that were moved back to end with their clip are left
    out: they overlap another.
    """
    by_track: dict[Kind, Side] = {"track": Side(table, found, manifest, splits, leaks)}
    whole = np.flatnonzero(found.start % round(config.seconds * rate) == 0)
    if config.split == "track":
        return by_track, whole
    number, clip, start = np.arange(len(whole)), found.row[whole], found.start[whole] / rate
    cut = replace(
        manifest.take(clip), group=number, start=manifest.start[clip] + start,
        duration=np.minimum(manifest.duration[clip] - start, config.seconds), notes=(*manifest.notes, NOTE),
    )  # fmt: skip
    folds = Protocol.parse(data.protocol).folds(data.folds, cut.official_folds) or [1]
    dealt = {
        fold: split(cut, data.protocol, fold=fold, folds=data.folds, seed=data.split_seed,
                    test_fraction=data.test_fraction, val_fraction=data.val_fraction, every_class=False)
        for fold in folds
    }  # fmt: skip
    windows = Predictions(number, np.zeros(len(whole), np.int64), np.zeros((len(whole), 0)))
    own = replace(table.take(whole), clip=number, group=number)
    at_random: dict[Kind, Side] = {"random": Side(own, windows, cut, dealt, dict.fromkeys(dealt))}
    return (at_random if config.split == "random" else by_track | at_random), whole


def _features(
    arguments: Mapping[str, Any], manifest: Manifest, config: ClassicalConfig, folder: Path
) -> tuple[Predictions, Array, Cost]:
    """Features of all windows, from the cache in `folder` where they are there.

    Returns:
        the features, the level `(rows,)` of each window in dBFS, and what computing them took.
    """
    front_end = create_frontend(**arguments)
    key = (VERSION, weights_digest(front_end.built or {}, front_end), data_digest(manifest), config.seconds)

    def make() -> tuple[dict[str, Any], Sequence[Skipped]]:
        begin = time.perf_counter()
        rows = np.array_split(np.arange(len(manifest)), -(-len(manifest) // _CLIPS))
        jobs = ((dict(arguments), manifest.take(own), config.seconds) for own in rows)
        parts: list[tuple[Array, Array, Array]] = []
        skipped: list[Skipped] = []
        with progress_bar("features", len(manifest)) as bar:
            done = run_all(_compute, jobs, config.jobs, ordered=True, killed=_KILLED)
            for own, part in zip(rows, done, strict=True):
                parts.append((own[part.row], part.start, part.values))
                skipped += part.skipped
                bar.update(len(own))
        row, start, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        took = np.array([time.perf_counter() - begin, peak_memory(torch.device("cpu"))])
        return {"row": row, "start": start, "values": values, "took": took}, skipped

    arrays, skipped = cached(folder, "handcrafted", key, make)
    seconds, memory = arrays.pop("took").tolist()
    values = arrays.pop("values")
    cost = Cost(
        parameters=0, frontend_parameters=0, flops_per_clip=0, clips_per_second=len(values) / seconds,
        peak_memory_bytes=int(memory), device=describe_device(torch.device("cpu")), precision="fp32",
    )  # fmt: skip
    return Predictions(**arrays, values=values[:, :-1], skipped=skipped), values[:, -1], cost


_KILLED = "a process was killed (out of memory?): give the command again, with fewer --jobs"


def _compute(arguments: dict[str, Any], manifest: Manifest, seconds: float) -> Predictions:
    """Features and level of the windows of some clips; runs in a process of its own."""
    front_end = create_frontend(**arguments).eval()

    def row(wave: torch.Tensor) -> torch.Tensor:
        return front_end(wave)[:, 0].mean(dim=-1).double()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return segment_features(
            front_end, with_level(row, front_end.sample_rate), manifest, np.arange(len(manifest)), seconds
        )
    finally:
        torch.set_num_threads(threads)


def _tune(
    parts: Mapping[Key, Part], config: ClassicalConfig
) -> tuple[dict[str, dict[Key, Tuned]], dict[str, dict[Key, float]]]:
    """Tune every model on every part; return the models and the processor time of each, ensembles with members."""
    tuned: dict[str, dict[Key, Tuned]] = {name: {} for name in (*MEMBERS, *ENSEMBLES)}
    seconds: dict[str, dict[Key, float]] = {name: {} for name in tuned}
    jobs = [(key, name) for name in config.needed for key in parts]
    calls = ((name, parts[key].table, parts[key].sides, config.seed) for key, name in jobs)
    with progress_bar("models", len(jobs), unit="fit") as bar:
        for (key, name), done in zip(jobs, run_all(_timed, calls, config.jobs, ordered=True, killed=_KILLED),
                                     strict=True):  # fmt: skip
            tuned[name][key], seconds[name][key] = done
            bar.update()
    members = [name for name in config.models if name in MEMBERS]
    for name in ENSEMBLES:
        for key, part in parts.items() if name in config.models else ():
            begin = time.process_time()
            tuned[name][key] = combine(name, {each: tuned[each][key] for each in members}, part.table, config.seed)
            own = time.process_time() - begin
            seconds[name][key] = own + sum(seconds[each][key] for each in members)
    return tuned, seconds


def _timed(name: str, table: Table, sides: Any, seed: int) -> tuple[Tuned, float]:
    """`tune_member` on one thread, and its seconds of processor time."""
    from threadpoolctl import threadpool_limits

    begin = time.process_time()
    with threadpool_limits(1):  # processes share the cores
        return tune_member(name, table, sides, seed), time.process_time() - begin


@dataclass(frozen=True)
class _Testing:
    """Tests and saves models of one call."""

    folder: Path
    data: DataConfig
    config: ClassicalConfig
    model: GAFX
    cost: Cost
    has_folds: bool

    def folder_of(self, name: str) -> Path:
        """Folder of a model."""
        return self.folder / "models" / name

    def test(
        self, kind: Kind, side: Side, name: str, tuned: Mapping[Key, Tuned], seconds: Mapping[Key, float]
    ) -> Tested:
        """Predict the test part of each fold of a split."""
        table, splits = side.table, side.splits
        info, heads = self.model.info, {fold: tuned[kind, fold] for fold in splits}
        assert info is not None
        data = replace(self.data, group_by="segment" if kind == "random" else "recording")
        train = TrainConfig(
            name=TITLES[name], seed=self.config.seed, frontend=info.frontend,
            classifier={**info.classifier, "model": name}, data=data,
        )  # fmt: skip
        run_id = digest(json.dumps(to_dict(train), sort_keys=True, default=str), size=4)
        outputs, runs, took, count = np.full((len(table), table.classes), np.nan), [], 0.0, 0
        fit_seconds = float(np.mean([seconds[kind, fold] for fold in splits]))
        for fold, parts in splits.items():
            rows = table.rows_of(parts.test)
            begin = time.process_time()
            outputs[rows] = heads[fold].fitted.outputs(table.values[rows])
            took, count = took + time.process_time() - begin, count + len(rows)
            per_window = 1 / self.cost.clips_per_second + took / count
            estimator = heads[fold].fitted.estimator
            cost = replace(
                self.cost, parameters=parameters(estimator), clips_per_second=round(1 / per_window, 2),
                train_seconds=round(seconds[kind, fold], 1),
            )  # fmt: skip
            runs.append(predicted_fold(
                self.folder_of(name), replace(train, data=replace(data, fold=fold)),
                {"run_id": run_id, "leaks": side.leaks[fold]}, side.manifest, info, side.found, rows, outputs[rows],
                cost,
            ))  # fmt: skip
        chosen = {f"fold {fold}" if self.has_folds else "test": short(each.fitted.settings)
                  for fold, each in heads.items()}  # fmt: skip
        section = make_section(runs, EvaluateConfig())
        return Tested(section, runs, concatenate([run.table() for run in runs]), outputs, chosen, fit_seconds,
                      took / max(count, 1))  # fmt: skip

    def write(self, by_track: Mapping[str, Tested], at_random: Mapping[str, Tested]) -> None:
        """Write the results of all models, and of each; those of an earlier call are removed."""
        for stale in ("models", "random"):
            shutil.rmtree(self.folder / stale, ignore_errors=True)
        together = [(by_track, self.folder), (at_random, self.folder / "random" if by_track else self.folder)]
        each = [({name: tested}, self.folder_of(name)) for name, tested in (by_track or at_random).items()]
        for tests, place in (*together, *each):
            if tests:
                runs = [run for tested in tests.values() for run in tested.runs]
                sections = [tested.section for tested in tests.values()]
                write_evaluation(Evaluation(place, sections), runs, EvaluateConfig())

    def save(self, name: str, tuned: Tuned, table: Table, tested: Tested) -> dict[str, Any]:
        """Save a model with its calibration; return what is recorded of it."""
        model, result = self.model, tested.result
        assert model.info is not None
        fitted, classifier = tuned.fitted, model.classifier
        assert isinstance(classifier, Estimator)
        classifier.set_estimator(fitted.estimator, fitted.present[fitted.estimator.classes_])
        scored = (
            f"{fmt.score(result.track_scores['accuracy'], 'accuracy')}, {fmt.plural(result.tracks, 'track')}, protocol "
            f"{result.protocol}"
        )
        if result.by_segment:
            scored += f", {FLAG}"
        settings = short(tuned.fitted.settings)
        model.info.training = {
            "data": result.data, "protocol": result.protocol, "estimator": TITLES[name], "settings": settings,
            "features": self.config.features, "window_seconds": self.config.seconds, "seed": self.config.seed,
            **({CROSS_VALIDATED: f"{scored}, of models fitted on the other folds"} if self.has_folds else {}),
        }  # fmt: skip
        target = model.save(self.folder_of(name) / "model")
        if calibration := fit_calibration(tuned, table):
            write_calibration(target, calibration)
        if not self.has_folds:
            write_part_scores(target, result)
        size = sum(path.stat().st_size for path in target.iterdir())
        return {"settings": settings, "parameters": parameters(tuned.fitted.estimator), "bytes": size,
                "calibration": calibration}  # fmt: skip


def _versus_best(tests: Mapping[str, Tested]) -> dict[str, Comparison]:
    """Paired tests of the best model against each other one, added to the best one's result."""
    best = max(tests, key=lambda name: tests[name].result.track_scores["accuracy"].value)
    found = {name: compare_tables(Classify, tests[best].table, tested.table)
             for name, tested in tests.items() if name != best}  # fmt: skip
    adjusted = holm([paired.p_value for paired in found.values()])
    versus = {
        name: Comparison(TITLES[name], "accuracy", paired, p_value)
        for (name, paired), p_value in zip(found.items(), adjusted, strict=True)
    }
    tests[best].result.comparisons = list(versus.values())
    return versus


def _inflation(
    by_track: Mapping[str, Tested], at_random: Mapping[str, Tested], whole: Array, table: Table
) -> dict[str, Inflation]:
    """Accuracy of windows under both splits, on those that both tested, compared by recordings."""
    found: dict[str, tuple[Score, Score, Paired]] = {}
    for name, tested in by_track.items():
        sides = tested.outputs[whole], at_random[name].outputs
        both = ~np.isnan(np.concatenate(sides, axis=1)).any(axis=1)
        label, group = table.label[whole][both], table.group[whole][both]
        here, there = (values[both].argmax(axis=1) == label for values in sides)
        found[name] = accuracy_score(here, group), accuracy_score(there, group), compare_correct(there, here, group)
    adjusted = holm([paired.p_value for *_, paired in found.values()])
    return {name: Inflation(*each, p_value) for (name, each), p_value in zip(found.items(), adjusted, strict=True)}


def _record(done: Classical) -> dict[str, Any]:
    """Content of classical.json besides the settings."""

    def entries() -> Iterator[tuple[str, dict[str, Any]]]:
        for name in done.main:
            entry: dict[str, Any] = {"saved": done.saved[name]}
            for kind, tests in (("track", done.by_track), ("random", done.at_random)):
                if tests:
                    one = tests[name]
                    entry[kind] = {
                        "split": FLAG if kind == "random" else "by track", "chosen": one.chosen,
                        "fit_seconds": one.fit_seconds, "predict_seconds_per_window": one.predict_seconds,
                        "scores": {scope: {key: score.as_dict() for key, score in scores.items()}
                                   for scope, scores in one.result.scores.items()},
                    }  # fmt: skip
            if name in done.inflation:
                own = done.inflation[name]
                entry["random minus track"] = {
                    "by_track": own.by_track.as_dict(), "at_random": own.at_random.as_dict(), "split": FLAG,
                    **own.paired.as_dict(), "adjusted": own.adjusted,
                }  # fmt: skip
            if name in done.versus:
                entry["best minus this"] = {
                    **done.versus[name].paired.as_dict(),
                    "adjusted": done.versus[name].adjusted,
                }
            yield name, entry

    return {
        "best": done.best, "results": dict(entries()), "features_list": done.feature_names,
        "windows": len(done.table), "clips": len(np.unique(done.table.clip)), "seconds": done.seconds,
        "skipped": [clip.as_dict() for clip in done.skipped], "notes": done.notes,
    }  # fmt: skip
