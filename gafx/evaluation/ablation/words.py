"""What is said beside a table: what was tested, with which budget, and what was changed."""

from typing import Any

from gafx.card import start_words
from gafx.config import read_mapping
from gafx.evaluation.ablation.collect import Line, Sheet
from gafx.evaluation.ablation.plan import Plan
from gafx.evaluation.page import label
from gafx.metrics import Score, wilson

NOT_PERCENT = ("d_prime", "explained_variance", "mean_auc", "calibration_error")
Result = dict[str, Any]


def number(value: float | None, name: str) -> str:
    """A score as the table prints it: shares in percent, without the sign."""
    if value is None or value != value:
        return "–"
    return f"{value:.2f}" if name in NOT_PERCENT or name.endswith("_db") else f"{100 * value:.1f}"


def unit(name: str) -> str:
    """What the numbers of a score's column are in."""
    return " (dB)" if name.endswith("_db") else "" if name in NOT_PERCENT else " (%)"


def score_label(name: str) -> str:
    """The heading of a score's column."""
    return label(name).removesuffix(", dB") + unit(name)


def tested(sheet: Sheet) -> str:
    """What the numbers of a sheet are about: data, protocol, folds, part, tracks and classes."""
    first = sheet.first
    if first is None:
        return "nothing is finished yet"
    line = next(line for line in sheet.lines if line.results)
    tracks = next(iter(line.seeds.values()), None)
    folds = sorted({job.fold for job in line.done if job.fold is not None})
    seeded = first["protocol"] not in ("official", "fault_filtered")
    parts = [
        f"{first['data']} data",
        f"protocol {first['protocol']}" + (f" (split seed {first['split_seed']})" if seeded else ""),
        (f"folds {', '.join(map(str, folds))} pooled" if len(folds) > 1 else f"fold {folds[0]}") if folds else "",
        f"{first['part']} part",
        f"{len(tracks.clip)} tracks of {len(set(tracks.group))} recordings" if tracks is not None else "",
        f"{len(first['classes'])} classes" + (f", chance {100 * first['chance']:.1f} %" if first["chance"] else ""),
        "pieces of one track as recordings of their own: they stand on both sides, and accuracy is inflated"
        if first.get("group_by", "recording") != "recording"
        else "",
    ]
    return " · ".join(filter(None, parts))


def budgets(sheet: Sheet) -> str:
    """Whether every row had the same budget, and which."""
    spent = {line.row.label: _spent(line) for line in sheet.lines if line.records}
    if not spent:
        return ""
    kinds = dict.fromkeys(spent.values())
    if len(kinds) == 1:
        said = f"Every row had the same budget: {next(iter(kinds))}."
    else:
        said = "The rows had different budgets: " + "; ".join(f"{row}: {text}" for row, text in spent.items()) + "."
    return " ".join([said, *(text for line in sheet.lines if (text := _before(line)))])


def _before(line: Line) -> str:
    """What a row's weights were trained with before, which the others were not."""
    stage = next((job.needs for job in line.jobs if job.needs is not None), None)
    if stage is None or stage.config is None or not line.records:
        return ""
    record = read_mapping(stage.folder / "run.json", "steps", "data")
    return (
        f"{line.row.label} came after {stage.key}: {record['steps']} steps of {stage.config.batch_size} clips of "
        f"{stage.config.data.segment_seconds:g} s, from {record['data']['train']} training clips of "
        f"{stage.config.data.name}."
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
    said = {start_words(result["started_from"]) for result in line.results}
    return "; ".join(sorted(said)) or "–"


def imagenet(sheet: Sheet) -> str:
    """Whether ImageNet weights were used, and by which rows."""
    lines = [line for line in sheet.lines if line.results]
    used = [line.row.label for line in lines if any(result["imagenet"] for result in line.results)]
    if not lines:
        return ""
    if not used:
        return "No row starts from ImageNet weights; the paper's rows do."
    rest = [line.row.label for line in lines if line.row.label not in used]
    return f"From ImageNet weights: {', '.join(used)}." + (f" Not: {', '.join(rest)}." if rest else "")


def changes(plan: Plan) -> str:
    """What the command line changed of the table's recipe."""
    kept = [
        w for w in plan.words if w.partition("=")[0].rpartition(":")[2] not in ("data.root", "output_dir", "workers")
    ]
    said = []
    if plan.small:
        said.append(f"a small budget in place of the recipe (--small: {' '.join(plan.table.small)})")
    if kept:
        said.append(f"changed on the command line: {' '.join(kept)}")
    return "; ".join(said)


def tuning(plan: Plan) -> str:
    """How the recipe was arrived at, as far as the table's file says it."""
    if plan.small:
        return "none for any row: the small budget was fixed beforehand and replaces the recipe of every row alike."
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
    if not values:
        return ""
    spread = line.deviation(name)
    return number(sum(values) / len(values), name) + (f" ± {number(spread, name)}" if spread is not None else "")


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
    costs = [result["cost"] for result in line.results]
    return {
        **{name: costs[0][name] for name in ("parameters", "frontend_parameters", "flops_per_clip")},
        "clips_per_second": sum(cost["clips_per_second"] for cost in costs) / len(costs),
        "memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
        "train_seconds": sum(record["train_seconds"] for record in line.records),
        "training_clips_per_second": sum(r["clips_per_second"] for r in line.records) / len(line.records),
        "training_memory_bytes": max((record.get("peak_memory_bytes") or 0 for record in line.records), default=0),
        "device": costs[0]["device"], "precision": costs[0]["precision"],
    }  # fmt: skip
