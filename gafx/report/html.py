"""The HTML page builder: fills a template with values; each page is one file without external resources.

Only the report of an evaluation has a script, which its content security policy names by its hash.
Numbers are printed by `gafx.report.format`, whose functions are filters in the templates.
"""

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gafx._version import __version__
from gafx.io import write_text
from gafx.report import format as fmt

MOST_SKIPPED = 500  # skipped files that a page lists
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Script:
    """A page's inline script, and its hash as a source of the content security policy."""

    text: str
    hash: str


def read_script(template: str) -> Script:
    """Read a script of the templates' folder."""
    text = (_TEMPLATES / template).read_text("utf-8")
    return Script(text, f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}")


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder.

    Args:
        template: file name, e.g. `report.html.j2`.
        **values: variables of the template; strings are escaped, None is printed as a dash.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        if value is None:
            return fmt.NONE
        return fmt.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, finalize=finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (
        fmt.label, fmt.number, fmt.score, fmt.cell, fmt.setting, fmt.fraction, fmt.probability, fmt.duration, fmt.size,
        fmt.p_value, fmt.latency,
    )  # fmt: skip
    environment.filters["prose"] = lambda text: Markup(_prose(text))
    environment.filters.update({filter.__name__: filter for filter in filters})
    environment.globals.update(interval=fmt.interval, plural=fmt.plural, MOST_SKIPPED=MOST_SKIPPED)
    return environment.get_template(template).render(version=__version__, **values)


def _prose(text: str) -> str:
    """Escape a sentence that is printed in Markdown too; what is in backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(fmt.printable(text)))


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill a template, write the page atomically, and return its path.

    Args:
        path: of the HTML file; its folder is created where it is missing.
        template, **values: see `render`.
    """
    text = render(template, **values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def write_figure(path: Path, figure: str, *, title: str, caption: str) -> Path:
    """Write a figure of `gafx.report.svg.picture` atomically as an SVG file with the pages' style sheet.

    Args:
        path: of the file; its folder is created where it is missing.
        figure: the figure.
        title: of the figure.
        caption: its description.

    Returns:
        the path.
    """
    size = re.search(r'viewBox="[^"]*" width="\d+" height="\d+"', figure)
    assert size is not None
    return write_page(path, "figure.svg.j2", figure=figure, size=size[0], title=title, caption=caption)
