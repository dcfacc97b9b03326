"""What the pages have in common: one file, pictures inside, no script, nothing loaded; and how values are written."""

from pathlib import Path
from typing import Any

from gafx._version import __version__
from gafx.io import write_text
from gafx.report import svg

_LABELS = {
    "macro_f1": "Macro-F1",
    "f1": "F1",
    "auc": "AUC",
    "mean_auc": "Mean AUC",
    "d_prime": "d′",
    "mean_absolute_error_db": "Mean absolute error, dB",
    "labels_tested": "Labels that occur",
    "frontend": "Front-end",
    "segment_seconds": "Seconds a segment",
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
_PERCENT = ("accuracy",)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template of this folder, write it whole or not at all, and return its path.

    Args:
        path: of the HTML file; its folder is made where it is missing.
        template: its name, e.g. `report.html.j2`.
        **values: what it shows; strings are escaped, None is a dash.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        if value is None:
            return "–"
        return svg.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(label=label, cell=cell, score=score, bounds=bounds, setting=setting)
    text = environment.get_template(template).render(version=__version__, **values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def label(key: str) -> str:
    """The name of a score or setting as a heading."""
    text = key.removeprefix("validation_")
    words = _LABELS.get(text, text.replace("_", " "))
    if text != key:
        return "Validation " + words[:1].lower() + words[1:]
    return words if text in _LABELS else words[:1].upper() + words[1:]


def lowered(label: str) -> str:
    """A label inside a sentence: abbreviations and units stay as they are."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def tick_form(key: str) -> str:
    """How the ticks of a score's axis are written, for `str.format`."""
    return "{:.0%}" if key.removeprefix("validation_") in _PERCENT else "{:g}"


def score(value: Any, name: str) -> str | None:
    """A score as it is printed: shares in percent, all else to three decimals; None, shown as a dash, for no number."""
    if not svg.is_number(value):
        return None
    return f"{100 * value:.1f} %" if name in _PERCENT else f"{value:.3f}"


def bounds(found: dict[str, Any], name: str) -> str:
    """The interval of a score, or an empty string where it has none."""
    low, high = score(found.get("low"), name), score(found.get("high"), name)
    return f"{low.removesuffix(' %')}–{high}" if low and high else ""


def cell(value: Any, name: str = "") -> str | None:
    """Any other value of a result as it is printed, by its name and its type; None, shown as a dash, for no value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not svg.is_number(value):
        return None
    if name in _PERCENT:
        return score(value, name)
    if name.endswith("parameters") or name.startswith("flops"):
        return _scaled(float(value))
    if name.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
    if name.endswith("_seconds") and name != "segment_seconds":
        return _duration(float(value))
    if name.endswith("per_second"):
        return f"{value:.1f}" if value < 1000 else f"{value:,.0f}".replace(",", "\u202f")
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f") if name not in ("fold", "seed") else f"{int(value)}"
    return f"{value:.3f}"


def _scaled(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:#.3g}".rstrip(".") + f" {name}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def setting(value: Any) -> str:
    """A value of the configuration on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {setting(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)
