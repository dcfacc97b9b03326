"""Finished runs of a table, read back: a sheet for what can be compared, a line a row, paired tests between rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from gafx.config import read_mapping
from gafx.evaluation import compare
from gafx.evaluation.ablation.outcome import Outcome
from gafx.evaluation.ablation.plan import Job, Plan, comparable
from gafx.evaluation.ablation.spec import Row
from gafx.evaluation.ablation.tracks import Tracks, both, pool, read_tracks
from gafx.evaluation.compare import Paired
from gafx.metrics import Array, Score, confusion
from gafx.registry import OBJECTIVES

_MOST_PAIRS = 10  # of rows that are all compared with each other; of more rows each is compared with the first


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
        intervals: score name -> value and interval: of the accuracy over all seeds, else of the first seed.
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
    seeds: dict[int, Tracks] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, Score] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    confusion: Array | None = None

    def deviation(self, name: str) -> float | None:
        return compare.deviation(self.scores.get(name, []))


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
    def first(self) -> dict[str, Any] | None:
        """result.json of the first finished run: what was tested."""
        return next((result for line in self.lines for result in line.results), None)


def collect(plan: Plan, outcomes: Mapping[str, Outcome], *, resamples: int = 1000) -> list[Sheet]:
    """Read what is finished of a plan; what is not is named with what became of it.

    Raises:
        UsageError: a finished run's files are damaged.
    """
    sheets: dict[str, list[Line]] = {}
    for row in plan.table.rows:
        jobs = plan.of_row(row)
        done = [job for job in jobs if job.config is not None and job.finished()]
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
        sheet.classes = list(sheet.first["classes"])
    sheet.tests = _tests(sheet, objective)
    return sheet


def _objective(job: Job) -> Any:
    assert job.config is not None
    return OBJECTIVES.get(job.config.objective["name"])


def _measure(line: Line, resamples: int) -> None:
    pools: dict[int, list[tuple[Job, Tracks]]] = {}
    for job in line.done:
        result = read_mapping(job.folder / "result.json", "scores", "classes", "cost")
        line.results.append(result)
        line.records.append(read_mapping(job.folder / "run.json", "config"))
        text = (job.folder / "metrics.jsonl").read_text(encoding="utf-8")
        line.curves.append([json.loads(record) for record in text.splitlines()])
        pools.setdefault(job.seed, []).append((job, read_tracks(job.folder, _objective(job), result["classes"])))
    wanted = {job.seed: sum(other.seed == job.seed for other in line.jobs) for job in line.jobs}
    line.seeds = {
        seed: pool([tracks for _, tracks in pools[seed]]) for seed in sorted(pools) if len(pools[seed]) == wanted[seed]
    }
    if not line.seeds:
        return
    objective = _objective(line.done[0])
    for number, tracks in enumerate(line.seeds.values()):
        scores = objective.scores(tracks.values, tracks.targets, tracks.group, resamples=resamples if not number else 1)
        for name, score in scores.items():
            line.scores.setdefault(name, []).append(score.value)
            line.intervals.setdefault(name, score)
    if "accuracy" in line.scores:
        all_same = len({tuple(tracks.clip) for tracks in line.seeds.values()}) == 1
        if all_same and len(line.seeds) > 1:
            line.intervals["accuracy"] = compare.seeds_score(np.stack([t.correct() for t in line.seeds.values()]))
        tracks = next(iter(line.seeds.values()))
        line.confusion = confusion(tracks.targets.argmax(axis=1), tracks.values.argmax(axis=1), tracks.targets.shape[1])


def _tests(sheet: Sheet, objective: Any) -> list[Test]:
    """Each row against each other, or, of many rows, against the first; the first seed that both have finished."""
    lines = [line for line in sheet.lines if line.seeds]
    pairs = list(combinations(lines, 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = [(line, lines[0]) for line in lines[1:]]
    found = []
    for first, second in pairs:
        seeds = [seed for seed in first.seeds if seed in second.seeds]
        if first.jobs[0].folder == second.jobs[0].folder:
            continue
        pair = seeds and both(first.seeds[seeds[0]], second.seeds[seeds[0]])
        if pair:
            found.append((first.row.label, second.row.label, seeds[0], _compare(objective, *pair)))
    adjusted = compare.holm([paired.p_value for *_, paired in found])
    return [Test(*test, p_value) for test, p_value in zip(found, adjusted, strict=True)]


def _compare(objective: Any, first: Tracks, second: Tracks) -> Paired:
    if not objective.reads_labels:
        return compare.compare_values(compare.mean, _alone(objective, first), _alone(objective, second), first.group)
    if objective.multi_label:
        score: Callable[[Array, Array], Array] = compare.mean_average_precision(first.targets)
        return compare.compare_values(score, first.values, second.values, first.group, resamples=500)
    return compare.compare_correct(first.correct(), second.correct(), first.group)


def _alone(objective: Any, tracks: Tracks) -> Array:
    """The score of every track by itself, for objectives whose score is a mean over tracks."""
    scores = [
        objective.scores(tracks.values[i : i + 1], tracks.targets[i : i + 1], tracks.group[i : i + 1], resamples=1)
        for i in range(len(tracks.clip))
    ]
    return np.array([score[objective.metric].value for score in scores])
