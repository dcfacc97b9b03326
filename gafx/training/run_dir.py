"""Files of a run's folder (config.yaml, run.json), checks against them, and texts on model and data."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from gafx.config import TrainConfig, read_mapping, run_id, to_dict
from gafx.data.leaks.check import FOLDER, find_leaks
from gafx.data.manifest import Manifest, Skipped
from gafx.data.splits import Split
from gafx.errors import UsageError
from gafx.io import write_text
from gafx.model import GAFX, provenance_of
from gafx.report.format import plural
from gafx.saving.info import Provenance
from gafx.training.optim import lr_factor


def write_config(config: TrainConfig) -> None:
    """Write config.yaml, with absolute paths: the run may be evaluated from another working directory."""
    values = to_dict(config)
    for key in ("root", "cache"):  # `extend` is absolute
        if values["data"][key] is not None:
            values["data"][key] = str(Path(values["data"][key]).expanduser().absolute())
    write_text(config.folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_record(
    config: TrainConfig,
    manifest: Manifest,
    parts: Split,
    *,
    segments: int,
    environment: dict[str, Any],
    provenance: Provenance,
    frontend: Mapping[str, Any],
    skipped: Collection[Skipped],
    **progress: Any,
) -> None:
    """Write run.json: what the run is made from and what happened so far.

    Args:
        config: of the run.
        manifest: its data.
        parts: manifest rows of the training, validation and test parts.
        segments: number of training segments.
        environment: see `gafx.training.build.environment`.
        provenance: origin of the weights that the run started from.
        frontend: arguments of the front-end, with those that were read beside its weights.
        skipped: files that could not be read.
        **progress: steps, seconds, best epoch and the like.
    """
    record = {
        "run_id": run_id(config),
        **progress,
        "data": {
            **manifest.identity(), "root": str(manifest.root), "clips": len(manifest),
            "classes": list(manifest.classes), "train": len(parts.train), "val": len(parts.val),
            "test": len(parts.test), "train_segments": segments, "missing": manifest.missing,
            "notes": list(manifest.notes),
        },
        "environment": environment,
        "provenance": provenance.as_dict(),
        "frontend": dict(frontend),
        "skipped": [clip.as_dict() for clip in skipped],
        "config": to_dict(config),
    }  # fmt: skip
    write_text(config.folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_provenance(folder: Path, config: TrainConfig) -> Provenance:
    """Return the origin of the weights that the run in the folder started from, for resuming or extending it."""
    path = folder / "run.json"
    record = read_mapping(path) if path.is_file() else {}
    if "provenance" in record:
        return Provenance.from_dict(record, str(path))
    return provenance_of(config.frontend, config.classifier, config.pretrained)


def read_frontend(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of the front-end of the run in the folder, with those that were read beside its weights."""
    path = folder / "run.json"
    return dict((read_mapping(path) if path.is_file() else {}).get("frontend", config.frontend))


def describe_extension(config: TrainConfig, step: int, steps_per_epoch: int, total_steps: int) -> str:
    """Text on a run that continues another: from which step to which, and what that means for the learning rate."""
    text = f"continues {config.extend} from step {step} to {total_steps}"
    schedule = config.optim.schedule
    if schedule not in ("cosine", "linear"):
        return f"{text}: schedule={schedule} is that of one long run"
    ended, goes_on = (
        config.optim.lr * lr_factor(config.optim, at, steps_per_epoch, total)
        for at, total in ((step - 1, step), (step, total_steps))
    )
    return (
        f"{text}: schedule={schedule} now ends at step {total_steps}, so the learning rate goes from {ended:.2g} back "
        f"to {goes_on:.2g}; the first {step} steps followed the shorter schedule, unlike in one long run"
    )


def check_leaks(config: TrainConfig, manifest: Manifest, parts: Split) -> dict[str, Any] | None:
    """Return the leak check's result, from run.json if the run was started before; `None` if the check is disabled."""
    path = config.folder / "run.json"
    if path.is_file() and (known := read_mapping(path).get("leaks")):
        return dict(known)
    if not config.data.leak_check:
        return None
    return find_leaks(manifest, parts, cache=Path(config.output_dir).expanduser() / FOLDER).as_dict()


def check_same_data(folder: Path, manifest: Manifest) -> None:
    """Raise `UsageError` if the run in `folder` was started with other data."""
    path = folder / "run.json"
    if not path.is_file():
        return
    data = read_mapping(path, "data")["data"]
    if changed := manifest.changed_since(data):
        raise UsageError(
            f"{folder} belongs to a run on other data: {data['clips']} clips of {len(data['classes'])} classes, now "
            f"{len(manifest)} of {len(manifest.classes)} under {manifest.root}; {changed}. Start another run with "
            "name=<new name>, or restore the data"
        )


def changed_conditions(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Text that names the differences between a checkpoint's environment and this one; empty without any."""
    changed = [f"{key} {before[key]} -> {value}" for key, value in now.items() if before.get(key, value) != value]
    if not changed:
        return ""
    return f"resumed under other conditions ({', '.join(changed)}): valid, but not bit-identical to one long run"


def describe_model(model: GAFX, provenance: Provenance) -> str:
    """Parts, map shape, number of tokens and classes, and origin of the weights, as text."""
    info = model.info
    assert info is not None
    channels, frequency, frames = info.map_shape
    tokens = f", {model.classifier.tokens:,} tokens" if model.classifier.tokens else ""
    return (
        f"{info.frontend['name']} -> map {channels} x {frequency} x {frames} (channels x bins x frames) -> "
        f"{info.classifier['name']}{tokens}, {plural(len(info.classes), 'class', 'classes')}; start: "
        f"{provenance.describe()}"
    )


def describe_data(config: TrainConfig, manifest: Manifest, parts: Split, skipped: int) -> str:
    """Data set, protocol, number of tracks of each part, unreadable and missing files, as text."""
    return (
        f"{config.data.name}, protocol {config.data.protocol}: {len(parts.train):,} training, {len(parts.val):,} "
        f"validation, {len(parts.test):,} test tracks; {plural(skipped, 'file')} skipped, {manifest.missing:,} missing"
    )
