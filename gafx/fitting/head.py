"""Linear heads: fitted on features of a frozen model, calibrated, and saved with it as an ordinary model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from gafx.classifiers.base import ProbeFeatures
from gafx.errors import UsageError
from gafx.fitting.table import Table
from gafx.fitting.tune import Fitted, Tuned
from gafx.model import GAFX, create_model
from gafx.stats.calibration import fit_temperature

OUT_OF_FOLD = "out-of-fold"


def fit_calibration(tuned: Tuned, table: Table, part: str = OUT_OF_FOLD) -> dict[str, Any]:
    """Fit a temperature on predictions of clips by heads that were not fitted on them.

    Args:
        tuned: the result of `gafx.fitting.tune.tune`.
        table: that it was tuned on.
        part: of the data that these clips are, for `ModelInfo.calibration`.

    Returns:
        content of `ModelInfo.calibration` without the digest of the weights; empty if no clip was held out.
    """
    if not len(tuned.checked):
        return {}
    checked = table.take(tuned.checked)
    _, first, number = np.unique(checked.clip, return_index=True, return_inverse=True)
    targets = np.eye(table.classes)[checked.label[first]]
    fitted = fit_temperature(softmax(tuned.outputs, axis=1), number, targets, multi_label=False)
    return {**fitted, "part": part, "recordings": len(np.unique(checked.group))}


def attach_head(model: GAFX, fitted: Fitted, classes: Sequence[str], features: ProbeFeatures) -> GAFX:
    """Build a model of a frozen one and a linear head; its logits are `fitted.outputs`.

    Args:
        model: that computed the features, built by name.
        fitted: a linear method, in which every class is present.
        classes: labels, in the order of the head's outputs.
        features: that it was fitted on.

    Raises:
        UsageError: config.json could not describe how to build the model again.
    """
    info = model.info
    if info is None or not info.frontend:
        raise UsageError(
            "the model was built from classes, so that a saved one could not be built again: load it with gafx.load, "
            "or build it by name with gafx.create_model"
        )
    classifier = {
        "name": "linear_probe", "base": info.classifier, "base_classes": len(info.classes), "features": features
    }  # fmt: skip
    probe = create_model(info.frontend, classifier, classes=list(classes), segment_seconds=info.segment_seconds)
    weight, bias = (torch.from_numpy(values).float() for values in fitted.linear())
    state = {_moved(name): tensor for name, tensor in model.state_dict().items()}
    probe.load_state_dict({**state, "classifier.output.weight": weight, "classifier.output.bias": bias})
    assert probe.info is not None
    probe.info.provenance, probe.info.license = info.provenance, info.license
    return probe.eval()


def _moved(name: str) -> str:
    """Name of a tensor of the frozen model in the model with a head."""
    own = name.removeprefix("classifier.")
    return name if own == name else f"classifier.base.{own}"
