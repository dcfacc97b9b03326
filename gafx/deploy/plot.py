"""A labelled file as a picture: shares over time above the waveform and the map that the model read.

Nothing here is global: figures may be drawn in several threads at once.
"""

import io
import os
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gafx.deploy.observe import Observed, Strip, observe
from gafx.deploy.predict import Prediction
from gafx.errors import UsageError
from gafx.nn.spectral import hz_to_mel
from gafx.report.format import clock
from gafx.report.format import probability as percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Observed", "Strip", "draw", "encode", "observe", "write"]

Array = npt.NDArray[Any]

# Okabe and Ito's colours for all kinds of colour vision, so ordered that neighbours differ in lightness, too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#56b4e9", "#cc79a7", "#7f7f7f")
_LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (4, 4)))
_OTHER = {False: "#d9d9d9", True: "#4a4f58"}
_INK = {False: "#1f2328", True: "#e6e8eb"}
_WAVE = {False: "#4d4d4d", True: "#b8bec7"}
_COLOUR_MAP = "magma"
_DOTS_PER_INCH = 110
_MOST_PARTS = 4  # of a map of several channels or planes; more would be stripes
_NARROW = 7.0  # inches; below it the legend lies under the shares
_TITLE_LETTERS, _LABEL_LETTERS = 60, 24
_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_HERTZ = (100, 200, 500, 1000, 2000, 5000, 10000, 20000)
# Fonts with the letters that matplotlib's own lacks, where a machine has them.
_MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAexGothic", "Hiragino Sans", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")


def draw(
    prediction: Prediction,
    observed: Observed,
    *,
    labels: int = 6,
    mel: bool = False,
    width: float = 10.0,
    dark: bool = False,
) -> "Figure":
    """Draw shares over time, below them the waveform and the front-end's map, over one time axis.

    Shares that sum to one are stacked, the largest label at the top and the rest as `other` at the bottom; labels that
    are told one by one are lines. A window's shares are drawn around its centre, half-way to its neighbours' centres,
    though it was computed from all of the window, which the caption says.

    Args:
        prediction: of `predict_files(..., over_time=True)`.
        observed: of the same file.
        labels: how many of the labels with the largest shares are told apart, 1 to 8.
        mel: draw the mel spectrogram below the map, unless the map is one itself.
        width: of the figure, in inches; below 7 the legend lies under the shares.
        dark: light letters on no background, for dark pages.

    Raises:
        UsageError: nothing to draw (a file that could not be read, or no shares over time), or a number of labels that
            has no colours.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 1 <= labels <= len(_COLOURS):
        raise UsageError(f"labels={labels} must lie between 1 and {len(_COLOURS)}, the number of colours to tell apart")
    if prediction.shares is None:
        raise UsageError(f"{prediction.file} has no shares to draw: it {prediction.error or 'was not labelled'}")
    if prediction.windows is None or prediction.window_shares is None or not len(prediction.windows):
        raise UsageError(f"{prediction.file} has no shares over time: label it with over_time=True")
    parts = observed.map.values[:_MOST_PARTS]
    strips: list[tuple[float, Callable[[Axes], None]]] = [
        (2.7, lambda axes: _draw_shares(axes, prediction, labels, narrow=width < _NARROW, dark=dark)),
        (0.8, lambda axes: _draw_envelope(axes, observed, dark)),
    ]
    limits = _colour_limits(parts)
    for number, part in enumerate(parts):
        said = _map_words(observed, number)
        strip = Strip(part, observed.map.step)
        strips.append((1.7 if len(parts) == 1 else 1.0, _map_drawer(strip, limits, said, dark)))
    if mel and observed.map_name != "mel":
        strips.append((1.7, _mel_drawer(observed, dark)))
    heights = [height for height, _ in strips]
    narrow_legend = 0.28 * (min(labels, len(prediction.classes)) // 2 + 1) if width < _NARROW else 0.0
    figure = Figure(figsize=(width, sum(heights) + 0.28 * len(strips) + 0.9 + narrow_legend), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor("none" if dark else "white")
    every = figure.subplots(len(strips), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (_, drawer) in zip(every, strips, strict=True):
        _style(axes, dark)
        drawer(axes)
        axes.tick_params(labelbottom=axes is every[-1])
    _time_axis(every[-1], observed.seconds, few=width < _NARROW)
    label, share = prediction.top(1)[0]
    name = PurePath(prediction.file).name or prediction.file
    said = f"{_short(_printable(name), _TITLE_LETTERS if width >= _NARROW else 34)}: {_label(label)} {percent(share)}"
    figure.suptitle(said, color=_INK[dark], fontsize=12 if width >= _NARROW else 10, **_text())
    return figure


def write(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure as png, svg or pdf by the name's suffix, whole or not at all, and return the path.

    Raises:
        UsageError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"a picture cannot be written as {path.suffix or 'a file without suffix'!r}: use .png or .svg")
    content = encode(figure, path.suffix.lower()[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".gafx-{os.getpid()}.writing")
    aside.write_bytes(content)
    os.replace(aside, path)
    return path


def encode(figure: "Figure", kind: str = "png") -> bytes:
    """A figure's bytes as `png`, `svg`, `pdf`, or for pages `webp`, a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _draw_shares(axes: "Axes", prediction: Prediction, labels: int, *, narrow: bool, dark: bool) -> None:
    windows, shares = prediction.windows, prediction.window_shares
    assert windows is not None
    assert shares is not None
    assert prediction.shares is not None
    order = np.argsort(-prediction.shares, kind="stable")[:labels]
    edges, values, each = _steps(windows, shares)
    stacked = bool(np.allclose(shares.sum(axis=1), 1, atol=1e-3))
    names, handles = [], []
    if stacked:
        top = np.ones(len(values))
        for colour, index in zip(_COLOURS, order, strict=False):
            bottom = top - values[:, index]
            handles.append(_fill(axes, edges, bottom, top, colour, dark))
            top = bottom
        if len(order) < values.shape[1]:
            handles.append(_fill(axes, edges, np.zeros(len(values)), np.maximum(top, 0), _OTHER[dark], dark))
    else:
        for colour, dash, index in zip(_LINE_COLOURS, _DASHES, order, strict=False):
            handles.append(axes.stairs(values[:, index], edges, color=colour, ls=dash, lw=1.8, baseline=None))
    names = [f"{_label(prediction.classes[index])} {percent(prediction.shares[index])}" for index in order]
    if len(handles) > len(names):
        rest = 1 - float(prediction.shares[order].sum())
        names.append(f"{values.shape[1] - len(order)} other {percent(max(rest, 0.0))}")
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.005, 1.03)}
    if narrow:
        place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.03), "ncols": 2, "columnspacing": 1.0}
    # Names are put in afterwards: matplotlib leaves out of a legend what begins with an underscore.
    legend = axes.legend(handles, ["x"] * len(names), frameon=False, fontsize=9, borderaxespad=0.2, **place)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, color=_INK[dark], **_text())
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylabel("share" if stacked else "probability")
    axes.set_title(
        _window_words(windows, each, narrow), loc="left", fontsize=8.5 if not narrow else 8, color=_INK[dark]
    )


def _fill(axes: "Axes", edges: Array, low: Array, high: Array, colour: str, dark: bool) -> Any:
    again = np.append(np.arange(len(low)), len(low) - 1)
    line = "#16181d" if dark else "white"
    return axes.fill_between(edges, low[again], high[again], step="post", facecolor=colour, edgecolor=line, lw=0.5)


def _steps(windows: Array, shares: Array, most: int = 1200) -> tuple[Array, Array, int]:
    """Edges `(n + 1,)` half-way between the centres of windows, values `(n, classes)`, and windows a value."""
    centres = windows.mean(axis=1)
    edges = np.concatenate([windows[:1, 0], (centres[1:] + centres[:-1]) / 2, windows[-1:, 1]])
    each = -(-len(shares) // most)
    if each == 1:
        return edges, shares, 1
    starts = np.arange(0, len(shares), each)
    counts = np.diff(np.append(starts, len(shares)))
    return np.append(edges[starts], edges[-1]), np.add.reduceat(shares, starts, axis=0) / counts[:, None], each


def _window_words(windows: Array, each: int, narrow: bool) -> str:
    length = float(np.median(windows[:, 1] - windows[:, 0]))
    if len(windows) == 1:
        return f"one window of {length:.3g} s"
    step = float(np.median(np.diff(windows[:, 0])))
    said = f"windows of {length:.3g} s, one every {step:.3g} s"
    if not narrow:
        said += ", each drawn around its centre"
    return said if each == 1 else f"{said}; means of {each} windows"


def _draw_envelope(axes: "Axes", observed: Observed, dark: bool) -> None:
    low, high = observed.envelope.values
    edges = np.minimum(np.arange(len(low) + 1) * observed.envelope.step, observed.seconds)
    again = np.append(np.arange(len(low)), len(low) - 1)
    axes.fill_between(edges, low[again], high[again], step="post", color=_WAVE[dark], lw=0.4)
    peak = float(max(-low.min(), high.max(), 0.0)) or 1.0
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([-peak, 0, peak], [f"{-peak:.2g}", "0", f"{peak:.2g}"])
    axes.set_ylabel("wave")


def _map_drawer(strip: Strip, limits: tuple[float, float], said: str, dark: bool) -> "Callable[[Axes], None]":
    def drawer(axes: "Axes") -> None:
        _image(axes, strip, limits)
        axes.set_ylabel("bin")
        axes.set_title(said, loc="left", fontsize=8.5, pad=3, color=_INK[dark], **_text())

    return drawer


def _mel_drawer(observed: Observed, dark: bool) -> "Callable[[Axes], None]":
    def drawer(axes: "Axes") -> None:
        _image(axes, observed.mel, _colour_limits(observed.mel.values))
        low, high = (float(hz_to_mel(torch.tensor(edge), "slaney")) for edge in observed.mel_edges)
        shown = [hertz for hertz in _HERTZ if observed.mel_edges[0] < hertz < 0.9 * observed.mel_edges[1]][1::2]
        bands = len(observed.mel.values)
        # The n-th of so many bands has its centre at the (n + 1)-th of equal steps of mel.
        places = [(float(hz_to_mel(torch.tensor(float(h)), "slaney")) - low) / (high - low) * (bands + 1) - 0.5
                  for h in shown]  # fmt: skip
        axes.set_yticks(places, [f"{hertz / 1000:g} kHz" if hertz >= 1000 else f"{hertz} Hz" for hertz in shown])
        axes.set_title(
            "log-mel spectrogram of the same sound, for comparison", loc="left", fontsize=8.5, pad=3,
            color=_INK[dark],
        )  # fmt: skip

    return drawer


def _image(axes: "Axes", strip: Strip, limits: tuple[float, float]) -> None:
    rows, columns = strip.values.shape
    axes.imshow(
        np.nan_to_num(strip.values), aspect="auto", origin="lower", cmap=_COLOUR_MAP, vmin=limits[0], vmax=limits[1],
        extent=(0.0, columns * strip.step, 0.0, float(rows)),
    )  # fmt: skip


def _colour_limits(values: Array) -> tuple[float, float]:
    """Values at the ends of the colour scale: the 1st and the 99.5th percentile; apart even where all are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(finite, [1, 99.5]))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _map_words(observed: Observed, number: int) -> str:
    said = f"map of the front-end {_printable(observed.map_name)}, as the classifier reads it"
    count = len(observed.map.values)
    if count == 1:
        return said
    if number:
        return f"part {number + 1} of {count}"
    return f"{said}; part 1 of {count}"


def _style(axes: "Axes", dark: bool) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK[dark], labelsize=8.5)
    axes.yaxis.label.set(color=_INK[dark], fontsize=9)
    axes.xaxis.label.set(color=_INK[dark], fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=_INK[dark], linewidth=0.7)


def _time_axis(axes: "Axes", seconds: float, *, few: bool) -> None:
    most = 6 if few else 11
    step = next((step for step in _TIME_STEPS if seconds / step <= most), 86400)
    ticks = np.arange(0, seconds + 1e-9, step)
    axes.set_xlim(0, seconds)
    axes.set_xticks(ticks, [clock(float(tick), step) for tick in ticks])
    axes.set_xlabel("time, h:min:s" if ticks[-1] >= 3600 else "time, min:s")


def _label(label: str) -> str:
    return _short(_printable(label), _LABEL_LETTERS)


def _short(text: str, length: int) -> str:
    """At most so many letters, the middle left out: names of files often differ in their ends."""
    return text if len(text) <= length else f"{text[: length - length // 3 - 1]}…{text[-(length // 3) :]}"


def _printable(text: str) -> str:
    r"""Text that the fonts at hand can draw: undecodable bytes as `\xe9`, letters that no font has as a box."""
    from matplotlib.font_manager import get_font

    fonts = [get_font(file) for file in _fonts()[1]]

    def show(letter: str) -> str:
        if "\udc80" <= letter <= "\udcff":
            return f"\\x{ord(letter) - 0xDC00:02x}"
        if unicodedata.category(letter) == "Zs":
            return " "
        if not letter.isprintable():
            return letter.encode("unicode_escape").decode("ascii")
        return letter if any(font.get_char_index(ord(letter)) for font in fonts) else "\u25a1"

    return "".join(map(show, unicodedata.normalize("NFC", text)))


def _text() -> dict[str, Any]:
    """How text from outside is set: as it is, since a `$` begins no formula, in fonts that have its letters."""
    return {"parse_math": False, "fontfamily": list(_fonts()[0])}


@cache
def _fonts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and files of matplotlib's own font and of those of `_MORE_FONTS` that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    names = ("DejaVu Sans", *(name for name in _MORE_FONTS if name in installed))
    return names, tuple(font_manager.findfont(name) for name in names)
