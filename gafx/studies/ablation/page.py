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
    """Each row's score and interval, a mark for each seed, and the published number hollow beside it."""
    name, lines = sheet.metric, sheet.lines
    published = [
        words.published_score(line.row.published / 100, plan.table.published_tracks)
        if line.row.published is not None and name == "accuracy" else None
        for line in lines
    ]  # fmt: skip
    shown = [value for line in lines for value in line.scores.get(name, [])]
    shown += [b for line in lines if (s := line.intervals.get(name)) for b in (s.low, s.high) if b is not None]
    shown += [b for score in published if score for b in (score.value, score.low, score.high) if b is not None]
    chance = sheet.first.chance if sheet.first is not None and name == "accuracy" else None
    shown += [chance] if chance is not None else []
    if not any(line.scores.get(name) for line in lines) or len(lines) > _MOST_DRAWN:
        return ""
    low, high = min(shown), max(shown)
    pad = max(0.04 * (high - low), 0.01)
    limits = (max(low - pad, 0.0), min(high + pad, 1.0)) if fmt.metric(name).unit == "%" else (low - pad, high + pad)
    # Rows with a published number have two lines, one above the other.
    raised = 6 if any(published) else 0
    left, step = 20 + 6.6 * min(34, max(len(line.row.label) for line in lines)), 40
    axes = svg.Axes(left, 18, 760 - left - 20, step * len(lines), limits, (len(lines), 0))
    parts = [axes.x_axis(fmt.label(name), 8, fmt.ticks(name))]
    if chance is not None:
        bottom = axes.top + axes.height
        parts.append(svg.line(axes.x(chance), axes.top, axes.x(chance), bottom, "chance"))
        parts.append(svg.text(axes.x(chance), axes.top - 5, "chance", "middle"))
    for row, (line, paper) in enumerate(zip(lines, published, strict=True)):
        y = axes.top + step * (row + 0.5)
        parts.append(svg.text(0, y + 4, svg.short(line.row.label, 34), "start", "item"))
        colour = f'style="--model: {svg.model_colour(row)}"'
        score, values = line.intervals.get(name), line.scores.get(name, [])
        if paper is not None:
            at = y + 9
            if paper.low is not None and paper.high is not None:
                parts.append(svg.line(axes.x(paper.low), at, axes.x(paper.high), at, "paper"))
            parts.append(f'<circle class="paper" cx="{axes.x(paper.value):.1f}" cy="{at:.1f}" r="4"/>')
        if score is None or not values:
            beside = max(axes.left, axes.x(chance) if chance is not None else 0.0) + 8
            parts.append(svg.text(beside, y + 4 - raised, words.verdict(line), "start", "tick"))
            continue
        at = y - raised
        if score.low is not None and score.high is not None:
            parts.append(svg.line(axes.x(score.low), at, axes.x(score.high), at, "interval", colour))
        for value in values if len(values) > 1 else []:
            parts.append(f'<circle class="seed" cx="{axes.x(value):.1f}" cy="{at:.1f}" r="3" {colour}/>')
        centre = axes.x(sum(values) / len(values))
        parts.append(f'<circle class="dot" cx="{centre:.1f}" cy="{at:.1f}" r="5" {colour}/>')
    return svg.picture(760, axes.top + axes.height + 40, "".join(parts), "Each row's score with its interval")
