"""The page of a table: the published number beside ours, what was tested and how, and what came of each row."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafx.data.protocols import comparability
from gafx.report import figures, svg
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.studies.ablation import words
from gafx.studies.ablation.collect import Line, Sheet
from gafx.studies.ablation.plan import Plan

_MOST_DRAWN = 48  # rows that a plot has room for


def write_table_page(path: Path, plan: Plan, sheets: Sequence[Sheet]) -> Path:
    """Write the page (see `gafx.report.html`) and return its path."""
    table = plan.table
    first = next((sheet.first for sheet in sheets if sheet.first), None)
    quoted = [
        {"spec": quote, "across": comparability(first.data, first.protocol, table.published_data, quote.protocol)
         if first else ""}
        for quote in table.quoted
    ]  # fmt: skip
    return write_page(
        path,
        "table.html.j2",
        title=table.title,
        table=table,
        changes=words.changes(plan),
        tuning=words.tuning(plan),
        sheets=[_sheet(plan, sheet, path.parent) for sheet in sheets],
        protocols=[said for said in dict.fromkeys(words.protocol(sheet) for sheet in sheets) if said],
        quoted=quoted,
    )


def _sheet(plan: Plan, sheet: Sheet, folder: Path) -> dict[str, Any]:
    other = list(dict.fromkeys(name for line in sheet.lines for name in line.scores if name != sheet.metric))[:1]
    lines = [_line(plan, sheet, index, line, folder, other) for index, line in enumerate(sheet.lines)]
    return {
        "tested": words.tested(sheet),
        "metric": fmt.heading(sheet.metric),
        "others": [fmt.heading(name) for name in other],
        "has_published": words.published(sheet),
        "crossing": words.across(plan, sheet),
        "lines": lines,
        "plot": _plot(plan, sheet),
        "tests": [_test(test, sheet.metric) for test in sheet.tests],
        "ways": words.tests(sheet),
        "budgets": words.budgets(sheet),
        "imagenet": words.imagenet(sheet),
        "leaks": words.leaks(sheet) if sheet.first else [],
        "points": fmt.metric(sheet.metric).unit == "%",
    }


def _line(plan: Plan, sheet: Sheet, index: int, line: Line, folder: Path, other: list[str]) -> dict[str, Any]:
    score = line.intervals.get(sheet.metric)
    published = None
    if line.row.published is not None:
        found = words.published_score(line.row.published / 100, plan.table.published_tracks)
        if found.low is not None:
            published = fmt.bounds(found, "accuracy")
    names = [_run_name(job.seed, job.fold, line) for job in line.done]
    return {
        "row": line.row,
        "colour": svg.model_colour(index),
        "published": words.published_words(line),
        "published_interval": published,
        "value": words.value_words(line, sheet.metric) or words.verdict(line),
        "has_value": bool(line.scores.get(sheet.metric)),
        "interval": fmt.bounds(score, sheet.metric) if score is not None and score.low is not None else "",
        "how": score.interval if score is not None else "",
        "several": len(line.seeds) > 1,
        "seeds": words.seed_values(line, sheet.metric),
        "others": [words.value_words(line, name) for name in other],
        "start": words.start(line),
        "cost": words.cost(line),
        "state": words.state(line),
        "notes": line.notes,
        "overrides": " ".join(line.jobs[0].words) if line.jobs else "",
        "loss": figures.learning_curves(line.curves, names) if line.curves else "",
        "runs": names,
        "confusion": figures.confusion_matrix(np.asarray(line.confusion), sheet.classes)
        if line.confusion is not None and len(sheet.classes) <= 50 else "",
        "folds": any(job.fold is not None for job in line.jobs),
        "first_seed": next(iter(line.seeds), None),
        "links": [(name, os.path.relpath(job.folder / "report.html", folder))
                  for name, job in zip(names, line.done, strict=True)],
        "faults": [(key, outcome, os.path.relpath(outcome.log, folder) if outcome.log else "")
                   for key, outcome in line.faults.items()],
    }  # fmt: skip


def _run_name(seed: int, fold: int | None, line: Line) -> str:
    several = len({job.seed for job in line.jobs}) > 1
    parts = [f"seed {seed}" if several or fold is None else "", f"fold {fold}" if fold is not None else ""]
    return " ".join(filter(None, parts))


def _test(test: Any, name: str) -> dict[str, Any]:
    paired = test.paired
    return {
        "rows": (test.first, test.second),
        "difference": fmt.number(paired.difference, name, unit=False),
        "interval": fmt.bounds(paired, name),
        "p": fmt.p_value(paired.p_value), "adjusted": fmt.p_value(test.adjusted), "found": test.adjusted < 0.05,
        "tracks": paired.count, "seed": test.seed,
    }  # fmt: skip


def _plot(plan: Plan, sheet: Sheet) -> str:
    """Score and interval of each row, with its seeds and the published number."""
    name, lines = sheet.metric, sheet.lines
    if not any(line.scores.get(name) for line in lines) or len(lines) > _MOST_DRAWN:
        return ""
    chance = sheet.first.chance if sheet.first is not None and name == "accuracy" else None
    rows = [
        figures.ScoreRow(
            line.row.label, line.intervals.get(name) if line.scores.get(name) else None, chance,
            line.scores.get(name, []),
            words.published_score(line.row.published / 100, plan.table.published_tracks)
            if line.row.published is not None and name == "accuracy" else None,
            words.verdict(line),
        )
        for line in lines
    ]  # fmt: skip
    return figures.score_plot(rows, fmt.label(name), fmt.ticks(name), width=760)
