"""What is said beside a table: what was tested, with which budget, and what was changed."""

from pathlib import Path
from typing import Any

from gafx.config import read_mapping
from gafx.data.protocols import Protocol, comparability
from gafx.errors import UsageError
from gafx.report import format as fmt
from gafx.saving.info import model_name
from gafx.stats.scores import Score, wilson
from gafx.studies.ablation.collect import MOST_PAIRS, Line, Sheet
from gafx.studies.ablation.plan import Plan


def tested(sheet: Sheet) -> str:
    """What the numbers of a sheet are about: data, protocol, folds, part, tracks and classes."""
    first = sheet.first
    if first is None:
        return "nothing is finished yet"
    line = next(line for line in sheet.lines if line.results)
    tracks = next(iter(line.seeds.values()), None)
    folds = sorted({job.fold for job in line.done if job.fold is not None})
    parts = [
        f"{first.data} data",
        Protocol.parse(first.protocol).label(first.split_seed),
        (f"folds {', '.join(map(str, folds))} pooled" if len(folds) > 1 else f"fold {folds[0]}") if folds else "",
        f"{first.part} part",
        f"{len(tracks.clip)} tracks of {len(set(tracks.group))} recordings" if tracks is not None else "",
        f"{len(first.classes)} classes" + (f", chance {fmt.number(first.chance, 'chance')}" if first.chance else ""),
        "segments of one track as recordings of their own: they stand on both sides, and accuracy is inflated"
        if first.by_segment
        else "",
    ]
    return " · ".join(filter(None, parts))


def published(sheet: Sheet) -> bool:
    """Whether any row has something published beside it."""
    return any(line.row.published is not None or line.row.published_words for line in sheet.lines)


def protocol(sheet: Sheet) -> str:
    """The sheet's protocol, as it was."""
    data = next((job.config.data for line in sheet.lines for job in line.done if job.config is not None), None)
    if data is None:
        return ""
    return Protocol.parse(data.protocol).describe(test_fraction=data.test_fraction, val_fraction=data.val_fraction)


def across(plan: Plan, sheet: Sheet) -> str:
    """What holding the sheet's numbers against the published ones beside them is worth."""
    first, table = sheet.first, plan.table
    if first is None or not published(sheet):
        return ""
    said = comparability(first.data, first.protocol, table.published_data, table.published_protocol)
    tracks = next((len(tracks.clip) for line in sheet.lines for tracks in line.seeds.values()), None)
    if not said and table.published_tracks and tracks not in (None, table.published_tracks):
        return (
            f"The published numbers are of {table.published_tracks} test tracks, ours of {tracks}: these are other "
            "data, or a part of them."
        )
    return said


def leaks(sheet: Sheet) -> list[str]:
    """What the leak checks of the sheet's runs found; runs on the same parts found the same, and say it once."""
    said: dict[str, list[int]] = {}
    for line in sheet.lines:
        for job, record in zip(line.done, line.records, strict=True):
            words = (record.get("leaks") or {}).get("words") or ["no leak check was made"]
            text = " ".join(part.strip() for part in ([words] if isinstance(words, str) else words))
            text = text.removeprefix("leak check: ")
            folds = said.setdefault(text, [])
            if job.fold is not None and job.fold not in folds:
                folds.append(job.fold)
    return [
        f"{text} (fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, sorted(folds)))})" if folds else text
        for text, folds in said.items()
    ]


def tests(sheet: Sheet) -> str:
    """How the sheet's paired tests were made."""
    ways = ", ".join(dict.fromkeys(test.paired.name for test in sheet.tests))
    measured = sum(bool(line.seeds) for line in sheet.lines)
    many = measured * (measured - 1) // 2 > MOST_PAIRS
    each = " Each row is compared with the first: there are too many to compare all." if many else ""
    return f"On the same tracks, one seed each: {ways}.{each}"


def budgets(sheet: Sheet) -> str:
    """Whether every row had the same budget, and which."""
    spent = {line.row.label: _spent(line) for line in sheet.lines if line.records}
    if not spent:
        return ""
    kinds = dict.fromkeys(spent.values())
    if len(kinds) == 1:
        said = f"Every row had the same budget in this table: {next(iter(kinds))}."
    else:
        said = "The rows had different budgets: " + "; ".join(f"{row}: {text}" for row, text in spent.items()) + "."
    return " ".join([said, *(text for line in sheet.lines if (text := _before(line)))])


def _before(line: Line) -> str:
    """What a row's weights were trained with before, which the others were not."""
    if not line.records:
        return ""
    stage = next((job.needs for job in line.jobs if job.needs is not None), None)
    given = line.records[0]["config"].get("frontend", {}).get("pretrained") or False
    folder = stage.folder if stage is not None else Path(given) if isinstance(given, str) else None
    if folder is None:
        return ""
    try:
        record = read_mapping(folder / "run.json", "steps", "data", "config")
    except UsageError:
        return f"{line.row.label} starts from {model_name(folder)}; its budget comes on top and is not known here."
    config = record["config"]
    return (
        f"{line.row.label} starts from {model_name(folder)}, whose budget comes on top: {record['steps']} steps of "
        f"{config['batch_size']} clips of {config['data']['segment_seconds']:g} s, from {record['data']['train']} "
        f"training clips of {config['data']['name']}."
    )


def _spent(line: Line) -> str:
    config, steps = line.records[0]["config"], sorted({record["steps"] for record in line.records})
    seconds = steps[-1] * config["batch_size"] * config["data"]["segment_seconds"]
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    return (
        f"{span} steps of {config['batch_size']} clips of {config['data']['segment_seconds']:g} s a run "
        f"({seconds / 3600:.1f} h of audio)"
    )


def start(line: Line) -> str:
    """What the row's weights began from, ImageNet among it."""
    said = {result.provenance.describe() for result in line.results}
    return "; ".join(sorted(said)) or "–"


def starts_from_imagenet(line: Line) -> bool:
    """Whether any run of a row started from ImageNet weights."""
    return any(result.provenance.uses_imagenet for result in line.results)


def imagenet(sheet: Sheet) -> str:
    """Whether ImageNet weights were used, and by which rows."""
    lines = [line for line in sheet.lines if line.results]
    used = [line.row.label for line in lines if starts_from_imagenet(line)]
    if not lines:
        return ""
    if not used:
        return "No row starts from ImageNet weights" + ("; the published rows do." if published(sheet) else ".")
    rest = [line.row.label for line in lines if line.row.label not in used]
    return f"From ImageNet weights: {', '.join(used)}." + (f" Not: {', '.join(rest)}." if rest else "")


def changes(plan: Plan) -> str:
    """What the command line changed of the table's recipe."""
    kept = [
        w for w in plan.words if w.partition("=")[0].rpartition(":")[2] not in ("data.root", "output_dir", "workers")
    ]
    said = []
    if plan.seeds != plan.table.seeds:
        said.append(f"seeds {', '.join(map(str, plan.seeds))} in place of {', '.join(map(str, plan.table.seeds))}")
    if plan.folds is not None:
        said.append(f"only fold{'s' if len(plan.folds) > 1 else ''} {', '.join(map(str, plan.folds))}")
    if plan.small:
        rows = " ".join(dict.fromkeys(word for row in plan.table.rows for word in row.small))
        said.append(f"a small budget in place of the recipe (--small: {' '.join([*plan.table.small, rows]).strip()})")
    if kept:
        said.append(f"changed on the command line: {' '.join(kept)}")
    return "; ".join(said)


def tuning(plan: Plan) -> str:
    """How the recipe was arrived at, as far as the table's file says it."""
    if plan.small:
        return "none of ours for any row: the small budget was fixed beforehand. What was changed of it is told above."
    return plan.table.tuning or "the table's file does not say how the recipe was found (its key `tuning`)."


def state(line: Line) -> str:
    """How many of a row's runs are finished, and what became of the others."""
    if not line.faults:
        return ""
    kinds: dict[str, list[str]] = {}
    for key, outcome in line.faults.items():
        kinds.setdefault(f"{outcome.state}: {outcome.said}" if outcome.said else outcome.state, []).append(key)
    said = "; ".join(f"{', '.join(keys) if len(line.jobs) > 1 else keys[0]}: {what}" for what, keys in kinds.items())
    return f"{len(line.done)} of {len(line.jobs)} runs finished. {said}"


def verdict(line: Line) -> str:
    """What stands in a row's cell where it has no number."""
    states = list(dict.fromkeys(outcome.state for outcome in line.faults.values()))
    return ", ".join(states) or "–"


def published_score(share: float, tracks: int | None) -> Score:
    """A published accuracy with Wilson's interval for its number of tracks, if that is known."""
    if not tracks:
        return Score(share)
    found = wilson(round(share * tracks), tracks)
    return Score(share, found.low, found.high, found.interval)


def value_words(line: Line, name: str) -> str:
    """The mean over seeds with its deviation, or an empty string where nothing is finished."""
    values = line.scores.get(name)
    return fmt.mean_std(values, name, unit=False) if values else ""


def seed_values(line: Line, name: str) -> str:
    """The value of each seed, in the order of the seeds."""
    return ", ".join(fmt.number(value, name, unit=False) for value in line.scores.get(name, []))


def published_words(line: Line) -> str:
    """The published number with its deviation, as the paper has them."""
    row = line.row
    if row.published is None:
        return row.published_words or "–"
    spread = f" ± {row.published_deviation:.2f}" if row.published_deviation is not None else ""
    return f"{row.published:.2f}{spread}"


def cost(line: Line) -> dict[str, Any]:
    """What the row costs: of evaluation in clips a second, of training in time and memory."""
    if not line.results:
        return {}
    costs = [result.cost for result in line.results if result.cost is not None]
    return {
        **{name: getattr(costs[0], name) for name in ("parameters", "frontend_parameters", "flops_per_clip")},
        "clips_per_second": sum(cost.clips_per_second for cost in costs) / len(costs),
        "memory_bytes": max(cost.peak_memory_bytes for cost in costs),
        "train_seconds": sum(record["train_seconds"] for record in line.records),
        "training_clips_per_second": sum(r["clips_per_second"] for r in line.records) / len(line.records),
        "training_memory_bytes": max((record.get("peak_memory_bytes") or 0 for record in line.records), default=0),
        "device": costs[0].device, "precision": costs[0].precision,
    }  # fmt: skip
