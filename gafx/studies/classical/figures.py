"""Figures of a table of features, each a string of inline SVG."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report import svg
from gafx.studies.pictures.figures import key_column

Array = npt.NDArray[Any]
Span = tuple[str, int]  # name of some neighbouring rows or columns, and their number
_ROW, _WIDE = 19, 430  # of a bar chart: height of a row, width of the plot, in pixels
_LETTER = 6.7  # width of a letter of a name, about
_LETTERS = 30  # of a name
_FADES = (1.0, 0.5, 0.25)  # opacity of the first eight classes, the next eight ...
_STATISTIC = re.compile(r"_(mean|var|std|median|min|max|skew|kurtosis)$")


def feature_group(name: str) -> tuple[str, str]:
    """Split a feature's name into its kind, without the number, and its statistic: `mfcc12_mean` -> `mfcc`, `mean`."""
    of, _, statistic = _STATISTIC.sub(r"/\1", name).partition("/")
    return of.rstrip("0123456789").rstrip("_") or name, statistic


def spans(groups: Sequence[str]) -> list[Span]:
    """Names of neighbours that are equal, and how many they are."""
    return [(name, len(list(members))) for name, members in groupby(groups)]


def bars(
    names: Sequence[str], values: Array, label: str, *, parts: Sequence[tuple[str, str]] = (), form: str = "{:g}"
) -> str:
    """A horizontal bar per feature, from top to bottom, with its value.

    Args:
        names: of the features.
        values: `(features, parts)`, not negative, finite; the parts of a bar are stacked.
        label: of the axis.
        parts: name and style of each part, for the legend; one part needs none.
        form: of the values, as for `str.format`.
    """
    total = values.sum(axis=1)
    left = 14 + _LETTER * min(_LETTERS, max(map(len, names)))
    height = max(_ROW * len(names), 18 * len(parts))
    axes = svg.Axes(left, 6, _WIDE, _ROW * len(names), (0.0, float(total.max()) * 1.12 or 1.0), (0.0, 1.0))
    drawn = [axes.x_axis(label)]
    for row, name in enumerate(names):
        y, start = axes.top + _ROW * row, 0.0
        drawn.append(svg.text(left - 7, y + 13, svg.short(name, _LETTERS), "end", "item"))
        for value, (part, style) in zip(values[row], parts or [("", _fill(0))], strict=True):
            x, end = axes.x(start), axes.x(start + value)
            hint = f"{name}{', ' if part else ''}{part}: {form.format(value)}"
            box = f'x="{x:.2f}" y="{y + 3}" width="{end - x:.2f}" height="{_ROW - 6}"'
            drawn.append(f"<rect {box} {style}>{svg.title(hint)}</rect>")
            start += float(value)
        drawn.append(svg.text(axes.x(start) + 5, y + 13, form.format(total[row]), "start"))
    width = int(left + _WIDE + 14)
    if parts:
        legend, width = key_column([(partial(_square, style), part) for part, style in parts], width, 15, height)
        drawn.append(legend)
    return svg.picture(width, axes.top + height + 42, "".join(drawn), f"{label} of features")


def class_styles(classes: Sequence[str], weight: Array, most: int = 16) -> tuple[list[tuple[str, str]], Array]:
    """Name and style of the parts of stacked bars: the classes of most weight in their order, and the other ones.

    Args:
        classes: names.
        weight: `(classes,)`.
        most: classes with a part of their own.

    Returns:
        the parts, and `(classes, parts)` that sums values over the classes of each.
    """
    own = np.sort(np.argsort(-weight, kind="stable")[:most])
    parts = [(classes[number], _fill(number)) for number in own]
    sums = np.zeros((len(classes), len(own)))
    sums[own, np.arange(len(own))] = 1
    if len(own) < len(classes):
        parts.append((f"{len(classes) - len(own)} other classes", 'fill="var(--rule)"'))
        sums = np.column_stack([sums, 1 - sums.sum(axis=1)])
    return parts, sums


def heatmap(matrix: Array, rows: Sequence[Span], columns: Sequence[Span], label: str, ends: str, limit: float) -> str:
    """Signed values as colours, blue below 0 and red above, with the names of rows and columns and the colour scale.

    Args:
        matrix: `(rows, columns)`.
        rows, columns: names of single ones or of neighbours, which lines divide.
        label: of the figure, for screen readers.
        ends: what the colours mean, below the figure.
        limit: the absolute value at both ends of the scale.
    """
    height, width = matrix.shape
    single = len(rows) == height
    square = 13.0 if single else 720 / height
    cell = (square, square) if height == width else (18.0, 24.0)
    above, left = (26 + _LETTER * min(_LETTERS, max(len(name) for name, _ in each)) for each in (columns, rows))
    axes = svg.Axes(left, above, cell[1] * width, cell[0] * height, (0.0, float(width)), (float(height), 0.0))
    box = f'x="{axes.left:.1f}" y="{axes.top:.1f}" width="{axes.width:.1f}" height="{axes.height:.1f}"'
    parts = [f'<rect {box} fill="none" stroke="var(--rule)"/>']
    parts.append(svg.image(axes, matrix[::-1], (-limit, limit), sharp=True, signed=True))
    for (name, at), (edge, size) in zip(_spread(rows, cell[0]), _edges(rows, cell[0]), strict=True):
        middle = axes.top + edge + size / 2
        parts.append(svg.line(axes.left - 14, axes.top + at, axes.left - 2, middle, "grid"))
        parts.append(svg.text(axes.left - 17, axes.top + at + 3.5, svg.short(name, _LETTERS), "end", "item"))
        if not single and edge:
            parts.append(svg.line(axes.left, axes.top + edge, axes.left + axes.width, axes.top + edge, "grid"))
    for (name, at), (edge, size) in zip(_spread(columns, cell[1]), _edges(columns, cell[1]), strict=True):
        x, y, middle = axes.left + at + 3.5, axes.top - 17, axes.left + edge + size / 2
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
        parts.append(svg.line(axes.left + at, axes.top - 14, middle, axes.top - 2, "grid"))
        parts.append(svg.text(x, y, svg.short(name, _LETTERS), "start", "item", turn))
        if not single and edge:
            parts.append(svg.line(axes.left + edge, axes.top, axes.left + edge, axes.top + axes.height, "grid"))
    bottom = axes.top + axes.height
    scale = svg.Axes(axes.left, bottom + 14, 200, 10, (-limit, limit), (0.0, 1.0))
    parts += [svg.image(scale, np.linspace(-1, 1, 101)[None], (-1, 1), sharp=True, signed=True), scale.x_axis("", 4)]
    parts.append(svg.text(axes.left + 214, bottom + 23, ends, "start"))
    wide = max(axes.left + axes.width, axes.left + 214 + _LETTER * len(ends)) + 12
    return svg.picture(wide, bottom + 48, "".join(parts), label)


def _edges(names: Sequence[Span], cell: float) -> list[tuple[float, float]]:
    """Start and length of each span in pixels."""
    ends = np.cumsum([0, *(count for _, count in names)]) * cell
    return list(zip(ends[:-1].tolist(), np.diff(ends).tolist(), strict=True))


def _spread(names: Sequence[Span], cell: float, apart: float = 12.5) -> list[tuple[str, float]]:
    """Positions of the names in pixels: the middles of their spans, moved where they would overlap."""
    steps = apart * np.arange(len(names))
    # Without its step, each position has to be no less than the one before: pushed down, pushed up, and halfway.
    middles = np.array([start + size / 2 for start, size in _edges(names, cell)]) - steps
    at = (np.maximum.accumulate(middles) + np.minimum.accumulate(middles[::-1])[::-1]) / 2
    last = sum(count for _, count in names) * cell - steps[-1] - apart / 2
    at = np.clip(at, min(apart / 2, last), last) + steps
    return [(name, position) for (name, _), position in zip(names, at.tolist(), strict=True)]


def _fill(number: int) -> str:
    """Style of a class's bars."""
    return f'fill="{svg.model_colour(number)}" fill-opacity="{_FADES[number // 8 % len(_FADES)]}"'


def _square(style: str, x: float, y: float) -> str:
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" {style}/>'
