"""Evaluate finished runs: predict their test parts, pool folds, score, and write result.json and predictions.

Data set, protocol, fold and test part come from the runs. Runs that differ only in their fold are pooled into one
model; models of different protocols, data or splits are refused, since their scores cannot be compared.
`gafx.report.evaluation` writes the report and the table of what this returns.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState

from gafx._version import __version__
from gafx.config import EvaluateConfig
from gafx.data.leaks.describe import merge
from gafx.data.manifest import Skipped
from gafx.evaluation.predictions import FILE, concatenate
from gafx.evaluation.result import (
    CalibrationEffect,
    ClassScores,
    Cost,
    Evaluation,
    FoldScores,
    Result,
    Section,
    write_results,
)
from gafx.evaluation.runs import Run, TestedRun, check_comparable, expand, group_key, open_run, predict_run
from gafx.inference import Predictions, to_tracks
from gafx.io import digest, read_json_lines
from gafx.saving.hub import write_scores
from gafx.stats.calibration import fit_report, temper
from gafx.stats.scores import Array, Score, calibration_bins, class_scores, confusion, ranking_scores

_log = logging.getLogger("gafx")


def evaluate_runs(folders: Sequence[Path], config: EvaluateConfig) -> list[Evaluation]:
    """Evaluate runs and write result.json, predictions.npz, predictions.csv and segments.csv.

    Each run's files are written into its folder; those of several runs together into `config.output` (default:
    `evaluation-<hash of the names>` next to the first run). Of several processes (torchrun) each predicts its part of
    the clips; the main one does the rest.

    Returns:
        an evaluation per run and, of several runs, the joint one as the last; none on the other processes.

    Raises:
        UsageError: no run, an unfinished one, runs that cannot be compared in one table, data or labels that do not
            match.
    """
    runs = [open_run(folder) for folder in expand(folders)]
    check_comparable(runs)
    found = [predict_run(run, config) for run in runs]
    if not PartialState().is_main_process:
        return []
    tested = [entry for entry in found if entry is not None]
    models: dict[str, list[TestedRun]] = {}
    for entry in tested:
        models.setdefault(group_key(entry.run.config), []).append(entry)
    evaluations = []
    sections = []
    for members in models.values():
        section = _section(members, config)
        sections.append(section)
        for member in members:
            single = section if len(members) == 1 else _section([member], config)
            evaluations.append(_write(Evaluation(member.run.folder, [single]), [member]))
            _save_scores(member.run, single.result)
    if len(runs) > 1:
        names = "-".join(dict.fromkeys(run.folder.name for run in runs))
        default = runs[0].folder.parent / f"evaluation-{digest(names, size=4)}"
        evaluations.append(_write(Evaluation(Path(config.output) if config.output else default, sections), tested))
    return evaluations


def _write(evaluation: Evaluation, tested: Sequence[TestedRun]) -> Evaluation:
    folder = evaluation.folder
    folder.mkdir(parents=True, exist_ok=True)
    predicts = tested[0].run.objective.reads_labels
    tracks = concatenate([entry.table() for entry in tested])
    tracks.write(folder / FILE)
    tracks.write_csv(folder / "predictions.csv", predicts=predicts)
    segments = concatenate([entry.table(segments=True) for entry in tested])
    segments.write_csv(folder / "segments.csv", predicts=predicts)
    write_results(folder, evaluation.results)
    return evaluation


def _save_scores(run: Run, result: Result) -> None:
    """Write a run's scores into its model's config.json and model card.

    They are those of the run's fold even where folds are pooled: each fold's weights are another model.
    """
    data = run.config.data
    assert result.cost is not None
    on = {
        "data": data.name, "protocol": data.protocol, "part": result.part, "tracks": result.tracks,
        "recordings": result.groups, "fold": data.fold if result.folds else None,
        "folds": data.folds if "folds" in run.protocol.settings else None,
        "split_seed": data.split_seed if run.protocol.is_seeded else None,
        "segment_seconds": data.segment_seconds, "precision": result.cost.precision,
        **({"group_by": data.group_by} if result.by_segment else {}),
    }  # fmt: skip
    try:
        write_scores(run.folder / "model", result.as_dict()["scores"]["track"], on)
    except OSError as error:
        _log.warning("the scores are not saved with the model of %s (%s)", run.folder, error)


def _section(members: Sequence[TestedRun], config: EvaluateConfig) -> Section:
    """One model: the pooled folds of its runs."""
    members = sorted(members, key=lambda member: member.run.config.data.fold)
    curves = [read_json_lines(member.run.folder / "metrics.jsonl") for member in members]
    return Section(_result(members, config), curves, members[0].pictures)


def _result(members: Sequence[TestedRun], config: EvaluateConfig) -> Result:
    first, manifest, info = members[0], members[0].manifest, members[0].info
    data, objective = first.run.config.data, first.run.objective
    segments = _pool([member.segments for member in members])
    tracks = to_tracks(segments)
    truth, targets = manifest.first_label()[tracks.row], manifest.targets(tracks.row)
    single = objective.reads_labels and not objective.multi_label
    matrix = confusion(truth, tracks.values.argmax(axis=1), len(manifest.classes)) if single else None
    scores = {
        level: _scores(first, found, config, tracks=level == "track")
        for level, found in (("track", tracks), ("segment", segments))
    }
    has_folds = bool(first.run.protocol.folds(data.folds, manifest.official_folds))
    return Result(
        gafx_version=__version__, name=first.run.config.label, runs=[str(member.run.folder) for member in members],
        run_ids=[member.run.record["run_id"] for member in members], frontend=info.frontend,
        classifier=first.run.config.classifier, provenance=info.provenance, objective=info.objective, data=data.name,
        protocol=data.protocol, group_by=data.group_by, split_seed=data.split_seed, seed=first.run.config.seed,
        folds=[member.run.config.data.fold for member in members if has_folds], classes=list(manifest.classes),
        tracks=len(tracks), segments=len(segments), groups=len(np.unique(manifest.group[tracks.row])),
        segment_seconds=data.segment_seconds, scores=scores, chance=1 / len(manifest.classes) if single else None,
        labels_tested=int((targets.sum(axis=0) > 0).sum()) if objective.reads_labels else 0,
        per_class=_class_scores(manifest.classes, tracks, targets, matrix) if objective.reads_labels else [],
        confusion=None if matrix is None else matrix.tolist(),
        calibration_bins=calibration_bins(tracks.values, truth) if single else None,
        calibration=_calibration(members, tracks, targets),
        per_fold=[_fold_scores(member, single) for member in members if has_folds], cost=_cost(members),
        skipped=_skipped(members, segments), missing=manifest.missing, notes=list(manifest.notes),
        leaks=merge([member.run.record.get("leaks") for member in members]),
    )  # fmt: skip


def _scores(first: TestedRun, found: Predictions, config: EvaluateConfig, *, tracks: bool) -> dict[str, Score]:
    targets, groups = first.manifest.targets(found.row), first.manifest.group[found.row]
    return first.run.objective.scores(found.values, targets, groups, resamples=config.resamples, tracks=tracks)


def _class_scores(
    classes: Sequence[str], tracks: Predictions, targets: Array, matrix: Array | None
) -> list[ClassScores]:
    """Scores of each class: from the confusion matrix, or where there is none (tagging) from the ranking."""
    columns: dict[str, Array]
    if matrix is None:
        once = np.ones((1, len(tracks)))
        ranked = [ranking_scores(p, t > 0, once) for p, t in zip(tracks.values.T, targets.T, strict=True)]
        precisions, aucs = zip(*ranked, strict=True)
        columns = {"average_precision": np.ravel(precisions), "auc": np.ravel(aucs)}
        counts, predicted = targets.sum(axis=0), [None] * len(classes)
    else:
        columns = dict(zip(("precision", "recall", "f1"), class_scores(matrix), strict=True))
        counts, predicted = matrix.sum(axis=1), matrix.sum(axis=0).tolist()
    return [
        ClassScores(
            name,
            {key: None if np.isnan(values[index]) else float(values[index]) for key, values in columns.items()},
            int(counts[index]),
            predicted[index],
        )
        for index, name in enumerate(classes)
    ]


def _fold_scores(member: TestedRun, single: bool) -> FoldScores:
    tracks = to_tracks(member.segments)
    hits = tracks.values.argmax(axis=1) == member.manifest.first_label()[tracks.row]
    return FoldScores(member.run.config.data.fold, len(tracks), {"accuracy": float(hits.mean())} if single else {})


def _calibration(members: Sequence[TestedRun], tracks: Predictions, targets: Array) -> CalibrationEffect | None:
    """Effect on the test tracks of each model's temperature, which was fitted on its validation part."""
    if not all(member.info.calibration for member in members):
        return None
    multi_label = members[0].run.objective.multi_label
    tempered = to_tracks(_pool([
        replace(
            member.segments, values=temper(member.segments.values, member.info.temperature, multi_label=multi_label)
        )
        for member in members
    ]))  # fmt: skip
    before, after = (fit_report(found.values, targets, multi_label=multi_label) for found in (tracks, tempered))
    return CalibrationEffect([member.info.temperature for member in members], before, after)


def _cost(members: Sequence[TestedRun]) -> Cost:
    costs = [member.cost for member in members]
    return replace(
        costs[0],
        clips_per_second=round(float(np.mean([cost.clips_per_second for cost in costs])), 2),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        train_seconds=round(sum(cost.train_seconds for cost in costs), 1),
    )


def _skipped(members: Sequence[TestedRun], segments: Predictions) -> list[Skipped]:
    """Every file that any run left out, in training or in the test, once."""
    trained = [Skipped(**clip) for member in members for clip in member.run.record["skipped"]]
    return list({clip.as_dict()["path"]: clip for clip in [*trained, *segments.skipped]}.values())


def _pool(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.values for part in parts]),
        tuple(clip for part in parts for clip in part.skipped),
    )
