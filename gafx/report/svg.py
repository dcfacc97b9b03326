"""SVG primitives of the pages' figures: axes, lines, letters and embedded maps.

Axes, lines and letters are coloured by the page's style sheet, so that they follow its light and dark schemes and stay
sharp in print; only maps are pixels, as indexed PNG inside the SVG. matplotlib places the ticks and gives the colour
map. Lengths are CSS pixels of the figure's own width; narrow screens scale figures down.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.report.format import escape

Array = npt.NDArray[Any]

COLOUR_MAP = "magma"
_MOST_PIXELS = (480, 160)  # of an embedded map: time, frequency


@dataclass(frozen=True)
class Axes:
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

    def x_axis(self, label: str, most: int = 6, form: str = "{:g}") -> str:
        bottom = self.top + self.height
        parts = [line(self.left, bottom, self.left + self.width, bottom, "axis")]
        for tick in ticks(self.x_range, most):
            parts.append(line(self.x(tick), bottom, self.x(tick), bottom + 4, "axis"))
            parts.append(text(self.x(tick), bottom + 16, form.format(tick), "middle"))
        parts.append(text(self.left + self.width / 2, bottom + 32, label, "middle", "name") if label else "")
        return "".join(parts)

    def y_axis(self, label: str, most: int = 5, form: str = "{:g}", grid: bool = True) -> str:
        parts = []
        for tick in ticks(self.y_range, most):
            if grid:
                parts.append(line(self.left, self.y(tick), self.left + self.width, self.y(tick), "grid"))
            parts.append(text(self.left - 6, self.y(tick) + 3.5, form.format(tick), "end"))
        x, y = self.left - 40, self.top + self.height / 2
        parts.append(text(x, y, label, "middle", "name", f' transform="rotate(-90 {x:.1f} {y:.1f})"'))
        return "".join(parts)

    def path(self, xs: Iterable[float], ys: Iterable[float], style: str, said: str = "") -> str:
        points = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        if len(points) == 1:  # a path of one point draws nothing
            x, y = points[0].split()
            return f'<circle cx="{x}" cy="{y}" r="2" fill="var(--model)">{title(said)}</circle>'
        return f'<path class="line" d="M{"L".join(points)}" style="{style}">{title(said)}</path>' if points else ""


def model_colour(index: int) -> str:
    """The style sheet's colour of the model in this row; it has eight."""
    return f"var(--model-{index % 8})"


def png(array: Array, limits: tuple[float, float]) -> str:
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

    return np.asarray(colormaps[COLOUR_MAP](np.arange(256), bytes=True))[:, :3].copy()


def ticks(limits: tuple[float, float], most: int) -> list[float]:
    """Round values between two limits, at most about so many."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(limits), max(limits)
    values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-6 * (high - low)
    return [float(tick) + 0.0 for tick in values if low - slack <= tick <= high + slack]


def short(text: str, length: int) -> str:
    """At most `length` characters of a text."""
    return text if len(text) <= length else text[: length - 1] + "…"


def title(said: str) -> str:
    """What a pointer over the element shows."""
    return f"<title>{escape(said)}</title>" if said else ""


def line(x1: float, y1: float, x2: float, y2: float, kind: str, style: str = "") -> str:
    """A straight line of one of the style sheet's kinds."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def text(x: float, y: float, said: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    """Letters of one of the style sheet's kinds; `anchor` is start, middle or end, `more` further attributes."""
    inside = escape(said)
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{inside}</text>' if said else ""


def picture(width: float, height: float, inside: str, label: str, kind: str = "plot") -> str:
    """A figure of this size; `label` says what it shows to who cannot see it."""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg class="{kind}" {box} role="img" aria-label="{escape(label)}">{inside}</svg>'


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
