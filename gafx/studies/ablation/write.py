"""Files of a table: Markdown, CSV, JSON and the page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafx.io import write_csv, write_json, write_text
from gafx.report import figures, svg
from gafx.report import format as fmt
from gafx.report.html import write_page
from gafx.studies.ablation import text, view
from gafx.studies.ablation.collect import Line, Sheet
from gafx.studies.ablation.plan import Job, Plan

_MOST_DRAWN = 48  # rows of the plot
_MOST_CLASSES = 50  # of a confusion matrix
_SEPARATE = (
    "The tables were measured on other data or divisions, or score another objective: they cannot be compared with "
    "each other."
)


def write_table(plan: Plan, sheets: Sequence[Sheet], folder: Path) -> str:
    """Write table.md, table.csv, runs.csv, table.json and table.html into `folder`; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "changes": text.changes(plan), "tuning": text.tuning(plan), "separate": _SEPARATE if len(sheets) > 1 else "",
        "quoted": [text.quotation(plan, quote, sheets) for quote in plan.table.quoted],
        "protocols": list(filter(None, dict.fromkeys(map(text.protocol, sheets)))),
    }  # fmt: skip
    views = [_sheet(plan, sheet) for sheet in sheets]
    markdown = _markdown(plan, views, shared)
    write_text(folder / "table.md", markdown)
    rows = [[_row(plan, sheet, line) for line in sheet.lines] for sheet in sheets]
    write_csv(folder / "table.csv", [row for sheet in rows for row in sheet])
    write_csv(folder / "runs.csv", [run for sheet in sheets for line in sheet.lines for run in _runs(line)])
    record = {
        "table": plan.table.name, "overrides": plan.overrides, "small": plan.small, "seeds": plan.seeds,
        "sheets": [{"tested": text.tested(sheet), "rows": own, "tests": _tests(sheet)}
                   for sheet, own in zip(sheets, rows, strict=True)],
    }  # fmt: skip
    write_json(folder / "table.json", record)
    for values, sheet in zip(views, sheets, strict=True):
        values["plot"] = _plot(plan, sheet)
        values["lines"] = [_line(line, sheet, index, folder) for index, line in enumerate(sheet.lines)]
    write_page(folder / "table.html", "table.html.j2", title=plan.table.title, table=plan.table, sheets=views, **shared)
    return markdown


def _sheet(plan: Plan, sheet: Sheet) -> dict[str, Any]:
    """Grids and sentences of a sheet, for Markdown and page."""
    lines = sheet.lines
    notes = [f"† {line.row.label}: the publication leaves open: {' '.join(line.row.unstated)}"
             for line in lines if line.row.unstated]  # fmt: skip
    notes += [f"{line.row.label}: {note}" for line in lines for note in line.notes]
    return {
        "tested": text.tested(sheet), "metric": fmt.label(sheet.metric), "scores": view.scores(plan, sheet),
        "notes": notes,
        "faults": [f"{line.row.label}: {state}" for line in lines if (state := text.state(line))],
        "tests": view.tests(sheet) if sheet.tests else None,
        "significant": [test.adjusted < 0.05 for test in sheet.tests], "methods": text.test_methods(sheet),
        "budgets": text.budgets(sheet), "leaks": text.leaks(sheet), "comparison": text.comparison(plan, sheet),
        "several": any(len(line.seeds) > 1 for line in lines), "published": text.has_published(sheet),
    }  # fmt: skip


def _markdown(plan: Plan, views: Sequence[dict[str, Any]], shared: dict[str, Any]) -> str:
    table = plan.table
    parts = [f"# {table.title}", "\n".join(filter(None, [table.about, table.source and f"Published: {table.source}."]))]
    parts.append(f"**Not the table's recipe:** {shared['changes']}." if shared["changes"] else "")
    for values in views:
        notes = "\n".join(f"- {note}" for note in (*values["notes"], *values["faults"]))
        parts += [values["tested"], values["scores"].markdown(), notes]
        parts += [values["tests"].markdown(), values["methods"]] if values["tests"] else []
        parts += [values["budgets"], "Leaks: " + "; ".join(values["leaks"]) if values["leaks"] else ""]
        parts.append(values["comparison"])
    parts += [shared["separate"], *(f"Quoted, not run: {quote.strip()}" for quote in shared["quoted"])]
    parts += [f"Protocol {protocol}." for protocol in shared["protocols"]]
    return "\n\n".join(filter(None, [*parts, f"Tuning: {shared['tuning']}"])) + "\n"


def _line(line: Line, sheet: Sheet, index: int, folder: Path) -> dict[str, Any]:
    """Variables of the page's section on one row."""
    names = [_run_name(run.job, line) for run in line.done]
    links = [os.path.relpath(run.job.folder / "report.html", folder) for run in line.done]
    drawn = line.confusion is not None and sheet.first is not None and len(sheet.first.classes) <= _MOST_CLASSES
    return {
        "label": line.row.label,
        "colour": svg.model_colour(index),
        "overrides": " ".join(line.jobs[0].overrides) if line.jobs else "",
        "loss": figures.learning_curves([run.curve for run in line.done], names) if line.done else "",
        "confusion": figures.confusion_matrix(np.asarray(line.confusion), sheet.first.classes)
        if drawn and sheet.first else "",
        "pooled": len({run.job.fold for run in line.done}) > 1,
        "first_seed": next(iter(line.seeds), None),
        "links": list(zip(names, links, strict=True)),
        "cost": view.cost(line),
        "faults": [(f"{key}: {outcome.describe()}", os.path.relpath(outcome.log, folder) if outcome.log else "")
                   for key, outcome in line.faults.items()],
    }  # fmt: skip


def _run_name(job: Job, line: Line) -> str:
    seed = job.fold is None or len({other.seed for other in line.jobs}) > 1
    return " ".join(filter(None, [f"seed {job.seed}" * seed, f"fold {job.fold}" * (job.fold is not None)]))


def _plot(plan: Plan, sheet: Sheet) -> str:
    """Each row's score and interval, a mark per seed, and the published accuracy below it."""
    name = sheet.metric
    if len(sheet.lines) > _MOST_DRAWN or not any(line.scores.get(name) for line in sheet.lines):
        return ""
    accuracy = name == "accuracy"
    rows = [
        figures.PlotRow(
            line.row.label, line.intervals.get(name), sheet.first.chance if sheet.first and accuracy else None,
            line.scores.get(name, []), view.published_score(plan, line) if accuracy else None, view.verdict(line),
        )
        for line in sheet.lines
    ]  # fmt: skip
    return figures.score_plot(rows, fmt.lowered(fmt.label(name)), fmt.ticks(name), width=760)


def _row(plan: Plan, sheet: Sheet, line: Line) -> dict[str, Any]:
    """A row of table.csv and table.json; fractions are between 0 and 1."""
    first, row = sheet.first, line.row
    return {
        "row": row.name, "label": row.label, "published_percent": row.published, "published_std": row.published_std,
        "published_protocol": plan.table.published_protocol if row.published is not None else None,
        "recipe_unstated": bool(row.unstated),
        **{name: first and getattr(first, name) for name in ("data", "protocol", "group_by")},
        "tracks": len(next(iter(line.seeds.values()), ())),
        "runs": len(line.jobs), "finished": len(line.done), "seeds": " ".join(map(str, line.seeds)),
        **view.summary(line), "start": text.start(line), "imagenet": text.starts_from_imagenet(line),
        **view.cost(line), "message": text.state(line),
    }  # fmt: skip


def _runs(line: Line) -> list[dict[str, Any]]:
    """Rows of runs.csv: one per run, finished or not."""
    found = {run.job.key: run for run in line.done}
    runs = []
    for job in line.jobs:
        values: dict[str, Any] = {"row": line.row.name, "seed": job.seed, "fold": job.fold, "folder": str(job.folder)}
        outcome = line.faults.get(job.key)
        values |= {"state": outcome.state if outcome else "finished", "message": outcome.message if outcome else ""}
        if run := found.get(job.key):
            values |= {name: score.value for name, score in run.result.track_scores.items()}
            values |= {"tracks": run.result.tracks, **{key: run.record[key] for key in ("steps", "train_seconds")}}
        runs.append(values)
    return runs


def _tests(sheet: Sheet) -> list[dict[str, Any]]:
    return [
        {"first": test.first, "second": test.second, "seed": test.seed, "score": sheet.metric,
         **test.paired.as_dict(), "p_value_holm": test.adjusted}
        for test in sheet.tests
    ]  # fmt: skip
