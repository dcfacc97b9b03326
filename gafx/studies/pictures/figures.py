"""Figures of `gafx pictures`, each a string of inline SVG."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report import figures, svg
from gafx.studies.pictures.embedding import Layout
from gafx.studies.pictures.filters import LOWEST_DB, Responses

Array = npt.NDArray[Any]
_SIZE = 330
_LINE = 18  # height of a line of a legend
# Corners of the markers after the circle, relative to their centre.
_MARKERS = (
    [(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
    [(0.0, -4.6), (4.4, 3.4), (-4.4, 3.4)],
    [(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
)


def gradient_picture(gradient: Array, seconds: float) -> str:
    """Gradients `(parts, frequency, time)`, from 0 to their 99.5th percentile, below the map's figure."""
    limits = (0.0, float(np.percentile(gradient, 99.5)) or 1.0)
    return figures.map_stack(figures.map_parts("gradient of the predicted class", gradient, limits), seconds)


def filter_picture(found: Responses) -> str:
    """Frequency responses as an image, a column per filter, with their centres and the mel scale below."""
    count, top = len(found.centre), found.rate / 2000
    axes = svg.Axes(58, 14, 372, 200, (0.0, float(count)), (0.0, top))
    below = svg.Axes(58, 236, 372, 150, (0.0, float(count)), (0.0, top))
    x = np.arange(count) + 0.5
    parts = [
        svg.image(axes, found.decibels, (LOWEST_DB, 0.0), sharp=True), axes.y_axis("kHz", 5, grid=False),
        below.y_axis("centre, kHz"), below.x_axis("filter, by centre frequency"),
        below.path(x, found.mel / 1000, "--model: var(--muted); stroke-dasharray: 4 3", "mel scale"),
        below.path(x, found.centre / 1000, "--model: var(--model-0); stroke-width: 1.8", "this layer"),
        svg.text(66, 248, "dashed: mel scale", "start"),
    ]  # fmt: skip
    return svg.picture(446, 432, "".join(parts), f"Frequency responses of the first layer of {found.name}")


def scatter(
    layout: Layout, labels: Array, classes: Sequence[str], clips: Sequence[str], *, size: int = _SIZE,
    legend: bool = False,
) -> str:  # fmt: skip
    """Tracks in two dimensions, with a colour and, from the ninth class on, a shape per class; names on hover.

    Args:
        layout: positions of the tracks.
        labels: `(tracks,)` number of each track's class.
        classes: their names.
        clips: names of the tracks.
        size: width and height of the plot in pixels.
        legend: name the classes to the right of the plot.
    """
    if layout.positions is None:
        return ""
    low, high = layout.positions.min(axis=0), layout.positions.max(axis=0)
    pad = 0.05 * np.maximum(high - low, 1e-9)
    (left, right), (bottom, top) = np.stack([low - pad, high + pad], axis=1).tolist()
    axes = svg.Axes(24, 8, size - 32, size - 32, (left, right), (bottom, top))
    x, y = axes.left + axes.width / 2, axes.top + axes.height / 2
    box = f'x="{axes.left}" y="{axes.top}" width="{axes.width}" height="{axes.height}"'
    parts = [
        f'<rect {box} fill="none" stroke="var(--rule)"/>',
        svg.text(x, size - 8, layout.axes[0], "middle", "name"),
        svg.text(15, y, layout.axes[1], "middle", "name", f' transform="rotate(-90 15 {y:.1f})"'),
    ]
    for (x, y), label, clip in zip(layout.positions.tolist(), labels.tolist(), clips, strict=True):
        parts.append(marker(axes.x(x), axes.y(y), label, f"{clip}: {classes[label]}"))
    width = size
    if legend:
        signs = [(partial(marker, label=label), classes[label]) for label in np.unique(labels).tolist()]
        drawn, width = key_column(signs, size + 6, axes.top + 8, axes.height)
        parts.append(drawn)
    return svg.picture(width, size, "".join(parts), f"{layout.name}, coloured by class")


def key_column(
    entries: Sequence[tuple[Callable[[float, float], str], str]], left: float, top: float, height: float
) -> tuple[str, int]:
    """A legend in columns.

    Args:
        entries: function that draws the sign at a position, and the name.
        left, top: position of the first sign.
        height: of a column in pixels.

    Returns:
        the SVG, and the position where it ends on the right.
    """
    rows, parts = max(1, int(height // _LINE)), []
    for first in range(0, len(entries), rows):
        column = entries[first : first + rows]
        for row, (sign, name) in enumerate(column):
            y = top + _LINE * row
            parts += [sign(left + 6, y), svg.text(left + 17, y + 4, svg.short(name, 24), "start", "item")]
        left += 30 + 6.4 * min(24, max(len(name) for _, name in column))
    return "".join(parts), math.ceil(left)


def marker(x: float, y: float, label: int, hint: str = "") -> str:
    """Marker of a class: eight colours, then the same colours in the next shape."""
    style = f'fill="{svg.model_colour(label)}" fill-opacity="0.8"'
    shape = (label // 8) % (1 + len(_MARKERS))
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" {style}>{svg.title(hint)}</circle>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _MARKERS[shape - 1])
    return f'<polygon points="{points}" {style}>{svg.title(hint)}</polygon>'


def legend_marker(label: int) -> str:
    """Marker of a class for the legend."""
    return svg.picture(12, 12, marker(6, 6, label), "", "sign")


def heatmap(matrix: Array, label: str) -> str:
    """Absolute correlations, from 0 to 1."""
    axes = svg.Axes(58, 8, _SIZE, _SIZE, (0.0, float(len(matrix))), (0.0, float(len(matrix))))
    image = svg.image(axes, np.abs(matrix), (0.0, 1.0), sharp=True)
    return svg.picture(
        404, 384, image + axes.x_axis(label) + axes.y_axis(label, grid=False), f"Absolute correlations, {label}"
    )
