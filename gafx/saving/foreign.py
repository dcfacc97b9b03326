"""Models that transformers saved (`ASTForAudioClassification.save_pretrained`), described as models of gafx.

Only JSON is read here: `config.json`, and `preprocessor_config.json` of the feature extractor where there is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gafx.classifiers._layouts import HEAD, TRANSFORMERS
from gafx.classifiers.ast import AUDIOSET_SCALE
from gafx.config import read_mapping
from gafx.errors import UsageError
from gafx.saving import weights
from gafx.saving.hub import check_classes

PREPROCESSOR = "preprocessor_config.json"
_AST = "audio-spectrogram-transformer"
_SIZES = {(192, 3): "tiny", (384, 6): "small", (768, 12): "base"}  # width and attention heads -> classifier.size
_AUDIOSET_LABELS = 527
# What gafx's AST reads, and transformers' defaults.
_FIXED: dict[str, Any] = {
    "patch_size": 16,
    "num_mel_bins": 128,
    "max_length": 1024,
    "hidden_act": "gelu",
    "qkv_bias": True,
}


@dataclass(frozen=True)
class Description:
    """How to build the model.

    Attributes:
        frontend, classifier: name and arguments.
        labels: in the order of the outputs.
        scale: mean and std of the maps, for `gafx.nn.maps.MapNorm.fit`.
        segment_seconds: length of the clips that it was made for.
        objective: `tag` or `classify`.
    """

    frontend: dict[str, Any]
    classifier: dict[str, Any]
    labels: list[str]
    scale: tuple[float, float]
    segment_seconds: float
    objective: str


def is_foreign(config: Path) -> bool:
    """Return whether a config.json is one of transformers' rather than gafx's."""
    values = read_mapping(config)
    return "model_type" in values and "frontend" not in values


def describe(config: Path, preprocessor: Path | None) -> Description:
    """Translate transformers' configuration of an AST.

    The outputs are probabilities of each label (`tag`) for `problem_type=multi_label_classification`, and, where none
    is stated, for the 527 labels of AudioSet; else of one label per clip (`classify`). Without a feature extractor's
    file, its defaults are taken, which are those of AudioSet.

    Args:
        config: config.json.
        preprocessor: preprocessor_config.json; None if there is none.

    Raises:
        UsageError: another kind of model, or an AST or a feature extractor of sizes that gafx's does not have.
    """
    values = read_mapping(config)
    if values.get("model_type") != _AST:
        raise UsageError(
            f"{config} describes a {values.get('model_type')!r} of transformers; gafx loads {_AST!r} "
            "(ASTForAudioClassification), and models that it saved itself"
        )
    extractor = {} if preprocessor is None else read_mapping(preprocessor)
    for key, wanted in _FIXED.items():
        for found, where in ((values, config), (extractor, preprocessor)):
            if found.get(key, wanted) != wanted:
                raise UsageError(f"{where}: {key}={found[key]!r}, but gafx loads an AST of {key}={wanted!r} only")
    width, heads = values.get("hidden_size", 768), values.get("num_attention_heads", 12)
    depth, stride = values.get("num_hidden_layers", 12), values.get("time_stride", 10)
    size = _SIZES.get((width, heads)) if isinstance(width, int) and isinstance(heads, int) else None
    fits = size and values.get("intermediate_size", 4 * 768) == 4 * width
    if not fits or type(depth) is not int or type(stride) is not int or values.get("frequency_stride", 10) != stride:
        raise UsageError(
            f"{config}: an AST of hidden_size={width!r}, num_attention_heads={heads!r}, intermediate_size="
            f"{values.get('intermediate_size', 4 * 768)!r}, num_hidden_layers={depth!r} and strides of {stride!r} and "
            f"{values.get('frequency_stride', 10)!r} is not loaded: gafx has those of DeiT tiny, small and base, with "
            "one stride for both axes"
        )
    labels = _labels(values.get("id2label"), config)
    rate = _number(extractor, "sampling_rate", 16000, preprocessor)
    mean, std = (
        _number(extractor, key, default, preprocessor)
        for key, default in zip(("mean", "std"), AUDIOSET_SCALE, strict=True)
    )
    if not 1000 <= rate <= 192_000 or std <= 0:
        raise UsageError(f"{preprocessor}: sampling_rate={rate} must be between 1000 and 192000, and std={std} above 0")
    scale = (mean, std) if extractor.get("do_normalize", True) else (0.0, 0.5)
    problem = values.get("problem_type") or (
        "multi_label_classification" if len(labels) == _AUDIOSET_LABELS else "single_label_classification"
    )
    frontend = {
        "name": "mel", "form": "kaldi", "sample_rate": round(rate), "win_length": round(0.025 * rate),
        "hop_length": round(0.01 * rate),
    }  # fmt: skip
    return Description(
        frontend, {"name": "ast", "size": size, "stride": stride, "depth": depth}, labels, scale,
        _FIXED["max_length"] * frontend["hop_length"] / rate,
        "tag" if problem == "multi_label_classification" else "classify",
    )  # fmt: skip


def check_outputs(path: Path, labels: Sequence[str]) -> None:
    """Check that a file of weights has an output layer for these labels, those of the config.json next to it.

    Raises:
        UsageError: it has none, e.g. of `ASTModel`, or one of another number of labels.
    """
    shapes = weights.shapes(path)
    tensors = [name for module in HEAD for kind in ("weight", "bias") for name in TRANSFORMERS.names(module + kind)]
    if missing := [name for name in tensors if name not in shapes]:
        raise UsageError(
            f"{path} holds no output layer (it lacks {', '.join(missing)}): give classes=[...] for a random one to "
            "train, or save an ASTForAudioClassification"
        )
    outputs = shapes[tensors[-1]][0]
    if outputs != len(labels):
        raise UsageError(
            f"the output layer of {path} is of {outputs} labels, but config.json names {len(labels)} (id2label): "
            "correct it, or give classes=[...] for a random output layer"
        )


def _labels(names: object, config: Path) -> list[str]:
    wanted = [str(number) for number in range(len(names))] if isinstance(names, Mapping) else []
    if not isinstance(names, Mapping) or not wanted or {str(key) for key in names} != set(wanted):
        raise UsageError(f"{config}: id2label must give a label to each output 0, 1, ...")
    by_number = {str(key): name for key, name in names.items()}
    return check_classes([by_number[number] for number in wanted], str(config))


def _number(values: Mapping[str, Any], key: str, default: float, where: Path | None) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where}: {key}={value!r} must be a number")
    return float(value)
