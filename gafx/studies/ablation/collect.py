"""Finished runs of a table, read back: scores of each row, and paired tests between comparable rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from gafx.config import read_mapping
from gafx.errors import UsageError
from gafx.evaluation.paired import compare_tables, weighted_score
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Result
from gafx.io import read_json_lines
from gafx.registry import OBJECTIVES
from gafx.stats import compare
from gafx.stats.compare import Paired
from gafx.stats.scores import Array, Score, accuracy_score, confusion
from gafx.studies.ablation.outcome import Outcome
from gafx.studies.ablation.plan import Job, Plan, comparable
from gafx.studies.ablation.spec import Row
from gafx.studies.ablation.tracks import both, pool

MOST_PAIRS = 10  # up to which all pairs of rows are tested; of more rows, each is compared with the first


@dataclass(frozen=True)
class Finished:
    """Files of a finished run: result.json, run.json and metrics.jsonl."""

    job: Job
    result: Result
    record: dict[str, Any]
    curve: list[dict[str, Any]]


@dataclass
class Line:
    """A row with its results.

    Attributes:
        row: of the table file.
        jobs: its runs.
        done: those that are finished.
        faults: job key -> outcome of those that are not.
        notes: sentences on what the row runs without.
        seeds: predictions of each seed whose folds are all finished.
        scores: score name -> the value of each seed, in the order of `seeds`.
        intervals: score name -> mean over seeds with its interval, where one is known.
        confusion: counts of the first seed, for one label per clip.
    """

    row: Row
    jobs: list[Job]
    faults: dict[str, Outcome]
    done: list[Finished] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seeds: dict[int, PredictionTable] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, Score] = field(default_factory=dict)
    confusion: Array | None = None

    @property
    def folders(self) -> list[Any]:
        return [job.folder for job in self.jobs if job.config is not None]


@dataclass(frozen=True)
class Test:
    """A paired comparison of two rows on one seed, with the p-value adjusted for all tests of the sheet (Holm)."""

    first: str
    second: str
    seed: int
    paired: Paired
    adjusted: float


@dataclass
class Sheet:
    """Rows whose scores can be compared: the same data, division and objective.

    Attributes:
        lines: in the order of the table file.
        metric: score that rows are compared by.
        tests: paired comparisons.
    """

    lines: list[Line]
    metric: str
    tests: list[Test] = field(default_factory=list)

    @property
    def first(self) -> Result | None:
        """The first result: data, protocol and classes of the sheet."""
        return next((run.result for line in self.lines for run in line.done), None)

    @property
    def tracks(self) -> PredictionTable | None:
        """The first seed's predictions of the first row that has them."""
        return next((tracks for line in self.lines for tracks in line.seeds.values()), None)


def collect(plan: Plan, outcomes: Mapping[str, Outcome], *, resamples: int = 1000) -> list[Sheet]:
    """Read the finished runs of a plan; unfinished and unreadable ones are listed with their outcome."""
    sheets: dict[str, list[Line]] = {}
    for row in plan.table.rows:
        jobs = plan.of_row(row)
        done = [job for job in jobs if job.config is not None and not job.error and job.finished()]
        faults = {
            job.key: outcomes.get(job.key) or Outcome("refused" if job.error else "not run", job.error)
            for job in jobs
            if job not in done
        }
        line = Line(row, jobs, faults, notes=list(plan.notes.get(row.name, [])))
        _measure(line, done, resamples)
        earlier = [other for lines in sheets.values() for other in lines]
        if twin := next((other for other in earlier if line.folders and other.folders == line.folders), None):
            line.notes.append(f"the same runs as {twin.row.label}")
        key = next((comparable(job.config) for job in jobs if job.config is not None), "")
        sheets.setdefault(key, []).append(line)
    # Rows that could not be composed are listed with those of the first sheet.
    loose = sheets.pop("", [])
    groups = list(sheets.values())
    order = [row.name for row in plan.table.rows]
    groups[0] = sorted([*groups[0], *loose], key=lambda line: order.index(line.row.name))
    return [_sheet(lines) for lines in groups]


def _sheet(lines: list[Line]) -> Sheet:
    objective = _objective(next(job for line in lines for job in line.jobs if job.config is not None))
    return Sheet(lines, objective.metric, _tests(lines, objective))


def _objective(job: Job) -> Any:
    assert job.config is not None
    return OBJECTIVES.get(job.config.objective["name"])


def _measure(line: Line, jobs: Sequence[Job], resamples: int) -> None:
    pools: dict[int, list[PredictionTable]] = {}
    for job in jobs:
        try:
            run, tracks = _read(job)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # UsageError is a ValueError
            message = " ".join(str(error).split())
            line.faults[job.key] = Outcome(
                "damaged", f"{job.folder} cannot be read ({message}); remove its result.json, and it is evaluated again"
            )
            continue
        line.done.append(run)
        pools.setdefault(job.seed, []).append(tracks)
    wanted = {job.seed: sum(other.seed == job.seed for other in line.jobs) for job in line.jobs}
    line.seeds = {seed: pool(pools[seed]) for seed in sorted(pools) if len(pools[seed]) == wanted[seed]}
    if not line.seeds:
        return
    objective, every = _objective(line.done[0].job), list(line.seeds.values())
    for tracks in every:
        scores = objective.scores(tracks.values, tracks.targets, tracks.group, resamples=resamples)
        if (calibration := tracks.calibration_score(resamples)) is not None:
            scores["calibration_error"] = calibration
        for name, score in scores.items():
            line.scores.setdefault(name, []).append(score.value)
            line.intervals.setdefault(name, score)
    first = every[0]
    if "accuracy" in line.scores:
        line.confusion = confusion(first.targets.argmax(axis=1), first.values.argmax(axis=1), first.targets.shape[1])
    if len(every) > 1:
        _mean_intervals(line, objective, every, resamples)


def _mean_intervals(line: Line, objective: Any, every: list[PredictionTable], resamples: int) -> None:
    """Set the means over seeds, with intervals where the seeds can be resampled together (never one seed's)."""
    first = every[0]
    line.intervals = {name: Score(float(np.mean(values))) for name, values in line.scores.items()}
    if any(tracks.clip.tolist() != first.clip.tolist() for tracks in every):
        return  # a clip that one seed could not read
    if "accuracy" in line.scores:
        line.intervals["accuracy"] = accuracy_score(np.stack([t.correct() for t in every]), first.group)
        name, score = "macro_f1", compare.macro_f1(first.targets.argmax(axis=1), first.targets.shape[1])
        inputs = [tracks.values.argmax(axis=1) for tracks in every]
    else:
        name, resamples = objective.metric, min(resamples, 200) if objective.reads_labels else resamples
        score, inputs = weighted_score(objective, every)
    line.intervals[name] = compare.seeds_values(score, inputs, first.group, resamples=resamples)


def _read(job: Job) -> tuple[Finished, PredictionTable]:
    """Read result.json, run.json, metrics.jsonl and predictions.npz of a run."""
    record = read_mapping(job.folder / "run.json", "config", "steps", "train_seconds", "clips_per_second")
    curve = read_json_lines(job.folder / "metrics.jsonl")
    result = Result.read(job.folder)
    if result.views != 1 or result.members:
        raise UsageError("its result is of an ensemble or of several views (views), not of the run as it is")
    return Finished(job, result, record, curve), PredictionTable.read(job.folder)


def _tests(lines: list[Line], objective: Any) -> list[Test]:
    """Compare all pairs of rows (of many rows, each with the first) on the first seed that both have finished."""
    lines = [line for line in lines if line.seeds]
    pairs = list(combinations(lines, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(line, lines[0]) for line in lines[1:]]
    found = []
    for first, second in pairs:
        seed = next((seed for seed in first.seeds if seed in second.seeds), None)
        if seed is None or first.folders == second.folders:
            continue
        if pair := both(first.seeds[seed], second.seeds[seed]):
            found.append((first.row.label, second.row.label, seed, compare_tables(objective, *pair)))
    adjusted = compare.holm([paired.p_value for *_, paired in found])
    return [Test(*test, p_value) for test, p_value in zip(found, adjusted, strict=True)]
