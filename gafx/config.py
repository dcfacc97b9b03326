"""Configuration of a run: dataclasses with the range of each field, and `run_id`, a hash of what changes the result.

Nothing here imports torch or Hydra, so that a mistake is reported at once. The dataclasses are built from plain
mappings by `build`, which reports unknown keys, wrong types and values out of range; parts (front-end, classifier,
objective, data set options) are checked against the signatures in `gafx.registry`.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from gafx.data.protocols import Protocol
from gafx.errors import RENAMED, UsageError, did_you_mean
from gafx.io import digest
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, SOURCES, Keyword, check_type, is_text, read_text

Config = TypeVar("Config")
_PARTS = {"frontend": FRONTENDS, "classifier": CLASSIFIERS, "objective": OBJECTIVES}

# Options of data sets that say where something is, not which data they are.
_LOCATION_OPTIONS = ("index",)


class Limit(NamedTuple):
    """Allowed values of a field: their description for messages, and the test."""

    description: str
    allows: Callable[[Any], bool]


Count = Annotated[int, Limit("at least 1", lambda value: value >= 1)]
CountOrZero = Annotated[int, Limit("at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]
PositiveOrZero = Annotated[float, Limit("at least 0", lambda value: value >= 0)]
Fraction = Annotated[float, Limit("between 0 and 1", lambda value: 0 <= value <= 1)]
Interval = Annotated[
    tuple[float, ...],
    Limit("two numbers, the first at most the second", lambda value: len(value) == 2 and value[0] <= value[1]),
]
Seed = Annotated[int, Limit(f"at least 0 and below {2**31}", lambda value: 0 <= value < 2**31)]
DEVICE = Limit(
    "auto, cpu, cuda, cuda:<index> or mps",
    lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) is not None,
)
Device = Annotated[str, DEVICE]
# The name begins a folder's name; the project is one of a tracker, of which wandb is the strictest.
RunName = Annotated[
    str,
    Limit(
        "1 to 150 characters without / \\ and control characters, not beginning with a dot or a space",
        lambda value: re.fullmatch(r"(?![. ])[^/\\\x00-\x1f\x7f]{1,150}", value) is not None,
    ),
]
Project = Annotated[
    str,
    Limit(
        "1 to 128 characters without / \\ # ? % : and control characters, not beginning with a dot or a space",
        lambda value: re.fullmatch(r"(?![. ])[^/\\#?%:\x00-\x1f\x7f]{1,128}", value) is not None,
    ),
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _not_hashed(default: Any) -> Any:
    """A field for where or how a run is computed, which cannot change its result: excluded from `run_id`."""
    return field(default=default, metadata={"not_hashed": True})


def _hash_is_set(default: Any) -> Any:
    """A field of which `run_id` contains only whether it is set, not its value."""
    return field(default=default, metadata={"hash_is_set": True})


def _hash_if_changed(default: Any) -> Any:
    """A field added in a later version: left out of `run_id` at its default, so that earlier runs keep their id."""
    return field(default=default, metadata={"hash_if_changed": True})


@dataclass
class PartConfig:
    """Optimiser settings of one part of the model."""

    lr_scale: PositiveOrZero = 1.0  # learning rate of this part = lr * lr_scale
    frozen_epochs: CountOrZero = 0  # epochs at the start in which the part is frozen
    # batch norm normalises by the statistics that it was loaded with, and does not update them: for pretrained weights
    frozen_batch_norm: bool = _hash_if_changed(False)


@dataclass
class ClassifierPartConfig(PartConfig):
    """Optimiser settings of the classifier."""

    # learning rate of the output layer = lr * lr_scale * head_lr_scale: on pretrained weights it alone starts at random
    head_lr_scale: PositiveOrZero = _hash_if_changed(1.0)


@dataclass
class OptimConfig:
    """Optimiser and learning rate schedule. The defaults are the paper's recipe (GAFX section 4.1.3)."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Positive = 5e-5
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: PositiveOrZero = 0.0  # applied to weight matrices and kernels only
    warmup_steps: CountOrZero = 800
    schedule: Literal["halving", "cosine", "linear", "constant"] = "halving"
    milestones: tuple[int, ...] = (12, 24, 50, 65)  # completed epochs after which `lr` is multiplied by `lr_gamma`
    lr_gamma: Positive = 0.5
    clip_norm: Positive | None = None  # largest norm of the whole gradient
    ema_decay: Fraction | None = None  # e.g. 0.999: evaluate an exponential moving average of the weights
    frontend: PartConfig = field(default_factory=PartConfig)
    classifier: ClassifierPartConfig = field(default_factory=ClassifierPartConfig)


@dataclass
class AugmentConfig:
    """Augmentation of training clips; every draw is a function of (seed, epoch, index)."""

    mixup_probability: Fraction = 0.0
    mixup_alpha: Positive = 10.0  # weight ~ Beta(alpha, alpha)
    time_masks: CountOrZero = 0
    time_mask_fraction: Fraction = 0.2  # largest width of one mask as a fraction of the map's frames
    frequency_masks: CountOrZero = 0
    frequency_mask_fraction: Fraction = 0.2  # largest width of one mask as a fraction of the map's frequency bins
    # between-class learning: mix with a clip of other labels, loudness compensated, weight ~ U(0, 1); instead of mixup
    between_class_probability: Fraction = _hash_if_changed(0.0)
    # playback speed, which moves pitch and tempo together, drawn log-uniformly from [1/speed, speed]
    speed: Annotated[float, Limit("between 1 and 2", lambda value: 1 <= value <= 2)] = _hash_if_changed(1.0)
    roll: bool = _hash_if_changed(False)  # circular shift of the segment by a random number of samples
    gain_db: PositiveOrZero = _hash_if_changed(0.0)  # gain drawn uniformly from [-gain_db, gain_db] dB
    noise_probability: Fraction = _hash_if_changed(0.0)  # of adding white Gaussian noise
    noise_snr_db: Interval = _hash_if_changed((10.0, 30.0))  # signal-to-noise ratio in dB, uniform between the two
    # MIDI: moved by a whole number of semitones drawn uniformly from [-transpose, transpose], those that fit
    transpose: Annotated[int, Limit("0 to 24", lambda value: 0 <= value <= 24)] = _hash_if_changed(0)
    avoid_silence: bool = _hash_if_changed(False)  # draw a crop again, up to 7 times, if over half of it is silent


@dataclass
class DataConfig:
    """Which clips, how they are cut, and how they are split into training, validation and test part."""

    name: str = "synthetic"
    root: str | None = _not_hashed(None)
    options: dict[str, Any] = field(default_factory=dict)  # the data set's own keywords
    protocol: str = "paper"
    fold: Count = 1  # of `folds` (kfold) or of the official folds, counted from 1
    folds: Annotated[int, Limit("at least 2", lambda value: value >= 2)] = 5
    split_seed: CountOrZero = 0
    # segment: a split may put segments of one track on both sides; only to measure what that mistake is worth
    group_by: Literal["recording", "segment"] = _hash_if_changed("recording")
    test_fraction: Fraction = 0.2  # protocol `paper`
    val_fraction: Fraction = 0.1  # protocols named `*_val`: fraction of the training groups
    # use so many training clips only, drawn by `split_seed`, as many of each class as possible: for learning curves
    train_clips: Count | None = _hash_if_changed(None)
    segment_seconds: Positive = 10.0
    # of training clips; random: anywhere, drawn each epoch; start: the first `segment_seconds`; segments: as many whole
    # segments of a track as fit, at least one
    crop: Literal["random", "start", "segments"] = "random"
    # training clips shorter than a segment are repeated up to its length, or padded with zeros at the end
    short_clips: Literal["repeat", "pad"] = _hash_if_changed("repeat")
    sampling: Literal["uniform", "balanced", "weighted"] = "uniform"
    cache: str | None = _hash_is_set(None)  # folder of the packed cache (gafx pack); packed first if it does not exist
    download: bool = _not_hashed(False)  # fetch the data set into `root` if it is missing and its publisher allows it
    leak_check: bool = _not_hashed(True)  # search the training clips for copies of test clips, and report them
    max_unreadable: Fraction = _not_hashed(0.05)  # a larger fraction of unreadable files is an error
    strict: bool = _not_hashed(False)  # any unreadable file is an error


@dataclass
class TrackingConfig:
    """Trackers besides metrics.jsonl, which is always written. Nothing leaves the machine unless `online` is set."""

    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    project: Project = "gafx"
    online: bool = False
    media: CountOrZero = 0  # validation clips whose sound, map and prediction are logged at the end of training
    log_steps: Count = 10


@dataclass
class TrainConfig:
    """One training run: one protocol, one fold, one seed."""

    name: RunName | None = _not_hashed(None)  # start of the run folder's name; default: <front-end>-<data set>
    output_dir: str = _not_hashed("outputs")
    # folder of a finished run that is continued with more `epochs` or `max_steps`, all else equal
    extend: str | None = _hash_if_changed(None)
    # run, model folder or hub repository of the same front-end and classifier, whose weights the run starts from; the
    # output layer's only if the labels agree
    pretrained: str | None = _hash_if_changed(None)
    seed: Seed = 0
    frontend: dict[str, Any] = field(default_factory=lambda: {"name": "gafx_r"})
    classifier: dict[str, Any] = field(default_factory=lambda: {"name": "ast"})
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "classify"})
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: Count = 80
    max_steps: Count | None = None  # end after this many optimiser steps, if that comes before `epochs`
    patience: Count | None = _hash_if_changed(None)  # end after this many epochs without a better validation score
    batch_size: Count = 4  # clips per optimiser step, summed over all processes and all accumulated micro-batches
    grad_accumulation: Count = 1  # micro-batches (forward and backward passes) per optimiser step
    precision: Precision = "auto"
    stop_on_nonfinite: bool = True
    compile: bool = _not_hashed(False)
    device: Device = _not_hashed("auto")
    parallel: Literal["auto", "ddp", "fsdp"] = _not_hashed("auto")  # several processes: auto follows the launcher
    dry_run: bool = _not_hashed(False)  # print what the run would be and cost, and exit
    workers: CountOrZero = _not_hashed(2)
    checkpoint_steps: Count | None = _not_hashed(None)  # default: at the end of each epoch
    keep_checkpoints: Count = _not_hashed(2)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"not_hashed": True})

    @property
    def folder(self) -> Path:
        """Run folder: `<output_dir>/<name>-<run_id>`."""
        return Path(self.output_dir).expanduser() / f"{self.label}-{run_id(self)}"

    @property
    def label(self) -> str:
        """Name of the run: `name`, or `<front-end>-<data set>`."""
        return self.name or f"{self.frontend['name']}-{self.data.name}"


@dataclass
class EvaluateConfig:
    """Settings of an evaluation of finished runs; protocol, fold and test part come from the runs."""

    batch_size: Count = 16
    workers: CountOrZero = 2
    device: Device = "auto"
    precision: Precision = "auto"
    output: str | None = None  # folder for all files, so that none are written into the runs; default: see the docs
    root: str | None = None  # folder of the data, if it has moved since the training
    max_unreadable: Fraction | None = None  # largest fraction of unreadable files; default: that of the training
    resamples: CountOrZero = 1000  # bootstrap resamples
    pictures: CountOrZero = 4  # clips whose map is shown in the report
    audio_mb: CountOrZero = 5  # megabytes of audio of misjudged clips in the report; 0: links to the files alone
    views: Count = 1  # circular shifts of each segment whose probabilities are averaged; 1: the segment as it is
    ensemble: bool = False  # also evaluate the mean probabilities of all runs of a fold, as a row of its own


def build(cls: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a configuration dataclass from a plain mapping, checking every key, type and range.

    Args:
        cls: the dataclass.
        values: key -> value.
        where: dotted key of the mapping within the configuration, for messages.

    Raises:
        UsageError: unknown key (with the closest known one), wrong type, or a value outside its range.
    """
    fields = dataclasses.fields(typing.cast(Any, cls))
    names = sorted(f.name for f in fields)
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}={values!r} must be a group of keys; it takes: {', '.join(names)}")
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in names:
            hint = _hint(cls, str(key), prefix)
            raise UsageError(f"unknown key {prefix}{key}{hint} known here: {', '.join(names)}")
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise UsageError(f"{where or 'the configuration'} lacks {', '.join(missing)}")
    hints, limited = typing.get_type_hints(cls), limits(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(typing.cast(type, hints[key]), value, prefix + key)
            continue
        arguments[key] = checked = check_type(value, hints[key], prefix + key)
        if key in limited and checked is not None and not limited[key].allows(checked):
            raise UsageError(f"{prefix}{key}={value} must be {limited[key].description}")
    config = cls(**arguments)
    if isinstance(config, TrainConfig):
        _check(config)
    return config


def limits(cls: type) -> dict[str, Limit]:
    """Field -> its limit, of the fields of a configuration dataclass that have one."""
    return {
        name: option.__metadata__[0]
        for name, hint in typing.get_type_hints(cls, include_extras=True).items()
        for option in (hint, *typing.get_args(hint))  # of `Positive | None` it is in an option of the union
        if typing.get_origin(option) is Annotated
    }


def _hint(cls: type, key: str, prefix: str) -> str:
    """`; did you mean 'optim.lr'?` for an unknown key of `cls`, also by earlier names; `;` where nothing is close."""
    names = [prefix + f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    nested = [] if prefix else list(nested_keys(cls))
    same = [path for path in nested if path.rpartition(".")[2] == RENAMED.get(key, key)]
    return (f"; did you mean {same[0]!r}?" if same else did_you_mean(prefix + key, [*names, *nested])) or ";"


def field_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """Type of every key of a configuration dataclass and of those inside it, as `{"optim.lr": float, ...}`."""
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        types[prefix + name] = hint
        if dataclasses.is_dataclass(hint):
            types |= field_types(typing.cast(type, hint), f"{prefix}{name}.")
    return types


def text_type(key: str) -> Any:
    """Type of a configuration key whose values are text (`gafx.registry.is_text`), else None.

    Arguments of parts are told by their names: `data.options.csv`, `frontend.parts.a.pretrained`.
    """
    for config in (TrainConfig, EvaluateConfig):
        if is_text(annotation := field_types(config).get(key)):
            return annotation
    for group, registry in (*_PARTS.items(), ("data.options", SOURCES)):
        if key.startswith(f"{group}."):
            keyword = key.rpartition(".")[2]
            found = [registry.keywords(name).get(keyword) for name in registry.names()]
            types = {entry.annotation for entry in found if entry is not None}
            if len(types) == 1 and is_text(annotation := types.pop()):
                return annotation
    return None


def nested_keys(cls: type) -> dict[str, str]:
    """Every key of a configuration dataclass and of those inside it, as `{"optim.lr": "lr", ...}`."""
    return {key: key.rpartition(".")[2] for key in field_types(cls)}


def run_id(config: TrainConfig) -> str:
    """Eight hexadecimal digits that depend on all that can change the result, and not on paths, workers or tracking.

    Keys are hashed under the names of the first version, so that renaming a key does not change the id.
    """
    former = {new: old for old, new in RENAMED.items()}
    text = json.dumps(_renamed(what_counts(config), former), sort_keys=True, default=str)
    return digest(text, size=4)


def what_counts(config: Any) -> dict[str, Any]:
    """The values of a configuration that can change the result; nested parts as a list in their order."""
    hashed = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("not_hashed") or (f.metadata.get("hash_if_changed") and value == f.default):
            continue
        if f.metadata.get("hash_is_set"):
            value = value is not None
        if f.name == "options":
            value = {key: option for key, option in value.items() if key not in _LOCATION_OPTIONS}
        if f.name in _PARTS and isinstance(value, Mapping):
            value = _PARTS[f.name].ordered(value)
        hashed[f.name] = what_counts(value) if dataclasses.is_dataclass(value) else _hashed(value, f.name)
    return hashed


def _hashed(values: Any, key: str = "") -> Any:
    """Values as they enter the hash: a run folder (`pretrained`, `extend`) by its run id, since folders can move."""
    if key in ("pretrained", "extend") and isinstance(values, str):
        run = re.fullmatch(r".+-([0-9a-f]{8})", Path(values.removesuffix("/").removesuffix("/model")).name)
        return run[1] if run else values
    if isinstance(values, Mapping):
        return {name: _hashed(value, str(name)) for name, value in values.items()}
    return [_hashed(value) for value in values] if isinstance(values, (list, tuple)) else values


def changed_keys(before: TrainConfig, after: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Keys that change a result and in which two configurations differ, with both values; `extend` does not count."""
    old, new = (flatten(what_counts(dataclasses.replace(config, extend=None))) for config in (before, after))
    return {key: (old.get(key), new.get(key)) for key in [*old, *(new.keys() - old)] if old.get(key) != new.get(key)}


def flatten(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, whose keys are joined by `separator`; an empty mapping is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, separator, f"{prefix}{key}{separator}") if nested else {prefix + key: value}
    return flat


def _renamed(values: Mapping[str, Any], names: Mapping[str, str], *, top: bool = True) -> dict[str, Any]:
    """A copy of a configuration mapping with its keys, and the values of `crop` and `group_by`, renamed by `names`.

    The arguments of front-end, classifier and objective are left as they are: the registry handles their earlier names.
    """
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and not (top and key in _PARTS):
            value = _renamed(value, names, top=False)
        elif key in ("crop", "group_by"):
            value = names.get(value, value)
        renamed[names.get(key, key)] = value
    return renamed


def read_config(path: Path) -> TrainConfig:
    """Read a run's config.yaml, also one written under the key names of an earlier version.

    Raises:
        UsageError: as `read_mapping` and `build`.
    """
    values = _renamed(read_mapping(path), RENAMED)
    for key, registry in _PARTS.items():
        if isinstance(values.get(key), Mapping):
            values[key] = registry.upgrade(values[key])
    return build(TrainConfig, values)


def parse_values(
    pairs: Iterable[str], option: str, example: str, keywords: Mapping[str, Keyword] | None = None
) -> dict[str, Any]:
    """Parse the `key=value` arguments of a command-line option: text as it is typed, other values as YAML.

    Args:
        pairs: arguments.
        option: name of the option, for messages.
        example: of a pair.
        keywords: with their types; those whose type is text are not read as YAML.

    Raises:
        UsageError: an argument of another form; the message names the option and an example.
    """
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {pair!r} is no option; write KEY=VALUE, e.g. {option} {example}")
        if keywords and key in keywords and is_text(keywords[key].annotation):
            values[key] = read_text(value, keywords[key].annotation)
            continue
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            values[key] = value
    return values


def read_mapping(path: Path, *required: str) -> dict[str, Any]:
    """Read a mapping from a YAML or JSON file.

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


def _check(config: TrainConfig) -> None:
    """Check rules that span several fields, and fill in the defaults of the parts, so that `run_id` covers them."""
    for key, registry in _PARTS.items():
        setattr(config, key, registry.check_part(getattr(config, key), key))
    SOURCES.check_name(config.data.name)
    config.data.options = SOURCES.check(config.data.name, config.data.options, "data.options")
    if config.pretrained == "":
        raise UsageError("pretrained is empty: name a run or a model, or leave it out (pretrained=null)")
    if config.extend == "":
        raise UsageError("extend is empty: name the folder of a finished run, or leave it out (extend=null)")
    data, betas = config.data, config.optim.betas
    protocol = Protocol.parse(data.protocol)
    protocol.check_fold(data.fold, data.folds)
    if data.cache == "":
        raise UsageError("data.cache is empty: name a folder, or leave it out (data.cache=null) to read the files")
    if data.group_by == "segment" and not protocol.draws_test:
        raise UsageError(
            f"data.group_by=segment with data.protocol={data.protocol}: a published split keeps its recordings whole; "
            "measure the effect of splitting at random into segments with paper or kfold"
        )
    if data.group_by == "segment" and data.cache is not None:
        raise UsageError(
            f"data.group_by=segment reads the files themselves, since a cache ({data.cache}) holds whole clips: leave "
            "data.cache out (data.cache=null)"
        )
    if config.patience is not None and not protocol.has_validation:
        raise UsageError(
            f"patience={config.patience} needs a validation part, which data.protocol={data.protocol} does not have: "
            f"set data.protocol={protocol.with_validation}, or leave patience out (patience=null)"
        )
    if config.tracking.media and not (config.tracking.trackers and protocol.has_validation):
        raise UsageError(
            f"tracking.media={config.tracking.media} logs validation clips to a tracker: it needs tracking.trackers, "
            f"e.g. [tensorboard], and a protocol with a validation part, e.g. data.protocol={protocol.with_validation}"
        )
    if config.batch_size % config.grad_accumulation:
        raise UsageError(
            f"grad_accumulation={config.grad_accumulation} does not divide batch_size={config.batch_size}: batch_size "
            "counts the clips of a whole optimiser step; choose a grad_accumulation that divides it"
        )
    _check_augment(config.augment, data)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"optim.betas={list(betas)} must hold two numbers in [0, 1), e.g. [0.9, 0.999]")


def _check_augment(augment: AugmentConfig, data: DataConfig) -> None:
    """Check the rules between the augmentations, and between them and the crops."""
    augment.noise_snr_db = tuple(map(float, augment.noise_snr_db))  # [12, 24] and [12.0, 24.0] are one run
    if augment.mixup_probability > 0 and augment.between_class_probability > 0:
        raise UsageError(
            f"augment.mixup_probability={augment.mixup_probability} and "
            f"augment.between_class_probability={augment.between_class_probability} are two ways to mix a clip with "
            "another: set one of them to 0"
        )
    if augment.avoid_silence and data.crop != "random":
        raise UsageError(
            f"augment.avoid_silence=true with data.crop={data.crop}: only random crops can be drawn again; set "
            "data.crop=random, or augment.avoid_silence=false"
        )
