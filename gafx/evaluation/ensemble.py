"""Ensembles of tested runs: the runs of each fold are averaged, and the folds are pooled like those of one model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from gafx.errors import UsageError
from gafx.evaluation.paired import compare_tables
from gafx.evaluation.predictions import PredictionTable, concatenate
from gafx.evaluation.result import Comparison, Cost
from gafx.evaluation.runs import Run, TestedRun, group_key
from gafx.inference import Predictions, to_tracks
from gafx.report.format import plural
from gafx.stats.compare import holm

FOLDER = "ensemble"  # of its result and predictions, in the folder of the joint evaluation
_log = logging.getLogger("gafx")


@dataclass(frozen=True)
class EnsembleFolds:
    """The averaged runs of each fold.

    Attributes:
        folds: one for each fold, in their order.
        members: name -> runs of each configuration (and seed) that takes part.
        notes: on folds and tracks that are incomplete.
    """

    folds: list[TestedRun]
    members: dict[str, list[TestedRun]]
    notes: list[str]

    @property
    def name(self) -> str:
        return f"ensemble of {', '.join(self.members)}"


def check_ensemble(runs: Sequence[Run]) -> None:
    """Refuse runs that form no ensemble, before anything is computed.

    Raises:
        UsageError: the objective predicts no probabilities, or no fold has two runs.
    """
    if not runs[0].objective.reads_labels:
        raise UsageError(
            f"ensemble=true averages probabilities of labels, and objective={runs[0].config.objective['name']} "
            "predicts none: leave it out"
        )
    folds = [run.config.data.fold for run in runs]
    if len(set(folds)) == len(folds):
        raise UsageError(
            "ensemble=true averages the runs of one fold, and no two of these runs test the same fold: give runs of "
            "other configurations or seeds too, or leave it out"
        )


def average_folds(tested: Sequence[TestedRun], folder: Path) -> EnsembleFolds:
    """Average all runs of each fold: every configuration and every seed that was given for it.

    A fold with a single run is left out, since nothing is averaged there. A fold at which some configuration is missing
    is the average of the others. Both are noted and logged.

    Args:
        tested: runs that `check_comparable` and `check_ensemble` accepted.
        folder: of the ensemble's files.

    Raises:
        UsageError: runs of one fold tested different tracks, though all of these could be read.
    """
    members = _members(tested)
    folds, notes = [], []
    for fold in sorted({entry.run.config.data.fold for entry in tested}):
        found = {name: run for name, runs in members.items() for run in runs if run.run.config.data.fold == fold}
        missing = [name for name in members if name not in found]
        if len(found) < 2:
            notes.append(f"the ensemble leaves out fold {fold}, of which there is one run: {', '.join(found)}")
            continue
        if missing:
            notes.append(f"at fold {fold} the ensemble lacks {', '.join(missing)}: it averages {', '.join(found)}")
        averaged, lost = average(list(found.values()), folder)
        folds.append(averaged)
        if lost:
            notes.append(f"the ensemble leaves out {plural(lost, 'test track')} that not every member could read")
    for note in notes:
        _log.warning("%s", note)
    used = {id(run) for fold in folds for run in fold.members}
    return EnsembleFolds(
        folds, {name: runs for name, runs in members.items() if any(id(run) in used for run in runs)}, notes
    )


def average(members: Sequence[TestedRun], folder: Path) -> tuple[TestedRun, int]:
    """Average the predictions of runs for the same test part.

    Segments are averaged where all members have segments of one length; otherwise each member's tracks.

    Args:
        members: runs of one fold, whose data are the same.
        folder: of the ensemble's files.

    Returns:
        the average, and the number of tracks left out because a member could not read them.

    Raises:
        UsageError: the members tested different tracks, or have no track in common.
    """
    tracks = [to_tracks(member.segments) for member in members]
    rows = reduce(np.intersect1d, [found.row for found in tracks])
    lost = len(reduce(np.union1d, [found.row for found in tracks])) - len(rows)
    first = members[0]
    if not len(rows) or (lost and not any(member.segments.skipped for member in members)):
        names = ", ".join(str(member.run.folder) for member in members)
        raise UsageError(f"{names} tested different tracks ({lost} not in common), so they form no ensemble")
    for member in members[1:]:
        if member.manifest.classes != first.manifest.classes:
            raise UsageError(f"{first.run.folder} and {member.run.folder} have different labels: they form no ensemble")
    parts = [_in_order(member.segments, rows) for member in members]
    # The numbers of a track's segments agree where their length does; their starts do up to the snap to samples.
    same = len({member.run.config.data.segment_seconds for member in members}) == 1
    same = same and all(np.array_equal(part.row, parts[0].row) for part in parts)
    if not same:
        parts = [_in_order(found, rows) for found in tracks]
    skipped = tuple({clip.path: clip for member in members for clip in member.segments.skipped}.values())
    values = np.mean([part.values for part in parts], axis=0)
    run = replace(first.run, folder=folder)
    return (
        TestedRun(
            run, first.manifest, first.info, Predictions(parts[0].row, parts[0].start, values, skipped),
            _cost([member.cost for member in members]), members=tuple(members), whole_tracks=not same,
        ),
        lost,
    )  # fmt: skip


def compare_members(ensemble: EnsembleFolds) -> tuple[list[Comparison], list[str]]:
    """Paired tests of the ensemble against each member, on the tracks of both; notes on those that are not defined."""
    whole = concatenate([fold.table() for fold in ensemble.folds])
    objective = ensemble.folds[0].run.objective
    found, notes = {}, []
    for name, runs in ensemble.members.items():
        here, there = _both(whole, concatenate([run.table() for run in runs]))
        try:
            found[name] = compare_tables(objective, here, there)
        except UsageError as error:
            notes.append(f"no test of the ensemble against {name}: {error}")
    adjusted = holm([paired.p_value for paired in found.values()])
    return [
        Comparison(name, objective.metric, paired, p_value)
        for (name, paired), p_value in zip(found.items(), adjusted, strict=True)
    ], notes


def _members(tested: Sequence[TestedRun]) -> dict[str, list[TestedRun]]:
    """Runs by configuration and seed, under names that differ: the label, and the seed or the first run's folder."""
    groups: dict[str, list[TestedRun]] = {}
    for entry in tested:
        groups.setdefault(group_key(entry.run.config), []).append(entry)
    firsts = [runs[0].run for runs in groups.values()]
    names = [run.config.label for run in firsts]
    for more in (lambda run: f"{run.config.label} (seed {run.config.seed})", lambda run: run.folder.name):
        if len(set(names)) < len(names):
            names = [more(run) if names.count(name) > 1 else name for run, name in zip(firsts, names, strict=True)]
    return dict(zip(names, groups.values(), strict=True))


def _in_order(found: Predictions, rows: np.ndarray) -> Predictions:
    """Predictions of some rows, sorted by row and start."""
    order = np.lexsort((found.start, found.row))
    order = order[np.isin(found.row[order], rows)]
    return Predictions(found.row[order], found.start[order], found.values[order])


def _both(first: PredictionTable, second: PredictionTable) -> tuple[PredictionTable, PredictionTable]:
    """The tracks that are in both tables, in one order."""
    _, here, there = np.intersect1d(first.row, second.row, return_indices=True)
    return first.take(here), second.take(there)


def _cost(costs: Sequence[Cost]) -> Cost:
    """Cost of all members together, one after the other."""
    return replace(
        costs[0],
        parameters=sum(cost.parameters for cost in costs),
        frontend_parameters=sum(cost.frontend_parameters for cost in costs),
        flops_per_clip=sum(cost.flops_per_clip for cost in costs),
        clips_per_second=round(1 / sum(1 / max(cost.clips_per_second, 0.01) for cost in costs), 2),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        train_seconds=sum(cost.train_seconds for cost in costs),
        train_steps=sum(cost.train_steps for cost in costs),
        precision=", ".join(dict.fromkeys(cost.precision for cost in costs)),
    )
