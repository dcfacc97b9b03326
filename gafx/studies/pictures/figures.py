"""The figures of `gafx pictures`, each a string of inline SVG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report import svg
from gafx.studies.pictures.embedding import Layout
from gafx.studies.pictures.filters import LOWEST_DB, Responses

Array = npt.NDArray[Any]


def gradient_picture(gradient: Array, seconds: float, limits: tuple[float, float]) -> str:
    """Gradients `(parts, frequency, time)` over one time axis, as wide as the map's picture above them."""
    left, width, top = 52, 384, 22
    parts: list[str] = []
    height = 132 if len(gradient) < 3 else 80
    for number, array in enumerate(gradient):
        axes = svg.Axes(left, top, width, height, (0.0, seconds), (0.0, float(len(array))))
        which = f", part {number + 1} of {len(gradient)}" if len(gradient) > 1 else ""
        parts.append(svg.text(left, top - 6, f"gradient of the predicted class{which}", "start", "item"))
        parts.append(_image(axes, array, limits))
        parts.append(axes.y_axis("frequency bin", 5 if height > 100 else 3, grid=False))
        top += height + 28
    return svg.picture(446, top + 14, "".join(parts) + axes.x_axis("s"), "Gradient of the predicted class over the map")


def filter_picture(found: Responses) -> str:
    """Frequency responses as an image, a column a filter, with the centres drawn over the mel scale below."""
    count, top_hertz = len(found.centre), found.rate / 2000
    axes = svg.Axes(58, 14, 372, 200, (0.0, float(count)), (0.0, top_hertz))
    parts = [_image(axes, found.decibels, (LOWEST_DB, 0.0), sharp=True), axes.y_axis("kHz", 5, grid=False)]
    below = svg.Axes(58, 236, 372, 150, (0.0, float(count)), (0.0, top_hertz))
    places = np.arange(count) + 0.5
    parts += [below.y_axis("centre, kHz"), below.x_axis("filter, by centre frequency")]
    parts.append(below.path(places, found.mel / 1000, "--model: var(--muted); stroke-dasharray: 4 3", "mel scale"))
    parts.append(below.path(places, found.centre / 1000, "--model: var(--model-0); stroke-width: 1.8", "this layer"))
    last = svg.text(66, 248, "dashed: mel scale", "start")
    return svg.picture(446, 432, "".join(parts) + last, f"Frequency responses of the first layer of {found.name}")


def scatter(layout: Layout, labels: Array, classes: Sequence[str], clips: Sequence[str]) -> str:
    """Tracks in two dimensions, a colour and, from the ninth class on, a shape a class; names under the pointer."""
    if layout.places is None:
        return ""
    size = 330
    low, high = layout.places.min(axis=0), layout.places.max(axis=0)
    pad = 0.05 * np.maximum(high - low, 1e-9)
    axes = svg.Axes(
        8, 8, size - 16, size - 16, (float(low[0] - pad[0]), float(high[0] + pad[0])),
        (float(low[1] - pad[1]), float(high[1] + pad[1])),
    )  # fmt: skip
    frame = f'<rect x="8" y="8" width="{size - 16}" height="{size - 16}" fill="none" stroke="var(--rule)"/>'
    parts = [frame]
    for (x, y), label, clip in zip(layout.places, labels.tolist(), clips, strict=True):
        parts.append(marker(axes.x(float(x)), axes.y(float(y)), label, f"{clip}: {classes[label]}"))
    return svg.picture(size, size, "".join(parts), f"{layout.name} of the embeddings, coloured by class")


def marker(x: float, y: float, label: int, said: str = "") -> str:
    """A class's sign: eight colours, then the same colours in the next shape."""
    colour, shape = svg.model_colour(label), (label // 8) % 4
    style = f'fill="{colour}" fill-opacity="0.8"'
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
        2: [(0, -4.6), (4.4, 3.4), (-4.4, 3.4)],
        3: [(0, -5), (5, 0), (0, 5), (-5, 0)],
    }
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" {style}>{svg.title(said)}</circle>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[shape])
    return f'<polygon points="{points}" {style}>{svg.title(said)}</polygon>'


def legend_marker(label: int) -> str:
    """A class's sign beside its name."""
    return svg.picture(12, 12, marker(6, 6, label), "", "sign")


def heatmap(matrix: Array, label: str) -> str:
    """Absolute correlations, from none to all."""
    count = len(matrix)
    axes = svg.Axes(58, 8, 330, 330, (0.0, float(count)), (0.0, float(count)))
    parts = [_image(axes, np.abs(matrix), (0.0, 1.0), sharp=True), axes.x_axis(label), axes.y_axis(label, grid=False)]
    return svg.picture(404, 384, "".join(parts), f"Absolute correlation of each {label} with each other")


def _image(axes: svg.Axes, array: Array, limits: tuple[float, float], *, sharp: bool = False) -> str:
    """A map in a plot area; `sharp` where a column is a thing of its own that must not run into the next."""
    place = f'x="{axes.left}" y="{axes.top}" width="{axes.width}" height="{axes.height}" preserveAspectRatio="none"'
    place += ' style="image-rendering: pixelated"' if sharp else ""
    return f'<image {place} href="{svg.png(array, limits)}"/>'
