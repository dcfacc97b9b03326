"""Table files of `gafx ablate`: a list of rows, or a grid of values, on top of one recipe."""

import itertools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gafx.config import build, read_mapping, text_type
from gafx.errors import UsageError, did_you_mean
from gafx.registry import check_type, read_text


@dataclass
class Stage:
    """A run that precedes rows, e.g. their pretraining; all rows that name it start from it.

    Attributes:
        overrides: of `gafx train`.
        small: further overrides under `--small`.
        gives: key of the rows that is set to the stage's run folder.
        stage: another stage, listed before, that precedes this one: its key `gives` is set here.
        shares_data: take the overrides of the data that are given for all rows (`data=...`, `data.root=...`); else the
            stage has data of its own.
        optional: run it only if it is addressed on the command line (`<stage>:data.root=...`); otherwise the rows run
            without it.
    """

    overrides: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    gives: str = "frontend.pretrained"
    stage: str | None = None
    shares_data: bool = False
    optional: bool = False


@dataclass
class Row:
    """A row of the table: overrides of `gafx train`, and the published number.

    Attributes:
        name: address on the command line; default: its experiment, or `row-<number>`.
        label: as printed; default: the name.
        overrides: e.g. `experiment=table5_segments`.
        small: further overrides under `--small`.
        stage: a run that precedes it.
        published: the published accuracy in percent.
        published_std: its standard deviation over seeds in percentage points, where published.
        published_text: printed in place of a number that was not published.
        unstated: sentences on what the publication leaves open about the row, and how it is read here.
    """

    name: str = ""
    label: str = ""
    overrides: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    stage: str | None = None
    published: float | None = None
    published_std: float | None = None
    published_text: str | None = None
    unstated: list[str] = field(default_factory=list)


@dataclass
class Quoted:
    """A published number of other work, in percent, printed below the table and never run."""

    label: str
    published: float
    protocol: str
    about: str = ""


@dataclass
class Table:
    """Content of a table file.

    Attributes:
        name: of the table's folder; default: the file's.
        title: of the page.
        source: of the published numbers, e.g. "GAFX, Table 5".
        about: question that the table answers.
        tuning: how the recipe was found, and that this holds for every row.
        small_tuning: how the small budget was found; default: it was fixed beforehand.
        published_data: data set of the published numbers, by its name in gafx.
        published_protocol: their protocol.
        published_tracks: their number of test tracks, for the interval.
        overrides: of `gafx train`, for every row.
        small: further overrides under `--small`.
        seeds: of training; every row runs under each.
        grid: key -> values; every combination is a row (of each of `rows`, if there are any). `seed` sets `seeds`.
        stages: runs that precede rows.
        rows: of the table.
        quoted: numbers of other work.
    """

    name: str = ""
    title: str = ""
    source: str = ""
    about: str = ""
    tuning: str = ""
    small_tuning: str = "None of ours for any row: the small budget was fixed beforehand."
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


def override_key(override: str) -> str:
    """Key of an override of `gafx train`: `++optim.lr=1e-4` -> `optim.lr`."""
    return override.partition("=")[0].lstrip("+")


def find_table(name: str, *folders: Path) -> Path:
    """Return the path of a table file: a name, searched in the folders in their order, or a path.

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
    """Read and check a table file; every combination of its grid becomes a row.

    Raises:
        UsageError: an unknown key, a wrong type, no row, two rows of one name, an unknown stage.
    """
    table: Table = build(Table, read_mapping(path), "")
    table.name = table.name or path.stem
    table.title = table.title or table.name
    _check_overrides(table, "")
    table.stages = {name: _build(Stage, value or {}, f"stages.{name}") for name, value in table.stages.items()}
    table.quoted = [_build(Quoted, value, f"quoted[{i}]") for i, value in enumerate(table.quoted)]
    rows = [_row(value, number) for number, value in enumerate(table.rows, 1)]
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
    table.rows = [cell for row in rows or [Row()] for cell in _cells(row, grid)]
    names = [row.name for row in table.rows]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"{path}: two rows are called {twice[0]!r}; give one of them another 'name'")
    for row in table.rows:
        if row.stage is not None and row.stage not in table.stages:
            raise UsageError(f"{path}: row {row.name!r} names the stage {row.stage!r}, which is none of 'stages'")
    for number, (name, stage) in enumerate(table.stages.items()):
        if stage.stage is not None and stage.stage not in list(table.stages)[:number]:
            raise UsageError(f"{path}: stage {name!r} names the stage {stage.stage!r}, none of those before it")
    return table


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    spec: Any = build(cls, values, where)
    _check_overrides(spec, f"{where}.")
    return spec


def _check_overrides(spec: Any, where: str) -> None:
    for key in ("overrides", "small", "unstated"):
        for text in getattr(spec, key, []):
            if not isinstance(text, str) or (key != "unstated" and "=" not in text):
                raise UsageError(f"{where}{key}: {text!r} is no override; write key=value")


def _row(value: Any, number: int) -> Row:
    """Build a row with its default name and label; a string alone is an experiment of that name."""
    row = _build(
        Row, {"overrides": [f"experiment={value}"]} if isinstance(value, str) else value, f"rows[{number - 1}]"
    )
    experiments = [text.partition("=")[2] for text in row.overrides if text.startswith("experiment=")]
    name = row.name or (experiments[-1] if experiments else f"row-{number}" if row.overrides else "")
    return replace(row, name=name, label=row.label or name)


def _cells(row: Row, grid: Mapping[str, Any]) -> list[Row]:
    """Return the row once for every combination of the grid's values."""
    cells = []
    for values in itertools.product(*(_values(grid[key], key) for key in grid)):
        pairs = list(zip(grid, values, strict=True))
        overrides = [f"{key}={_typed(key, value)}" for key, value in pairs]
        name = " ".join(filter(None, [row.name, *(f"{key}={_as_override(value)}" for key, value in pairs)]))
        short = [f"{key.split('.')[-1]}={_as_override(value)}" for key, value in pairs]
        label = " ".join(filter(None, [row.label, ", ".join(short)]))
        cells.append(replace(row, name=name, label=label, overrides=[*row.overrides, *overrides]))
    return cells


def _values(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"grid.{key}={value!r} must be a list of values, e.g. [0, 1]")
    return typing.cast(list[Any], value)


def _typed(key: str, value: Any) -> str:
    """Write the value of a key of the grid so that it is read back as it is.

    Raises:
        UsageError: a number for a text key: YAML has read 1.10 as 1.1 by then.
    """
    annotation = text_type(key)
    if annotation is None:
        return _as_override(value, quote=True)
    check_type(value, annotation, f"grid.{key}")
    if isinstance(value, str) and (
        read_text(value, annotation) != value or re.fullmatch("'.*'|\".*\"", value, re.DOTALL)
    ):
        return _quoted(value)
    return _as_override(value)


def _as_override(value: Any, *, quote: bool = False) -> str:
    """Write a YAML value as an override's; `quote` puts quotes around the texts in lists and mappings."""
    if isinstance(value, (Mapping, list)):

        def inner(each: Any) -> str:
            return _quoted(each) if quote and isinstance(each, str) else _as_override(each, quote=quote)

        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key}:{inner(each)}" for key, each in value.items()) + "}"
        return "[" + ",".join(map(inner, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """Text in quotes that it does not contain itself."""
    return f'"{text}"' if "'" in text else f"'{text}'"
