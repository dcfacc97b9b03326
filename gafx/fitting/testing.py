"""Outputs of fitted estimators for a test part, as an evaluated run: scored and reported like any model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from gafx.config import TrainConfig
from gafx.data.manifest import Manifest
from gafx.evaluation.result import Cost, Result
from gafx.evaluation.runs import Run, TestedRun
from gafx.fitting.table import Array
from gafx.inference import Predictions
from gafx.saving.hub import write_scores
from gafx.saving.info import ModelInfo


def predicted_fold(
    folder: Path, train: TrainConfig, record: Mapping[str, Any], manifest: Manifest, info: ModelInfo,
    found: Predictions, rows: Array, outputs: Array, cost: Cost,
) -> TestedRun:  # fmt: skip
    """Build the evaluated run of one fold.

    Args:
        folder: of the fit.
        train: configuration that describes it, with the fold.
        record: `run_id` and `leaks` of the fold.
        manifest: the data set.
        info: of the model, with the calibration of this fold.
        found: the rows of all windows, and the files that could not be read.
        rows: `(tested,)` of `found` that are tested.
        outputs: `(tested, classes)`.
        cost: of fit and prediction.
    """
    skipped = [clip.as_dict() for clip in manifest.skipped]
    run = Run(folder, train, {**record, "skipped": skipped})
    probabilities = np.asarray(softmax(outputs, axis=1))
    return TestedRun(run, manifest, info, Predictions(found.row[rows], found.start[rows], probabilities, found.skipped),
                     cost)  # fmt: skip


def write_part_scores(target: Path, result: Result) -> None:
    """Write the scores of a saved model that was fitted on the training part of a protocol without folds."""
    write_scores(target, result.as_dict()["scores"]["track"], {
        "data": result.data, "protocol": result.protocol, "part": result.part, "tracks": result.tracks,
        "recordings": result.groups, "segment_seconds": result.segment_seconds, "precision": "fp32",
        **({"group_by": result.group_by} if result.by_segment else {}),
    })  # fmt: skip
