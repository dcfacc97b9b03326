"""From a table's rows to runs: which there are, which are finished, and which cannot run."""

import copy
import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gafx.config import TrainConfig, run_id
from gafx.data.protocols import Protocol
from gafx.errors import UsageError
from gafx.studies.ablation.spec import Row, Stage, Table, override_key

Compose = Callable[[list[str]], TrainConfig]
Folds = Callable[[TrainConfig], Sequence[int | None]]
_RESULTS = ("result.json", "predictions.npz", "report.html")


@dataclass
class Job:
    """One run of `gafx train`, and its evaluation.

    Attributes:
        key: its name, e.g. `table5_segments seed 0 fold 2`.
        row: name of its row, or of its stage.
        overrides: of `gafx train`.
        seed: of training.
        fold: that it tests, or None where the protocol has none.
        config: that the overrides compose to, or None where they do not.
        folder: of the run.
        needs: a stage that must be finished before.
        evaluated: whether `gafx evaluate` follows (not for a stage).
        error: why it cannot run; empty if it can.
    """

    key: str
    row: str
    overrides: list[str]
    seed: int
    fold: int | None = None
    config: TrainConfig | None = None
    folder: Path = Path()
    needs: "Job | None" = None
    evaluated: bool = True
    error: str = ""

    def finished(self) -> bool:
        """Return whether it is trained and, where it is to be evaluated, evaluated."""
        return self.trained() and (not self.evaluated or all((self.folder / name).is_file() for name in _RESULTS))

    def trained(self) -> bool:
        return (self.folder / "model").is_dir()


@dataclass
class Plan:
    """The runs of a table, stages first, and the command line.

    Attributes:
        table: of `read_table`.
        jobs: its runs.
        overrides: of the command line.
        small: whether the small budget is used.
        seeds: of every row.
        notes: row name -> sentences on what the row runs without.
        folds: that were asked for; None: all of the protocol.
    """

    table: Table
    jobs: list[Job]
    overrides: list[str]
    small: bool
    seeds: list[int]
    notes: dict[str, list[str]] = field(default_factory=dict)
    folds: list[int] | None = None

    def of_row(self, row: Row) -> list[Job]:
        return [job for job in self.jobs if job.row == row.name and job.evaluated]


def plan_table(
    table: Table, overrides: Sequence[str], compose: Compose, *, small: bool = False,
    seeds: Sequence[int] | None = None, folds: Folds,
) -> Plan:  # fmt: skip
    """Compose every row under every seed and fold.

    A row that cannot be composed does not stop the others: its jobs carry the reason.

    Args:
        table: of `read_table`.
        overrides: for every row, and `row:key=value` for one (or for a stage; patterns such as `table6_*:` too).
        compose: overrides -> configuration.
        small: use the table's small budget.
        seeds: in place of the table's.
        folds: configuration -> the folds to run; None for a protocol without folds.

    Raises:
        UsageError: an override addresses no row or sets what rows differ in, no row can be composed, `small` of a table
            without a small budget, or rows have different protocols.
    """
    common, addressed = _assign(table, overrides)
    if small and not (table.small or any(row.small for row in table.rows)):
        raise UsageError(
            f"--small: {table.name} has no small budget; give its file a key 'small', or leave --small out"
        )
    _check_common(table, common)
    plan = Plan(table, [], list(overrides), small, list(table.seeds if seeds is None else seeds))
    stages: dict[str, Job | None] = {}
    for name, stage in table.stages.items():
        given, stages[name] = addressed.get(name, []), None
        if stage.optional and not given:
            continue
        needs = _needed(table, stage.stage, stages, given)
        if needs is not None and stage.stage:
            given = [*given, f"{table.stages[stage.stage].gives}={needs.folder}"]
        stages[name] = _stage(name, stage, common, given, compose, small, needs)
    for row in table.rows:
        own = [*table.overrides, *row.overrides, *((*table.small, *row.small) if small else ()), *common]
        own += addressed.get(row.name, [])
        _check_own(own)
        needs = _needed(table, row.stage, stages, addressed.get(row.name, []))
        if needs is not None and row.stage:
            own.append(f"{table.stages[row.stage].gives}={needs.folder}")
        elif row.stage and stages[row.stage] is None:
            plan.notes[row.name] = [
                f"without the stage {row.stage!r}: it runs where it is addressed, e.g. {row.stage}:data.root=..."
            ]
        plan.jobs += _jobs(row, own, plan.seeds, compose, folds, needs)
    # A stage runs only for rows, and stages, that are still to be trained.
    needed = {job.needs.key for job in plan.jobs if job.needs is not None and not job.trained()}
    for job in filter(None, reversed(stages.values())):
        if job.key in needed and job.needs is not None and not job.trained():
            needed.add(job.needs.key)
    plan.jobs = [stage for stage in stages.values() if stage is not None and stage.key in needed] + plan.jobs
    composed = [job for job in plan.jobs if job.config is not None and job.evaluated]
    if not composed:
        reasons = dict.fromkeys(job.error for job in plan.jobs if job.error)
        raise UsageError(f"no row of {table.name} can be run: {'; '.join(reasons)}")
    _check_protocols(composed)
    return plan


def last_wins(overrides: Iterable[str]) -> list[str]:
    """Keep the last override of each key, at its place: Hydra refuses two choices of one group."""
    kept: dict[str, str] = {}
    for override in overrides:
        kept.pop(override_key(override), None)
        kept[override_key(override)] = override
    return list(kept.values())


def comparable(config: TrainConfig) -> str:
    """Key of runs whose scores can be compared in one table: the same data, division and objective."""
    data = config.data
    keys = ["name", "options", "protocol", "group_by", *Protocol.parse(data.protocol).settings]
    values = {key: getattr(data, key) for key in keys}
    return json.dumps({**values, "objective": config.objective["name"]}, sort_keys=True, default=str)


def locate(config: TrainConfig) -> Path:
    """Return the run's folder; where a folder of another name holds the same run on the same data finished, that."""
    folder = config.folder
    if not (folder / "model").is_dir():
        for other in sorted(folder.parent.glob(f"*-{run_id(config)}")):
            if (other / "model").is_dir() and trained_root(other) in (None, data_root(config)):
                return other
    return folder


def data_root(config: TrainConfig) -> str | None:
    """Return the absolute path of a configuration's data, for comparison."""
    root = config.data.root
    return None if root is None else str(Path(root).expanduser().resolve())


def trained_root(folder: Path) -> str | None:
    """Return the absolute path of the data that a run was trained on; None where run.json does not say."""
    try:
        root = json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"]["root"]
        return str(Path(root).resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_own(overrides: Sequence[str]) -> None:
    for key, cure in (("seed", "--seeds 0,1 (in a table's file: seeds: [0, 1])"), ("data.fold", "--folds 1,2")):
        if given := [override for override in overrides if override_key(override) == key]:
            raise UsageError(f"{given[0]}: every row runs under each seed and fold; choose them with {cure}")


def _check_common(table: Table, common: Sequence[str]) -> None:
    """Refuse overrides for all rows that would make the rows' names wrong."""
    for override in common:
        key = override_key(override)
        own = [row.name for row in table.rows if key in map(override_key, row.overrides)]
        if own:
            named = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
            raise UsageError(
                f"{override}: rows set {key} themselves ({named}), so their names would be wrong; change it for one "
                f"row with <row>:{override}, or in a copy of the table's file"
            )


def _assign(table: Table, overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split overrides into those for every row and, by name, those for single rows and stages."""
    names = [*(row.name for row in table.rows), *table.stages]
    common: list[str] = []
    addressed: dict[str, list[str]] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is no override; write key=value, or row:key=value for one row")
        # Names of a grid's rows contain '=' themselves.
        exact = [name for name in names if override.startswith(f"{name}:")]
        pattern = max(exact, key=len) if exact else key.rpartition(":")[0]
        if not pattern:
            common.append(override)
            continue
        matches = [pattern] if exact else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"{override!r} addresses no row; rows and stages of {table.name}: {', '.join(names)}")
        for name in matches:
            addressed.setdefault(name, []).append(override[len(pattern) + 1 :])
    return common, addressed


def _needed(table: Table, name: str | None, stages: dict[str, Job | None], given: list[str]) -> Job | None:
    """Return the stage's job, unless the command line gives what the stage would."""
    if name is None or any(override_key(override) == table.stages[name].gives for override in given):
        return None
    return stages[name]


def _stage(
    name: str, stage: Stage, common: list[str], own: list[str], compose: Compose, small: bool, needs: Job | None
) -> Job:
    # Where and how runs are executed is shared with the rows; the recipe, and mostly the data, are the stage's own.
    keys = ("output_dir", "workers", "device", "precision")
    shared = [o for o in common if override_key(o) in keys or (stage.shares_data and _is_data(override_key(o)))]
    overrides = last_wins([*stage.overrides, *(stage.small if small else ()), *shared, *own])
    return _composed(Job(f"stage {name}", name, overrides, 0, evaluated=False, needs=needs), compose)


def _is_data(key: str) -> bool:
    return key == "data" or key.startswith("data.")


def _jobs(
    row: Row, overrides: list[str], seeds: Sequence[int], compose: Compose, folds: Folds, needs: Job | None
) -> list[Job]:
    jobs = []
    for seed in seeds:
        key = f"{row.name} seed {seed}"
        first = _composed(Job(key, row.name, last_wins([*overrides, f"seed={seed}"]), seed, needs=needs), compose)
        if first.config is None:
            return [first]
        try:
            found = [first if fold is None else _of_fold(first, fold) for fold in folds(first.config)]
            jobs += [_check_stage(job) for job in found]
        except UsageError as error:  # the data set, whose folds are asked for, is missing
            first.error, first.config = str(error), None
            return [first]
    return jobs


def _of_fold(job: Job, fold: int) -> Job:
    config = copy.deepcopy(job.config)
    assert config is not None
    config.data.fold = fold  # without composing again, which takes a third of a second
    overrides = last_wins([*job.overrides, f"data.fold={fold}"])
    return Job(f"{job.key} fold {fold}", job.row, overrides, job.seed, fold, config, locate(config), job.needs)


def _check_stage(job: Job) -> Job:
    """Set the error of a run that would test clips that a stage on the same data was trained on."""
    stage = job.needs
    while stage is not None and job.config is not None:
        if stage.config is not None and data_root(stage.config) == data_root(job.config):
            ours, theirs = job.config.data, stage.config.data
            keys = [key for key in ("protocol", *Protocol.parse(ours.protocol).settings) if key != "train_clips"]
            keys += ["fold"] if job.fold is not None else []
            differ = [key for key in keys if ours.name == theirs.name and getattr(ours, key) != getattr(theirs, key)]
            if differ:
                job.error = (
                    f"{stage.key} was trained on the same data by another division (data.{differ[0]}="
                    f"{getattr(theirs, differ[0])}, here {getattr(ours, differ[0])}), so on clips that this run tests: "
                    + (f"choose --folds {theirs.fold}" if differ == ["fold"] else f"give {stage.row}: the same")
                )
        stage = stage.needs
    return job


def _composed(job: Job, compose: Compose) -> Job:
    try:
        job.config = compose(job.overrides)
        job.folder = locate(job.config)
    except UsageError as error:
        job.error = str(error)
    return job


def _check_protocols(jobs: Sequence[Job]) -> None:
    found: dict[str, str] = {}
    for job in jobs:
        assert job.config is not None
        found.setdefault(job.config.data.protocol, job.row)
    if len(found) > 1:
        listed = ", ".join(f"{row}: {protocol}" for protocol, row in found.items())
        raise UsageError(
            f"rows have different protocols ({listed}), and scores of two protocols cannot be compared on one page; "
            "add data.protocol=<one of them> to the command, or make two tables"
        )
