"""What mkdocs does beyond Markdown: generated parts of pages, and links that would leave the site.

A comment `<!-- generated: NAME -->` on a line of its own is replaced by what NAME makes (`GENERATED` below). A link to
a file of the repository that is no page (`../configs/...`, `../benchmarks/...`) becomes the file's name as code, since
the site does not know where the repository is published.
"""

import importlib.util
import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from gafx.config import EvaluateConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]
_MARKER = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|^~~~.*?^~~~|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
# Pages that show a file of the repository.
_SHOWN = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gafx_docs_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme_beginning() -> str:
    """README up to its second heading, as a page of docs/ has it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return _moved(text[: text.index("\n## ", text.index("\n## ") + 1)])


def changelog() -> str:
    """CHANGELOG.md as a page of docs/ has it."""
    return _moved((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def generate(name: str) -> str:
    """What stands in place of `<!-- generated: NAME -->`.

    Raises:
        KeyError: nothing of that name is made.
    """
    reference = _reference()
    made: dict[str, Callable[[], str]] = {
        "readme": readme_beginning,
        "changelog": changelog,
        "train-keys": lambda: reference.keys_page(TrainConfig),
        "evaluate-keys": lambda: reference.keys_page(EvaluateConfig),
        "choices": lambda: reference.choices_page(ROOT / "configs"),
        **{kind: partial(reference.parts_page, kind) for kind in reference.KINDS},
    }
    return made[name]()


def inside(markdown: str, page: str, pages: set[str]) -> str:
    """Markdown whose links stay within the site: what leads out of docs/ becomes code.

    Args:
        markdown: of the page.
        page: its path below docs/.
        pages: paths below docs/ that the site has.
    """

    def keep(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"\w+:", path):
            return found[0]
        to = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
        if to in _SHOWN:
            to, anchor = f"docs/{_SHOWN[to]}", ""
        if to.startswith("docs/") and to.removeprefix("docs/") in pages:
            place = posixpath.relpath(to, posixpath.join("docs", posixpath.dirname(page)))
            text = _title(ROOT / to) if text in (path, to, posixpath.basename(to)) else text
            return f"{image}[{text}]({place}{'#' if anchor else ''}{anchor})"
        if to.startswith("docs/") or not (ROOT / to).exists():
            return found[0]  # mkdocs says what is wrong with it
        plain = text.strip("`")
        return f"`{to}`" if plain in (to, path, posixpath.basename(to)) else f"{text} (`{to}`)"

    segments = _CODE.split(markdown)
    return "".join(segment if number % 2 else _LINK.sub(keep, segment) for number, segment in enumerate(segments))


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with each page's text."""
    markdown = _MARKER.sub(lambda found: generate(found[1]), markdown)
    return inside(markdown, page.file.src_uri, {file.src_uri for file in files})


def _title(page: Path) -> str:
    """A page's first heading: what a link that is called after a file says on the site."""
    found = re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else page.stem


def _moved(text: str) -> str:
    """Text of a file beside docs/ as if it lay in docs/."""

    def move(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        return f"{image}[{words}]({posixpath.relpath(target, 'docs')})"

    segments = _CODE.split(text)
    return "".join(segment if number % 2 else _LINK.sub(move, segment) for number, segment in enumerate(segments))
