"""One page that shows what was measured: scores with intervals, curves, confusions and what the classifier read.

The page is one file: its pictures stand inside it, it runs no script and loads nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx import __version__
from gafx.card import start_words
from gafx.evaluation import figures
from gafx.files import write_text

Array = npt.NDArray[Any]

_LABELS = {
    "macro_f1": "Macro-F1",
    "f1": "F1",
    "auc": "AUC",
    "mean_auc": "Mean AUC",
    "d_prime": "d′",
    "mean_absolute_error_db": "Mean absolute error, dB",
    "labels_tested": "Labels that occur",
    "frontend": "Front-end",
    "imagenet": "ImageNet",
    "started_from": "Start",
    "segment_seconds": "Seconds a piece",
    "flops_per_clip": "FLOPs per clip",
    "clips_per_second": "Clips per second",
    "frontend_parameters": "Front-end parameters",
    "peak_memory_bytes": "Peak memory",
    "train_seconds": "Training time",
    "train_steps": "Training steps",
}
_PERCENT = ("accuracy",)
_BESIDE = 12  # classes up to which the per-class table stands beside the confusion matrix
_PARTS = ("frontend", "classifier", "imagenet", "started_from", "objective")
_SETTINGS = (
    *_PARTS,
    "data",
    "protocol",
    "folds",
    "split_seed",
    "seed",
    "part",
    "labels_tested",
    "segment_seconds",
    "runs",
    "run_ids",
)


@dataclass(frozen=True)
class MapPicture:
    """A clip's front-end map beside its mel spectrogram.

    Attributes:
        clip: relative path; may hold characters that are no UTF-8.
        label: true label or labels.
        prediction: what is said of it, e.g. "predicted blues (81.0 %)".
        seconds: length of the piece shown.
        wave: `(samples,)` float32, mono.
        feature_map: `(parts, frequency, time)` float32: what the classifier read, its channels or planes; lowest
            frequency first.
        mel: `(frequency, time)` float32 log-mel, lowest frequency first.
    """

    clip: str
    label: str
    prediction: str
    seconds: float
    wave: Array
    feature_map: Array
    mel: Array


@dataclass(frozen=True)
class Section:
    """One evaluated model, a row of the table.

    Attributes:
        result: as in result.json.
        curves: the records of metrics.jsonl of each run, in the order of the result's runs.
        pictures: clips to show.
    """

    result: dict[str, Any]
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    pictures: list[MapPicture] = field(default_factory=list)


def write_report(path: Path, sections: Sequence[Section], *, title: str) -> Path:
    """Write the page about one or more evaluated models, and return its path.

    Models of the same classes are shown in the class order of the first, and their maps on one colour scale.

    Args:
        path: of the HTML file; its folder is made where it is missing.
        sections: the models, in the order of the table.
        title: of the page.

    Raises:
        ValueError: there is no section.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if not sections:
        raise ValueError("a report of no models says nothing; pass one Section per evaluated model")

    def finalize(value: Any) -> Any:
        if value is None:
            return "–"
        return figures.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(label=_label, cell=_cell, score=_score, bounds=_bounds, setting=_setting)
    ranges = [
        figures.colour_range([getattr(picture, kind) for section in sections for picture in section.pictures])
        for kind in ("feature_map", "mel")
    ]
    order = list(sections[0].result.get("classes") or [])
    models = [_model(index, section, order, ranges) for index, section in enumerate(sections)]
    page = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        models=models,
        measured=_distinct((model["name"], _measured(model["result"])) for model in models),
        intervals=_distinct((model["name"], _intervals(model["result"])) for model in models),
        score_names=_union(model["result"].get("scores", {}).get("track", {}) for model in models),
        overview=_overview(models),
        colour_bar=figures.colour_bar(),
        map_range=ranges[0],
        mel_range=ranges[1],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _model(index: int, section: Section, order: list[str], ranges: list[tuple[float, float]]) -> dict[str, Any]:
    """What the template shows of one model: its result in the page's class order, and its figures as SVG."""
    result = _in_order(section.result, order)
    runs = _run_names(result, len(section.curves))
    key = next((key for curve in section.curves for record in curve for key in record if "validation_" in key), "")
    bins = result.get("calibration_bins")
    confusion = result.get("confusion")
    return {
        "name": str(result.get("name", f"model {index + 1}")),
        "colour": figures.model_colour(index),
        "result": result,
        "parts": " → ".join(_part(result[part]) for part in ("frontend", "classifier") if result.get(part)),
        "start": start_words(
            result.get("started_from") or {"classifier": "ImageNet" if result.get("imagenet") else ""}
        ),
        "scores": result.get("scores", {}),
        "score_names": _union(result.get("scores", {}).values()),
        "cost": result.get("cost") or {},
        "classes": _best_first(result.get("per_class") or []),
        "class_columns": _union(result.get("per_class") or []),
        "fold_columns": _union(result.get("per_fold") or []),
        "skipped": result.get("skipped") or [],
        "settings": {name: result[name] for name in _SETTINGS if name in result},
        "runs": runs,
        "loss": figures.learning_curves(section.curves, runs),
        "validation": figures.validation_curves(section.curves, runs, key, _lowered(_label(key)), _tick_form(key)),
        "reliability": figures.reliability(bins) if bins else "",
        "confusion": figures.confusion_matrix(np.asarray(confusion), result["classes"]) if confusion else "",
        "beside": len(result.get("classes") or []) <= _BESIDE,
        "pictures": [
            (picture, figures.map_picture(picture.wave, picture.feature_map, picture.mel, picture.seconds, *ranges))
            for picture in section.pictures
        ],
    }


def _in_order(result: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """The result with its classes in this order, where they are the same classes; otherwise as it is."""
    classes = list(result.get("classes") or [])
    if classes == order or sorted(classes) != sorted(order) or len(set(order)) < len(order):
        return result
    moved = dict(result, classes=order)
    if result.get("confusion"):
        places = [classes.index(name) for name in order]
        moved["confusion"] = np.asarray(result["confusion"])[np.ix_(places, places)].tolist()
    if all(entry.get("class") in order for entry in result.get("per_class") or []):
        moved["per_class"] = sorted(result.get("per_class") or [], key=lambda entry: order.index(entry["class"]))
    return moved


def _best_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels of a tagger from the best to the worst, those that do not occur last; classes of others as they are."""
    if not any("average_precision" in row for row in rows):
        return rows
    return sorted(rows, key=lambda row: -1.0 if row["average_precision"] is None else row["average_precision"])[::-1]


def _overview(models: Sequence[dict[str, Any]]) -> str:
    """The plot below the headline table: the first track score that the models have in common with the first one."""
    name = next(iter(models[0]["scores"].get("track", {})), "")
    rows = [
        (model["name"], model["scores"].get("track", {}).get(name) or {}, model["result"].get("chance"))
        for model in models
    ]
    return figures.score_plot(rows, _lowered(_label(name)) + ", tracks", _tick_form(name)) if name else ""


def _measured(result: dict[str, Any]) -> str:
    """What the numbers are about: data, protocol, folds, part and how many tracks, groups and pieces."""
    folds, seconds = result.get("folds"), result.get("segment_seconds")
    counts = [f"{_cell(result[key])} {key}" for key in ("tracks", "groups", "pieces") if result.get(key) is not None]
    said = [
        f"{result['data']} data" if result.get("data") else "",
        f"{result['protocol']} protocol" if result.get("protocol") else "",
        f"{'folds' if len(folds) > 1 else 'fold'} {', '.join(map(str, folds))}" if folds else "",
        f"{result['part']} part" if result.get("part") else "",
        *counts[:-1],
        counts[-1] + (f" of {seconds:g} s" if seconds and "pieces" in counts[-1] else "") if counts else "",
    ]
    return " · ".join(filter(None, said))


def _intervals(result: dict[str, Any]) -> str:
    """How the intervals of the track scores were found, scores of the same way together."""
    ways: dict[str, list[str]] = {}
    for name, score in result.get("scores", {}).get("track", {}).items():
        if score and score.get("interval"):
            ways.setdefault(score["interval"], []).append(_label(name))
    return "; ".join(f"{' and '.join(names)}: {way}" for way, names in ways.items())


def _run_names(result: dict[str, Any], number: int) -> list[str]:
    folds = result.get("folds") or []
    return [f"fold {folds[run]}" if len(folds) == number else f"run {run + 1}" for run in range(number)]


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    return " ".join(str(part[key]) for key in ("name", "size") if part.get(key))


def _distinct(said: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(models, statement) pairs; one that holds for all models names none of them."""
    statements: dict[str, list[str]] = {}
    for name, statement in said:
        statements.setdefault(statement, []).append(name)
    alone = len(statements) == 1
    return [("" if alone else ", ".join(names), statement) for statement, names in statements.items() if statement]


def _union(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _label(key: str) -> str:
    text = key.removeprefix("validation_")
    words = _LABELS.get(text, text.replace("_", " "))
    if text != key:
        return "Validation " + words[:1].lower() + words[1:]
    return words if text in _LABELS else words[:1].upper() + words[1:]


def _lowered(label: str) -> str:
    """A label inside a sentence: abbreviations and units stay as they are."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def _tick_form(key: str) -> str:
    return "{:.0%}" if key.removeprefix("validation_") in _PERCENT else "{:g}"


def _score(value: Any, name: str) -> str | None:
    """A score as it is printed: shares in percent, all else to three decimals; None, shown as a dash, for no number."""
    if not figures.is_number(value):
        return None
    return f"{100 * value:.1f} %" if name in _PERCENT else f"{value:.3f}"


def _bounds(score: dict[str, Any], name: str) -> str:
    """The interval of a score, or an empty string where it has none."""
    low, high = _score(score.get("low"), name), _score(score.get("high"), name)
    return f"{low.removesuffix(' %')}–{high}" if low and high else ""


def _cell(value: Any, name: str = "") -> str | None:
    """Any other value of a result as it is printed, by its name and its type; None, shown as a dash, for no value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not figures.is_number(value):
        return None
    if name in _PERCENT:
        return _score(value, name)
    if name.endswith("parameters") or name.startswith("flops"):
        return _scaled(float(value))
    if name.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
    if name.endswith("_seconds") and name != "segment_seconds":
        return _duration(float(value))
    if name.endswith("per_second"):
        return f"{value:.1f}" if value < 1000 else f"{value:,.0f}".replace(",", "\u202f")
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f") if name not in ("fold", "seed") else f"{int(value)}"
    return f"{value:.3f}"


def _scaled(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _setting(value: Any) -> str:
    """A value of the configuration on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)
