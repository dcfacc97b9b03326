"""The report of an evaluation: an HTML page per evaluated folder, and the table for the terminal.

The page is one file with inline figures: scores with intervals, learning curves, confusion matrix, per-class scores,
misjudged tracks to listen to, front-end maps, cost, configuration, leaks and skipped files.
"""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from gafx.data.leaks.describe import headline
from gafx.data.protocols import Protocol
from gafx.data.segments import NOTE
from gafx.evaluation.misjudged import FILE as LABEL_ERRORS
from gafx.evaluation.misjudged import Misjudged
from gafx.evaluation.result import Evaluation, Result, Section
from gafx.registry import length_unit
from gafx.report import figures, svg
from gafx.report import format as fmt
from gafx.report.html import read_script, write_page
from gafx.stats.label_errors import PLANTED

_MAX_SIDE_BY_SIDE = 12  # classes up to which the per-class table is placed next to the confusion matrix
_LEAST_WRONG = 10  # label errors from which their number says more than their fraction
_SETTINGS = (
    "frontend", "classifier", "objective", "data", "protocol", "group_by", "folds",
    "split_seed", "seed", "part", "labels_tested", "segment_seconds", "runs", "run_ids",
)  # fmt: skip

_OF_ONE_MODEL = ("frontend", "classifier", "seed")  # settings that an ensemble does not have


def write_reports(evaluations: Sequence[Evaluation]) -> str:
    """Write report.html of each evaluation; return the table of the last one as text (empty without evaluations)."""
    for evaluation in evaluations:
        names = " and ".join(dict.fromkeys(result.name for result in evaluation.results))
        title = f"{evaluation.results[0].data}: {names}"
        write_report(evaluation.folder / "report.html", evaluation.sections, title=title)
    return table(evaluations[-1]) if evaluations else ""


def table(evaluation: Evaluation) -> str:
    """The table for a terminal: data, protocol and sample size above, a line per model, notes and report below."""
    results = evaluation.results
    first = results[0]
    names = list(first.track_scores)[: 2 if first.confusion else 3]
    header = ["model", "tracks", *(fmt.lowered(fmt.label(name)) for name in names), "training", "segments/s"]
    lines = [
        [
            f"{result.name} ({_start(result)})",
            str(result.tracks),
            *(fmt.score(result.track_scores.get(name), name) for name in names),
            *([fmt.duration(result.cost.train_seconds), fmt.cell(result.cost.clips_per_second, "clips_per_second")]
              if result.cost else [fmt.NONE] * 2),
        ]
        for result in results
    ]  # fmt: skip
    return "\n".join([
        _tested(first), fmt.text_table(header, lines), *_notes(results), f"report: {evaluation.folder / 'report.html'}",
    ])  # fmt: skip


def _start(result: Result) -> str:
    if result.members:
        return f"mean of {fmt.plural(len(result.members), 'model')}"
    return "random start" if result.provenance.is_random else result.provenance.describe()


def _tested(first: Result) -> str:
    classes = fmt.plural(len(first.classes), "class", "classes")
    if not first.labels_tested:
        classes = "labels not read"
    elif first.labels_tested < len(first.classes):
        classes = f"{first.labels_tested} of {classes} occur"
    parts = [
        first.data, Protocol.parse(first.protocol).label(first.split_seed), *_folds(first), "test part",
        f"{first.groups} {'segments taken for recordings' if first.by_segment else 'recordings'}", classes,
        *([f"chance {fmt.number(first.chance, 'chance')}"] if first.chance else []), *_views(first),
    ]  # fmt: skip
    return f"{', '.join(parts)}; 95 % intervals"


def _folds(result: Result) -> list[str]:
    if not result.folds:
        return []
    return [f"{'folds' if len(result.folds) > 1 else 'fold'} {', '.join(map(str, result.folds))}"]


def _views(result: Result) -> list[str]:
    return [f"mean over {result.views} views (circular shifts) of each segment"] if result.views > 1 else []


def _notes(results: Sequence[Result]) -> list[str]:
    first, skipped = results[0], sum(len(result.skipped) for result in results)
    notes = [f"{fmt.plural(skipped, 'unreadable file')} skipped; the report lists them"] if skipped else []
    if first.by_segment:
        notes.append(f"data.group_by=segment: {NOTE}; its intervals treat segments of one track as independent")
    notes += dict.fromkeys(f"leak check: {headline(result.leaks)}" for result in results if result.leaks)
    if first.missing:
        notes.append(f"{fmt.plural(first.missing, 'clip')} of the data set's lists are not in this copy")
    for result in results:
        if result.members:
            notes += [note for note in result.notes if note not in first.notes]
            notes += [f"{result.name}, {text}" for text in _comparisons(result)]
    return notes


def _comparisons(result: Result) -> list[str]:
    """A sentence on each paired test of an ensemble against a member."""
    return [
        f"minus {entry.other}: {fmt.lowered(fmt.label(entry.metric))} "
        f"{fmt.number(entry.paired.difference, entry.metric)} "
        f"({fmt.interval(entry.paired.low, entry.paired.high, entry.metric)}), p {fmt.p_value(entry.paired.p_value)}, "
        f"adjusted {fmt.p_value(entry.adjusted)}, {fmt.plural(entry.paired.count, 'track')} ({entry.paired.name})"
        for entry in result.comparisons
    ]


def write_report(path: Path, sections: Sequence[Section], *, title: str) -> Path:
    """Write the page on one or more evaluated models, and return its path.

    Models of the same classes are shown in the class order of the first, and their maps on one colour scale.

    Args:
        path: of the HTML file; its folder is created where it is missing.
        sections: the models, in the order of the table.
        title: of the page.

    Raises:
        ValueError: there is no section.
    """
    if not sections:
        raise ValueError("a report needs at least one evaluated model; pass one Section per model")
    ranges = figures.map_ranges([picture for section in sections for picture in section.pictures])
    sections = [replace(section, result=_in_order(section.result, sections[0].result.classes)) for section in sections]
    models = [_model(index, section, ranges, path.parent) for index, section in enumerate(sections)]
    results = [section.result for section in sections]
    return write_page(
        path,
        "report.html.j2",
        title=title,
        models=models,
        measured=_distinct((result.name, _measured(result)) for result in results),
        intervals=_distinct((result.name, _intervals(result)) for result in results),
        score_names=_union(result.track_scores for result in results),
        overview=_overview(results),
        colour_bar=svg.colour_bar(),
        map_range=ranges[0],
        mel_range=ranges[1],
        script=read_script("report.js.j2") if any(section.misjudged for section in sections) else None,
    )


def _model(index: int, section: Section, ranges: tuple[Any, Any], folder: Path) -> dict[str, Any]:
    """Variables of the template for one model: its result, and its figures as SVG."""
    result = section.result
    runs = _run_names(result, len(section.curves))
    start = _start(result) if result.members else result.provenance.describe()
    names = [name for name in _SETTINGS if not (result.members and name in _OF_ONE_MODEL)]
    names += ["members"] if result.members else []
    names += ["views"] if result.views > 1 else []
    key = next((key for curve in section.curves for record in curve for key in record if "validation_" in key), "")
    return {
        "colour": svg.model_colour(index),
        "result": result,
        "parts": " → ".join(_part(part) for part in (result.frontend, result.classifier) if part),
        "start": start,
        "comparisons": _comparisons(result),
        "score_names": _union(result.scores.values()),
        "cost": {name: value for name, value in vars(result.cost).items() if (name, value) != ("train_steps", 0)}
        if result.cost
        else {},
        "classes": [entry.as_dict() for entry in _best_first(result)],
        "folds": [entry.as_dict() for entry in result.per_fold],
        "settings": {"start": start} | {name: _setting(result, name) for name in names},
        "runs": runs,
        "loss": figures.learning_curves(section.curves, runs),
        "validation": figures.validation_curves(
            section.curves, runs, key, fmt.lowered(fmt.label(key)), fmt.ticks(key), result.kept_epochs
        ),
        "reliability": figures.reliability(result.calibration_bins) if result.calibration_bins else "",
        "confusion": figures.confusion_matrix(
            np.asarray(result.confusion), result.classes, f"misjudged-{index + 1}" if section.misjudged else ""
        )
        if result.confusion
        else "",
        "misjudged": _misjudged(section.misjudged, result, folder) if section.misjudged else None,
        "side_by_side": len(result.classes) <= _MAX_SIDE_BY_SIDE,
        "pictures": [(picture, figures.map_picture(picture, *ranges)) for picture in section.pictures],
    }


def _setting(result: Result, name: str) -> Any:
    """A setting; the folds of a fit are one run."""
    value = getattr(result, name)
    return list(dict.fromkeys(value)) if name in ("runs", "run_ids") else value


def _misjudged(found: Misjudged, result: Result, folder: Path) -> dict[str, Any]:
    """Variables of the template for the list of misjudged tracks."""
    numbers = {name: number for number, name in enumerate(result.classes)}
    rows = [
        {
            **{name: getattr(track, name) for name in ("clip", "label", "prediction", "probability", "suspect")},
            "cell": f"{numbers.get(track.label, '')}-{numbers.get(track.prediction, '')}",
            "start": f"{track.excerpt.start_seconds:.1f} s" if track.excerpt else "",
            "audio": "data:audio/mpeg;base64," + base64.b64encode(track.excerpt.mp3).decode("ascii")
            if track.excerpt else "",
            "link": "" if track.excerpt or not os.path.exists(track.file) else _link(track.file, folder),
        }
        for track in found.tracks
    ]  # fmt: skip
    audio, links = sum(bool(row["audio"]) for row in rows), sum(bool(row["link"]) for row in rows)
    counts = {
        "with the audio embedded (mono, from the segment with the highest probability of the wrong label)": audio,
        "with a link to the file": links,
        "without audio (inside a shard, or the file is not there)": len(rows) - audio - links,
        "not listed (predictions.csv has all)": found.count - len(rows),
    }
    about = (
        f"The most probable label of {found.count} of {fmt.plural(result.tracks, 'track')} is not one of their labels. "
        f"The most confident first: {', '.join(f'{count} {kind}' for kind, count in counts.items() if count)}."
    )
    return {
        "rows": rows,
        "about": about,
        "suspects": None if found.suspects is None else _suspects(found, result),
        "suspected": any(row["suspect"] for row in rows),
    }


def _suspects(found: Misjudged, result: Result) -> str:
    """Number of suspected label errors, and how far to trust them."""
    count = len(found.suspects or ())
    text = (
        f"{count} of {fmt.plural(result.tracks, 'track')}, all in {LABEL_ERRORS}, by confident learning "
        "(arXiv 1911.00068) on predictions for tracks that the model was not trained on. Many may be errors of the "
        "model instead: listen before you change a label."
    )
    if found.recall is None:
        return text
    wrong = round(PLANTED * result.tracks)
    of, those = "", ""
    if wrong >= _LEAST_WRONG:
        of, those = f" ({fmt.plural(wrong, 'track')})", f", {found.recall * wrong:.0f},"
    return (
        f"{text} If {fmt.fraction(PLANTED, 0)} of the labels{of} were wrong at random, "
        f"{fmt.fraction(found.recall, 0)} of those{those} would be among the suspects."
    )


def _link(file: str, folder: Path) -> str:
    """Relative URL of a file from a page's folder; the bytes of any file name are quoted."""
    return quote(os.fsencode(os.path.relpath(file, folder)))


def _in_order(result: Result, order: list[str]) -> Result:
    """The result with its classes in this order, if they are the same classes; otherwise unchanged."""
    classes = result.classes
    if classes == order or sorted(classes) != sorted(order) or len(set(order)) < len(order):
        return result
    indices = [classes.index(name) for name in order]
    confusion = result.confusion and np.asarray(result.confusion)[np.ix_(indices, indices)].tolist()
    per_class = sorted(result.per_class, key=lambda entry: order.index(entry.name))
    return replace(result, classes=order, confusion=confusion, per_class=per_class)


def _best_first(result: Result) -> list[Any]:
    """Labels of a tagger by falling average precision, undefined ones last; other classes in their order."""

    def rank(entry: Any) -> float:
        value = entry.scores.get("average_precision")
        return 1.0 if value is None else -value

    return sorted(result.per_class, key=rank)


def _overview(results: Sequence[Result]) -> str:
    """The plot below the headline table: the first track score of the first model, for each model."""
    name = next(iter(results[0].track_scores), "")
    if not name:
        return ""
    rows = [figures.PlotRow(result.name, result.track_scores.get(name), result.chance) for result in results]
    return figures.score_plot(rows, fmt.lowered(fmt.label(name)) + ", tracks", fmt.ticks(name))


def _measured(result: Result) -> str:
    """Data, protocol, folds, part, and number of tracks, groups and segments."""
    by_track = bool(result.members) and not result.segments  # an ensemble whose members' segments differ
    keys = ("tracks", "groups") if by_track else ("tracks", "groups", "segments")
    counts = [f"{fmt.grouped(getattr(result, key))} {key}" for key in keys]
    length = f" of {result.segment_seconds:g} {length_unit(result.frontend)}" if result.segment_seconds else ""
    parts = [
        f"{result.data} data" if result.data else "",
        f"{result.protocol} protocol" if result.protocol else "",
        "segments of tracks taken for recordings" if result.by_segment else "",
        *_folds(result), f"{result.part} part", *counts[:-1], counts[-1] + ("" if by_track else length),
        *_views(result),
    ]  # fmt: skip
    return " · ".join(filter(None, parts))


def _intervals(result: Result) -> str:
    """Methods by which the intervals of the track scores were computed, scores with the same method together."""
    ways: dict[str, list[str]] = {}
    for name, score in result.track_scores.items():
        if score.interval:
            ways.setdefault(score.interval, []).append(fmt.label(name))
    return "; ".join(f"{' and '.join(names)}: {way}" for way, names in ways.items())


def _run_names(result: Result, number: int) -> list[str]:
    folds = result.folds
    return [f"fold {folds[run]}" if len(folds) == number else f"run {run + 1}" for run in range(number)]


def _part(part: Mapping[str, Any]) -> str:
    return " ".join(str(part[key]) for key in ("name", "size") if part.get(key))


def _distinct(texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(models, text) pairs; a text that holds for all models comes without names."""
    models: dict[str, list[str]] = {}
    for name, text in texts:
        models.setdefault(text, []).append(name)
    return [("" if len(models) == 1 else ", ".join(names), text) for text, names in models.items() if text]


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
