"""Formatting of numbers for reports and messages: units, digits, intervals, durations, sizes and tables.

The terminal, the reports, the table pages, the model card and the demo all format through this module, so that a score
reads the same everywhere: a macro-F1 of 0.335 is `33.5 %`. Nothing here imports torch or numpy.
"""

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

NONE = "–"  # printed where there is no number


@dataclass(frozen=True)
class Metric:
    """Format of one score.

    Attributes:
        label: its name at the start of a heading.
        unit: `%` for a fraction shown in percent, `dB`, or empty for a score without a unit.
        digits: decimals, after the conversion to percent.
    """

    label: str
    unit: str = ""
    digits: int = 3

    @property
    def scale(self) -> float:
        """Factor from the stored value to the printed one."""
        return 100.0 if self.unit == "%" else 1.0


def _percent(label: str) -> Metric:
    return Metric(label, "%", 1)


# Every score that an objective, a probe or a table reports. Fractions of tracks or of precision and recall are printed
# in percent, areas and dimensionless scores are not.
METRICS: dict[str, Metric] = {
    "accuracy": _percent("Accuracy"),
    "balanced_accuracy": _percent("Balanced accuracy"),
    "macro_f1": _percent("Macro-F1"),
    "f1": _percent("F1"),
    "precision": _percent("Precision"),
    "recall": _percent("Recall"),
    "chance": _percent("Chance"),
    "within_tolerance": _percent("Within 4 %"),
    "mean_average_precision": _percent("Mean average precision"),
    "average_precision": _percent("Average precision"),
    "mean_auc": Metric("Mean AUC"),
    "auc": Metric("AUC"),
    "d_prime": Metric("d′"),
    "calibration_error": Metric("Calibration error"),
    "masked_loss": Metric("Loss on masked frames"),
    "masked_accuracy": _percent("Accuracy of masked codes"),
    "mean_absolute_error_db": Metric("Mean absolute error", "dB", 2),
    "explained_variance": Metric("Explained variance"),
    "spectral_error_db": Metric("Spectral error", "dB", 2),
    "signal_to_noise_db": Metric("Signal-to-noise ratio", "dB", 2),
    "codes_used": Metric("Codes in use", digits=0),
    "perplexity": Metric("Perplexity", digits=1),
    "nll": Metric("Negative log-likelihood per token", "nats"),
    "nll_elbo": Metric("Negative ELBO per token", "nats"),
    "reconstruction": Metric("Reconstruction per token", "nats"),
    "reconstruction_shuffled": Metric("Reconstruction with the latent of another piece", "nats"),
    "kl": Metric("KL divergence per clip", "nats", 2),
    "kl_largest": Metric("Largest KL of a dimension", "nats"),
    "active_units": Metric("Active latent dimensions", digits=0),
    "r2": Metric("R²", digits=2),
    "probability": _percent("Probability"),
    "overlap": _percent("Overlap"),
    "loss": Metric("Loss"),
}
# Headings of settings and costs that differ from their keys.
_LABELS = {
    "labels_tested": "Labels that occur",
    "frontend": "Front-end",
    "segment_seconds": "Seconds per segment",
    "flops_per_clip": "FLOPs per clip",
    "clips_per_second": "Clips per second",
    "frontend_parameters": "Front-end parameters",
    "peak_memory_bytes": "Peak memory",
    "memory_bytes": "Peak memory in evaluation",
    "training_memory_bytes": "Peak memory in training",
    "training_clips_per_second": "Clips per second in training",
    "train_seconds": "Training time",
    "train_steps": "Training steps",
}
_VALIDATION = "validation_"
_COLUMN_PREFIX = "probability:"


def metric(name: str) -> Metric:
    """The format of a score by its key; `validation_` in front is ignored. Unknown keys get three decimals, no unit."""
    key = name.removeprefix(_VALIDATION)
    if key in METRICS:
        return METRICS[key]
    if key.endswith("_db"):
        return Metric(_words(key.removesuffix("_db")), "dB", 2)
    return Metric(_LABELS.get(key) or _words(key))


def label(name: str) -> str:
    """A score's or setting's name as a heading, without its unit: `macro_f1` -> `Macro-F1`."""
    text = metric(name).label
    return f"Validation {lowered(text)}" if name.startswith(_VALIDATION) else text


def lowered(text: str) -> str:
    """Format a label for running text: the first letter in lower case unless it begins an abbreviation."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def heading(name: str) -> str:
    """The heading of a column of numbers printed without their unit: `Accuracy (%)`."""
    unit = metric(name).unit
    return f"{label(name)} ({unit})" if unit else label(name)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number that can be printed or drawn (booleans are not)."""
    if isinstance(value, (bool, str)) or value is None:
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def number(value: Any, name: str, *, unit: bool = True) -> str:
    """A score: `33.5 %`, `13.60 dB`, `0.412`; a dash where it is no finite number.

    Args:
        value: as stored (fractions between 0 and 1).
        name: the score's key, see `METRICS`.
        unit: append the unit; False in a column whose heading names it.
    """
    if not is_number(value):
        return NONE
    form = metric(name)
    text = f"{form.scale * float(value):.{form.digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return f"{text} {form.unit}" if unit and form.unit else text


def interval(low: Any, high: Any, name: str, *, unit: bool = False) -> str:
    """The bounds of an interval: `29.1 to 38.0`; a dash where one is missing."""
    if not (is_number(low) and is_number(high)):
        return NONE
    return f"{number(low, name, unit=False)} to {number(high, name, unit=unit)}"


def score(found: Any, name: str, *, unit: bool = True) -> str:
    """A score with its interval: `33.5 % (29.1 to 38.0)`; without bounds the number alone.

    Args:
        found: a `gafx.stats.scores.Score`, its dictionary (`value`, `low`, `high`), a plain number or None.
        name: the score's key.
        unit: as `number`.
    """
    value, low, high = _parts(found)
    text = number(value, name, unit=unit)
    return f"{text} ({interval(low, high, name)})" if is_number(low) and is_number(high) and text != NONE else text


def bounds(found: Any, name: str, *, unit: bool = False) -> str:
    """The interval of a score (see `score`): `29.1 to 38.0`; a dash where it has none."""
    return interval(*_parts(found)[1:], name, unit=unit)


def ticks(name: str) -> str:
    """Format, as for `str.format`, of the ticks of a score's axis: `50%`, `0.5`."""
    return "{:.0%}" if metric(name).unit == "%" else "{:g}"


def mean_std(values: Sequence[float], name: str, *, unit: bool = True) -> str:
    """Mean over runs with the sample std: `51.0 ± 2.0 %`; a single run without it, no run as a dash."""
    if not values:
        return NONE
    mean = sum(values) / len(values)
    if len(values) == 1:
        return number(mean, name, unit=unit)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{number(mean, name, unit=False)} ± {number(std, name, unit=unit)}"


def probability(value: float) -> str:
    """A probability in whole percent, with one decimal below 10 % and where rounding would give 100 %."""
    percent = 100 * value
    rounded = 9.95 <= percent < 99.5 or percent < 0.05 or percent >= 99.95
    return f"{percent:.0f} %" if rounded else f"{percent:.1f} %"


def decibels(value: float) -> str:
    """A level relative to full scale: `-23.4 dBFS`, `-inf dBFS` for a constant."""
    return f"{value:.1f} dBFS"


def fraction(value: float, digits: int = 1) -> str:
    """Any other fraction in percent."""
    return f"{100 * value:.{digits}f} %" if is_number(value) else NONE


def p_value(value: Any) -> str:
    """A p-value: three decimals, `< 0.001` below."""
    return NONE if not is_number(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def duration(seconds: float) -> str:
    """Format a duration: `12.0 ms`, `8.5 s`, `45 s`, `3 min 25 s`, `2 h 05 min`, `3 d 4 h`."""
    if not is_number(seconds):
        return NONE
    if seconds < 0.0995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def latency(seconds: float) -> str:
    """A time to wait for an answer, with more digits than `duration`: `<0.1 ms`, `8.3 ms`, `130 ms`, `1.25 s`."""
    if 0 < seconds < 5e-5:
        return "<0.1 ms"
    if seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.00995 else 1}f} ms"
    return f"{seconds:.2f} s"


def clock(seconds: float, step: float = 1.0) -> str:
    """A position in a recording: `3:25`, `1:02:03` from an hour on.

    With the decimals that tell positions apart which differ by `step` seconds: none from a second on, at most three.
    """
    digits = min(max(0, math.ceil(-math.log10(step) - 1e-6)), 3)
    units, part = divmod(round(seconds * 10**digits), 10**digits)
    minutes, left = divmod(units, 60)
    text = f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"
    return f"{text}.{part:0{digits}}" if digits else text


def size(count: float) -> str:
    """Bytes in decimal units: `812 bytes`, `4.2 kB`, `35.1 MB`, `1.25 GB`, `3.84 TB`."""
    if not is_number(count):
        return NONE
    units = (("EB", 1e18, 2), ("PB", 1e15, 2), ("TB", 1e12, 2), ("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1))
    for unit, scale, digits in units:
        if count >= scale:
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count:.0f} byte{'s' * (count != 1)}"


def scaled(count: float) -> str:
    """A count in three significant digits with T, G, M or k: parameters, FLOPs. `5.53 M`, `735 G`."""
    if not is_number(count):
        return NONE
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{count:.3g}"


def grouped(count: float) -> str:
    """A whole number with a narrow no-break space between groups of three digits."""
    return f"{count:,.0f}".replace(",", "\u202f")


def cell(value: Any, name: str = "") -> str:
    """Any value of a result or a cost, formatted by its key: `2.30 M` for `parameters`, `858 MB` for `..._bytes`.

    Args:
        value: text, a number, a boolean or None.
        name: its key; scores as `number`, without a key a whole number or three decimals.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return NONE
    if name in METRICS or metric(name).unit:
        return number(value, name)
    if name.endswith("parameters") or name.startswith("flops"):
        return scaled(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_seconds") and name != "segment_seconds":
        return duration(value)
    if name.endswith("per_second") and value < 1000:
        return f"{value:.1f}"
    if name in ("fold", "seed", "split_seed"):
        return f"{value:.0f}"
    return grouped(value) if name.endswith("per_second") or float(value).is_integer() else f"{value:.3f}"


def setting(value: Any) -> str:
    """A value of the configuration on one line: `name mel, n_mels 128`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else NONE if value is None else str(value)


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 track`, `2 tracks`; `many` for irregular plurals."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def printable(text: object) -> str:
    r"""Text that any UTF-8 page or terminal line can hold and that shows what is there.

    Control characters, direction marks and lone surrogates become escapes; the bytes of a file name that is no UTF-8
    (which Python keeps as surrogates) become `\xe9` and the like. Spaces of all widths stay.
    """
    return "".join(map(_show, str(text)))


def escape(text: object) -> str:
    """Printable text for inside HTML or SVG."""
    return html.escape(printable(text))


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: columns left-aligned two spaces apart, dashes below the header, no trailing spaces."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(body)


def column_names(labels: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names of the columns of a CSV file that hold the labels' probabilities, different from its other columns.

    A column is named by its label; a label that is called like one of the `taken` columns, or that begins with
    `probability:`, gets `probability:` in front.
    """
    return [f"{_COLUMN_PREFIX}{text}" if text in taken or text.startswith(_COLUMN_PREFIX) else text for text in labels]


def _words(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def _parts(found: Any) -> tuple[Any, Any, Any]:
    if isinstance(found, Mapping):
        return found.get("value"), found.get("low"), found.get("high")
    if hasattr(found, "value"):
        return found.value, found.low, found.high
    return found, None, None


def _show(character: str) -> str:
    # Zero-width joiners belong to the spelling of some scripts.
    if character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
