"""The file that a table is made from: a list of rows, or a grid, over one recipe."""

import itertools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gafx.config import build, read_mapping
from gafx.errors import UsageError, did_you_mean


@dataclass
class Stage:
    """A run that must come before a row, e.g. its pretraining; the rows of a table that name it share it.

    Attributes:
        overrides: of train.py.
        small: further ones under `--small`.
        gives: the key of the row that receives the stage's run folder.
        optional: run it only if it is addressed on the command line (`<stage>:data.root=...`); else rows do without.
    """

    overrides: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    gives: str = "frontend.pretrained"
    optional: bool = False


@dataclass
class Row:
    """A row of the table: overrides of train.py, and what a paper has in its place.

    Attributes:
        name: how the command line addresses it; default: its experiment, or `row-<number>`.
        label: as printed; default: the name.
        overrides: of train.py, e.g. `experiment=table5_segments`.
        small: further ones under `--small`.
        stage: a run that must come before.
        published: the paper's number in percent, and its deviation where it states one.
        published_words: what stands in the paper's table where that is no number.
        unstated: what the paper leaves open about the row and how it is read here, a sentence each.
    """

    name: str = ""
    label: str = ""
    overrides: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    stage: str | None = None
    published: float | None = None
    published_deviation: float | None = None
    published_words: str | None = None
    unstated: list[str] = field(default_factory=list)


@dataclass
class Quoted:
    """A published number of somebody else's, which is quoted and never run."""

    label: str
    published: float
    protocol: str
    about: str = ""


@dataclass
class Table:
    """What `gafx ablate` runs and writes.

    Attributes:
        name: the file's.
        title: of the page.
        source: where the published numbers stand, e.g. "GAFX, Table 5".
        about: what the table asks.
        tuning: how the recipe was arrived at, and that it was so for every row alike.
        published_data: on which the published numbers were measured, by its name here.
        published_protocol: under which.
        published_tracks: how many tracks they were measured on, for their interval.
        overrides: of train.py, for every row.
        small: further ones under `--small`.
        seeds: of training; every row runs under each.
        grid: key -> values: every combination is a row (of each of `rows`, if there are any). `seed` sets `seeds`.
        stages: runs that come before rows.
        rows: of the table.
        quoted: numbers that stand beside it.
    """

    name: str = ""
    title: str = ""
    source: str = ""
    about: str = ""
    tuning: str = ""
    published_data: str | None = None
    published_protocol: str | None = None
    published_tracks: int | None = None
    overrides: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    grid: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    rows: list[Any] = field(default_factory=list)
    quoted: list[Any] = field(default_factory=list)


def find_table(name: str, *folders: Path) -> Path:
    """Find a table's file: a name in one of the folders, which are searched in their order, or a path.

    Raises:
        UsageError: there is none.
    """
    for path in (*(folder / f"{name}.yaml" for folder in folders), Path(name)):
        if path.is_file():
            return path
    choices = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    hint = did_you_mean(name, choices) or ";"
    raise UsageError(
        f"no table {name!r}{hint} choose one of {', '.join(choices)} (configs/ablation/), or give the path of a YAML "
        "file of your own"
    )


def read_table(path: Path) -> Table:
    """Read and check a table file; its grid becomes rows.

    Raises:
        UsageError: an unknown key, a wrong type, no row, two rows of one name, a stage that is not there.
    """
    table: Table = build(Table, read_mapping(path), "")
    table.name = table.name or path.stem
    table.title = table.title or table.name
    table.stages = {
        name: _strings(build(Stage, value or {}, f"stages.{name}"), f"stages.{name}")
        for name, value in table.stages.items()
    }
    rows = [_strings(build(Row, _mapping(value), f"rows[{i}]"), f"rows[{i}]") for i, value in enumerate(table.rows)]
    table.quoted = [build(Quoted, value, f"quoted[{i}]") for i, value in enumerate(table.quoted)]
    _strings(table, "")
    grid = dict(table.grid)
    for key in ("seed", "seeds"):
        if key in grid:
            table.seeds = _values(grid.pop(key), key)
    whole = all(isinstance(seed, int) and seed >= 0 for seed in table.seeds)
    if not whole or not table.seeds or len(set(table.seeds)) < len(table.seeds):
        raise UsageError(f"{path}: seeds={table.seeds} must be a list of whole numbers, at least one, each once")
    if not re.fullmatch(r"[\w.-]+", table.name):
        raise UsageError(f"{path}: name={table.name!r} names a folder; use letters, digits, dots, dashes, underscores")
    if not rows and not grid:
        raise UsageError(f"{path} has no rows: list them under 'rows', or give a 'grid' of key: [values]")
    rows = [_named(row, number) for number, row in enumerate(rows or [Row(name="")], 1)]
    table.rows = [cell for row in rows for cell in _cells(row, grid)]
    names = [row.name for row in table.rows]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"{path}: two rows are called {twice[0]!r}; give one of them another 'name'")
    for row in table.rows:
        if row.stage is not None and row.stage not in table.stages:
            raise UsageError(f"{path}: row {row.name!r} names the stage {row.stage!r}, which is none of 'stages'")
    return table


def _mapping(value: Any) -> Mapping[str, Any]:
    """A row that is a string alone is an experiment of that name."""
    return {"overrides": [f"experiment={value}"]} if isinstance(value, str) else value


def _strings(spec: Any, where: str) -> Any:
    """Check the lists of overrides of a spec."""
    for key in ("overrides", "small", "unstated"):
        for word in getattr(spec, key, []):
            if not isinstance(word, str) or (key != "unstated" and "=" not in word):
                raise UsageError(f"{where}.{key}: {word!r} is no override; write key=value")
    return spec


def _named(row: Row, number: int) -> Row:
    experiments = [word.partition("=")[2] for word in row.overrides if word.startswith("experiment=")]
    name = row.name or (experiments[-1] if experiments else "" if not row.overrides else f"row-{number}")
    return replace(row, name=name, label=row.label or name)


def _cells(row: Row, grid: Mapping[str, Any]) -> list[Row]:
    """The row once for every combination of the grid's values."""
    keys = list(grid)
    cells = []
    for values in itertools.product(*(_values(grid[key], key) for key in keys)):
        words = [f"{key}={_written(value)}" for key, value in zip(keys, values, strict=True)]
        short = [f"{key.split('.')[-1]}={_written(value)}" for key, value in zip(keys, values, strict=True)]
        name = " ".join(filter(None, [row.name, *words]))
        label = " ".join(filter(None, [row.label, ", ".join(short)]))
        cells.append(replace(row, name=name, label=label, overrides=[*row.overrides, *words]))
    return cells


def _values(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"grid.{key}={value!r} must be a list of values, e.g. [0, 1]")
    return typing.cast(list[Any], value)


def _written(value: Any) -> str:
    """A YAML value as an override's."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return str(value)
