"""Finished runs of a table, read back: a sheet for what can be compared, a line a row, paired tests between rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from gafx.config import read_mapping
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Result
from gafx.registry import OBJECTIVES
from gafx.stats import compare
from gafx.stats.compare import Paired
from gafx.stats.scores import Array, Score, confusion
from gafx.studies.ablation.outcome import Outcome
from gafx.studies.ablation.plan import Job, Plan, comparable
from gafx.studies.ablation.spec import Row
from gafx.studies.ablation.tracks import both, pool

MOST_PAIRS = 10  # of rows that are all compared with each other; of more rows each is compared with the first


@dataclass
class Line:
    """A row as it was measured.

    Attributes:
        row: as the table file has it.
        jobs, done: its runs, and those that are finished.
        faults: job key -> what became of those that are not.
        notes: what the row runs without.
        seeds: each seed's tracks; only seeds of which every fold is finished.
        scores: score name -> the value of each seed, in the order of `seeds`.
        intervals: score name -> the mean over seeds and its interval, where one is known.
        results: result.json of each finished run.
        records: run.json of each.
        curves: metrics.jsonl of each.
        confusion: counts of the first seed, or None.
    """

    row: Row
    jobs: list[Job]
    done: list[Job]
    faults: dict[str, Outcome]
    notes: list[str] = field(default_factory=list)
    seeds: dict[int, PredictionTable] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, Score] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    confusion: Array | None = None

    def deviation(self, name: str) -> float | None:
        return compare.sample_std(self.scores.get(name, []))


@dataclass(frozen=True)
class Test:
    """A paired comparison of two rows, with the p-value adjusted for all comparisons of the sheet (Holm)."""

    first: str
    second: str
    seed: int
    paired: Paired
    adjusted: float


@dataclass
class Sheet:
    """Rows whose numbers can stand beside each other: the same data, division and objective.

    Attributes:
        lines: in the order of the table file.
        metric: the score that rows are compared by.
        tests: paired comparisons.
        classes: of the data; empty as long as nothing is finished.
    """

    lines: list[Line]
    metric: str
    tests: list[Test] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @property
    def first(self) -> Result | None:
        """result.json of the first finished run: what was tested."""
        return next((result for line in self.lines for result in line.results), None)


def collect(plan: Plan, outcomes: Mapping[str, Outcome], *, resamples: int = 1000) -> list[Sheet]:
    """Read what is finished of a plan; what is not, or cannot be read, is named with what became of it."""
    sheets: dict[str, list[Line]] = {}
    for row in plan.table.rows:
        jobs = plan.of_row(row)
        done = [job for job in jobs if job.config is not None and not job.error and job.finished()]
        faults = {
            job.key: outcomes.get(job.key) or Outcome("refused" if job.error else "not run", job.error)
            for job in jobs
            if job not in done
        }
        line = Line(row, jobs, done, faults, plan.notes.get(row.name, []))
        _measure(line, resamples)
        if twin := _twin(jobs, [other for others in sheets.values() for other in others]):
            line.notes = [*line.notes, f"the same runs as {twin.row.label}"]
        key = next((comparable(job.config) for job in jobs if job.config is not None), "")
        sheets.setdefault(key, []).append(line)
    # A row that could not even be composed stands with the others of the first sheet.
    loose = sheets.pop("", [])
    groups = list(sheets.values())
    order = [row.name for row in plan.table.rows]
    groups[0] = sorted([*groups[0], *loose], key=lambda line: order.index(line.row.name))
    return [_sheet(lines) for lines in groups]


def _twin(jobs: Sequence[Job], lines: Sequence[Line]) -> Line | None:
    """The row that asks for the same runs, if one of `lines` does."""
    folders = [job.folder for job in jobs if job.config is not None]
    return next((line for line in lines if folders and [job.folder for job in line.jobs] == folders), None)


def _sheet(lines: list[Line]) -> Sheet:
    objective = _objective(next(job for line in lines for job in line.jobs if job.config is not None))
    sheet = Sheet(lines, objective.metric)
    if sheet.first is not None:
        sheet.classes = list(sheet.first.classes)
    sheet.tests = _tests(sheet, objective)
    return sheet


def _objective(job: Job) -> Any:
    assert job.config is not None
    return OBJECTIVES.get(job.config.objective["name"])


def _measure(line: Line, resamples: int) -> None:
    pools: dict[int, list[PredictionTable]] = {}
    for job in list(line.done):
        try:
            result, record, curve, tracks = _read(job)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # UsageError is a ValueError
            line.done.remove(job)
            said = " ".join(str(error).split())
            line.faults[job.key] = Outcome(
                "damaged", f"{job.folder} cannot be read ({said}); remove its result.json, and it is evaluated anew"
            )
            continue
        line.results.append(result)
        line.records.append(record)
        line.curves.append(curve)
        pools.setdefault(job.seed, []).append(tracks)
    wanted = {job.seed: sum(other.seed == job.seed for other in line.jobs) for job in line.jobs}
    line.seeds = {seed: pool(pools[seed]) for seed in sorted(pools) if len(pools[seed]) == wanted[seed]}
    if not line.seeds:
        return
    objective = _objective(line.done[0])
    for tracks in line.seeds.values():
        scores = objective.scores(tracks.values, tracks.targets, tracks.group, resamples=resamples)
        for name, score in scores.items():
            line.scores.setdefault(name, []).append(score.value)
            line.intervals.setdefault(name, score)
    if len(line.seeds) > 1:
        _mean_intervals(line, objective, resamples)
    if "accuracy" in line.scores:
        tracks = next(iter(line.seeds.values()))
        if len(line.seeds) == 1 and len(set(tracks.group)) < len(tracks.clip):
            line.intervals["accuracy"] = compare.seeds_score(tracks.correct(), tracks.group)
        line.confusion = confusion(tracks.targets.argmax(axis=1), tracks.values.argmax(axis=1), tracks.targets.shape[1])


def _mean_intervals(line: Line, objective: Any, resamples: int) -> None:
    """Intervals of the means over seeds; scores for which none is known here have none: one seed's would not do."""
    every = list(line.seeds.values())
    first = every[0]
    for name, values in line.scores.items():
        line.intervals[name] = Score(float(np.mean(values)))
    if any(tracks.clip.tolist() != first.clip.tolist() for tracks in every):
        return  # a clip that one seed could not read
    if not objective.reads_labels:
        alone = [_alone(objective, tracks) for tracks in every]
        found = compare.seeds_values(compare.mean, alone, first.group, resamples=resamples)
        line.intervals[objective.metric] = found
    elif objective.multi_label:
        score = compare.mean_average_precision(first.targets)
        found = compare.seeds_values(score, [t.values for t in every], first.group, resamples=min(resamples, 200))
        line.intervals[objective.metric] = found
    else:
        line.intervals["accuracy"] = compare.seeds_score(np.stack([t.correct() for t in every]), first.group)
        score = compare.macro_f1(first.targets.argmax(axis=1), first.targets.shape[1])
        said = [tracks.values.argmax(axis=1) for tracks in every]
        line.intervals["macro_f1"] = compare.seeds_values(score, said, first.group, resamples=resamples)


def _read(job: Job) -> tuple[Result, dict[str, Any], list[dict[str, Any]], PredictionTable]:
    """result.json, run.json, metrics.jsonl and predictions.npz of a run."""
    result = Result.read(job.folder)
    record = read_mapping(job.folder / "run.json", "config", "steps", "train_seconds", "clips_per_second")
    text = (job.folder / "metrics.jsonl").read_text(encoding="utf-8")
    curve = [json.loads(entry) for entry in text.splitlines()]
    return result, record, curve, PredictionTable.read(job.folder)


def _tests(sheet: Sheet, objective: Any) -> list[Test]:
    """Each row against each other, or, of many rows, against the first; the first seed that both have finished."""
    lines = [line for line in sheet.lines if line.seeds]
    pairs = list(combinations(lines, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(line, lines[0]) for line in lines[1:]]
    found = []
    for first, second in pairs:
        seeds = [seed for seed in first.seeds if seed in second.seeds]
        if [job.folder for job in first.jobs] == [job.folder for job in second.jobs]:
            continue
        pair = seeds and both(first.seeds[seeds[0]], second.seeds[seeds[0]])
        if pair:
            found.append((first.row.label, second.row.label, seeds[0], _compare(objective, *pair)))
    adjusted = compare.holm([paired.p_value for *_, paired in found])
    return [Test(*test, p_value) for test, p_value in zip(found, adjusted, strict=True)]


def _compare(objective: Any, first: PredictionTable, second: PredictionTable) -> Paired:
    if not objective.reads_labels:
        return compare.compare_values(compare.mean, _alone(objective, first), _alone(objective, second), first.group)
    if objective.multi_label:
        score: Callable[[Array, Array], Array] = compare.mean_average_precision(first.targets)
        return compare.compare_values(score, first.values, second.values, first.group, resamples=500)
    return compare.compare_correct(first.correct(), second.correct(), first.group)


def _alone(objective: Any, tracks: PredictionTable) -> Array:
    """The score of every track by itself, for objectives whose score is a mean over tracks."""
    scores = [
        objective.scores(tracks.values[i : i + 1], tracks.targets[i : i + 1], tracks.group[i : i + 1], resamples=1)
        for i in range(len(tracks.clip))
    ]
    return np.array([score[objective.metric].value for score in scores])
