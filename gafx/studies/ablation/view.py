"""Cells of a table, the same for Markdown and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gafx.report import format as fmt
from gafx.stats.compare import sample_std
from gafx.stats.scores import Score, wilson
from gafx.studies.ablation import text
from gafx.studies.ablation.collect import Line, Sheet
from gafx.studies.ablation.plan import Plan

_COSTS = ("parameters", "flops_per_clip", "clips_per_second", "training_memory_bytes", "train_seconds")


class Cell(NamedTuple):
    """Text of a cell; its interval is printed in parentheses, on the page below it.

    Attributes:
        text: of the cell.
        interval: bounds, or empty.
        kind: classes of the page's style sheet, `n` for a number.
        hint: how the interval was computed.
    """

    text: str
    interval: str = ""
    kind: str = "n"
    hint: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: its headings and rows of cells."""

    head: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        """The grid as a Markdown table."""

        def row(cells: Sequence[str]) -> str:
            return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"

        body = [[f"{cell.text} ({cell.interval})" if cell.interval else cell.text for cell in row] for row in self.rows]
        return "\n".join([row(self.head), "|" + "---|" * len(self.head), *map(row, body)])


def scores(plan: Plan, sheet: Sheet) -> Grid:
    """A row per line: published number, metric, seeds, the next score, start of the weights, and costs."""
    other = list(dict.fromkeys(name for line in sheet.lines for name in line.scores if name != sheet.metric))[:1]
    published, foreign = text.has_published(sheet), " foreign" * bool(text.comparison(plan, sheet))
    head = [
        "Row", *(["Published (%)"] if published else []), fmt.heading(sheet.metric), "Seeds", *map(fmt.heading, other),
        "Start", *map(fmt.label, _COSTS),
    ]  # fmt: skip
    rows = []
    for line in sheet.lines:
        score, costs = line.intervals.get(sheet.metric), cost(line)
        rows.append([
            Cell(line.row.label + " †" * bool(line.row.unstated), kind="break"),
            *([_published(plan, line, foreign)] if published else []),
            Cell(_mean(line, sheet.metric), _interval(score, sheet.metric), "n strong", score.interval if score else "")
            if line.scores.get(sheet.metric) else Cell(verdict(line), kind="n missing"),
            Cell(", ".join(fmt.number(v, sheet.metric, unit=False) for v in line.scores.get(sheet.metric, []))
                 or fmt.NONE, kind=""),
            *(Cell(_mean(line, name)) for name in other),
            Cell(text.start(line), kind=""),
            *(Cell(fmt.cell(costs.get(name), name)) for name in _COSTS),
        ])  # fmt: skip
    return Grid(head, rows)


def tests(sheet: Sheet) -> Grid:
    """A row per paired test."""
    name = sheet.metric
    points = " (points)" if fmt.metric(name).unit == "%" else ""
    head = ["First − second", f"Difference{points}", "p", "p (Holm)", "Tracks", "Seed"]
    rows = []
    for test in sheet.tests:
        paired = test.paired
        values = fmt.p_value(paired.p_value), fmt.p_value(test.adjusted), str(paired.count), str(test.seed)
        difference = Cell(fmt.number(paired.difference, name, unit=False), _interval(paired, name), hint=paired.test)
        rows.append([Cell(f"{test.first} − {test.second}", kind="pair"), difference, *map(Cell, values)])
    return Grid(head, rows)


def _mean(line: Line, name: str) -> str:
    return fmt.mean_std(line.scores.get(name, []), name, unit=False)


def _interval(score: Any, name: str) -> str:
    return fmt.interval(score.low, score.high, name) if score is not None and score.low is not None else ""


def _published(plan: Plan, line: Line, foreign: str) -> Cell:
    row, score = line.row, published_score(plan, line)
    if score is None:
        return Cell(row.published_text or fmt.NONE)
    std = f" ± {row.published_std:.2f}" if row.published_std is not None else ""
    return Cell(f"{row.published:.2f}{std}", _interval(score, "accuracy"), f"n{foreign}", score.interval)


def published_score(plan: Plan, line: Line) -> Score | None:
    """The published accuracy, with Wilson's interval where its number of tracks is known."""
    if line.row.published is None:
        return None
    value, tracks = line.row.published / 100, plan.table.published_tracks
    found = wilson(round(value * tracks), tracks) if tracks else Score(value)
    return Score(value, found.low, found.high, found.interval)


def verdict(line: Line) -> str:
    """States of the unfinished runs of a row without a score."""
    return ", ".join(dict.fromkeys(outcome.state for outcome in line.faults.values())) or fmt.NONE


def summary(line: Line) -> dict[str, Any]:
    """Score name -> mean over seeds, its std, bounds and the way they were computed, for CSV and JSON."""
    values: dict[str, Any] = {}
    for name, entries in line.scores.items():
        score = line.intervals[name]
        values |= {
            name: sum(entries) / len(entries), f"{name}_std": sample_std(entries), f"{name}_low": score.low,
            f"{name}_high": score.high, f"{name}_interval": score.interval,
        }  # fmt: skip
    return values


def cost(line: Line) -> dict[str, Any]:
    """Costs of a row: speed and memory in evaluation, time and memory in training; empty if nothing is finished."""
    costs = [run.result.cost for run in line.done if run.result.cost is not None]
    records = [run.record for run in line.done]
    if not costs:
        return {}
    return {
        **{name: getattr(costs[0], name) for name in ("parameters", "frontend_parameters", "flops_per_clip")},
        "clips_per_second": sum(cost.clips_per_second for cost in costs) / len(costs),
        "memory_bytes": max(cost.peak_memory_bytes for cost in costs),
        "train_seconds": sum(record["train_seconds"] for record in records),
        "training_clips_per_second": sum(record["clips_per_second"] for record in records) / len(records),
        "training_memory_bytes": max((record.get("peak_memory_bytes") or 0 for record in records), default=0),
        "device": costs[0].device, "precision": costs[0].precision,
    }  # fmt: skip
