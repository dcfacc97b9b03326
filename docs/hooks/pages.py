"""Hooks of mkdocs: generated parts of pages, and links to files outside the site.

A comment `<!-- generated: NAME -->` on a line of its own is replaced by `generate(NAME)`. A link to a file of the
repository that is not a page (`../configs/...`, `../benchmarks/...`) becomes the file's name as code, since the site
does not know where the repository is published.
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
# Pages that show a file of the repository, by that file.
_SHOWN = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gafx_docs_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme_beginning() -> str:
    """README up to the end of its section "Two commands", with links as in a page of docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return _relinked(text[: text.index("\n## ", text.index("\n## Two commands") + 1)])


def changelog() -> str:
    """CHANGELOG.md with links as in a page of docs/."""
    return _relinked((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def generate(name: str) -> str:
    """Return the Markdown that replaces `<!-- generated: NAME -->`.

    Raises:
        KeyError: unknown name.
    """
    reference = _reference()
    generators: dict[str, Callable[[], str]] = {
        "readme": readme_beginning,
        "changelog": changelog,
        "train-keys": lambda: reference.keys_page(TrainConfig),
        "evaluate-keys": lambda: reference.keys_page(EvaluateConfig),
        "choices": lambda: reference.choices_page(ROOT / "configs"),
        **{kind: partial(reference.parts_page, kind) for kind in reference.KINDS},
    }
    return generators[name]()


def inside(markdown: str, page: str, pages: set[str]) -> str:
    """Rewrite the links of a page: those to files outside docs/ become code, those to shown files lead to their page.

    A link whose text is the path of a page gets the title of that page as its text.

    Args:
        markdown: text of the page.
        page: path of the page below docs/.
        pages: paths of all pages of the site below docs/.
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
            return found[0]  # mkdocs reports the error
        plain = text.strip("`")
        return f"`{to}`" if plain in (to, path, posixpath.basename(to)) else f"{text} (`{to}`)"

    segments = _CODE.split(markdown)
    return "".join(segment if number % 2 else _LINK.sub(keep, segment) for number, segment in enumerate(segments))


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Hook called by mkdocs with the text of each page."""
    markdown = _MARKER.sub(lambda found: generate(found[1]), markdown)
    return inside(markdown, page.file.src_uri, {file.src_uri for file in files})


def _title(page: Path) -> str:
    """Return the first heading of a page, used as the text of links named after the file."""
    found = re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else page.stem


def _relinked(text: str) -> str:
    """Rewrite the relative links of a file next to docs/ for a page inside docs/."""

    def move(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if re.match(r"\w+:|#", target):
            return found[0]
        return f"{image}[{words}]({posixpath.relpath(target, 'docs')})"

    segments = _CODE.split(text)
    return "".join(segment if number % 2 else _LINK.sub(move, segment) for number, segment in enumerate(segments))
