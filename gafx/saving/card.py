"""The model card (README.md) of a saved model, made from its `ModelInfo`."""

from collections.abc import Mapping
from typing import Any

from gafx.saving.info import ModelInfo

# Data sets that others know under this name; `folder` or `synthetic` would say nothing on a hub.
_PUBLISHED_DATA = ("gtzan", "esc", "fma", "audioset")


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
    return "\n".join([*lines, f"- start: {_plain(info.provenance.describe())}"])


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
