"""The model card (README.md) of a saved model, made from its `ModelInfo`."""

from collections.abc import Mapping
from typing import Any

from gafx.registry import is_multi_label, is_published, length_unit, reads_labels
from gafx.report import format as fmt
from gafx.saving.info import ModelInfo

CROSS_VALIDATED = "cross-validated accuracy"  # key of `ModelInfo.training`
_TASK = "audio-classification"
# Scores that the hub knows by other names: ours -> type and arguments there.
_HUB_METRICS: dict[str, tuple[str, dict[str, str]]] = {
    "macro_f1": ("f1", {"average": "macro"}),
    "mean_auc": ("roc_auc", {"average": "macro"}),
}
_INHERITED = "terms-of-the-training-data"


def model_card(info: ModelInfo, source: str = "path/to/this/folder") -> str:
    """The model card as Markdown, with the YAML metadata that the hub reads.

    Args:
        info: of the model.
        source: argument of `gafx.load` in the card's example: a hub repository or a folder.
    """
    data = str(info.training.get("data", ""))
    name = f"{info.frontend.get('name', 'front-end')} + {info.classifier['name']}{f' on {data}' if data else ''}"
    sections = [
        f"---\n{_metadata(info, name, data)}\n---\n\n# {_plain(name)}",
        f"Waveform to labels: a `gafx` model (version {info.gafx_version}) of a front-end that turns waves into maps "
        "and a classifier that reads the maps.",
        _example(info, source),
        "## Model\n\n" + _model_lines(info),
        "## Labels\n\n" + ", ".join(f"`{_code(label)}`" for label in info.classes),
        "## Training\n\n" + _training_lines(info),
        "## Scores\n\n" + _score_lines(info),
        *(["## Calibration\n\n" + _calibration_lines(info)] if reads_labels(info.objective) else []),
        "## Licence\n\n" + _licence_lines(info),
    ]
    return "\n\n".join(sections) + "\n"


def _example(info: ModelInfo, source: str) -> str:
    wave = f"wave: (batch, {info.channels}, samples) in [-1, 1] at {info.sample_rate} Hz"
    if length_unit(info.frontend) == "tokens":
        wave = "wave: (batch, 1, tokens), numbers of words of model.info.classes"
    if not reads_labels(info.objective):
        lines = ["import gafx", "", f"model = gafx.load({source!r})", f"maps = model.features(wave)  # {wave}"]
    else:
        meaning = "a probability for each label" if is_multi_label(info.objective) else "probabilities that sum to 1"
        calibrated = " calibrated" if info.calibration else ""
        lines = [
            "import gafx", "from gafx.inference import Probabilities", "",
            f'for found in gafx.predict("recording.wav", {source!r}):',
            f"    print(found.file, found.top(3))  # the three first labels with their{calibrated} probabilities", "",
            f"model = Probabilities(gafx.load({source!r}))",
            f"probabilities = model(wave)  # {wave}; {meaning}",
        ]  # fmt: skip
    return "```sh\npip install gafx\n```\n\n```python\n" + "\n".join(lines) + "\n```"


def _licence_lines(info: ModelInfo) -> str:
    gafx = "gafx itself is under the MIT licence."
    if info.license:
        return f"The weights: `{_code(info.license)}`, as stated by those who published or saved them. {gafx}"
    return (
        "Not stated. The weights are made from the data named above and inherit their terms; so do weights that "
        f"training began from. {gafx}"
    )


def _metadata(info: ModelInfo, name: str, data: str) -> str:
    """The YAML block at the top of the card; scores are fractions."""
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    on = info.evaluated_on
    results = [
        EvalResult(
            task_type=_TASK, task_name="Audio classification", dataset_type=on["data"], dataset_split="test",
            dataset_name=f"{on['data']}, {_test_part(on).replace('`', '')}", metric_type=_hub_metric(metric)[0],
            metric_args=_hub_metric(metric)[1], metric_name=fmt.lowered(fmt.label(metric)),
            metric_value=round(score["value"], 4),
        )
        for metric, score in info.scores.items()
        if score["value"] is not None
    ]  # fmt: skip
    parts = (info.provenance.frontend, info.provenance.classifier)
    started_from = list(dict.fromkeys(part.hub_id for part in parts if part.hub_id))
    return ModelCardData(
        license=info.license or "other", license_name=None if info.license else _INHERITED, library_name="gafx",
        pipeline_tag=_TASK, base_model=started_from or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["gafx", "audio", _TASK, *(part["name"] for part in (info.frontend, info.classifier) if part)],
        datasets=[data] if is_published(data) else None, model_name=name if results else None,
        eval_results=results or None,
    ).to_yaml()  # fmt: skip


def _hub_metric(name: str) -> tuple[str, dict[str, str] | None]:
    """The type of a score on the hub, and its arguments."""
    return _HUB_METRICS.get(name, (name, None))


def _model_lines(info: ModelInfo) -> str:
    shape = " x ".join(map(str, info.map_shape))
    if length_unit(info.frontend) == "tokens":
        return "\n".join([
            f"- front-end: {_part(info.frontend)}",
            f"- classifier: {_part(info.classifier)}",
            f"- clips: built for {info.segment_seconds:g} tokens; other lengths work too",
            f"- vocabulary: {fmt.plural(len(info.classes), 'word')}, objective `{info.objective}`",
        ])  # fmt: skip
    return "\n".join([
        f"- front-end: {_part(info.frontend)}",
        f"- classifier: {_part(info.classifier)}",
        f"- waves: {info.sample_rate} Hz, {fmt.plural(info.channels, 'channel')}, built for {info.segment_seconds:g} s;"
        " other lengths work too",
        f"- map of such a wave: {shape} (channels x frequency x time)",
        f"- outputs: {fmt.plural(len(info.classes), 'label')}, objective `{info.objective}`",
    ])  # fmt: skip


def _training_lines(info: ModelInfo) -> str:
    known = dict(info.training)
    data = known.pop("data", None)
    lines = [f"- data: {_plain(str(data)) if data else 'not recorded'}"]
    lines += [f"- {key.replace('_', ' ')}: {_plain(str(value))}" for key, value in known.items()]
    return "\n".join([*lines, f"- start: {_plain(info.provenance.describe())}"])


def _score_lines(info: ModelInfo) -> str:
    if not info.scores:
        if CROSS_VALIDATED in info.training:
            return "Not of these weights: the cross-validated accuracy above is of heads fitted on the other folds."
        return "Not evaluated yet."
    on = info.evaluated_on
    rows = [
        f"| {fmt.lowered(fmt.label(name))} | {fmt.number(score['value'], name)} | "
        f"{fmt.interval(score.get('low'), score.get('high'), name)} | {_plain(score.get('interval') or 'none')} |"
        for name, score in info.scores.items()
    ]
    return "\n".join([
        f"On {fmt.plural(on['tracks'], 'track')} ({fmt.plural(on['recordings'], 'recording')}) of the {on['part']} "
        f"part of {_plain(on['data'])}, {_test_part(on)}. The scores are those of these weights alone.",
        "", "| metric | value | 95 % interval | how |", "|---|---|---|---|", *rows,
    ])  # fmt: skip


def _test_part(on: Mapping[str, Any]) -> str:
    """Protocol, fold and split seed of the evaluated test part."""
    of = f" of {on['folds']}" if on.get("folds") else ""
    fold = f", fold {on['fold']}{of}" if on.get("fold") else ""
    seed = f", split seed {on['split_seed']}" if on.get("split_seed") is not None else ""
    segments = ", segments of tracks taken for recordings (inflated)" if on.get("group_by") == "segment" else ""
    return f"protocol `{on['protocol']}`{fold}{seed}{segments}"


def _calibration_lines(info: ModelInfo) -> str:
    if not info.calibration:
        return "None: probabilities are computed from the outputs without a temperature."
    text = describe_calibration(info.calibration)
    return f"{text[0].upper()}{text[1:]}. `gafx predict` and exported models use it, and so does the example above."


def describe_calibration(calibration: Mapping[str, Any]) -> str:
    """Describe the temperature, the tracks it was fitted on, and loss and calibration error before and after."""
    tracks = fmt.plural(calibration["tracks"], f"{_plain(calibration['part'])} track")
    before, after = calibration.get("before", {}), calibration.get("after", {})
    changes = [
        f"{fmt.lowered(fmt.label(name))} {fmt.number(before[name], name)} -> {fmt.number(after[name], name)}"
        for name in ("loss", "calibration_error")
        if name in before and name in after
    ]
    text = f"temperature {calibration['temperature']:.3g}, fitted on {tracks}"
    if before.get("loss", 0.0) < after.get("loss", 0.0):
        changes.append("higher since the labels are smoothed as by one further track of unknown label")
    return f"{text} ({', '.join(changes)} there)" if changes else text


def _part(part: Mapping[str, Any]) -> str:
    arguments = fmt.setting({key: value for key, value in part.items() if key not in ("name", "pretrained")})
    name = f"`{part['name']}`" if part else "built by its class"
    return f"{name} ({_plain(arguments)})" if arguments else name


def _code(text: str) -> str:
    """Text for between two backticks: one line, no backticks."""
    return " ".join(text.split()).replace("`", "'") or " "


def _plain(text: str) -> str:
    """Text escaped for a Markdown table: no HTML, no column separators."""
    return _code(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
