"""The report's figures, each a string of inline SVG.

Axes, lines and letters are SVG coloured by the page's style sheet, so that they follow its light and dark schemes and
stay sharp in print; only maps and spectrograms are pixels, as indexed PNG inside the SVG. matplotlib places the ticks
and gives the colour map. Lengths are CSS pixels of the figure's own width; narrow screens scale figures down.
"""

import base64
import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Curve = list[dict[str, Any]]

_COLOUR_MAP = "magma"
_MOST_NUMBERED = 20  # classes up to which the confusion matrix has numbers in its cells
_MOST_PIXELS = (480, 160)  # of an embedded map: time, frequency
_MOST_POINTS = 300  # of a curve


def printable(text: object) -> str:
    r"""Text that any UTF-8 page can hold and that shows what is there.

    Control characters, direction marks and lone surrogates become escapes; the bytes of a file name that is no UTF-8
    (which Python keeps as surrogates) become `\xe9` and the like.
    """

    def show(character: str) -> str:
        # Spaces of all widths pass; so do the joiners, which belong to the spelling of some scripts.
        if character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs":
            return character
        if "\udc80" <= character <= "\udcff":
            return f"\\x{ord(character) - 0xDC00:02x}"
        return character.encode("unicode_escape").decode("ascii")

    return "".join(map(show, str(text)))


def is_number(value: Any) -> bool:
    """Whether a value of a result or a record can be drawn: a finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


@dataclass(frozen=True)
class _Axes:
    """A plot area: its box on the figure and the range of values that it shows."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + self.width * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.top + self.height * (1 - (value - low) / ((high - low) or 1))

    def x_axis(self, label: str, ticks: int = 6, form: str = "{:g}") -> str:
        bottom = self.top + self.height
        parts = [_line(self.left, bottom, self.left + self.width, bottom, "axis")]
        for tick in _ticks(self.x_range, ticks):
            parts.append(_line(self.x(tick), bottom, self.x(tick), bottom + 4, "axis"))
            parts.append(_text(self.x(tick), bottom + 16, form.format(tick), "middle"))
        parts.append(_text(self.left + self.width / 2, bottom + 32, label, "middle", "name") if label else "")
        return "".join(parts)

    def y_axis(self, label: str, ticks: int = 5, form: str = "{:g}", grid: bool = True) -> str:
        parts = []
        for tick in _ticks(self.y_range, ticks):
            if grid:
                parts.append(_line(self.left, self.y(tick), self.left + self.width, self.y(tick), "grid"))
            parts.append(_text(self.left - 6, self.y(tick) + 3.5, form.format(tick), "end"))
        x, y = self.left - 40, self.top + self.height / 2
        parts.append(_text(x, y, label, "middle", "name", f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
        return "".join(parts)

    def path(self, xs: Iterable[float], ys: Iterable[float], style: str, title: str = "") -> str:
        points = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        if len(points) == 1:  # a path of one point draws nothing
            x, y = points[0].split()
            return f'<circle cx="{x}" cy="{y}" r="2" fill="var(--model)">{_title(title)}</circle>'
        return f'<path class="line" d="M{"L".join(points)}" style="{style}">{_title(title)}</path>' if points else ""


def score_plot(rows: Sequence[tuple[str, dict[str, Any], float | None]], label: str, form: str) -> str:
    """One score of every model, a dot with its interval on one scale; a dashed mark where guessing would land.

    Args:
        rows: name, score as in result.json, and the chance level (or None) of each model.
        label: of the axis.
        form: how ticks are written, as for `str.format`.
    """
    shown: list[Any] = [chance for _, _, chance in rows]
    shown += [score.get(key) for _, score, _ in rows for key in ("value", "low", "high")]
    values = [float(value) for value in shown if is_number(value)]
    if not values:
        return ""
    low, high = min(values), max(values)
    pad = max(0.04 * (high - low), 0.01)
    # Shares end at 0 and 1, other scores (decibels, d') do not.
    limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low - pad, high + pad)
    left = 20 + 6.6 * min(26, max(len(name) for name, _, _ in rows))
    step, height = 30, 30 * len(rows)
    axes = _Axes(
        left, 16, 540 - left - 20, height, (max(low - pad, limits[0]), min(high + pad, limits[1])), (len(rows), 0)
    )
    parts = [axes.x_axis(label, 7, form)]
    marked = False
    for row, (name, score, chance) in enumerate(rows):
        y = axes.top + step * (row + 0.5)
        parts.append(_text(0, y + 4, _short(name, 26), "start", "item"))
        if is_number(chance) and chance is not None:
            parts.append(_line(axes.x(chance), y - step / 2, axes.x(chance), y + step / 2, "chance"))
            parts.append("" if marked else _text(axes.x(chance), axes.top - 5, "chance", "middle"))
            marked = True
        colour = f'style="--model: {model_colour(row)}"'
        if is_number(score.get("low")) and is_number(score.get("high")):
            parts.append(_line(axes.x(score["low"]), y, axes.x(score["high"]), y, "interval", colour))
        if is_number(score.get("value")):
            parts.append(f'<circle class="dot" cx="{axes.x(score["value"]):.1f}" cy="{y}" r="5" {colour}/>')
    return _svg(540, axes.top + height + 40, "".join(parts), f"{label} of each model with its interval")


def learning_curves(curves: Sequence[Curve], names: Sequence[str]) -> str:
    """Loss over the steps, smoothed over the raw one, with the learning rate on a small axis below: a line per run.

    Args:
        curves: records of each run, as in metrics.jsonl.
        names: of the runs.
    """
    losses = [_series(curve, "loss") for curve in curves]
    every = np.concatenate([y for _, y in losses]) if losses else np.empty(0)
    if not every.size:
        return ""
    steps = (0.0, float(max(x.max() for x, _ in losses if x.size)))
    smooth = [_smooth(y) for _, y in losses]
    # One wild raw value must not flatten the rest: the raw lines are cut where nearly all of them end.
    top = max(float(np.percentile(every, 99)), *(float(y.max()) for y in smooth if y.size))
    axes = _Axes(58, 12, 372, 168, steps, (min(0.0, float(every.min())), top * 1.03 or 1.0))
    rates = [_series(curve, "rate") for curve in curves]
    has_rates = any(y.size for _, y in rates)
    parts = [axes.y_axis("training loss")]
    for (x, y), faded in zip(losses, _fades(len(losses)), strict=True):
        picks = _thin(len(x))
        parts.append(axes.path(x[picks], np.minimum(y[picks], axes.y_range[1]), f"opacity: {0.22 * faded:.2f}"))
    for (x, _), y, faded, name in zip(losses, smooth, _fades(len(losses)), names, strict=True):
        picks = _thin(len(x))
        title = f"{name}: last loss {y[-1]:.3g}" if y.size else ""
        parts.append(axes.path(x[picks], y[picks], f"stroke-width: 1.8; opacity: {faded:.2f}", title))
    height = 226
    if has_rates:
        below = _Axes(58, 208, 372, 44, steps, (0.0, max(float(y.max()) for _, y in rates if y.size) * 1.05 or 1.0))
        parts += [axes.x_axis("", 6, ""), below.y_axis("rate", 2)]
        for (x, y), faded in zip(rates, _fades(len(rates)), strict=True):
            picks = _thin(len(x))
            parts.append(below.path(x[picks], y[picks], f"stroke-width: 1.4; opacity: {faded:.2f}"))
        axes, height = below, 298
    return _svg(446, height, "".join(parts) + axes.x_axis("step"), "Training loss and learning rate over the steps")


def validation_curves(curves: Sequence[Curve], names: Sequence[str], key: str, label: str, form: str) -> str:
    """A score of the validation part over the steps, a line per run; `key` names it in the records."""
    series = [_series(curve, key) for curve in curves]
    if not any(x.size for x, _ in series):
        return ""
    every = np.concatenate([y for _, y in series])
    steps = max(float(x.max()) for x, _ in series if x.size)
    axes = _Axes(58, 12, 372, 240, (0.0, steps), (min(0.0, float(every.min())), float(every.max()) * 1.05 or 1.0))
    parts = [axes.y_axis(label, 5, form), axes.x_axis("step")]
    for (x, y), faded, name in zip(series, _fades(len(series)), names, strict=True):
        style = f"stroke-width: 1.8; opacity: {faded:.2f}"
        title = f"{name}: last {form.format(y[-1])}" if y.size else ""
        parts.append(axes.path(x[_thin(len(x))], y[_thin(len(x))], style, title))
    return _svg(446, 298, "".join(parts), f"{label} over the steps")


def confusion_matrix(counts: Array, classes: Sequence[str]) -> str:
    """Rows are true classes, columns predicted ones; shading is the share of the row, the same scale in every report.

    Args:
        counts: `(classes, classes)` tracks.
        classes: names, in the order of rows and columns.
    """
    number = len(classes)
    cell = 64 if number <= 4 else 34 if number <= 12 else 28 if number <= _MOST_NUMBERED else 13
    letters = min(22, max(len(name) for name in classes))
    size = 9.5 if number > _MOST_NUMBERED else 11.5
    font = f' style="font-size: {size}px"'
    margin = 30 + 0.56 * size * letters  # the widest name, and the axis's
    above = 26 + 0.46 * size * letters  # names above the columns stand at 55 degrees
    right = 0.35 * size * letters
    parts = [f'<rect class="plate" x="{margin:.1f}" y="{above:.1f}" width="{number * cell}" height="{number * cell}"/>']
    for row, name in enumerate(classes):
        middle, total = (row + 0.5) * cell, int(counts[row].sum())
        parts.append(_text(margin - 6, above + middle + 3.5, _short(name, 22), "end", "item", font))
        x, y = margin + middle + 3, above - 6
        turn = f' transform="rotate(-55 {x:.1f} {y:.1f})"{font}'
        parts.append(_text(x, y, _short(name, 22), "start", "item", turn))
        for column in np.flatnonzero(counts[row]):
            count = int(counts[row, column])
            share = count / total
            x, y = margin + column * cell, above + row * cell
            hint = _title(f"{name} → {classes[int(column)]}: {count} of {total} ({100 * share:.0f} %)")
            place = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<rect class="shade" {place} fill-opacity="{0.06 + 0.94 * share:.2f}">{hint}</rect>')
            if number <= _MOST_NUMBERED:
                ink = "over" if share > 0.5 else "count"
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, f"{count}", "middle", ink))
    width, height = margin + number * cell + right + 4, above + number * cell + 24
    x, y = 11, above + number * cell / 2
    parts.append(_text(x, y, "true", "middle", "name", f' transform="rotate(-90 {x} {y:.1f})"'))
    parts.append(_text(margin + number * cell / 2, height - 7, "predicted", "middle", "name"))
    return _svg(width, height, "".join(parts), "Confusion matrix: rows true, columns predicted", "matrix")


def reliability(bins: Sequence[dict[str, Any]]) -> str:
    """How often predictions of a confidence were right; on the diagonal, confidence is honest.

    Args:
        bins: non-empty bins of confidence: mean `confidence`, `accuracy`, number of `tracks`.
    """
    axes = _Axes(58, 12, 250, 250, (0.0, 1.0), (0.0, 1.0))
    parts = [axes.y_axis("share correct"), axes.x_axis("confidence")]
    parts.append(_line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "chance"))
    most = max((entry["tracks"] for entry in bins), default=1) or 1
    for entry in bins:
        x, y = axes.x(entry["confidence"]), axes.y(entry["accuracy"])
        parts.append(_line(x, axes.y(entry["confidence"]), x, y, "gap"))
        hint = f"confidence {entry['confidence']:.2f}, correct {entry['accuracy']:.2f}, {entry['tracks']} tracks"
        radius = 2 + 8 * math.sqrt(entry["tracks"] / most)
        parts.append(f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_title(hint)}</circle>')
    return _svg(330, 308, "".join(parts), "Reliability diagram: share correct over confidence")


def colour_range(maps: Sequence[Array]) -> tuple[float, float]:
    """Values at the two ends of the colour scale that all these maps share: their 1st and 99.5th percentiles."""
    values = np.concatenate([array[np.isfinite(array)].ravel() for array in maps]) if maps else np.empty(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99.5])
    return float(low), float(high)


def colour_bar() -> str:
    """The colour scale of maps and spectrograms as stops of a CSS gradient."""
    return ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in _palette()[:: 255 // 15])


def map_picture(
    wave: Array,
    feature_map: Array,
    mel: Array,
    seconds: float,
    map_range: tuple[float, float],
    mel_range: tuple[float, float],
) -> str:
    """Waveform, front-end map and mel spectrogram of a clip, one below the other over one time axis.

    Args:
        wave: `(samples,)`.
        feature_map: `(parts, frequency, time)`, lowest frequency first: channels, or planes that lie one after another
            in the map, each drawn over the whole time; or one part as `(frequency, time)`.
        mel: `(frequency, time)`, lowest frequency first.
        seconds: length of the clip.
        map_range: values at the ends of the map's colour scale.
        mel_range: those of the mel spectrogram's.
    """
    left, width, span = 52, 384, (0.0, float(seconds))
    columns = min(width, len(wave))
    peak = float(np.abs(np.nan_to_num(wave)).max(initial=0)) or 1.0
    strip = _Axes(left, 2, width, 40, (0.0, columns or 1), (-peak, peak))
    parts = []
    if columns:
        chunks = np.array_split(np.nan_to_num(wave), columns)
        outline = [(i + 0.5, c.max()) for i, c in enumerate(chunks)]
        outline += [(i + 0.5, c.min()) for i, c in reversed(list(enumerate(chunks)))]
        d = "L".join(f"{strip.x(x):.1f} {strip.y(y):.1f}" for x, y in outline)
        parts.append(f'<path class="wave" d="M{d}Z"/>')
    top, count = 64, 1 if feature_map.ndim == 2 else len(feature_map)
    maps = [
        (
            f"front-end map{f', part {i + 1} of {count}' if count > 1 else ''}",
            array,
            map_range,
            132 if count < 3 else 80,
        )
        for i, array in enumerate([feature_map] if feature_map.ndim == 2 else feature_map)
    ]
    for name, array, limits, height in [*maps, ("mel spectrogram", mel, mel_range, 132)]:
        axes = _Axes(left, top, width, height, span, (0.0, float(len(array))))
        parts.append(_text(left, top - 6, name, "start", "item"))
        place = f'x="{left}" y="{top}" width="{width}" height="{height}" preserveAspectRatio="none"'
        parts.append(f'<image {place} href="{_png(array, limits)}"/>')
        parts += [axes.y_axis("frequency bin", 5 if height > 100 else 3, grid=False)]
        top += height + 28
    return _svg(446, top + 14, "".join(parts) + axes.x_axis("s"), "Waveform, front-end map and mel spectrogram")


def model_colour(index: int) -> str:
    """The style sheet's colour of the model in this row; it has eight."""
    return f"var(--model-{index % 8})"


def _png(array: Array, limits: tuple[float, float]) -> str:
    """A map `(frequency, time)` as a PNG data URI, lowest frequency at the bottom; larger ones are averaged down."""
    from PIL import Image  # comes with matplotlib

    low, high = limits
    scaled = np.clip((np.nan_to_num(array, nan=low) - low) / ((high - low) or 1), 0, 1)[::-1]
    picture = Image.fromarray(np.ascontiguousarray(scaled, np.float32))
    size = (min(picture.width, _MOST_PIXELS[0]), min(picture.height, _MOST_PIXELS[1]))
    scaled = np.asarray(picture.resize(size, Image.Resampling.BOX))
    indexed = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    indexed.putpalette(_palette().tobytes())
    buffer = io.BytesIO()
    indexed.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _palette() -> Array:
    """`(256, 3)` bytes: the colours of the scale from its low to its high end."""
    from matplotlib import colormaps

    return np.asarray(colormaps[_COLOUR_MAP](np.arange(256), bytes=True))[:, :3].copy()


def _ticks(limits: tuple[float, float], most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    low, high = min(limits), max(limits)
    ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-6 * (high - low)
    return [float(tick) + 0.0 for tick in ticks if low - slack <= tick <= high + slack]


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


def _thin(length: int) -> Array:
    """Indices of at most so many points of a curve, its ends among them."""
    return np.unique(np.linspace(0, length - 1, min(length, _MOST_POINTS)).round().astype(int))


def _fades(number: int) -> list[float]:
    """Opacity of each run's line: all have the model's colour."""
    return [float(value) for value in np.linspace(1, 0.4, number)]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _title(text: str) -> str:
    return f"<title>{escape(printable(text))}</title>" if text else ""


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, style: str = "") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    inside = escape(printable(text))
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{inside}</text>' if text else ""


def _svg(width: float, height: float, inside: str, label: str, kind: str = "plot") -> str:
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg class="{kind}" {box} role="img" aria-label="{escape(label)}">{inside}</svg>'
