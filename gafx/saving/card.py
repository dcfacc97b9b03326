"""What travels with a model: `ModelInfo`, which is its config.json, and the model card made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from gafx._version import __version__

# Data sets that others know under this name; `folder` or `synthetic` would say nothing on a hub.
_PUBLISHED_DATA = ("gtzan", "esc", "fma", "audioset")
_PLAIN_STARTS = ("", "random", "fixed")


@dataclass
class ModelInfo:
    """How to rebuild a model, what its outputs mean, where it comes from and what it scores.

    Attributes:
        frontend: name and arguments; empty where the front-end was built by its class, not by `create_frontend`.
        classifier: name and arguments.
        classes: label of each output.
        segment_seconds: length of the clips that it was built for.
        sample_rate: of the waves, in Hz.
        channels: of the waves.
        map_shape: (channels, frequency, time) of the map of one segment.
        objective: `classify` (softmax) or `tag` (a sigmoid for each label), or another by name.
        imagenet: whether the classifier began from ImageNet weights.
        started_from: what `frontend` and `classifier` began from: `random`, `fixed` (nothing to learn), `ImageNet`,
            `AudioSet` or the name of a model, never a path.
        training: data set, protocol, fold, seed, steps and the like; empty where it was not trained by train.py.
        scores: metric -> value, low, high, interval, on the tracks of the test part; empty where not evaluated.
        evaluated_on: data set, protocol, fold, number of tracks, and the digest of the weights that were scored.
        calibration: what makes probabilities of the outputs honest, fitted on validation tracks (`temperature`,
            by which outputs are divided; `part`, `tracks`; loss and calibration error `before` and `after`), and the
            digest of the weights it was fitted for; empty where that was not done.
        gafx_version: that wrote it.
    """

    frontend: dict[str, Any]
    classifier: dict[str, Any]
    classes: list[str]
    segment_seconds: float
    sample_rate: int
    channels: int
    map_shape: list[int]
    objective: str = "classify"
    imagenet: bool = False
    started_from: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluated_on: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    gafx_version: str = __version__

    @property
    def temperature(self) -> float:
        """What outputs are divided by before they become probabilities; 1 where none was fitted."""
        return float(self.calibration.get("temperature", 1.0))

    def __post_init__(self) -> None:
        if not self.started_from:  # written by gafx before it was recorded
            self.started_from = {"frontend": "random", "classifier": "ImageNet" if self.imagenet else "random"}


def source_name(source: object) -> str:
    """A plain word for where weights came from: the last part of a path or of a repository's id that says something."""
    path = PurePath(str(source))
    while path.name in ("model", "model.safetensors") and path.parent.name:
        path = path.parent
    return path.name or "another model"


def start_of(arguments: Mapping[str, Any], published: str) -> str:
    """What a part with these arguments begins from; `published` is what `pretrained=true` stands for."""
    source = arguments.get("pretrained", False)
    if source is False or source is None:
        return "random"
    if source is True:
        return published
    return "AudioSet" if source == "audioset" else source_name(source)


def start_words(started_from: Mapping[str, str]) -> str:
    """`random`, or what classifier and front-end began from, e.g. `ImageNet, front-end from hdemucs_mmi`."""
    classifier, frontend = started_from.get("classifier", "random"), started_from.get("frontend", "random")
    said = [] if classifier in _PLAIN_STARTS else [classifier]
    if frontend not in _PLAIN_STARTS:
        said.append(f"front-end from {frontend}")
    return ", ".join(said) or "random"


def model_card(info: ModelInfo, source: str = "path/to/this/folder") -> str:
    """The model card (README.md), with the YAML front matter that the hub reads.

    Args:
        info: of the model.
        source: what `gafx.load` is called with in the example: the hub's id, or a folder.
    """
    import yaml

    data = str(info.training.get("data", ""))
    name = f"{info.frontend.get('name', 'front-end')} + {info.classifier['name']}{f' on {data}' if data else ''}"
    front: dict[str, Any] = {
        "library_name": "gafx",
        "pipeline_tag": "audio-classification",
        "tags": ["gafx", "audio", "audio-classification", *(p["name"] for p in (info.frontend, info.classifier) if p)],
    }
    if data in _PUBLISHED_DATA:
        front["datasets"] = [data]
    if results := _results(info):
        front["model-index"] = [{"name": name, "results": results}]
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    least = "softmax(-1)" if info.objective != "tag" else "sigmoid()"
    sections = [
        f"---\n{matter}---\n\n# {_plain(name)}",
        f"Waveform in, label out: a `gafx` model (version {info.gafx_version}) of a front-end that turns waves into "
        "maps and a classifier that reads them.",
        "```python\nimport gafx\n"
        f"model = gafx.load({source!r})\n"
        f"probabilities = model(wave).{least}  # wave: (batch, {info.channels}, samples) in [-1, 1] at "
        f"{info.sample_rate} Hz\n```",
        "## Model\n\n" + _model_lines(info),
        "## Labels\n\n" + ", ".join(f"`{_code(label)}`" for label in info.classes),
        "## Training\n\n" + _training_lines(info),
        "## Scores\n\n" + _score_lines(info),
        *(["## Calibration\n\n" + _calibration_lines(info)] if info.objective != "mel_regression" else []),
        "## Licence\n\nThe weights are made from the data named above and inherit their terms; so do weights that "
        "training began from. gafx itself is under the MIT licence.",
    ]
    return "\n\n".join(sections) + "\n"


def _model_lines(info: ModelInfo) -> str:
    shape = " x ".join(map(str, info.map_shape))
    return "\n".join([
        f"- front-end: {_part(info.frontend)}",
        f"- classifier: {_part(info.classifier)}",
        f"- waves: {info.sample_rate} Hz, {info.channels} channel{'s' if info.channels > 1 else ''}, built for "
        f"{info.segment_seconds:g} s; other lengths work too",
        f"- map of such a wave: {shape} (channels x frequency x time)",
        f"- outputs: {len(info.classes)} labels, objective `{info.objective}`",
    ])  # fmt: skip


def _training_lines(info: ModelInfo) -> str:
    known = dict(info.training)
    data = known.pop("data", None)
    lines = [f"- data: {_plain(str(data)) if data else 'not recorded'}"]
    lines += [f"- {key.replace('_', ' ')}: {_plain(str(value))}" for key, value in known.items()]
    start = start_words(info.started_from)
    return "\n".join([*lines, f"- start: {'random' if start == 'random' else _plain(start)}"])


def _score_lines(info: ModelInfo) -> str:
    if not info.scores:
        return "Not evaluated yet."
    on = info.evaluated_on
    rows = [
        f"| {name.replace('_', ' ')} | {_number(score['value'])} | "
        + ("–" if score.get("low") is None else f"{_number(score['low'])} to {_number(score['high'])}")
        + f" | {_plain(score.get('interval') or 'none')} |"
        for name, score in info.scores.items()
    ]
    return "\n".join([
        f"On {on['tracks']} tracks ({on['recordings']} recordings) of the {on['part']} part of {_plain(on['data'])}, "
        f"{_where(on)}. They are the scores of these weights alone, whatever other folds were evaluated beside them.",
        "", "| metric | value | 95 % interval | how |", "|---|---|---|---|", *rows,
    ])  # fmt: skip


def _calibration_lines(info: ModelInfo) -> str:
    if not info.calibration:
        return "None: the probabilities are those of the outputs as they are."
    words = calibration_words(info.calibration)
    return f"{words[0].upper()}{words[1:]}. `gafx predict` and exported models use it; the example above does not."


def calibration_words(calibration: Mapping[str, Any]) -> str:
    """A calibration in a sentence: the temperature, what it was fitted on, and what it changes there."""
    words = (
        f"temperature {calibration['temperature']:.3g}, fitted on {calibration['tracks']} "
        f"{_plain(calibration['part'])} tracks"
    )
    before, after = calibration.get("before", {}), calibration.get("after", {})
    changes = [
        f"{name.replace('_', ' ')} {_number(before[name])} -> {_number(after[name])}"
        for name in ("loss", "calibration_error")
        if name in before and name in after
    ]
    return f"{words} ({', '.join(changes)} there)" if changes else words


def _where(on: Mapping[str, Any]) -> str:
    of = f" of {on['folds']}" if on.get("folds") else ""
    fold = f", fold {on['fold']}{of}" if on.get("fold") else ""
    seed = f", split seed {on['split_seed']}" if on.get("split_seed") is not None else ""
    segments = ", segments of tracks taken for recordings (inflated)" if on.get("group_by") == "segment" else ""
    return f"protocol `{on['protocol']}`{fold}{seed}{segments}"


def _results(info: ModelInfo) -> list[dict[str, Any]]:
    if not info.scores:
        return []
    on = info.evaluated_on
    return [
        {
            "task": {"type": "audio-classification", "name": "Audio classification"},
            "dataset": {"name": f"{on['data']}, {_where(on).replace('`', '')}", "type": on["data"], "split": "test"},
            "metrics": [
                {"type": name, "value": round(score["value"], 4), "name": name.replace("_", " ")}
                for name, score in info.scores.items()
                if score["value"] is not None
            ],
        }
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _part(part: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in part.items() if key not in ("name", "pretrained"))
    name = f"`{part['name']}`" if part else "built by its class"
    return f"{name} ({_plain(arguments)})" if arguments else name


def _code(text: str) -> str:
    """Text that stays what it is between two backticks."""
    return " ".join(text.split()).replace("`", "'") or " "


def _plain(text: str) -> str:
    """Text that neither Markdown nor HTML takes for anything else."""
    return _code(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
