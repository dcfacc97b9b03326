"""Save and load models: `config.json` (names and arguments of the parts, labels) and `model.safetensors`."""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

import gafx
from gafx import weights
from gafx.config import build, read_mapping
from gafx.errors import UsageError
from gafx.model import GAFX, create_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass
class ModelInfo:
    """What travels with a model: how to rebuild it, what its outputs mean and where it comes from."""

    frontend: dict[str, Any]
    classifier: dict[str, Any]
    classes: list[str]
    segment_seconds: float
    sample_rate: int
    channels: int
    map_shape: list[int]
    objective: str = "classify"
    imagenet: bool = False  # whether training began from ImageNet weights
    training: dict[str, Any] = field(default_factory=dict)  # data set, protocol, fold, seed, steps
    gafx_version: str = gafx.__version__


def describe(
    model: GAFX,
    frontend: dict[str, Any],
    classifier: dict[str, Any],
    classes: list[str],
    segment_seconds: float,
    **more: Any,
) -> ModelInfo:
    """The `ModelInfo` of a model built from these parts."""
    return ModelInfo(
        # The weights travel with the model: loading it must not ask for the pretrained ones again.
        frontend={**frontend, **({"pretrained": False} if "pretrained" in frontend else {})},
        classifier={**classifier, **({"pretrained": False} if "pretrained" in classifier else {})},
        classes=list(classes),
        segment_seconds=segment_seconds,
        sample_rate=model.frontend.sample_rate,
        channels=model.frontend.channels,
        map_shape=list(model.classifier.map_shape),
        imagenet=classifier.get("pretrained", False) is not False,
        **more,
    )


def save(model: GAFX, info: ModelInfo, folder: str | os.PathLike[str]) -> Path:
    """Write a model to `folder`, whole or not at all: it is written beside it and renamed.

    Raises:
        UsageError: it cannot be written; what was in `folder` is as it was.
    """
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        (aside / CONFIG).write_text(
            json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside / WEIGHTS)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UsageError(
            f"the model cannot be written into {folder} ({error}): make room or choose another folder; a training run "
            "continues from its last checkpoint when its command is given again"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return folder


def load(source: str | os.PathLike[str]) -> tuple[GAFX, ModelInfo]:
    """Load a model, in eval mode on the CPU, with its `ModelInfo`.

    Args:
        source: a folder written by `save`, or a run folder that holds one as `model/`.

    Raises:
        UsageError: no model there, or weights that do not fit their own configuration.
    """
    folder = Path(source)
    if (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{str(source)!r} holds no model: expected {CONFIG} and {WEIGHTS} in it or in its sub-folder model/ (a run "
            "writes them when it is finished)"
        )
    info = build(ModelInfo, read_mapping(folder / CONFIG), str(folder / CONFIG))
    model = create_model(
        info.frontend, info.classifier, num_classes=len(info.classes), segment_seconds=info.segment_seconds
    )
    state, own = weights.read(folder / WEIGHTS), model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        here = tuple(own[name].shape) if name in own else "nothing"
        there = tuple(state[name].shape) if name in state else "nothing"
        if here != there:
            raise UsageError(
                f"{folder / WEIGHTS} does not fit {CONFIG}: {name} is {there} in the file, {here} in the model"
            )
    model.load_state_dict(state)
    return model.eval(), info
