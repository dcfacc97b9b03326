"""Parts by name: front-ends, classifiers, objectives and data sources.

A part's name is the name of its module (`gafx/frontends/gafx_r.py` holds the part `gafx_r`), so names are listed
without importing anything, and its keywords are read from the module's source, so that a configuration is checked
before torch is imported. Other packages add parts through the entry point groups `gafx.frontends`, `gafx.classifiers`,
`gafx.objectives` and `gafx.sources`.
"""

import ast
import importlib
import inspect
import math
import os
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from gafx.errors import UsageError, did_you_mean, missing_package

Part = TypeVar("Part", bound=Callable[..., Any])
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Keyword:
    """One keyword of a part's constructor: its name, its annotation as a type, and its default (`REQUIRED` if none)."""

    name: str
    annotation: Any
    default: Any


class Registry:
    """The parts of one kind. Arguments before a `/` or `*` are the seam; keyword-only arguments are configuration."""

    def __init__(self, kind: str, package: str, hidden: tuple[str, ...] = ("base",)):
        self.kind, self.package, self._hidden = kind, package, hidden
        self._parts: dict[str, Callable[..., Any]] = {}

    def register(self, part: Part) -> Part:
        """Decorator: make a class or function known under the name of the module that defines it."""
        self._parts[part.__module__.rpartition(".")[2]] = part
        return part

    def names(self) -> list[str]:
        """All names of this kind, sorted; imports no part."""
        return sorted({*self._files(), *self._entry_points(), *self._parts})

    def get(self, name: str) -> Callable[..., Any]:
        """The class or function registered as `name`.

        Raises:
            UsageError: the name is unknown; the message lists the choices and the closest one.
        """
        self.check_name(name)
        if name not in self._parts:
            try:
                if name in self._files():
                    importlib.import_module(f"{self.package}.{name}")
                else:
                    self._parts[name] = self._entry_points()[name].load()
            except ModuleNotFoundError as error:
                raise missing_package(error, f"{self.kind} {name!r}") from error
        return self._parts[name]

    def check_name(self, name: object) -> None:
        """Raise `UsageError` unless `name` is one of `names()`."""
        names = self.names()
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise UsageError(f"unknown {self.kind} {name!r}{hint or ';'} choose one of: {', '.join(names)}")

    def keywords(self, name: str) -> dict[str, Keyword]:
        """The configuration keywords of a part: for gafx's own parts read from their source without importing them."""
        self.check_name(name)
        if name in self._files() and name not in self._parts:
            return _keywords_in_source(self._files()[name])
        part = self.get(name)
        hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
        return {
            p.name: Keyword(p.name, hints.get(p.name, Any), p.default)
            for p in inspect.signature(part).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }

    def check(self, name: str, arguments: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Check keyword arguments against the part's signature and return them with all defaults filled in.

        Args:
            name: registered name.
            arguments: keyword arguments.
            where: the configuration path that the arguments came from, for messages.

        Raises:
            UsageError: an unknown, missing or wrongly typed argument.
        """
        keywords = self.keywords(name)
        prefix = f"{where}." if where else ""
        for key in arguments:
            if key not in keywords:
                takes = ", ".join(keywords) or "none"
                hint = did_you_mean(key, keywords) or ";"
                raise UsageError(
                    f"unknown key {prefix}{key}: {self.kind} {name!r} has no such argument{hint} it takes: {takes}"
                )
        filled = {}
        for key, keyword in keywords.items():
            if key in arguments:
                filled[key] = check_type(arguments[key], keyword.annotation, prefix + key)
                if key == "parts" and filled[key] is not None:
                    filled[key] = self._check_parts(filled[key], prefix + key)
            elif keyword.default is REQUIRED:
                raise UsageError(
                    f"{prefix}{key} is missing: {self.kind} {name!r} needs it (a value of type "
                    f"{type_name(keyword.annotation)})"
                )
            else:
                filled[key] = keyword.default
        return filled

    def check_part(self, values: object, where: str) -> dict[str, Any]:
        """Check a part given as a mapping of `name` and arguments; return it with all defaults filled in.

        Raises:
            UsageError: as `check`, or no mapping, or one without a name.
        """
        if not isinstance(values, Mapping) or "name" not in values:
            raise UsageError(f"{where}.name is missing; choose one of: {', '.join(self.names())}")
        self.check_name(values["name"])
        arguments = {key: value for key, value in values.items() if key != "name"}
        return {"name": values["name"], **self.check(values["name"], arguments, where)}

    def _check_parts(self, parts: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Parts of the same kind inside a part (the fused front-end's), by names of the user's choice."""
        if not parts:
            raise UsageError(
                f"{where} is empty; name at least one {self.kind}, e.g. {{a: {{name: {self.names()[0]}}}}}"
            )
        return {key: self.check_part(values, f"{where}.{key}") for key, values in parts.items()}

    def create(self, name: str, *seam: Any, **arguments: Any) -> Any:
        """Build the part `name`: `seam` are its positional arguments, `arguments` are checked as a configuration is."""
        checked = self.check(name, arguments)
        part = self.get(name)
        try:
            return part(*seam, **checked)
        except ModuleNotFoundError as error:  # a part may import its libraries when it is built
            raise missing_package(error, f"{self.kind} {name!r}") from error

    @cache  # noqa: B019 - a registry lives as long as the process
    def _files(self) -> dict[str, Path]:
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        return {
            module.name: folder / f"{module.name}.py"
            for module in pkgutil.iter_modules([str(folder)])
            if module.name not in self._hidden and not module.name.startswith("_")
        }

    @cache  # noqa: B019
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.package.replace(".data.", "."))}


FRONTENDS = Registry("front-end", "gafx.frontends")
CLASSIFIERS = Registry("classifier", "gafx.classifiers")
OBJECTIVES = Registry("objective", "gafx.objectives")
SOURCES = Registry("data set", "gafx.data.sources")


def check_type(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` if it is of the annotated type (an int passes for a float, a path for text), else `UsageError`.

    Understands what configurations need: bool, int, float, str, None, Literal, unions, list, tuple, dict and Any.
    """
    if isinstance(value, os.PathLike) and _matches("", annotation):
        value = os.fspath(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not _matches(value, annotation) and _matches("", annotation):
            value = str(value)  # a folder named 2024 or nan is text, whatever YAML makes of it
        elif not math.isfinite(value):
            raise UsageError(f"{where}={value} must be a finite number")
    if _matches(value, annotation):
        if annotation is float or (
            float in typing.get_args(annotation) and type(value) is int and int not in typing.get_args(annotation)
        ):
            return float(value)
        return tuple(value) if typing.get_origin(annotation) is tuple else value
    hint = ""
    if isinstance(value, str):
        hint = did_you_mean(value, [c for c in _literals(annotation) if isinstance(c, str)])
    raise UsageError(
        f"{where}={value!r} is a {type(value).__name__}, expected {type_name(annotation)}{hint}".replace(
            "is a str, expected one of", "is not one of"
        )
    )


def type_name(annotation: Any) -> str:
    """A type as a reader of a message expects it: `int`, `float or null`, `one of 'mean', 'sum'`."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(annotation))
    if annotation in (None, type(None)):
        return "null"
    if typing.get_origin(annotation) in (list, tuple):
        return f"list of {type_name(typing.get_args(annotation)[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _literals(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return tuple(choice for option in typing.get_args(annotation) for choice in _literals(option))


def _matches(value: Any, annotation: Any) -> bool:
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if annotation in (None, type(None)):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in options)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in options)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_matches(item, options[0]) for item in value)
    if origin is dict or annotation is dict:
        return isinstance(value, Mapping)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _keywords_in_source(path: Path) -> dict[str, Keyword]:
    """Keyword-only arguments of the one class or function in `path` that is decorated with `...register`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        if not any(isinstance(d, ast.Attribute) and d.attr == "register" for d in node.decorator_list):
            continue
        function: ast.stmt | None = node
        if isinstance(node, ast.ClassDef):
            function = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        if not isinstance(function, ast.FunctionDef):
            return {}
        arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        return {a.arg: Keyword(a.arg, _annotation(a.annotation), _default(default)) for a, default in arguments}
    raise RuntimeError(f"{path} registers no part: decorate its class or function with `register`")


def _annotation(node: ast.expr | None) -> Any:
    # Only gafx's own source gets here; the names that may stand in a configuration keyword's annotation are few.
    names = {"Literal": Literal, "Any": Any}
    return Any if node is None else eval(ast.unparse(node), {"__builtins__": __builtins__, **names})


def _default(node: ast.expr | None) -> Any:
    return REQUIRED if node is None else ast.literal_eval(node)
