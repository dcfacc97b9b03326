"""One page that shows what was measured: scores with intervals, curves, confusions and what the classifier read.

The page is one file: its pictures stand inside it, it runs no script and loads nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report import figures, svg
from gafx.report.html import cell, label, lowered, tick_form, write_page
from gafx.saving.info import Provenance

Array = npt.NDArray[Any]

_BESIDE = 12  # classes up to which the per-class table stands beside the confusion matrix
_PARTS = ("frontend", "classifier", "objective")
_SETTINGS = (
    *_PARTS,
    "data",
    "protocol",
    "group_by",
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
        seconds: length of the segment shown.
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
    if not sections:
        raise ValueError("a report of no models says nothing; pass one Section per evaluated model")

    ranges = [
        svg.colour_range([getattr(picture, kind) for section in sections for picture in section.pictures])
        for kind in ("feature_map", "mel")
    ]
    order = list(sections[0].result.get("classes") or [])
    models = [_model(index, section, order, ranges) for index, section in enumerate(sections)]
    return write_page(
        path,
        "report.html.j2",
        title=title,
        models=models,
        measured=_distinct((model["name"], _measured(model["result"])) for model in models),
        intervals=_distinct((model["name"], _intervals(model["result"])) for model in models),
        score_names=_union(model["result"].get("scores", {}).get("track", {}) for model in models),
        overview=_overview(models),
        colour_bar=svg.colour_bar(),
        map_range=ranges[0],
        mel_range=ranges[1],
    )


def _model(index: int, section: Section, order: list[str], ranges: list[tuple[float, float]]) -> dict[str, Any]:
    """What the template shows of one model: its result in the page's class order, and its figures as SVG."""
    result = _in_order(section.result, order)
    runs = _run_names(result, len(section.curves))
    key = next((key for curve in section.curves for record in curve for key in record if "validation_" in key), "")
    bins = result.get("calibration_bins")
    confusion = result.get("confusion")
    start = Provenance.from_dict(result).describe()
    return {
        "name": str(result.get("name", f"model {index + 1}")),
        "colour": svg.model_colour(index),
        "result": result,
        "parts": " → ".join(_part(result[part]) for part in ("frontend", "classifier") if result.get(part)),
        "start": start,
        "scores": result.get("scores", {}),
        "score_names": _union(result.get("scores", {}).values()),
        "cost": result.get("cost") or {},
        "classes": _best_first(result.get("per_class") or []),
        "class_columns": _union(result.get("per_class") or []),
        "fold_columns": _union(result.get("per_fold") or []),
        "skipped": result.get("skipped") or [],
        "settings": {"start": start} | {name: result[name] for name in _SETTINGS if name in result},
        "runs": runs,
        "loss": figures.learning_curves(section.curves, runs),
        "validation": figures.validation_curves(section.curves, runs, key, lowered(label(key)), tick_form(key)),
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
    return figures.score_plot(rows, lowered(label(name)) + ", tracks", tick_form(name)) if name else ""


def _measured(result: dict[str, Any]) -> str:
    """What the numbers are about: data, protocol, folds, part and how many tracks, groups and segments."""
    folds, seconds = result.get("folds"), result.get("segment_seconds")
    counts = [f"{cell(result[key])} {key}" for key in ("tracks", "groups", "segments") if result.get(key) is not None]
    said = [
        f"{result['data']} data" if result.get("data") else "",
        f"{result['protocol']} protocol" if result.get("protocol") else "",
        "segments of tracks taken for recordings" if result.get("group_by") == "segment" else "",
        f"{'folds' if len(folds) > 1 else 'fold'} {', '.join(map(str, folds))}" if folds else "",
        f"{result['part']} part" if result.get("part") else "",
        *counts[:-1],
        counts[-1] + (f" of {seconds:g} s" if seconds and "segments" in counts[-1] else "") if counts else "",
    ]
    return " · ".join(filter(None, said))


def _intervals(result: dict[str, Any]) -> str:
    """How the intervals of the track scores were found, scores of the same way together."""
    ways: dict[str, list[str]] = {}
    for name, score in result.get("scores", {}).get("track", {}).items():
        if score and score.get("interval"):
            ways.setdefault(score["interval"], []).append(label(name))
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
