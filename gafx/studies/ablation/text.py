"""Sentences around a table: what was tested, with which budget, what was changed, which runs failed."""

from collections.abc import Sequence
from pathlib import Path

from gafx.config import read_mapping
from gafx.data.protocols import Protocol, comparability
from gafx.data.segments import NOTE
from gafx.errors import UsageError
from gafx.report import format as fmt
from gafx.saving.info import model_name
from gafx.studies.ablation.collect import MOST_PAIRS, Line, Sheet
from gafx.studies.ablation.plan import Plan
from gafx.studies.ablation.spec import Quoted, override_key

# Overrides that cannot change a result.
_NEUTRAL = ("data.root", "output_dir", "workers")


def numbered(noun: str, numbers: list[int]) -> str:
    """`fold 2`, `folds 1, 2`."""
    return f"{noun if len(numbers) == 1 else noun + 's'} {', '.join(map(str, numbers))}"


def tested(sheet: Sheet) -> str:
    """Data, protocol, folds, part, number of tracks and classes."""
    first = sheet.first
    if first is None:
        return "nothing is finished yet"
    line = next(line for line in sheet.lines if line.done)
    folds = sorted({run.job.fold for run in line.done if run.job.fold is not None})
    recordings = "" if sheet.tracks is None else fmt.plural(len(set(sheet.tracks.group)), "recording")
    parts = [
        f"{first.data} data",
        Protocol.parse(first.protocol).label(first.split_seed),
        numbered("fold", folds) + (" pooled" if len(folds) > 1 else "") if folds else "",
        f"{first.part} part",
        f"{fmt.plural(len(sheet.tracks), 'track')} of {recordings}" if sheet.tracks is not None else "",
        fmt.plural(len(first.classes), "class", "classes")
        + (f", chance {fmt.number(first.chance, 'chance')}" if first.chance else ""),
        f"data.group_by=segment: {NOTE}" if first.by_segment else "",
    ]
    return " · ".join(filter(None, parts))


def protocol(sheet: Sheet) -> str:
    """Describe the sheet's protocol."""
    config = next((run.job.config for line in sheet.lines for run in line.done), None)
    if config is None:
        return ""
    data = config.data
    return Protocol.parse(data.protocol).describe(test_fraction=data.test_fraction, val_fraction=data.val_fraction)


def has_published(sheet: Sheet) -> bool:
    """Return whether any row has a published number or text."""
    return any(line.row.published is not None or line.row.published_text for line in sheet.lines)


def comparison(plan: Plan, sheet: Sheet) -> str:
    """Reason why the published numbers next to ours cannot be compared with them; empty if they can."""
    first, table = sheet.first, plan.table
    if first is None or not has_published(sheet):
        return ""
    reason = comparability(first.data, first.protocol, table.published_data, table.published_protocol)
    if not reason and table.published_tracks and sheet.tracks and len(sheet.tracks) != table.published_tracks:
        return (
            f"The published numbers are of {table.published_tracks} test tracks, ours of {len(sheet.tracks)}: these "
            "are other data, or a part of them."
        )
    return reason


def quotation(plan: Plan, quote: Quoted, sheets: Sequence[Sheet]) -> str:
    """A quoted number, its protocol, and why it cannot be compared."""
    first = next((sheet.first for sheet in sheets if sheet.first), None)
    reason = comparability(first.data, first.protocol, plan.table.published_data, quote.protocol) if first else ""
    about = f"; {quote.about}" if quote.about else ""
    number = fmt.fraction(quote.published / 100, 2)
    return f"{quote.label}: {number} under {quote.protocol}{about}. " + reason.replace(
        "The published numbers were", "It was"
    )


def leaks(sheet: Sheet) -> list[str]:
    """Results of the leak checks; those of runs on the same parts are equal and listed once."""
    found: dict[str, set[int]] = {}
    for line in sheet.lines:
        for run in line.done:
            lines = (run.record.get("leaks") or {}).get("words") or ["no leak check was made"]
            text = " ".join(part.strip() for part in ([lines] if isinstance(lines, str) else lines))
            folds = found.setdefault(text.removeprefix("leak check: "), set())
            folds.update({run.job.fold} - {None})  # type: ignore[arg-type]
    return [f"{text} ({numbered('fold', sorted(folds))})" if folds else text for text, folds in found.items()]


def test_methods(sheet: Sheet) -> str:
    """Describe the paired tests of a sheet."""
    methods = ", ".join(dict.fromkeys(test.paired.name for test in sheet.tests))
    measured = sum(bool(line.seeds) for line in sheet.lines)
    many = measured * (measured - 1) // 2 > MOST_PAIRS
    each = " Each row is compared with the first: there are too many to compare all." if many else ""
    return f"On the same tracks, one seed each: {methods}.{each}"


def budgets(sheet: Sheet) -> str:
    """Training budget of the rows, pretraining, and which rows started from ImageNet weights."""
    lines = [line for line in sheet.lines if line.done]
    if not lines:
        return "Nothing is finished yet."
    spent = {line.row.label: _budget(line) for line in lines}
    if len(set(spent.values())) == 1:
        text = f"Every row had the same budget: {spent[lines[0].row.label]}."
    else:
        text = "The rows had different budgets: " + "; ".join(f"{row}: {budget}" for row, budget in spent.items()) + "."
    used = [line.row.label for line in lines if starts_from_imagenet(line)]
    rest = [line.row.label for line in lines if line.row.label not in used]
    if used:
        imagenet = f"From ImageNet weights: {', '.join(used)}." + (f" Not: {', '.join(rest)}." if rest else "")
    elif loaded := [line.row.label for line in lines if _loads_classifier(line)]:
        # Whether e.g. a file of timm was trained on ImageNet is not known.
        imagenet = f"From the weights named under Start, an additional budget: {', '.join(loaded)}."
    else:
        imagenet = "No row starts from ImageNet weights" + ("; the published rows do." if has_published(sheet) else ".")
    return " ".join(filter(None, [text, *map(_pretraining, lines), imagenet]))


def _budget(line: Line) -> str:
    config, steps = line.done[0].record["config"], sorted({run.record["steps"] for run in line.done})
    seconds = steps[-1] * config["batch_size"] * config["data"]["segment_seconds"]
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    return f"{span} steps per run of {_batch(config)}, {fmt.duration(seconds)} of audio"


def _batch(config: dict) -> str:
    return f"{config['batch_size']} clips of {config['data']['segment_seconds']:g} s"


def _pretraining(line: Line) -> str:
    """Training of the weights that a row starts from, as far as it is known; of stages also that before them."""
    stage = next((job.needs for job in line.jobs if job.needs is not None), None)
    folders = []
    while stage is not None:
        folders.append(stage.folder)
        stage = stage.needs
    config = line.done[0].record["config"]
    given = config.get("pretrained") or config.get("frontend", {}).get("pretrained")
    if not folders and isinstance(given, str):
        folders = [Path(given)]
    names = [line.row.label, *map(model_name, folders)]
    return " ".join(_weights(name, folder) for name, folder in zip(names, folders, strict=False))


def _weights(name: str, folder: Path) -> str:
    """Training of the run that another one, a row or a run, starts from."""
    start = f"{name} starts from {model_name(folder)}"
    try:
        record = read_mapping(folder / "run.json", "steps", "data", "config")
    except UsageError:
        return f"{start}; its budget is additional and not known here."
    config, data = record["config"], record["data"]
    return (
        f"{start}, an additional budget of {record['steps']} steps of {_batch(config)} from {data['train']} training "
        f"clips of {config['data']['name']}."
    )


def start(line: Line) -> str:
    """Origin of the row's weights before training."""
    return "; ".join(sorted({run.result.provenance.describe() for run in line.done})) or fmt.NONE


def starts_from_imagenet(line: Line) -> bool:
    """Return whether any run of the row started from ImageNet weights."""
    return any(run.result.provenance.uses_imagenet for run in line.done)


def _loads_classifier(line: Line) -> bool:
    return any(not run.result.provenance.classifier.is_plain for run in line.done)


def changes(plan: Plan) -> str:
    """Changes of the table's recipe on the command line."""
    kept = [text for text in plan.overrides if override_key(text).rpartition(":")[2] not in _NEUTRAL]
    parts = []
    if plan.seeds != plan.table.seeds:
        parts.append(f"{numbered('seed', plan.seeds)} in place of {', '.join(map(str, plan.table.seeds))}")
    if plan.folds is not None:
        parts.append(f"only {numbered('fold', plan.folds)}")
    if plan.small:
        rows = dict.fromkeys(text for row in plan.table.rows for text in row.small)
        parts.append(f"a small budget in place of the recipe (--small: {' '.join([*plan.table.small, *rows])})")
    if kept:
        parts.append(f"changed on the command line: {' '.join(kept)}")
    return "; ".join(parts)


def tuning(plan: Plan) -> str:
    """Describe how the recipe was found, from the table's file."""
    if plan.small:
        return f"{plan.table.small_tuning.strip()} Changes of it are listed above."
    return plan.table.tuning or "the table's file does not say how the recipe was found (its key `tuning`)."


def state(line: Line) -> str:
    """Number of finished runs of a row, and outcomes of the others; empty if all are finished."""
    if not line.faults:
        return ""
    kinds: dict[str, list[str]] = {}
    for key, outcome in line.faults.items():
        kinds.setdefault(outcome.describe(), []).append(key)
    listed = "; ".join(f"{', '.join(keys)}: {text}" for text, keys in kinds.items())
    return f"{len(line.done)} of {len(line.jobs)} runs finished. {listed}"
