"""A temperature for a run that is finished already, from its own validation part."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gafx.config import EvaluateConfig
from gafx.data.batches import evaluation_loader
from gafx.data.manifest import check_readable
from gafx.data.protocols import Protocol
from gafx.errors import UsageError
from gafx.evaluation.runs import objective_around, open_part, open_run, run_precision
from gafx.inference import calibrate, predict_segments
from gafx.nn.precision import pick_device
from gafx.saving.hub import write_calibration


def calibrate_run(folder: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Fit the temperature of a run's model on its validation part and write it into the model; return what was fitted.

    Raises:
        UsageError: no finished run, one without a validation part or without labels, or data that are not its own.
    """
    run = open_run(folder)
    protocol = Protocol.parse(run.config.data.protocol)
    if not run.objective.reads_labels:
        raise UsageError(f"{folder} was trained by objective={run.config.objective['name']}, which reads no labels")
    model, clips = open_part(run, config, "val")
    if not len(clips):
        raise UsageError(
            f"{folder} was trained under protocol {protocol.name!r}, which has no validation part, and no other clips "
            f"may choose a temperature: train it with data.protocol={protocol.with_validation}"
        )
    assert run.manifest is not None
    device = pick_device(config.device)
    model.to(device)
    loader = evaluation_loader(clips, batch_size=config.batch_size, workers=config.workers, pin=device.type == "cuda")
    objective = objective_around(run, model).to(device)
    with tqdm(total=len(clips), desc=folder.name, unit="segment", disable=not sys.stderr.isatty()) as bar:
        segments = predict_segments(
            model, loader, clips.segments, objective.predict, device=device,
            precision=run_precision(config.precision, run, device), progress=bar.update,
        )  # fmt: skip
    check_readable(
        run.manifest, max_unreadable=run.config.data.max_unreadable, strict=run.config.data.strict,
        skipped=[*run.manifest.skipped, *segments.skipped],
    )  # fmt: skip
    fitted = calibrate(segments, run.manifest, run.objective)
    if not fitted:
        raise UsageError(f"{folder}: no validation track could be read, or the model's output is not finite")
    write_calibration(folder / "model", fitted)
    return fitted
