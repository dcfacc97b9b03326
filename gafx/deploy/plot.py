"""Figure of a labelled file: probabilities over time above the waveform and the map that the classifier reads.

Nothing here changes matplotlib's global state: figures can be drawn in several threads at once.
"""

import io
import os
import unicodedata
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gafx.deploy.labels import NONE_OF_THESE
from gafx.deploy.observe import Observed, Strip, observe
from gafx.deploy.predict import Prediction, edges
from gafx.errors import UsageError
from gafx.io import write_bytes
from gafx.nn.spectral import hz_to_mel
from gafx.report.format import clock, printable, probability
from gafx.report.svg import colour_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Observed", "Strip", "draw", "encode", "observe", "write"]

Array = npt.NDArray[Any]

# The palette of Okabe and Ito, safe for all kinds of colour vision; neighbours differ in lightness, too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#56b4e9", "#cc79a7", "#7f7f7f")
_LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (4, 4)))
# Colours on light and on dark pages.
_OTHER, _INK, _WAVE, _EDGE = (
    ("#d9d9d9", "#4a4f58"), ("#1f2328", "#e6e8eb"), ("#4d4d4d", "#b8bec7"), ("white", "#16181d")
)  # fmt: skip
_DOTS_PER_INCH = 110
_MAX_PARTS = 4  # of a map of several channels or planes that are drawn
_MAX_STEPS = 1200  # of the probabilities over time
_NARROW = 7.0  # inches; below it the legend is under the probabilities
_SHORT_NAME = 14  # characters of labels of which a narrow legend has two columns
_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_HERTZ = (200, 1000, 5000, 20000)
# Installed fonts that are searched for characters which matplotlib's own font lacks.
_MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAexGothic", "Hiragino Sans", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")


def draw(
    prediction: Prediction, observed: Observed, *, labels: int = 6, mel: bool = False, width: float = 10.0,
    dark: bool = False,
) -> "Figure":  # fmt: skip
    """Draw probabilities over time, and below them the waveform and the front-end's map, over one time axis.

    Probabilities that sum to 1 are stacked, the most probable label at the top and all others at the bottom;
    independent ones are lines. A window's probabilities are drawn around its centre, up to halfway to the neighbours'
    centres, although they depend on the whole window; the caption gives its length. Silent windows are gaps.

    Args:
        prediction: of `predict_files(..., over_time=True)`.
        observed: of the same file.
        labels: number of labels that are drawn, the most probable first; 1 to 8.
        mel: draw the mel spectrogram below the map, unless the front-end is `mel`.
        width: of the figure, in inches; below 7 the legend is under the probabilities.
        dark: light letters on a transparent background, for dark pages.

    Raises:
        UsageError: nothing to draw (the file could not be read or is silent, or there are no windows), or too many
            labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 1 <= labels <= len(_COLOURS):
        raise UsageError(f"labels={labels} must be between 1 and {len(_COLOURS)}, the number of colours")
    if prediction.probabilities is None:
        reason = prediction.error or ("it is silent" if prediction.silent else "it was not labelled")
        raise UsageError(f"{prediction.file} has no probabilities to draw: {reason}")
    if prediction.windows is None or not len(prediction.windows):
        raise UsageError(f"{prediction.file} has no probabilities over time: label it with over_time=True")
    narrow = width < _NARROW
    parts = list(observed.map.values[:_MAX_PARTS])
    with_mel = mel and observed.map_name != "mel"
    heights = [2.7, 0.8, *([1.7 if len(parts) == 1 else 1.0] * len(parts)), *([1.7] if with_mel else [])]
    # Two columns of long names would be wider than the axes, which would shrink to make room for them.
    columns = 1 + (max(len(_label(name)) for name, _ in prediction.top(labels)) <= _SHORT_NAME)
    legend = 0.3 + 0.2 * -(-(min(labels, len(prediction.classes)) + 1) // columns) if narrow else 0.0
    figure = Figure(figsize=(width, sum(heights) + 0.28 * len(heights) + 0.9 + legend), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("none" if dark else "white")
    every = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes in every:
        _style(axes, dark)
        axes.tick_params(labelbottom=axes is every[-1])
    _draw_probabilities(every[0], prediction, labels, columns if narrow else 0, dark)
    _draw_envelope(every[1], observed, dark)
    for number, part in enumerate(parts):
        _draw_map(every[2 + number], observed, part, number, colour_range(parts), dark)
    if with_mel:
        _draw_mel(every[-1], observed, dark)
    _time_axis(every[-1], observed.seconds, most=6 if narrow else 11)
    best = _label(NONE_OF_THESE)
    if prediction.label != NONE_OF_THESE:
        label, value = prediction.top(1)[0]
        best = f"{_label(label)} {probability(value)}"
    name = _short(_drawable(PurePath(prediction.file).name or prediction.file), 34 if narrow else 60)
    figure.suptitle(f"{name}: {best}", color=_INK[dark], fontsize=10 if narrow else 12, **_text())
    return figure


def write(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure as png, svg or pdf by the suffix of the path, atomically, and return the path.

    Raises:
        UsageError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"a figure cannot be written as {path.suffix or 'a file without suffix'!r}: use .png or .svg")
    content = encode(figure, path.suffix.lower()[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path


def encode(figure: "Figure", kind: str = "png") -> bytes:
    """A figure as bytes of a `png`, `svg`, `pdf`, or for web pages `webp`, which is a third as large."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _draw_probabilities(axes: "Axes", prediction: Prediction, labels: int, columns: int, dark: bool) -> None:
    """Probabilities over time; the legend is below them in so many columns, or with 0 beside them."""
    windows, total = np.asarray(prediction.windows), np.asarray(prediction.probabilities)
    by_window = np.asarray(prediction.window_probabilities)
    silent = np.zeros(len(windows), bool) if prediction.window_silent is None else prediction.window_silent
    bounds, values, each = _steps(windows, np.where(silent[:, None], np.nan, by_window))  # NaN leaves a gap
    order = np.argsort(-total, kind="stable")[:labels]
    names = [f"{_label(prediction.classes[index])} {probability(total[index])}" for index in order]
    stacked = bool(np.allclose(by_window[~silent].sum(axis=1), 1, atol=1e-3))
    handles: list[Any]
    if stacked:
        heights, colours = list(values[:, order].T), list(_COLOURS[: len(order)])
        if len(order) < values.shape[1]:
            heights.append(np.maximum(1 - values[:, order].sum(axis=1), 0))
            colours.append(_OTHER[dark])
            rest = max(1 - float(total[order].sum()), 0.0)
            names.append(f"{values.shape[1] - len(order)} other {probability(rest)}")
        stack = np.stack(heights[::-1])  # from the bottom to the top; the last value is drawn up to the last edge
        handles = axes.stackplot(
            bounds, np.concatenate([stack, stack[:, -1:]], axis=1), colors=colours[::-1], step="post",
            edgecolor=_EDGE[dark], lw=0.5,
        )[::-1]  # fmt: skip
    else:
        handles = [
            axes.stairs(values[:, index], bounds, color=colour, ls=dash, lw=1.8, baseline=None)
            for colour, dash, index in zip(_LINE_COLOURS, _DASHES, order, strict=False)
        ]
    anchor: dict[str, Any] = {"bbox_to_anchor": (1.005, 1.03)}
    if columns:
        anchor = {"bbox_to_anchor": (-0.02, -0.03), "ncols": columns, "columnspacing": 1.0}
    # The names are set afterwards: matplotlib leaves labels that begin with an underscore out of a legend.
    legend = axes.legend(
        handles, ["x"] * len(names), frameon=False, fontsize=9, borderaxespad=0.2, loc="upper left", **anchor
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, color=_INK[dark], **_text())
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylabel("probability" if prediction.model_probabilities is None else "fraction")
    caption = _describe_windows(windows, each, bool(columns))
    _caption(axes, caption + ("; gaps: silence" if silent.any() else ""), dark)


def _steps(windows: Array, values: Array) -> tuple[Array, Array, int]:
    """Edges `(n + 1,)` halfway between the windows' centres, values `(n, classes)`, and the windows per value."""
    bounds = edges(windows)
    each = -(-len(values) // _MAX_STEPS)
    if each == 1:
        return bounds, values, 1
    starts = np.arange(0, len(values), each)
    counts = np.diff(np.append(starts, len(values)))
    return np.append(bounds[starts], bounds[-1]), np.add.reduceat(values, starts, axis=0) / counts[:, None], each


def _describe_windows(windows: Array, each: int, narrow: bool) -> str:
    length = float(np.median(windows[:, 1] - windows[:, 0]))
    if len(windows) == 1:
        return f"one window of {length:.3g} s"
    text = f"windows of {length:.3g} s, one every {float(np.median(np.diff(windows[:, 0]))):.3g} s"
    text += "" if narrow else ", each drawn around its centre"
    return text if each == 1 else f"{text}; means of {each} windows"


def _draw_envelope(axes: "Axes", observed: Observed, dark: bool) -> None:
    low, high = observed.envelope.values
    edges = np.minimum(np.arange(len(low) + 1) * observed.envelope.step, observed.seconds)
    again = np.append(np.arange(len(low)), len(low) - 1)
    axes.fill_between(edges, low[again], high[again], step="post", color=_WAVE[dark], lw=0.4)
    peak = float(max(-low.min(), high.max(), 0.0)) or 1.0
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([-peak, 0, peak], [f"{-peak:.2g}", "0", f"{peak:.2g}"])
    axes.set_ylabel("wave")


def _draw_map(
    axes: "Axes", observed: Observed, part: Array, number: int, limits: tuple[float, float], dark: bool
) -> None:
    _draw_image(axes, Strip(part, observed.map.step), limits)
    axes.set_ylabel("bin")
    count = len(observed.map.values)
    texts = [f"map of the front-end {_drawable(observed.map_name)}, as the classifier reads it"] if not number else []
    texts += [f"part {number + 1} of {count}"] if count > 1 else []
    _caption(axes, "; ".join(texts), dark)


def _draw_mel(axes: "Axes", observed: Observed, dark: bool) -> None:
    _draw_image(axes, observed.mel, colour_range([observed.mel.values]))
    shown = [hertz for hertz in _HERTZ if observed.mel_edges[0] < hertz < 0.9 * observed.mel_edges[1]]
    low, high, *mels = hz_to_mel(torch.tensor([*observed.mel_edges, *shown]), "slaney").tolist()
    # The centre of band n is at step n + 1 of (bands + 1) equal steps on the mel scale.
    steps = len(observed.mel.values) + 1
    ticks = [(mel - low) / (high - low) * steps - 0.5 for mel in mels]
    axes.set_yticks(ticks, [f"{hertz / 1000:g} kHz" if hertz >= 1000 else f"{hertz} Hz" for hertz in shown])
    _caption(axes, "log-mel spectrogram of the same audio, for comparison", dark)


def _draw_image(axes: "Axes", strip: Strip, limits: tuple[float, float]) -> None:
    rows, columns = strip.values.shape
    axes.imshow(
        np.nan_to_num(strip.values), aspect="auto", origin="lower", cmap="magma", vmin=limits[0], vmax=limits[1],
        extent=(0.0, columns * strip.step, 0.0, float(rows)),
    )  # fmt: skip


def _caption(axes: "Axes", text: str, dark: bool) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, pad=3, color=_INK[dark], **_text())


def _style(axes: "Axes", dark: bool) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK[dark], labelsize=8.5)
    for label in (axes.yaxis.label, axes.xaxis.label):
        label.set(color=_INK[dark], fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=_INK[dark], linewidth=0.7)


def _time_axis(axes: "Axes", seconds: float, most: int) -> None:
    step = next((step for step in _TIME_STEPS if seconds / step <= most), 86400)
    ticks = np.arange(0, seconds + 1e-9, step)
    axes.set_xlim(0, seconds)
    axes.set_xticks(ticks, [clock(float(tick), step) for tick in ticks])
    axes.set_xlabel("time, h:min:s" if ticks[-1] >= 3600 else "time, min:s")


def _label(label: str) -> str:
    return _short(_drawable(label), 24)


def _short(text: str, length: int) -> str:
    """At most `length` characters, the middle omitted: names of files often differ at their ends."""
    return text if len(text) <= length else f"{text[: length - length // 3 - 1]}…{text[-(length // 3) :]}"


def _drawable(text: str) -> str:
    """Printable text in the fonts at hand; characters that no font has become a box."""
    from matplotlib.font_manager import get_font

    fonts = [get_font(file) for file in _fonts()[1]]

    def show(character: str) -> str:
        if unicodedata.category(character) == "Zs":
            return " "
        return character if any(font.get_char_index(ord(character)) for font in fonts) else "\u25a1"

    return "".join(map(show, printable(unicodedata.normalize("NFC", text))))


def _text() -> dict[str, Any]:
    """Properties of text from outside: no formulas (`$`), and fonts that have its characters."""
    return {"parse_math": False, "fontfamily": list(_fonts()[0])}


@cache
def _fonts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and files of matplotlib's own font and of those of `_MORE_FONTS` that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    names = ("DejaVu Sans", *(name for name in _MORE_FONTS if name in installed))
    return names, tuple(font_manager.findfont(name) for name in names)
