"""Evaluate finished runs: predict their test parts, pool folds, score, write result.json, predictions, label errors.

Data set, protocol, fold and test part come from the runs. Runs that differ only in their fold are pooled into one
model; models of different protocols, data or splits are refused, since their scores cannot be compared. With
`ensemble=true` the mean probabilities of all runs of a fold are evaluated as one more model.
`gafx.report.evaluation` writes the report and the table of what this returns.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState

from gafx._version import __version__
from gafx.config import EvaluateConfig
from gafx.data.leaks.describe import merge
from gafx.data.manifest import Manifest, Skipped
from gafx.errors import UsageError
from gafx.evaluation.ensemble import FOLDER as ENSEMBLE
from gafx.evaluation.ensemble import (
    EnsembleFolds,
    average,
    average_folds,
    check_ensemble,
    compare_members,
)
from gafx.evaluation.misjudged import FILE as LABEL_ERRORS
from gafx.evaluation.misjudged import Misjudged, misjudged, within, write_label_errors
from gafx.evaluation.predictions import FILE, concatenate
from gafx.evaluation.result import FILE as RESULT
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
from gafx.inference import Predictions, pool, to_tracks
from gafx.io import check_writable, digest, read_json_lines
from gafx.outputs import Outputs
from gafx.saving.hub import write_scores
from gafx.saving.info import Provenance
from gafx.stats.calibration import fit_report
from gafx.stats.scores import (
    Array,
    CalibrationBin,
    Score,
    calibration_bins,
    calibration_score,
    class_scores,
    confusion,
    ranking_scores,
)

_log = logging.getLogger("gafx")


def evaluate_runs(folders: Sequence[Path], config: EvaluateConfig) -> list[Evaluation]:
    """Evaluate runs and write result.json, predictions.npz, predictions.csv, segments.csv and label_errors.csv.

    Each run's files are written into its folder; those of several runs together into `evaluation-<hash of the names>`
    next to the first run, those of an ensemble into `ensemble/` in it. Results of several views never replace those of
    the run as it is: they are in `views-<N>/` in its folder, and its model keeps the scores that it has. With
    `config.output` nothing is written into the runs: the files of one run are in that folder, those of each of several
    in `<output>/<run>/`, the joint ones in `<output>/`, and no scores are saved with the models. Predictions are always
    computed, never taken from an earlier evaluation. Of several processes (torchrun) each predicts its part of the
    clips; the main one does the rest.

    Returns:
        an evaluation per run, that of the ensemble, and, of several runs, the joint one as the last; none on the other
        processes.

    Raises:
        UsageError: no run, an unfinished one, runs that cannot be compared in one table or form no ensemble, data or
            labels that do not match, several views of an objective without probabilities; a folder that cannot be
            written.
    """
    runs = [open_run(folder) for folder in expand(folders)]
    check_comparable(runs)
    if config.ensemble:
        check_ensemble(runs)
    if config.views > 1 and not runs[0].objective.reads_labels:
        raise UsageError(
            f"views={config.views} averages probabilities of labels, and objective={runs[0].config.objective['name']} "
            "predicts none: leave it out"
        )
    folders_of, joint = _folders(runs, config)
    if PartialState().is_main_process:
        for folder in [*folders_of.values(), *([joint] if len(runs) > 1 else [])]:
            for run in runs if config.output is not None else ():
                Outputs.keep_out(folder, config.root or run.record["data"]["root"], "output")
            check_writable(folder, "name another folder with output=<folder>")
            if config.output is not None:
                _announce_replaced(folder)
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
        section = make_section(members, config)
        sections.append(section)
        for member in members:
            single = section if len(members) == 1 else make_section([member], config)
            evaluations.append(write_evaluation(Evaluation(folders_of[member.run.folder], [single]), [member], config))
            if config.views == 1 and config.output is None:
                _save_scores(member.run, single.result)
    if len(runs) > 1:
        if config.ensemble:
            averaged = average_folds(tested, joint / ENSEMBLE)
            section = _ensemble_section(averaged, config)
            sections.append(section)
            evaluations.append(write_evaluation(Evaluation(joint / ENSEMBLE, [section]), averaged.folds, config))
        evaluations.append(write_evaluation(Evaluation(joint, sections), tested, config))
    return evaluations


def _folders(runs: Sequence[Run], config: EvaluateConfig) -> tuple[dict[Path, Path], Path]:
    """Folder of the files of each run, by the run's own, and that of several together."""
    names = [run.folder.name for run in runs]
    if config.output is not None:
        output = Path(config.output).expanduser()
        if len(set(names)) < len(names):
            raise UsageError(
                f"output={config.output}: two of the runs are called {max(names, key=names.count)}, so their files "
                "would be in one folder; evaluate them without output"
            )
        return {run.folder: output if len(runs) == 1 else output / run.folder.name for run in runs}, output
    views = f"views-{config.views}" if config.views > 1 else ""
    kind = ("-ensemble" if config.ensemble else "") + (f"-{views}" if views else "")
    joint = runs[0].folder.parent / f"evaluation-{digest('-'.join(dict.fromkeys(names)), size=4)}{kind}"
    return {run.folder: run.folder / views for run in runs}, joint


def _announce_replaced(folder: Path) -> None:
    """Log which files are replaced that are not of an earlier evaluation."""
    outputs = Outputs()
    with suppress(OSError, ValueError):
        if "gafx_version" in (folder / RESULT).read_text(encoding="utf-8"):
            return
    for name in (RESULT, FILE, "predictions.csv", "segments.csv", LABEL_ERRORS, "report.html"):
        outputs.claim(folder / name, "output")
    outputs.report(folder)


def write_evaluation(evaluation: Evaluation, tested: Sequence[TestedRun], config: EvaluateConfig) -> Evaluation:
    """Write the files of an evaluation; return it with no more audio than its page may embed."""
    folder = evaluation.folder
    folder.mkdir(parents=True, exist_ok=True)
    predicts = tested[0].run.objective.reads_labels
    tracks = concatenate([entry.table() for entry in tested])
    tracks.write(folder / FILE)
    tracks.write_csv(folder / "predictions.csv", predicts=predicts)
    if not any(entry.whole_tracks for entry in tested):
        segments = concatenate([entry.table(segments=True) for entry in tested])
        segments.write_csv(folder / "segments.csv", predicts=predicts)
    write_results(folder, evaluation.results)
    if not predicts:
        return evaluation
    models = [section.misjudged for section in evaluation.sections if section.misjudged is not None]
    if not tested[0].run.objective.multi_label:
        names = [result.name for result in evaluation.results]
        write_label_errors(folder / LABEL_ERRORS, list(zip(names, models, strict=True)))
    bounded = within(models, 10**6 * config.audio_mb)
    sections = [replace(section, misjudged=model) for section, model in zip(evaluation.sections, bounded, strict=True)]
    return Evaluation(folder, sections)


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


def make_section(members: Sequence[TestedRun], config: EvaluateConfig) -> Section:
    """One model: the pooled folds of its runs, with their learning curves where they were trained by steps."""
    members = sorted(members, key=lambda member: member.run.config.data.fold)
    logs = [member.run.folder / "metrics.jsonl" for member in members]
    curves = [read_json_lines(log) for log in logs if log.is_file()]
    return Section(_result(members, config), curves, members[0].pictures, _misjudged(members))


def _misjudged(members: Sequence[TestedRun]) -> Misjudged | None:
    first = members[0]
    if not first.run.objective.reads_labels:
        return None
    tracks = to_tracks(pool([member.segments for member in members]))
    sources = [source for member in members for source in member.sources]
    excerpts = {row: excerpt for source in sources for row, excerpt in source.excerpts.items()}
    return misjudged(first.manifest, tracks, excerpts, multi_label=first.run.objective.multi_label)


def _ensemble_section(ensemble: EnsembleFolds, config: EvaluateConfig) -> Section:
    """The ensemble as one model: the pooled folds of its averages, compared with its members."""
    result = _result(ensemble.folds, config)
    comparisons, undefined = compare_members(ensemble)
    runs = [member.run.config for fold in ensemble.folds for member in fold.members]
    lengths = {run.data.segment_seconds for run in runs}
    return Section(replace(
        result, name=ensemble.name, members=list(ensemble.members), comparisons=comparisons, frontend={}, classifier={},
        provenance=Provenance(), segment_seconds=lengths.pop() if len(lengths) == 1 else 0.0,
        notes=[*result.notes, *ensemble.notes, *undefined],
    ), misjudged=_misjudged(ensemble.folds))  # fmt: skip


def _result(members: Sequence[TestedRun], config: EvaluateConfig) -> Result:
    first, manifest, info = members[0], members[0].manifest, members[0].info
    data, objective = first.run.config.data, first.run.objective
    segments = pool([member.segments for member in members])
    tracks = to_tracks(segments)
    truth, targets = manifest.first_label()[tracks.row], manifest.targets(tracks.row)
    single = objective.reads_labels and not objective.multi_label
    matrix = confusion(truth, tracks.values.argmax(axis=1), len(manifest.classes)) if single else None
    by_segment = not any(member.whole_tracks for member in members)
    scores = {
        level: _scores(first, found, config)
        for level, found in (("track", tracks), ("segment", segments))
        if level == "track" or by_segment
    }
    # What is published on calibration is of the probabilities that `gafx predict` gives, not of those at temperature 1.
    published = _as_predicted(members)
    if published and single:
        calibrated = {"track": published, "segment": pool([_tempered(member).segments for member in members])}
        for level in scores:
            found = calibrated[level]
            scores[level]["calibration_error"] = calibration_score(
                found.values, manifest.first_label()[found.row], manifest.group[found.row], resamples=config.resamples
            )
    sources = [source for member in members for source in member.sources]
    has_folds = bool(first.run.protocol.folds(data.folds, manifest.official_folds))
    return Result(
        gafx_version=__version__, name=first.run.config.label, runs=[str(source.run.folder) for source in sources],
        run_ids=[source.run.record["run_id"] for source in sources], frontend=info.frontend,
        classifier=first.run.config.classifier, provenance=info.provenance, objective=info.objective, data=data.name,
        protocol=data.protocol, group_by=data.group_by, split_seed=data.split_seed, seed=first.run.config.seed,
        folds=[member.run.config.data.fold for member in members if has_folds], classes=list(manifest.classes),
        tracks=len(tracks), segments=len(segments) if by_segment else 0,
        groups=len(np.unique(manifest.group[tracks.row])), segment_seconds=data.segment_seconds, scores=scores,
        chance=1 / len(manifest.classes) if single else None,
        labels_tested=int((targets.sum(axis=0) > 0).sum()) if objective.reads_labels else 0,
        per_class=_class_scores(manifest.classes, tracks, targets, matrix) if objective.reads_labels else [],
        confusion=None if matrix is None else matrix.tolist(),
        calibration_bins=_bins(manifest, published or tracks) if single else None,
        calibration=_calibration(members, published) if published else None, views=config.views,
        per_fold=[_fold_scores(member, single) for member in members if has_folds], cost=_cost(members),
        skipped=_skipped(sources, segments), missing=manifest.missing, notes=list(manifest.notes),
        leaks=merge([source.run.record.get("leaks") for source in sources]),
        kept_epochs=[source.run.kept_epoch for source in sources],
    )  # fmt: skip


def _bins(manifest: Manifest, tracks: Predictions) -> list[CalibrationBin]:
    return calibration_bins(tracks.values, manifest.first_label()[tracks.row])


def _scores(first: TestedRun, found: Predictions, config: EvaluateConfig) -> dict[str, Score]:
    targets, groups = first.manifest.targets(found.row), first.manifest.group[found.row]
    return first.run.objective.scores(found.values, targets, groups, resamples=config.resamples)


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


def _calibration(members: Sequence[TestedRun], published: Predictions) -> CalibrationEffect | None:
    """Effect of the models' temperatures on what `gafx predict` gives; None where no model has one."""
    sources = [source for member in members for source in member.sources]
    parts = [source.info.calibration.get("part", "validation") for source in sources if source.info.calibration]
    if not parts:
        return None
    multi_label = members[0].run.objective.multi_label
    before, after = (
        fit_report(found.values, members[0].manifest.targets(found.row), multi_label=multi_label)
        for found in (_as_predicted(members, calibrated=False), published)
        if found is not None
    )
    return CalibrationEffect([source.info.temperature for source in sources], before, after, parts[0])


def _as_predicted(members: Sequence[TestedRun], *, calibrated: bool = True) -> Predictions | None:
    found = [tracks for member in members if (tracks := member.as_predicted(calibrated=calibrated)) is not None]
    return to_tracks(pool(found)) if len(found) == len(members) else None


def _tempered(member: TestedRun) -> TestedRun:
    """The run with calibrated probabilities of its segments; of an ensemble those of its members."""
    if member.members:
        return average([_tempered(each) for each in member.members], member.run.folder)[0]
    return replace(member, segments=member.tempered(member.segments))


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
