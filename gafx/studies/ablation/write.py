"""A table as Markdown, CSV and JSON; the page is `page.py`'s."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gafx.data.protocols import comparability
from gafx.io import write_text
from gafx.report import format as fmt
from gafx.studies.ablation import words
from gafx.studies.ablation.collect import Line, Sheet
from gafx.studies.ablation.page import write_table_page
from gafx.studies.ablation.plan import Plan


def write_table(plan: Plan, sheets: Sequence[Sheet], folder: Path) -> str:
    """Write table.md, table.csv, runs.csv, table.json and table.html into `folder`; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(plan, sheets)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", _csv([row for sheet in sheets for row in _rows(plan, sheet)]))
    write_text(folder / "runs.csv", _csv([run for sheet in sheets for line in sheet.lines for run in _runs(line)]))
    values = {"table": plan.table.name, "words": plan.words, "small": plan.small, "seeds": plan.seeds}
    sheets_as = [
        {"tested": words.tested(sheet), "rows": _rows(plan, sheet), "tests": _tests(sheet)} for sheet in sheets
    ]
    write_text(folder / "table.json", json.dumps({**values, "sheets": sheets_as}, indent=2, ensure_ascii=False) + "\n")
    write_table_page(folder / "table.html", plan, sheets)
    return text


def markdown(plan: Plan, sheets: Sequence[Sheet]) -> str:
    """The table with all that belongs beside its numbers."""
    table = plan.table
    parts = [f"# {table.title}", "\n".join(filter(None, [table.about, table.source and f"Published: {table.source}."]))]
    if changed := words.changes(plan):
        parts.append(f"**Not the table's recipe:** {changed}.")
    for sheet in sheets:
        parts += [words.tested(sheet), _grid(plan, sheet), "\n".join(f"- {note}" for note in _notes(sheet))]
        if sheet.tests:
            parts.append(_test_grid(sheet))
        parts.append(" ".join(filter(None, [words.budgets(sheet), words.imagenet(sheet)])))
        parts += ["Leaks: " + "; ".join(words.leaks(sheet)) if sheet.first else "", words.across(plan, sheet)]
    if len(sheets) > 1:
        parts.append(
            "The tables above were measured on other data or divisions, or score another objective: they cannot be "
            "compared with each other."
        )
    first = next((sheet.first for sheet in sheets if sheet.first), None)
    for quote in table.quoted:
        across = comparability(first.data, first.protocol, table.published_data, quote.protocol) if first else ""
        across = across.replace("The published numbers were", "It was")
        said = f"Quoted, not run: {quote.label}: {quote.published:.2f} % under {quote.protocol}; {quote.about}."
        parts.append(f"{said} {across}".strip())
    parts += [f"Protocol {said}." for said in dict.fromkeys(words.protocol(sheet) for sheet in sheets) if said]
    parts.append(f"Tuning: {words.tuning(plan)}")
    return "\n\n".join(filter(None, parts)) + "\n"


def _grid(plan: Plan, sheet: Sheet) -> str:
    other = [name for line in sheet.lines for name in line.scores if name != sheet.metric]
    other = list(dict.fromkeys(other))[:1]
    has_published = words.published(sheet)
    head = ["row", *(["published (%)"] if has_published else []), fmt.heading(sheet.metric), "95 % interval",
            "seeds", *map(fmt.heading, other), "start", "parameters", "FLOPs a clip", "clips/s", "peak memory",
            "training"]  # fmt: skip
    lines = []
    for line in sheet.lines:
        row, score = line.row, line.intervals.get(sheet.metric)
        mark = " †" if row.unstated else ""
        cost = words.cost(line)
        lines.append([
            f"{row.label}{mark}",
            *([words.published_words(line)] if has_published else []),
            words.value_words(line, sheet.metric) or words.verdict(line),
            fmt.bounds(score, sheet.metric),
            words.seed_values(line, sheet.metric) or fmt.NONE,
            *(words.value_words(line, name) or "–" for name in other),
            words.start(line),
            *(fmt.cell(cost.get(name), name) for name in (
                "parameters", "flops_per_clip", "clips_per_second", "training_memory_bytes", "train_seconds")),
        ])  # fmt: skip
    return _markdown_grid(head, lines)


def _notes(sheet: Sheet) -> list[str]:
    notes = [f"† {line.row.label}: the paper leaves open: {' '.join(line.row.unstated)}"
             for line in sheet.lines if line.row.unstated]  # fmt: skip
    notes += [f"{line.row.label}: {note}" for line in sheet.lines for note in line.notes]
    return notes + [f"{line.row.label}: {said}" for line in sheet.lines if (said := words.state(line))]


def _test_grid(sheet: Sheet) -> str:
    points = ", points" if fmt.metric(sheet.metric).unit == "%" else ""
    head = [
        "paired test (first minus second)",
        f"difference{points}",
        "95 % interval",
        "p",
        "p (Holm)",
        "tracks",
        "seed",
    ]
    lines = []
    for test in sheet.tests:
        paired, name = test.paired, sheet.metric
        lines.append([
            f"{test.first} − {test.second}", fmt.number(paired.difference, name, unit=False),
            fmt.bounds(paired, name),
            fmt.p_value(paired.p_value), fmt.p_value(test.adjusted), str(paired.count), str(test.seed),
        ])  # fmt: skip
    return f"{_markdown_grid(head, lines)}\n\n{words.tests(sheet)}"


def _markdown_grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"

    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, lines)])


def _rows(plan: Plan, sheet: Sheet) -> list[dict[str, Any]]:
    """A row's numbers as table.csv and table.json hold them: shares between 0 and 1."""
    first = sheet.first
    rows = []
    for line in sheet.lines:
        values: dict[str, Any] = {
            "row": line.row.name, "label": line.row.label, "published_percent": line.row.published,
            "published_deviation": line.row.published_deviation,
            "published_protocol": plan.table.published_protocol if line.row.published is not None else None,
            "recipe_unstated": bool(line.row.unstated), "data": first and first.data,
            "protocol": first and first.protocol,
            "group_by": first and first.group_by,
            "tracks": len(next(iter(line.seeds.values())).clip) if line.seeds else 0,
            "runs": len(line.jobs), "finished": len(line.done), "seeds": " ".join(map(str, line.seeds)),
        }  # fmt: skip
        for name in line.scores:
            score = line.intervals[name]
            values |= {
                name: sum(line.scores[name]) / len(line.scores[name]), f"{name}_deviation": line.deviation(name),
                f"{name}_low": score.low, f"{name}_high": score.high, f"{name}_interval": score.interval,
            }  # fmt: skip
        values |= {"start": words.start(line), "imagenet": words.starts_from_imagenet(line)}
        rows.append({**values, **words.cost(line), "said": words.state(line)})
    return rows


def _runs(line: Line) -> list[dict[str, Any]]:
    """A line a run, finished or not."""
    found = {
        job.key: (result, record) for job, result, record in zip(line.done, line.results, line.records, strict=True)
    }
    runs = []
    for job in line.jobs:
        values: dict[str, Any] = {"row": line.row.name, "seed": job.seed, "fold": job.fold, "folder": str(job.folder)}
        outcome = line.faults.get(job.key)
        values |= {"state": outcome.state if outcome else "finished", "said": outcome.said if outcome else ""}
        if job.key in found:
            result, record = found[job.key]
            values |= {name: score.value for name, score in result.track_scores.items()}
            values |= {"tracks": result.tracks, "steps": record["steps"], "train_seconds": record["train_seconds"]}
        runs.append(values)
    return runs


def _tests(sheet: Sheet) -> list[dict[str, Any]]:
    return [
        {"first": test.first, "second": test.second, "seed": test.seed, "score": sheet.metric,
         **test.paired.as_dict(), "p_value_holm": test.adjusted}
        for test in sheet.tests
    ]  # fmt: skip


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
