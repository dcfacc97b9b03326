"""Fit the temperature of a finished run's model on its own validation part."""

import shutil
from pathlib import Path
from typing import Any

from gafx.config import EvaluateConfig
from gafx.data.protocols import Protocol
from gafx.errors import UsageError
from gafx.evaluation.runs import open_part, open_run, predict_part
from gafx.inference import calibrate
from gafx.io import atomic_folder, check_writable
from gafx.nn.precision import pick_device
from gafx.saving.hub import write_calibration


def calibrate_run(folder: Path, config: EvaluateConfig, output: Path | None = None) -> dict[str, Any]:
    """Fit the temperature of a run's model on its validation part, save it with the model, and return what was fitted.

    Args:
        folder: of the run.
        config: of the evaluation.
        output: folder to create for a copy of the model with the temperature; default: it is saved in the run.

    Raises:
        UsageError: no finished run, one without a validation part or without labels, data that are not its own, or a
            folder that exists or cannot be written.
    """
    run = open_run(folder)
    if output is not None and output.exists():
        raise UsageError(f"--output {output} exists; name a new folder for the copy of the model")
    check_writable(output or folder / "model", "name another folder with --output")
    protocol = Protocol.parse(run.config.data.protocol)
    if not run.objective.reads_labels:
        raise UsageError(f"{folder} was trained by objective={run.config.objective['name']}, which reads no labels")
    model, clips = open_part(run, config, "val")
    if not len(clips):
        raise UsageError(
            f"{folder} was trained under protocol {protocol.name!r}, which has no validation part, and no other clips "
            f"may choose a temperature: train it with data.protocol={protocol.with_validation}"
        )
    device = pick_device(config.device)
    fitted = calibrate(predict_part(run, model.to(device), clips, config, device), clips.manifest, run.objective)
    if not fitted:
        raise UsageError(f"{folder}: no validation track could be read, or the model's output is not finite")
    if output is None:
        write_calibration(folder / "model", fitted)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(output) as part:
            shutil.copytree(folder / "model", part, dirs_exist_ok=True)
            write_calibration(part, fitted)
    return fitted
