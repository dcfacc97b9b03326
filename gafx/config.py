"""What a run is made of: dataclasses with checks, and `run_id`, a hash of what can change the result.

Nothing here imports torch or Hydra, so a mistake in a configuration is reported at once. The dataclasses are built from
plain mappings by `build`, which names unknown keys and wrong types itself; parts (front-end, classifier, objective,
data set options) are checked against the signatures in `gafx.registry`.
"""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gafx.errors import UsageError, did_you_mean
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES, check_type

Config = TypeVar("Config")
_PARTS = {"frontend": FRONTENDS, "classifier": CLASSIFIERS, "objective": OBJECTIVES}
PROTOCOLS = ("paper", "paper_val", "kfold", "kfold_val", "official", "official_val", "fault_filtered")

# Options of data sets that say where something is, not which data they are.
_LOCATION_OPTIONS = ("index",)
# Keys of earlier versions, by their last part; the error for one names the new key.
RENAMED = {
    "rate": "lr", "rate_scale": "lr_scale", "decay": "lr_gamma", "accumulate": "grad_accumulation",
    "test_share": "test_fraction", "val_share": "val_fraction", "time_mask_share": "time_mask_fraction",
    "frequency_mask_share": "frequency_mask_fraction",
}  # fmt: skip


def _place(default: Any) -> Any:
    """A field that says where or how something runs, never what comes out: it does not enter `run_id`."""
    return field(default=default, metadata={"place": True})


def _presence(default: Any) -> Any:
    """A field of which only whether it is set can change the result, not its value."""
    return field(default=default, metadata={"presence": True})


def _added(default: Any) -> Any:
    """A field that joined later: off its default it enters `run_id`, so that earlier runs keep theirs."""
    return field(default=default, metadata={"added": True})


@dataclass
class PartConfig:
    """How the optimiser treats one part of the model."""

    lr_scale: float = 1.0  # learning rate of this part = rate * lr_scale
    frozen_epochs: int = 0  # epochs at the start in which the part does not learn


@dataclass
class OptimConfig:
    """Optimiser and schedule. The defaults are the paper's recipe (GAFX section 4.1.3)."""

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 5e-5
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0  # applied to weight matrices and kernels only
    warmup_steps: int = 800
    schedule: Literal["halving", "cosine", "constant"] = "halving"
    milestones: tuple[int, ...] = (12, 24, 50, 65)  # epochs (completed) after which the rate is multiplied by `decay`
    lr_gamma: float = 0.5
    clip_norm: float | None = None  # largest norm of the whole gradient
    ema_decay: float | None = None  # e.g. 0.999: evaluate an exponential moving average of the weights
    frontend: PartConfig = field(default_factory=PartConfig)
    classifier: PartConfig = field(default_factory=PartConfig)


@dataclass
class AugmentConfig:
    """Augmentation of training clips; every draw is a function of (seed, epoch, index)."""

    mixup_probability: float = 0.0
    mixup_alpha: float = 10.0  # weight ~ Beta(alpha, alpha)
    time_masks: int = 0
    time_mask_fraction: float = 0.2  # largest width of one mask as a share of the map's frames
    frequency_masks: int = 0
    frequency_mask_fraction: float = 0.2  # likewise of the map's frequency bins


@dataclass
class DataConfig:
    """Which clips, cut how, and which of them are for training, validation and test."""

    name: str = "synthetic"
    root: str | None = _place(None)
    options: dict[str, Any] = field(default_factory=dict)  # the data set's own keywords
    protocol: str = "paper"
    fold: int = 1  # of `folds` (kfold) or of the official folds, counted from 1
    folds: int = 5
    split_seed: int = 0
    # segment: a split may put segments of one track on both sides; only to measure what that mistake is worth
    group_by: Literal["recording", "segment"] = _added("recording")
    test_fraction: float = 0.2  # protocol `paper`
    val_fraction: float = 0.1  # protocols named `*_val`: share of the training groups
    segment_seconds: float = 10.0
    crop: Literal["random", "segments"] = "random"  # segments: as many whole segments of a track as fit, at least one
    sampling: Literal["uniform", "balanced", "weighted"] = "uniform"
    cache: str | None = _presence(None)  # folder of the packed cache (gafx pack); it is packed first if need be
    download: bool = _place(False)  # fetch the data set into `root` if it is not there and its publisher allows it
    leak_check: bool = _place(True)  # look for copies of test clips among the training clips, and report them
    max_unreadable: float = _place(0.05)  # a larger share of unreadable files is an error
    strict: bool = _place(False)  # any unreadable file is an error


@dataclass
class TrackingConfig:
    """Trackers beside metrics.jsonl, which is always written. Nothing leaves the machine unless `online` is set."""

    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    project: str = "gafx"
    online: bool = False
    log_steps: int = 10


@dataclass
class TrainConfig:
    """One training run: one protocol, one fold, one seed."""

    name: str | None = _place(None)  # start of the run folder's name; default: <front-end>-<data set>
    output_dir: str = _place("outputs")
    seed: int = 0
    frontend: dict[str, Any] = field(default_factory=lambda: {"name": "gafx_r"})
    classifier: dict[str, Any] = field(default_factory=lambda: {"name": "ast"})
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "classify"})
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 80
    max_steps: int | None = None  # end after so many optimiser steps, if that comes before `epochs`
    batch_size: int = 4  # clips an optimiser step, over all processes and all accumulated segments of it
    grad_accumulation: int = 1  # forward and backward passes an optimiser step
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    stop_on_nonfinite: bool = True
    compile: bool = _place(False)
    device: Literal["auto", "cpu"] = _place("auto")
    parallel: Literal["auto", "ddp", "fsdp"] = _place("auto")  # several processes: auto is what the launcher asks for
    dry_run: bool = _place(False)  # say what the run would be and cost, and end
    workers: int = _place(2)
    checkpoint_steps: int | None = _place(None)  # default: at the end of each epoch
    keep_checkpoints: int = _place(2)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"place": True})

    @property
    def folder(self) -> Path:
        """Where the run's files lie: `<output_dir>/<name>-<run_id>`."""
        return Path(self.output_dir).expanduser() / f"{self.label}-{run_id(self)}"

    @property
    def label(self) -> str:
        """What the run is called: `name`, or `<front-end>-<data set>`."""
        return self.name or f"{self.frontend['name']}-{self.data.name}"


@dataclass
class EvaluateConfig:
    """How finished runs are evaluated; what is evaluated (protocol, fold, test part) comes from the runs."""

    batch_size: int = 16
    workers: int = 2
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    output: str | None = None  # folder of the joint report when several runs are given; default: beside the first run
    root: str | None = None  # where the data lie now, if not where they lay in training
    max_unreadable: float | None = None  # largest share of unreadable files; default: that of the training
    resamples: int = 1000  # bootstrap resamples
    pictures: int = 4  # clips whose map is shown in the report


def build(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a configuration dataclass from a plain mapping, checking every key and type.

    Raises:
        UsageError: unknown key (with the closest known one), wrong type, or a value outside its range.
    """
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{where}={values!r} must be a group of keys; it takes: {', '.join(f.name for f in _fields(cls))}"
        )
    hints = typing.get_type_hints(cls)
    known = {f.name for f in _fields(cls)}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            everywhere = {**{prefix + name: name for name in known}, **({} if where else nested_keys(cls))}
            nested = [path for path in everywhere if path.rpartition(".")[2] == RENAMED.get(key, key)]
            hint = f"; did you mean {nested[0]!r}?" if nested else did_you_mean(prefix + str(key), everywhere)
            raise UsageError(f"unknown key {prefix}{key}{hint or ';'} known here: {', '.join(sorted(known))}")
    required = {f.name for f in _fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise UsageError(f"{where or 'the configuration'} lacks {', '.join(missing)}")
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(typing.cast(type, hints[key]), value, prefix + key)
        else:
            arguments[key] = check_type(value, hints[key], prefix + key)
    config = cls(**arguments)
    if isinstance(config, TrainConfig):
        _check(config)
    if isinstance(config, EvaluateConfig):
        _check_least(
            {"batch_size": (config.batch_size, 1), "workers": (config.workers, 0), "resamples": (config.resamples, 0),
             "pictures": (config.pictures, 0)}
        )  # fmt: skip
        if config.max_unreadable is not None and not 0 <= config.max_unreadable <= 1:
            raise UsageError(f"max_unreadable={config.max_unreadable} must lie between 0 and 1")
    return config


def nested_keys(cls: type, prefix: str = "") -> dict[str, str]:
    """Every key of a configuration dataclass and those inside it, as `{"optim.lr": "rate", ...}`."""
    keys = {}
    for name, hint in typing.get_type_hints(cls).items():
        keys[prefix + name] = name
        if dataclasses.is_dataclass(hint):
            keys.update(nested_keys(typing.cast(type, hint), f"{prefix}{name}."))
    return keys


def run_id(config: TrainConfig) -> str:
    """Eight hexadecimal digits that depend on all that can change the result, and not on paths, workers or tracking."""
    text = json.dumps(what_counts(config), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _hashed(values: Any, key: str = "") -> Any:
    """Return a part's arguments as they enter `run_id`: a run whose weights are loaded by its id, not by its path."""
    if key == "pretrained" and isinstance(values, str):
        run = re.fullmatch(r".+-([0-9a-f]{8})", Path(values.removesuffix("/").removesuffix("/model")).name)
        return run[1] if run else values
    if isinstance(values, Mapping):
        return {name: _hashed(value, str(name)) for name, value in values.items()}
    return [_hashed(value) for value in values] if isinstance(values, (list, tuple)) else values


def read_mapping(path: Path, *required: str) -> dict[str, Any]:
    """A mapping from a YAML or JSON file.

    Raises:
        UsageError: the file is missing or damaged, or lacks one of the `required` keys.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not set(required) <= set(values):
        raise UsageError(f"{path} is damaged: it should hold {', '.join(required) or 'keys and values'}")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain mappings and lists, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def what_counts(config: Any) -> dict[str, Any]:
    """A configuration without what only says where or how it runs; nested parts as a list in their order."""
    counted = {}
    for f in _fields(config):
        if not f.metadata.get("place"):
            value = getattr(config, f.name)
            if f.metadata.get("added") and value == f.default:
                continue
            if f.metadata.get("presence"):
                value = value is not None
            if f.name == "options":
                value = {key: option for key, option in value.items() if key not in _LOCATION_OPTIONS}
            if f.name in _PARTS and isinstance(value, Mapping):
                value = _PARTS[f.name].ordered(value)
            counted[f.name] = what_counts(value) if dataclasses.is_dataclass(value) else _hashed(value)
    return counted


def _check(config: TrainConfig) -> None:
    """Check what the types cannot say, and fill the defaults of the parts in, so that `run_id` covers them."""
    for key, registry in _PARTS.items():
        setattr(config, key, registry.check_part(getattr(config, key), key))
    SOURCES.check_name(config.data.name)
    config.data.options = SOURCES.check(config.data.name, config.data.options, "data.options")
    data, optim, augment = config.data, config.optim, config.augment
    if data.cache == "":
        raise UsageError("data.cache is empty: name a folder, or leave it out (data.cache=null) to read the files")
    if data.protocol not in PROTOCOLS:
        hint = did_you_mean(data.protocol, PROTOCOLS) or ";"
        raise UsageError(f"unknown data.protocol {data.protocol!r}{hint} choose one of: {', '.join(PROTOCOLS)}")
    if data.group_by == "segment" and data.protocol.removesuffix("_val") not in ("paper", "kfold"):
        raise UsageError(
            f"data.group_by=segment with data.protocol={data.protocol}: a published split keeps its recordings whole; "
            "what splitting at random into segments is worth is measured with paper or kfold"
        )
    if data.group_by == "segment" and data.cache is not None:
        raise UsageError(
            f"data.group_by=segment reads the files themselves, since a cache ({data.cache}) holds whole clips: leave "
            "data.cache out (data.cache=null)"
        )
    if config.batch_size % max(config.grad_accumulation, 1):
        raise UsageError(
            f"grad_accumulation={config.grad_accumulation} does not divide batch_size={config.batch_size}: batch_size counts the "
            "clips of a whole optimiser step; choose a grad_accumulation that divides it"
        )
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise UsageError(f"optim.betas={list(optim.betas)} must hold two numbers in [0, 1), e.g. [0.9, 0.999]")
    if config.seed >= 2**31:
        raise UsageError(f"seed={config.seed} must be below {2**31}")
    if data.protocol.startswith("paper") and data.fold != 1:
        raise UsageError(
            f"data.fold={data.fold}: protocol {data.protocol!r} has no folds; for another split set data.split_seed"
        )
    _check_least({
        "epochs": (config.epochs, 1), "batch_size": (config.batch_size, 1), "workers": (config.workers, 0),
        "max_steps": (config.max_steps, 1), "checkpoint_steps": (config.checkpoint_steps, 1), "seed": (config.seed, 0),
        "keep_checkpoints": (config.keep_checkpoints, 1), "tracking.log_steps": (config.tracking.log_steps, 1),
        "data.fold": (data.fold, 1), "data.folds": (data.folds, 2), "data.split_seed": (data.split_seed, 0),
        "optim.warmup_steps": (optim.warmup_steps, 0), "optim.weight_decay": (optim.weight_decay, 0),
        "optim.frontend.lr_scale": (optim.frontend.lr_scale, 0),
        "optim.classifier.lr_scale": (optim.classifier.lr_scale, 0), "grad_accumulation": (config.grad_accumulation, 1),
        "optim.frontend.frozen_epochs": (optim.frontend.frozen_epochs, 0),
        "optim.classifier.frozen_epochs": (optim.classifier.frozen_epochs, 0),
        "augment.time_masks": (augment.time_masks, 0), "augment.frequency_masks": (augment.frequency_masks, 0),
    })  # fmt: skip
    above_zero = {
        "optim.lr": optim.lr, "data.segment_seconds": data.segment_seconds,
        "optim.clip_norm": optim.clip_norm, "optim.lr_gamma": optim.lr_gamma, "augment.mixup_alpha": augment.mixup_alpha,
    }  # fmt: skip
    for key, value in above_zero.items():
        if value is not None and not value > 0:
            raise UsageError(f"{key}={value} must be above 0")
    shares = {
        "data.test_fraction": data.test_fraction, "data.val_fraction": data.val_fraction,
        "data.max_unreadable": data.max_unreadable, "augment.mixup_probability": augment.mixup_probability,
        "augment.time_mask_fraction": augment.time_mask_fraction,
        "augment.frequency_mask_fraction": augment.frequency_mask_fraction, "optim.ema_decay": optim.ema_decay,
    }  # fmt: skip
    for key, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{key}={value} must lie between 0 and 1")
    if data.protocol.startswith("kfold") and data.fold > data.folds:
        raise UsageError(f"data.fold={data.fold} is above data.folds={data.folds}; folds are counted from 1")


def _check_least(values: dict[str, tuple[float | None, float]]) -> None:
    for key, (value, least) in values.items():
        if value is not None and value < least:
            raise UsageError(f"{key}={value} must be at least {least}")
