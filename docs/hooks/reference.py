"""The configuration reference, generated from dataclasses, the comments next to their fields, and part docstrings."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from pathlib import Path
from typing import Any

from gafx import config as configuration
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, REQUIRED, SOURCES, Registry, type_name

# Sections of a Google docstring; each ends where the next begins.
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
KINDS: dict[str, tuple[Registry, str]] = {
    "frontends": (FRONTENDS, "frontend"),
    "classifiers": (CLASSIFIERS, "classifier"),
    "objectives": (OBJECTIVES, "objective"),
    "sources": (SOURCES, "data.options"),
}


def field_comments(path: Path) -> dict[str, dict[str, str]]:
    """Return the comment after (and above) each field of each class of a module: class -> field -> text."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found.setdefault(node.name, {})
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                words: list[str] = []
                line = item.lineno - 1
                while line in comments and lines[line - 1].lstrip().startswith("#"):
                    words.insert(0, comments[line])
                    line -= 1
                if item.end_lineno in comments:
                    words.append(comments[item.end_lineno])
                fields[item.target.id] = " ".join(words)
    return found


def keys(cls: type, prefix: str = "") -> list[tuple[str, Any, Any, dict[str, Any], str]]:
    """Return (key, type, default, metadata, text) of every key of a configuration dataclass, nested ones included."""
    by_class = field_comments(Path(configuration.__file__))
    comments = {name: text for kind in reversed(cls.__mro__) for name, text in by_class.get(kind.__name__, {}).items()}
    hints, rows = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
            rows += [(key, hint, value, {**field.metadata, **more}, words) for key, hint, value, more, words in inner]
            continue
        limit = configuration.limits(cls).get(field.name)
        words = "; ".join(filter(None, [comments[field.name], limit.description if limit else ""]))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        rows.append((prefix + field.name, hints[field.name], default, dict(field.metadata), words))
    return rows


def keys_page(cls: type) -> str:
    """Return Markdown tables of all keys of `TrainConfig` or `EvaluateConfig`, one per dataclass."""
    groups: dict[str, list[str]] = {}
    for key, hint, default, metadata, words in keys(cls):
        notes = [words] if words else []
        if metadata.get("not_hashed"):
            notes.append("not part of `run_id`")
        if metadata.get("hash_is_set"):
            notes.append("only whether it is set is part of `run_id`")
        row = f"| `{key}` | {_cell(type_name(hint))} | `{_value(default)}` | {_cell('; '.join(notes))} |"
        groups.setdefault(key.rpartition(".")[0], []).append(row)
    parts = []
    for group, rows in groups.items():
        heading = f"### `{group}`" if group else "### Top level"
        intro = _summary(_dataclass_of(cls, group))
        table = ["| key | type | default | |", "|---|---|---|---|", *rows]
        parts.append("\n".join([heading, "", *([intro, ""] if intro else []), *table]))
    return "\n\n".join(parts)


def parts_page(kind: str) -> str:
    """Return Markdown of every part of one kind with its keywords, their types, defaults and docstring lines."""
    registry, group = KINDS[kind]
    sections = []
    for name in registry.names():
        part = registry.get(name)
        explained, keywords = arguments(inspect.getdoc(part) or ""), registry.keywords(name)
        lines = [f"### `{name}`", "", _summary(part)]
        if keywords:
            lines += ["", "| key | type | default | |", "|---|---|---|---|"]
        for keyword in keywords.values():
            default = "required" if keyword.default is REQUIRED else f"`{_value(keyword.default)}`"
            words = _cell(explained.get(keyword.name, ""))
            lines.append(f"| `{group}.{keyword.name}` | {_cell(type_name(keyword.annotation))} | {default} | {words} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def choices_page(configs: Path) -> str:
    """Return a Markdown table of the files of each group of `configs/`."""
    rows = [
        f"| `{folder.name}=` | " + ", ".join(f"`{path.stem}`" for path in sorted(folder.glob("*.yaml"))) + " |"
        for folder in sorted(configs.iterdir())
        if folder.is_dir() and folder.name not in ("ablation", "accelerate", "slurm")
    ]
    return "\n".join(["| group | files of `configs/<group>/` |", "|---|---|", *rows])


def arguments(docstring: str) -> dict[str, str]:
    """Return the description of each argument in a Google docstring; `a, b: text` describes both."""
    found: dict[str, list[str]] = {}
    current: tuple[str, ...] = ()
    inside = False
    for line in docstring.splitlines():
        section = re.fullmatch(r"(\w+):", line)
        if section and section[1] in _SECTIONS:
            inside = section[1] == "Args"
            continue
        if not inside or not line.strip():
            continue
        start = re.fullmatch(r"    (\*{0,2}\w+(?:, \w+)*): (.*)", line)
        if start:
            current = tuple(start[1].lstrip("*").split(", "))
            for name in current:
                found[name] = [start[2]]
        elif line.startswith(" " * 8):
            for name in current:
                found[name].append(line.strip())
    return {name: " ".join(words) for name, words in found.items()}


def _summary(part: Any) -> str:
    """Return the first paragraph of a docstring on one line."""
    text = inspect.getdoc(part) or ""
    return textwrap.fill(text.split("\n\n")[0], 10_000)


def _dataclass_of(cls: type, group: str) -> type:
    for name in group.split(".") if group else ():
        cls = typing.cast(type, typing.get_type_hints(cls)[name])
    return cls


def _value(default: Any) -> str:
    """Format a default as on the command line."""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list)):
        return "[" + ", ".join(map(_value, default)) + "]"
    if isinstance(default, dict):
        return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in default.items()) + "}"
    return str(default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
