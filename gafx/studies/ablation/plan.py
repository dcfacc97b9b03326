"""From a table's rows to runs: which there are, which are finished, and which cannot be."""

import copy
import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gafx.config import TrainConfig, run_id
from gafx.data.protocols import Protocol
from gafx.errors import UsageError
from gafx.studies.ablation.spec import Row, Stage, Table

Compose = Callable[[list[str]], TrainConfig]
_RESULTS = ("result.json", "predictions.npz", "report.html")


@dataclass
class Job:
    """One run of train.py, and its evaluation.

    Attributes:
        key: names it, e.g. `table5_segments seed 0 fold 2`.
        row: its row's name; the stage's for a stage.
        words: overrides of train.py.
        seed: of training.
        fold: that it tests, or None where the protocol has none.
        config: what the words compose to, None where they do not.
        folder: of the run.
        needs: a stage that must be finished before.
        evaluated: whether evaluate.py is part of it (not of a stage).
        error: why it cannot be run.
    """

    key: str
    row: str
    words: list[str]
    seed: int
    fold: int | None = None
    config: TrainConfig | None = None
    folder: Path = Path()
    needs: "Job | None" = None
    evaluated: bool = True
    error: str = ""

    def finished(self) -> bool:
        """Whether it is trained and, where that is asked for, evaluated."""
        return self.trained() and (not self.evaluated or all((self.folder / name).is_file() for name in _RESULTS))

    def trained(self) -> bool:
        return (self.folder / "model").is_dir()


@dataclass
class Plan:
    """The runs of a table, stages first, and what was asked on the command line."""

    table: Table
    jobs: list[Job]
    words: list[str]
    small: bool
    seeds: list[int]
    notes: dict[str, list[str]] = field(default_factory=dict)  # of rows: what the command line left out
    folds: list[int] | None = None  # that were asked for; None: all of the protocol's

    def of_row(self, row: Row) -> list[Job]:
        return [job for job in self.jobs if job.row == row.name and job.evaluated]


def plan_table(
    table: Table,
    words: Sequence[str],
    compose: Compose,
    *,
    small: bool = False,
    seeds: Sequence[int] | None = None,
    folds: Callable[[TrainConfig], Sequence[int | None]],
) -> Plan:
    """Compose every row under every seed and fold.

    A row that cannot be composed does not stop the others: its jobs carry the reason.

    Args:
        table: of `read_table`.
        words: overrides for every row, and `row:key=value` for one (or for a stage; patterns such as `table6_*:` too).
        compose: overrides -> configuration.
        small: use the table's small budget.
        seeds: instead of the table's.
        folds: which folds a configuration's protocol is run on; None stands for a protocol without folds.

    Raises:
        UsageError: a word addresses no row or is what rows themselves differ in, no row can be composed, `small` of a
            table that has no small budget, or rows have different protocols.
    """
    everyone, addressed = _sort(table, words)
    _check_small(table, small)
    _check_labels(table, everyone)
    seeds = list(table.seeds if seeds is None else seeds)
    plan = Plan(table, [], list(words), small, seeds)
    stages = {name: _stage(name, stage, everyone, addressed, compose, small) for name, stage in table.stages.items()}
    for row in table.rows:
        own = [*table.overrides, *row.overrides, *((*table.small, *row.small) if small else ()), *everyone]
        own += addressed.get(row.name, [])
        _check_words(own)
        needs = stages.get(row.stage) if row.stage else None
        if row.stage:
            gives = table.stages[row.stage].gives
            if any(word.partition("=")[0].lstrip("+") == gives for word in addressed.get(row.name, [])):
                needs = None  # what the stage would give was given
            elif needs is not None:
                own.append(f"{gives}={needs.folder}")
            else:
                plan.notes[row.name] = [
                    f"without the stage {row.stage!r}: it runs where it is addressed, e.g. {row.stage}:data.root=..."
                ]
        plan.jobs += _jobs(row, own, seeds, compose, folds, needs)
    # A stage is run for rows that are still to be trained, and for nothing else.
    needed = {job.needs.key for job in plan.jobs if job.needs is not None and not job.trained()}
    plan.jobs = [stage for stage in stages.values() if stage is not None and stage.key in needed] + plan.jobs
    composed = [job for job in plan.jobs if job.config is not None and job.evaluated]
    if not composed:
        raise UsageError(f"no row of {table.name} can be run: {'; '.join(dict.fromkeys(j.error for j in plan.jobs))}")
    _check_protocols(composed)
    return plan


def _check_words(words: Sequence[str]) -> None:
    for key, cure in (("seed", "--seeds 0,1 (in a table's file: seeds: [0, 1])"), ("data.fold", "--folds 1,2")):
        if given := [word for word in words if word.partition("=")[0].lstrip("+") == key]:
            raise UsageError(f"{given[0]}: every row runs under each seed and fold; choose them with {cure}")


def last_wins(words: Iterable[str]) -> list[str]:
    """Overrides of which each key's last one stays, at its place: Hydra refuses two choices of one group."""
    kept: dict[str, str] = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        kept.pop(key, None)
        kept[key] = word
    return list(kept.values())


def comparable(config: TrainConfig) -> str:
    """Equal for runs whose numbers can stand in one table: the same data, division and objective."""
    data = config.data
    keys = ["name", "options", "protocol", "group_by", *Protocol.parse(data.protocol).settings]
    values = {key: getattr(data, key) for key in keys}
    return json.dumps({**values, "objective": config.objective["name"]}, sort_keys=True, default=str)


def locate(config: TrainConfig) -> Path:
    """The run's folder; where another name holds the same run on the same data finished, that one."""
    folder = config.folder
    if not (folder / "model").is_dir():
        for other in sorted(folder.parent.glob(f"*-{run_id(config)}")):
            if (other / "model").is_dir() and trained_root(other) in (None, data_root(config)):
                return other
    return folder


def data_root(config: TrainConfig) -> str | None:
    """Where a configuration's data lie, as one spelling of it."""
    root = config.data.root
    return None if root is None else str(Path(root).expanduser().resolve())


def trained_root(folder: Path) -> str | None:
    """Where the data lay that a run was trained on; None where it does not say."""
    try:
        root = json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"]["root"]
        return str(Path(root).resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_small(table: Table, small: bool) -> None:
    if small and not (table.small or any(row.small for row in table.rows)):
        raise UsageError(
            f"--small: {table.name} has no small budget; give its file a key 'small', or leave --small out"
        )


def _check_labels(table: Table, everyone: Sequence[str]) -> None:
    """Refuse what would make the rows' own names untrue."""
    for word in everyone:
        key = word.partition("=")[0].lstrip("+")
        own = [row.name for row in table.rows if any(o.partition("=")[0].lstrip("+") == key for o in row.overrides)]
        if own:
            named = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
            raise UsageError(
                f"{word}: rows set {key} themselves ({named}) and would be called what they are not; change it for one "
                f"row with <row>:{word}, or in a copy of the table's file"
            )


def _sort(table: Table, words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words for every row, and those for the rows and stages that they name."""
    names = [*(row.name for row in table.rows), *table.stages]
    everyone: list[str] = []
    addressed: dict[str, list[str]] = {}
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is no override; write key=value, or row:key=value for one row")
        # Names of a grid's rows hold '=' themselves.
        whole = [name for name in names if word.startswith(f"{name}:")]
        pattern = max(whole, key=len) if whole else key.rpartition(":")[0]
        if not pattern:
            everyone.append(word)
            continue
        meant = [pattern] if whole else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not meant:
            raise UsageError(f"{word!r} addresses no row; rows and stages of {table.name}: {', '.join(names)}")
        for name in meant:
            addressed.setdefault(name, []).append(word[len(pattern) + 1 :])
    return everyone, addressed


def _stage(
    name: str, stage: Stage, everyone: list[str], addressed: dict[str, list[str]], compose: Compose, small: bool
) -> Job | None:
    own = addressed.get(name, [])
    if stage.optional and not own:
        return None
    # What says where and how runs run holds for stages too; the rows' data, protocol and recipe do not.
    shared = [word for word in everyone if word.partition("=")[0] in ("output_dir", "workers", "device", "precision")]
    job = Job(f"stage {name}", name, last_wins([*stage.overrides, *(stage.small if small else ()), *shared, *own]), 0)
    job.evaluated = False
    _compose(job, compose)
    return job


def _jobs(
    row: Row,
    words: list[str],
    seeds: Sequence[int],
    compose: Compose,
    folds: Callable[[TrainConfig], Sequence[int | None]],
    needs: Job | None,
) -> list[Job]:
    jobs = []
    for seed in seeds:
        first = Job(f"{row.name} seed {seed}", row.name, last_wins([*words, f"seed={seed}"]), seed, needs=needs)
        _compose(first, compose)
        if first.config is None:
            return [first]
        try:
            jobs += [first if fold is None else _of_fold(first, fold) for fold in folds(first.config)]
        except UsageError as error:  # its data are not there to be asked
            first.error, first.config = str(error), None
            return [first]
    return jobs


def _of_fold(job: Job, fold: int) -> Job:
    config = copy.deepcopy(job.config)
    assert config is not None
    config.data.fold = fold  # without composing anew, which takes a third of a second
    words = last_wins([*job.words, f"data.fold={fold}"])
    return Job(f"{job.key} fold {fold}", job.row, words, job.seed, fold, config, locate(config), job.needs)


def _compose(job: Job, compose: Compose) -> None:
    try:
        job.config = compose(job.words)
        job.folder = locate(job.config)
    except UsageError as error:
        job.error = str(error)


def _check_protocols(jobs: Sequence[Job]) -> None:
    found: dict[str, str] = {}
    for job in jobs:
        assert job.config is not None
        found.setdefault(job.config.data.protocol, job.row)
    if len(found) > 1:
        said = ", ".join(f"{row}: {protocol}" for protocol, row in found.items())
        raise UsageError(
            f"the rows have different protocols ({said}), and numbers of two protocols cannot stand on one page; add "
            "data.protocol=<one of them> to the command, or make two tables"
        )
