"""SVG elements of the pages' figures: axes, lines, text and embedded maps.

The page's style sheet colours axes, lines and text, so that they follow its light and dark schemes and stay sharp in
print; only maps are pixels, as indexed PNG inside the SVG. All pages draw with this module, without matplotlib. Lengths
are CSS pixels at the figure's own width; narrow screens scale figures down.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report.format import escape

Array = npt.NDArray[Any]

# 18 equally spaced colours of it, hexadecimal RGB; those between are interpolated.
_MAGMA = "00000309071f1a10413010654a107961187f792281912a80a9327cc23a75d9466aec585ff7715bfc8e63feaa74fec689fde1a3fbfcbf"
_NEGATIVE, _POSITIVE = (63, 127, 196), (208, 84, 60)  # blue and red of signed maps, for light and dark pages
_MOST_PIXELS = (160, 480)  # of an embedded map: frequency, time
_LETTER = 6.2  # width of a digit of a tick in pixels, about


@dataclass(frozen=True)
class Axes:
    """A plot area: its box on the figure and the ranges of its values."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Position of a value on the figure."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        """Position of a value on the figure; larger values are higher."""
        low, high = self.y_range
        return self.top + self.height * (1 - (value - low) / ((high - low) or 1))

    def x_axis(self, label: str, most: int = 6, form: str = "{:g}") -> str:
        """The axis below the plot, with at most about `most` ticks, written by `form` (as for `str.format`).

        There are fewer ticks where their labels would overlap.
        """
        bottom = self.top + self.height
        parts = [line(self.left, bottom, self.left + self.width, bottom, "axis")]
        marks, labels = _ticks(self.x_range, most, form)
        while most > 1 and len(marks) > 1 and self.x(marks[1]) - self.x(marks[0]) < _LETTER * (_longest(labels) + 1.5):
            most -= 1
            marks, labels = _ticks(self.x_range, most, form)
        for tick, written in zip(marks, labels, strict=True):
            parts.append(line(self.x(tick), bottom, self.x(tick), bottom + 4, "axis"))
            parts.append(text(self.x(tick), bottom + 16, written, "middle"))
        parts.append(text(self.left + self.width / 2, bottom + 32, label, "middle", "name") if label else "")
        return "".join(parts)

    def y_axis(self, label: str, most: int = 5, form: str = "{:g}", grid: bool = True) -> str:
        """The labels on the left, with grid lines."""
        parts = []
        marks, labels = _ticks(self.y_range, most, form)
        for tick, written in zip(marks, labels, strict=True):
            if grid:
                parts.append(line(self.left, self.y(tick), self.left + self.width, self.y(tick), "grid"))
            parts.append(text(self.left - 6, self.y(tick) + 3.5, written, "end"))
        x, y = self.left - max(40.0, _LETTER * _longest(labels) + 14), self.top + self.height / 2
        parts.append(text(x, y, label, "middle", "name", f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
        return "".join(parts)

    def path(self, xs: Iterable[float], ys: Iterable[float], style: str, hint: str = "") -> str:
        """A line through points, in CSS `style`; a single point becomes a dot."""
        points = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        if len(points) == 1:  # SVG does not draw a path of one point
            x, y = points[0].split()
            return f'<circle cx="{x}" cy="{y}" r="2" fill="var(--model)">{title(hint)}</circle>'
        return f'<path class="line" d="M{"L".join(points)}" style="{style}">{title(hint)}</path>' if points else ""


def model_colour(index: int) -> str:
    """The style sheet's colour of the model in this row; there are eight."""
    return f"var(--model-{index % 8})"


def png(array: Array, limits: tuple[float, float], *, signed: bool = False) -> str:
    """A map `(frequency, time)` as a PNG data URI, lowest frequency at the bottom; large maps are averaged down.

    Args:
        array: the map; NaN is drawn as the low end of the scale.
        limits: values at the ends of the colour scale.
        signed: blue to red, transparent in the middle, with a pixel for each value.
    """
    pixels = _indices(array, limits, array.shape if signed else _MOST_PIXELS)
    height, width = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))  # 8 bits, indexed colours
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # each row begins with its filter, 0: none
    colours = chunk(b"PLTE", _palette().tobytes())
    if signed:
        at = np.linspace(-1, 1, 256)
        rgb = np.where(at[:, None] < 0, _NEGATIVE, _POSITIVE).astype(np.uint8)
        colours = chunk(b"PLTE", rgb.tobytes()) + chunk(b"tRNS", np.rint(255 * abs(at)).astype(np.uint8).tobytes())
    data = colours + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + data).decode("ascii")


def rgb(array: Array, limits: tuple[float, float]) -> Array:
    """A map `(frequency, time)` as the pixels of `png`: `(height, width, 3)` uint8."""
    return _palette()[_indices(array, limits, _MOST_PIXELS)]


def _indices(array: Array, limits: tuple[float, float], shape: tuple[int, ...]) -> Array:
    """Index of each pixel in the palette, highest frequency first; at most `shape` pixels."""
    low, high = limits
    scaled = np.clip((np.nan_to_num(array, nan=low) - low) / ((high - low) or 1), 0, 1)[::-1]
    for axis, most in enumerate(shape):
        edges = np.linspace(0, scaled.shape[axis], min(scaled.shape[axis], most) + 1).astype(int)
        along = [-1 if other == axis else 1 for other in (0, 1)]
        scaled = np.add.reduceat(scaled, edges[:-1], axis) / np.diff(edges).reshape(along)
    return np.rint(scaled * 255).astype(np.uint8)


def image(axes: Axes, array: Array, limits: tuple[float, float], *, sharp: bool = False, signed: bool = False) -> str:
    """A map `(frequency, time)` that fills a plot area.

    Args:
        axes: the plot area.
        array, limits, signed: of `png`.
        sharp: keep the borders of columns and rows.
    """
    box = f'x="{axes.left}" y="{axes.top}" width="{axes.width}" height="{axes.height}" preserveAspectRatio="none"'
    box += ' style="image-rendering: pixelated"' if sharp else ""
    return f'<image {box} href="{png(array, limits, signed=signed)}"/>'


def _palette() -> Array:
    """`(256, 3)` uint8: the colours of the scale from its low to its high end."""
    stops = np.frombuffer(bytes.fromhex(_MAGMA), np.uint8).reshape(-1, 3)
    at = np.linspace(0, 255, len(stops))
    return np.stack([np.interp(np.arange(256), at, column) for column in stops.T], axis=1).round().astype(np.uint8)


def ticks(limits: tuple[float, float], most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two limits, in at most about `most` steps."""
    low, high = min(limits), max(limits)
    least = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))
    slack = 1e-6 * (high - low) / step
    return [index * step for index in range(math.ceil(low / step - slack), math.floor(high / step + slack) + 1)]


def _ticks(limits: tuple[float, float], most: int, form: str) -> tuple[list[float], list[str]]:
    """Ticks and their labels; percentages get a decimal where they would be equal otherwise."""
    marks = ticks(limits, most)
    labels = [form.format(tick) for tick in marks]
    if len(set(labels)) < len(labels):
        labels = [form.replace(".0%", ".1%").format(tick) for tick in marks]
    return marks, labels


def _longest(labels: Sequence[str]) -> int:
    return max(map(len, labels), default=0)


def short(text: str, length: int) -> str:
    """At most `length` characters of a text, from its beginning and its end: names often differ in their last part."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def title(hint: str) -> str:
    """Tooltip of the element around it."""
    return f"<title>{escape(hint)}</title>" if hint else ""


def line(x1: float, y1: float, x2: float, y2: float, kind: str, style: str = "") -> str:
    """A straight line of a class of the style sheet."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def text(x: float, y: float, content: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    """Text of a class of the style sheet; `anchor` is start, middle or end, `more` further attributes."""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}'
    return f'<text class="{kind}" {where}>{escape(content)}</text>' if content else ""


def anchor(inside: str, link: str, cell: str, label: str) -> str:
    """A link to an element of the page, for a cell of a matrix; `label` describes it for screen readers."""
    return f'<a href="#{link}" data-cell="{cell}" aria-label="{escape(label)}">{inside}</a>'


def picture(width: float, height: float, inside: str, label: str, kind: str = "plot") -> str:
    """A figure of this size; `label` describes it for screen readers."""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    role = "group" if "<a " in inside else "img"  # what is inside an image cannot be reached with the keyboard
    return f'<svg class="{kind}" {box} role="{role}" aria-label="{escape(label)}">{inside}</svg>'


def colour_range(maps: Sequence[Array]) -> tuple[float, float]:
    """Limits of a colour scale for all of these maps: the 1st and 99.5th percentiles of their values."""
    values = np.concatenate([array[np.isfinite(array)].ravel() for array in maps]) if maps else np.empty(0)
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99.5])
    return float(low), float(high)


def colour_bar() -> str:
    """The colour scale as stops of a CSS gradient."""
    return ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in _palette()[:: 255 // 15])
