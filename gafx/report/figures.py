"""Figures of the pages, each a string of inline SVG (see `gafx.report.svg`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report import svg
from gafx.report.format import fraction, is_number, plural

Array = npt.NDArray[Any]
Curve = list[dict[str, Any]]

_MOST_NUMBERED = 20  # classes up to which the confusion matrix has numbers in its cells
_MOST_POINTS = 300  # of a curve
_HEIGHT = 132  # of a map in pixels
_NARROW = 350  # width of a figure for narrow screens


@dataclass(frozen=True)
class MapPicture:
    """A clip's front-end map and mel spectrogram.

    Attributes:
        clip: relative path; may hold characters that are not valid UTF-8.
        label: true label or labels.
        prediction: as text, e.g. "predicted blues (81.0 %)".
        seconds: length of the segment.
        wave: `(samples,)` float32, mono.
        feature_map: `(parts, frequency, time)` float32 input of the classifier: channels, or planes that are
            concatenated in time; lowest frequency first.
        mel: `(frequency, time)` float32 log-mel, lowest frequency first; None where the map is one itself.
        decoded: log-mel of the wave decoded from the front-end's codes; None where it has none.
    """

    clip: str
    label: str
    prediction: str
    seconds: float
    wave: Array
    feature_map: Array
    mel: Array | None
    decoded: Array | None = None


@dataclass(frozen=True)
class PlotRow:
    """One row of `score_plot`.

    Attributes:
        name: printed on the left.
        score: `gafx.stats.scores.Score`, drawn as a dot with its interval; None where there is none.
        chance: chance level, a dashed line.
        values: score of each seed; small circles where there are several.
        published: `Score` from a publication, a hollow grey circle below.
        note: printed where there is no score.
        significant: False draws a hollow grey dot.
        hint: tooltip of the dot.
    """

    name: str
    score: Any
    chance: Any = None
    values: Sequence[float] = ()
    published: Any = None
    note: str = ""
    significant: bool = True
    hint: str = ""


def score_plot(rows: Sequence[PlotRow], label: str, form: str, *, width: int = 540, lowest: float = -math.inf) -> str:
    """One score of every row as a dot with its interval, and the chance level as a dashed mark.

    There are two figures, of which the style sheet shows one: on narrow screens names are above the rows.

    Args:
        rows: from top to bottom; the dot of each has its model's colour.
        label: of the axis.
        form: of the ticks, as for `str.format`.
        width: of the figure in pixels.
        lowest: lower limit of the axis; smaller values are drawn there.
    """
    shown = [value for row in rows for value in (row.chance, *row.values)]
    shown += [b for row in rows for s in (row.score, row.published) if s for b in (s.value, s.low, s.high)]
    values = [max(float(value), lowest) for value in shown if is_number(value)]
    if not values:
        return ""
    low, high = min(values), max(values)
    pad = max(0.04 * (high - low), 0.01)
    # Fractions end at 0 and 1, other scores (decibels, d') do not.
    limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low - pad, high + pad)
    x_range = (max(low - pad, limits[0]), min(high + pad, limits[1]))
    return _score_plot(rows, label, form, x_range, width, above=False) + _score_plot(
        rows, label, form, x_range, _NARROW, above=True
    )


def _score_plot(
    rows: Sequence[PlotRow], label: str, form: str, x_range: tuple[float, float], width: int, *, above: bool
) -> str:
    """One of the figures of `score_plot`: names are above the rows or left of them."""
    letters = 46 if above or width > 700 else 36
    left = 14 if above else 20 + 6.6 * min(letters, max(len(row.name) for row in rows))
    below = 6 if any(row.published for row in rows) else 0  # half the distance between a score and the published one
    step = 30 + 2 * below + 16 * above
    height = step * len(rows)
    axes = svg.Axes(left, 16, width - left - 20, height, x_range, (len(rows), 0))
    parts = [axes.x_axis(label, 7, form)]
    if (first := next((row.chance for row in rows if is_number(row.chance)), None)) is not None:
        parts.append(svg.text(axes.x(first), axes.top - 5, "chance", "middle"))
    for index, row in enumerate(rows):
        top = axes.top + step * index
        y = top + step / 2 + 8 * above
        parts.append(svg.text(0, top + 14 if above else y + 4, svg.short(row.name, letters), "start", "item"))
        if is_number(row.chance):
            parts.append(svg.line(axes.x(row.chance), top + 20 * above, axes.x(row.chance), top + step, "chance"))
        if row.published is not None:
            parts += _dot(axes, y + below, row.published, "published", "published", radius=4)
        if row.score is None or not is_number(row.score.value):
            start = max(axes.left, axes.x(row.chance) if is_number(row.chance) else 0.0) + 8
            parts.append(svg.text(start, y + 4 - below, row.note, "start"))
            continue
        colour = f'style="--model: {svg.model_colour(index) if row.significant else "var(--muted)"}"'
        for value in row.values if len(row.values) > 1 else ():
            seed = f'cx="{axes.x(value):.1f}" cy="{y - below:.1f}" r="3"'
            parts.append(f'<circle class="seed" {seed} {colour}/>')
        parts += _dot(axes, y - below, row.score, "dot" if row.significant else "hollow", "interval", colour, row.hint)
    said, kind = f"{label} of each row with its interval", "narrow" if above else "rows"
    return svg.picture(width, axes.top + height + 40, "".join(parts), said, kind)


def _dot(
    axes: svg.Axes, y: float, score: Any, kind: str, line: str, style: str = "", hint: str = "", radius: int = 5
) -> list[str]:
    """A score and its interval, clipped to the axis; `kind` and `line` are classes of the style sheet."""

    def x(value: float) -> float:
        return axes.x(min(max(value, axes.x_range[0]), axes.x_range[1]))

    parts = []
    if is_number(score.low) and is_number(score.high):
        parts.append(svg.line(x(score.low), y, x(score.high), y, line, style))
    circle = f'cx="{x(score.value):.1f}" cy="{y:.1f}" r="{radius}"'
    return [*parts, f'<circle class="{kind}" {circle} {style}>{svg.title(hint)}</circle>']


def learning_curves(curves: Sequence[Curve], names: Sequence[str]) -> str:
    """Training loss over the steps, smoothed over raw, and the learning rate on small axes below: a line per run.

    Args:
        curves: records of each run, as in metrics.jsonl.
        names: of the runs.
    """
    losses = [_series(curve, "loss") for curve in curves]
    every = np.concatenate([y for _, y in losses]) if losses else np.empty(0)
    if not every.size:
        return ""
    steps = (0.0, float(max(x.max() for x, _ in losses if x.size)))
    smooth = [(x, _smooth(y)) for x, y in losses]
    # A single outlier must not flatten the rest: raw lines are clipped where nearly all of them end.
    top = max(float(np.percentile(every, 99)), *(float(y.max()) for _, y in smooth if y.size)) * 1.03 or 1.0
    axes = svg.Axes(58, 12, 372, 168, steps, (min(0.0, float(every.min())), top))
    hints = [f"{name}: last loss {y[-1]:.3g}" if y.size else "" for name, (_, y) in zip(names, smooth, strict=True)]
    parts = [
        axes.y_axis("training loss"),
        _lines(axes, [(x, np.minimum(y, top)) for x, y in losses], 1.0, opacity=0.22),
        _lines(axes, smooth, 1.8, hints),
    ]
    height = 226
    rates = [_series(curve, "lr" if any("lr" in record for record in curve) else "rate") for curve in curves]
    if largest := max((float(y.max()) for _, y in rates if y.size), default=0.0):
        axes, height = svg.Axes(58, 208, 372, 44, steps, (0.0, largest * 1.05)), 298
        parts += [axes.x_axis("", 6, ""), axes.y_axis("learning rate", 2), _lines(axes, rates, 1.4)]
    parts.append(axes.x_axis("step"))
    return svg.picture(446, height, "".join(parts), "Training loss and learning rate over the steps")


def validation_curves(
    curves: Sequence[Curve], names: Sequence[str], key: str, label: str, form: str, kept: Sequence[int | None] = ()
) -> str:
    """A validation score over the steps, a line per run, with a dot at the epoch whose model was kept.

    Args:
        curves: records of each run, as in metrics.jsonl.
        names: of the runs.
        key: of the score in the records.
        label: of the axis.
        form: of the ticks, as for `str.format`.
        kept: epoch of each run whose model was kept, counted from 1; None or missing where it is not known.
    """
    series = [_series(curve, key) for curve in curves]
    if not any(x.size for x, _ in series):
        return ""
    every = np.concatenate([y for _, y in series])
    steps = max(float(x.max()) for x, _ in series if x.size)
    axes = svg.Axes(58, 12, 372, 240, (0.0, steps), (min(0.0, float(every.min())), float(every.max()) * 1.05 or 1.0))
    hints = [f"{name}: last {form.format(y[-1])}" if y.size else "" for name, (_, y) in zip(names, series, strict=True)]
    parts = [axes.y_axis(label, 5, form), axes.x_axis("step"), _lines(axes, series, 1.8, hints)]
    for curve, name, epoch in zip(curves, names, kept, strict=False):
        for record in curve:
            if epoch is not None and key in record and record["epoch"] == epoch - 1 and is_number(record[key]):
                hint = f"{name}: kept epoch {epoch}, {form.format(record[key])}"
                circle = f'cx="{axes.x(record["step"]):.1f}" cy="{axes.y(record[key]):.1f}" r="4.5"'
                parts.append(f'<circle class="dot" {circle}>{svg.title(hint)}</circle>')
    return svg.picture(446, 298, "".join(parts), f"{label} over the steps")


def confusion_matrix(counts: Array, classes: Sequence[str], link: str = "") -> str:
    """Confusion matrix: rows are true classes, columns predicted ones; shading is the fraction of the row, from 0 to 1.

    Args:
        counts: `(classes, classes)` tracks.
        classes: names, in the order of rows and columns.
        link: id of the list that the cells of wrong predictions link to; `data-cell` is their row and column.
    """
    number = len(classes)
    cell = 64 if number <= 4 else 34 if number <= 12 else 28 if number <= _MOST_NUMBERED else 13
    letters = min(22, max(len(name) for name in classes))
    size = 9.5 if number > _MOST_NUMBERED else 11.5
    font = f' style="font-size: {size}px"'
    margin = 30 + 0.56 * size * letters  # the widest name, and the axis's
    above = 26 + 0.46 * size * letters  # names above the columns are rotated by 55 degrees
    right = 0.35 * size * letters
    parts = [f'<rect class="plate" x="{margin:.1f}" y="{above:.1f}" width="{number * cell}" height="{number * cell}"/>']
    for row, name in enumerate(classes):
        middle, total = (row + 0.5) * cell, int(counts[row].sum())
        parts.append(svg.text(margin - 6, above + middle + 3.5, svg.short(name, 22), "end", "item", font))
        x, y = margin + middle + 3, above - 6
        turn = f' transform="rotate(-55 {x:.1f} {y:.1f})"{font}'
        parts.append(svg.text(x, y, svg.short(name, 22), "start", "item", turn))
        for column in np.flatnonzero(counts[row]):
            count = int(counts[row, column])
            part = count / total
            x, y = margin + column * cell, above + row * cell
            said = f"{name} → {classes[int(column)]}: {count} of {total} ({fraction(part, 0)})"
            box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{cell - 1}" height="{cell - 1}"'
            drawn = f'<rect class="shade" {box} fill-opacity="{0.06 + 0.94 * part:.2f}">{svg.title(said)}</rect>'
            if number <= _MOST_NUMBERED:
                ink = "over" if part > 0.5 else "count"
                drawn += svg.text(x + cell / 2, y + cell / 2 + 4, f"{count}", "middle", ink)
            parts.append(svg.anchor(drawn, link, f"{row}-{column}", said) if link and row != column else drawn)
    width, height = margin + number * cell + right + 4, above + number * cell + 24
    x, y = 11, above + number * cell / 2
    parts.append(svg.text(x, y, "true", "middle", "name", f' transform="rotate(-90 {x} {y:.1f})"'))
    parts.append(svg.text(margin + number * cell / 2, height - 7, "predicted", "middle", "name"))
    return svg.picture(width, height, "".join(parts), "Confusion matrix: rows true, columns predicted", "matrix")


def reliability(bins: Sequence[Any]) -> str:
    """Reliability diagram: accuracy over confidence; points on the diagonal are calibrated.

    Args:
        bins: non-empty bins of confidence, each a `gafx.stats.scores.CalibrationBin`.
    """
    axes = svg.Axes(58, 12, 250, 250, (0.0, 1.0), (0.0, 1.0))
    parts = [axes.y_axis("fraction correct"), axes.x_axis("confidence")]
    parts.append(svg.line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "chance"))
    most = max((entry.tracks for entry in bins), default=1) or 1
    for entry in bins:
        x, y = axes.x(entry.confidence), axes.y(entry.accuracy)
        parts.append(svg.line(x, axes.y(entry.confidence), x, y, "gap"))
        hint = f"confidence {entry.confidence:.2f}, correct {entry.accuracy:.2f}, {plural(entry.tracks, 'track')}"
        radius = 2 + 8 * math.sqrt(entry.tracks / most)
        parts.append(f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{svg.title(hint)}</circle>')
    return svg.picture(330, 308, "".join(parts), "Reliability diagram: fraction correct over confidence")


def map_ranges(pictures: Sequence[MapPicture]) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Limits of the colour scales of all maps, and of all mel spectrograms or None where there are none."""
    mels = [shown.mel for shown in pictures if shown.mel is not None]
    return svg.colour_range([shown.feature_map for shown in pictures]), svg.colour_range(mels) if mels else None


def map_picture(shown: MapPicture, map_range: tuple[float, float], mel_range: tuple[float, float] | None) -> str:
    """Waveform, front-end map and mel spectrograms, if there are any, one below the other over one time axis.

    Args:
        shown: the clip.
        map_range: values at the ends of the map's colour scale.
        mel_range: those of the mel spectrogram's.
    """
    wave, feature_map = shown.wave, shown.feature_map
    left, width = 52, 384
    columns = min(width, len(wave))
    peak = float(np.abs(np.nan_to_num(wave)).max(initial=0)) or 1.0
    strip = svg.Axes(left, 2, width, 40, (0.0, columns or 1), (-peak, peak))
    parts = []
    if columns:
        chunks = np.array_split(np.nan_to_num(wave), columns)
        outline = [(i + 0.5, c.max()) for i, c in enumerate(chunks)]
        outline += [(i + 0.5, c.min()) for i, c in reversed(list(enumerate(chunks)))]
        d = "L".join(f"{strip.x(x):.1f} {strip.y(y):.1f}" for x, y in outline)
        parts.append(f'<path class="wave" d="M{d}Z"/>')
    maps = map_parts("front-end map", feature_map, map_range)
    for name, mel in (("mel spectrogram", shown.mel), ("mel spectrogram of the decoded codes", shown.decoded)):
        if mel is not None and mel_range is not None:
            maps.append((name, mel, mel_range, _HEIGHT))
    return map_stack(maps, shown.seconds, "".join(parts), 64)


MapRow = tuple[str, Array, tuple[float, float], int]


def map_parts(name: str, parts: Array, limits: tuple[float, float]) -> list[MapRow]:
    """Rows of `map_stack` for maps `(parts, frequency, time)`; several are numbered, more than two are lower."""
    count = len(parts)
    height = _HEIGHT if count < 3 else 80
    return [(f"{name}, part {i + 1} of {count}" if count > 1 else name, parts[i], limits, height) for i in range(count)]


def map_stack(maps: Sequence[MapRow], seconds: float, above: str = "", top: int = 22) -> str:
    """Maps one below the other over one time axis.

    Args:
        maps: heading, `(frequency, time)`, values at the ends of the colour scale, and height in pixels of each.
        seconds: length of the time axis.
        above: SVG above the maps.
        top: position of the first map.
    """
    parts = [above]
    for name, array, limits, height in maps:
        axes = svg.Axes(52, top, 384, height, (0.0, float(seconds)), (0.0, float(len(array))))
        parts += [svg.text(axes.left, top - 6, name, "start", "item"), svg.image(axes, array, limits)]
        parts.append(axes.y_axis("frequency bin", 5 if height > 100 else 3, grid=False))
        top += height + 28
    label = f"{'waveform, ' if above else ''}{', '.join(dict.fromkeys(row[0].partition(',')[0] for row in maps))}"
    return svg.picture(446, top + 14, "".join(parts) + axes.x_axis("s"), f"{label} over time")


def _series(curve: Curve, key: str) -> tuple[Array, Array]:
    """Steps and finite values of one key of a run's records."""
    pairs = [(record["step"], record[key]) for record in curve if is_number(record.get(key)) and "step" in record]
    points = np.asarray(pairs, float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _smooth(values: Array) -> Array:
    """Centred moving mean over a twentieth of the curve; the window shrinks at the ends."""
    window = np.ones(2 * (len(values) // 40) + 1)
    if not len(values):
        return values
    half = len(window) // 2
    sums = np.convolve(values, window)[half : half + len(values)]
    return np.asarray(sums / np.convolve(np.ones(len(values)), window)[half : half + len(values)])


def _lines(
    axes: svg.Axes, series: Sequence[tuple[Array, Array]], width: float, hints: Sequence[str] = (), opacity: float = 1.0
) -> str:
    """A line per run, all in the model's colour, each fainter than the one before; at most `_MOST_POINTS` points each.

    Args:
        axes: to draw on.
        series: x and y of each line.
        width: of the lines in pixels.
        hints: tooltip of each line.
        opacity: of the first line.
    """
    drawn = []
    fades = np.linspace(1, 0.4, len(series))
    for (x, y), fade, hint in zip(series, fades, hints or [""] * len(series), strict=True):
        picks = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
        style = f"stroke-width: {width:g}; opacity: {opacity * fade:.2f}"
        drawn.append(axes.path(x[picks], y[picks], style, hint))
    return "".join(drawn)
