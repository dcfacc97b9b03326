"""Registries of front-ends, classifiers, objectives and data sources.

A part's name is the name of its module (`gafx/frontends/gafx_r.py` defines the part `gafx_r`), so names are listed
without importing anything, and its keywords are read from the module's source, so that a configuration is checked
before torch is imported. Other packages add parts through the entry point groups `gafx.frontends`, `gafx.classifiers`,
`gafx.objectives` and `gafx.sources`. A part that is defined in a notebook or in the script that runs, whose module is
`__main__`, is named by its class instead (`FilterBank` is `filter_bank`) and is known in that process only.
"""

import ast
import importlib
import inspect
import math
import os
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gafx.errors import UsageError, did_you_mean, missing_package

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Part = TypeVar("Part", bound=Callable[..., Any])
REQUIRED: Any = inspect.Parameter.empty
# Modules of a script or notebook, and of a process that it starts to run functions of its own.
_MAIN = ("__main__", "__mp_main__")
_FACTS = ("renamed", "nested", "hash_if_changed")  # class attributes that are read without importing the class

_UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Keyword:
    """One keyword of a part's constructor: its name, its annotation as a type, and its default (`REQUIRED` if none)."""

    name: str
    annotation: Any
    default: Any


@dataclass(frozen=True)
class Signature:
    """Configuration of a part.

    Attributes:
        keywords: keyword-only arguments of its class or function.
        renamed: annotated class attribute `renamed`: earlier name of a keyword -> its name.
        nested: annotated class attribute `nested`: keywords whose values are parts of the same kind: one part (a
            mapping with a `name`), or several by names of the user's choice.
        hash_if_changed: annotated class attribute `hash_if_changed`: keywords that `run_id` omits at their default.
    """

    keywords: dict[str, Keyword]
    renamed: Mapping[str, str] = field(default_factory=dict)
    nested: tuple[str, ...] = ()
    hash_if_changed: tuple[str, ...] = ()


class Registry:
    """The parts of one kind.

    Arguments before a `/` or `*` in a part's signature are passed by gafx; keyword-only arguments are configuration.

    Args:
        kind: for messages, e.g. `front-end`.
        package: with one module for each part, e.g. `gafx.frontends`; also the entry point group of other packages.
        seam: number of arguments that gafx passes at most.
        base: class in the package's module `base` that parts are derived from; empty for functions.
    """

    def __init__(self, kind: str, package: str, seam: int, base: str = ""):
        self.kind, self.package, self.seam, self.base = kind, package, seam, base
        self._parts: dict[str, Callable[..., Any]] = {}

    def register(self, part: Part) -> Part:
        """Decorator: register a class or function under the name of its module, in `__main__` under its own.

        Raises:
            UsageError: a class in `__main__` would be named as a part of gafx or of an installed package, or gafx could
                not build the part: it is not derived from the base class, or an argument is not keyword-only.
        """
        self._check_form(part)
        name = part.__module__.rpartition(".")[2]
        if part.__module__ in _MAIN:
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", part.__name__).lower()
            if name in self:
                raise UsageError(
                    f"there is a {self.kind} {name!r} already: give the class {part.__name__} another name"
                )
        self._parts[name] = part
        return part

    def _check_form(self, part: Any) -> None:
        base = f"{self.package}.base"
        bases = [(each.__module__, each.__name__) for each in getattr(part, "__mro__", ())]
        if self.base and (base, self.base) not in bases:
            raise UsageError(
                f"{part.__name__} is no {self.kind}: derive it from {self.base}, `from {base} import {self.base}`"
            )
        given = [p for p in inspect.signature(part).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
        if len(given) > self.seam:
            name = given[self.seam].name
            raise UsageError(
                f"{part.__name__}: the argument {name!r} must be keyword-only, so that a configuration can set it: "
                f"write a * before {name}"
            )

    def in_main(self, part: Mapping[str, Any]) -> list[str]:
        """Return the names in a checked part, itself or nested, of those that `__main__` defines."""
        return sorted(name for name, module in self._modules(part).items() if module in _MAIN)

    def is_own(self, part: Mapping[str, Any]) -> bool:
        """Return whether a checked part and all that it nests are gafx's own."""
        return all(module.startswith(f"{self.package}.") for module in self._modules(part).values())

    def _modules(self, part: Mapping[str, Any]) -> dict[str, str]:
        """Modules of a checked part and of the innermost that it nests, by their names."""
        names = [each["name"] for each in (part, *self.single(part))]
        return {name: self.get(name).__module__ for name in names}

    def __contains__(self, name: object) -> bool:
        # Installed packages are read last, for names that are not gafx's own: that takes longer than all else here.
        return isinstance(name, str) and (name in self._files() or name in self._parts or name in self._entry_points())

    def names(self) -> list[str]:
        """Return all names of this kind, sorted, without importing a part."""
        return sorted({*self._files(), *self._entry_points(), *self._parts})

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class or function registered as `name`.

        Raises:
            UsageError: the name is unknown; the message lists the choices and the closest one.
        """
        self.check_name(name)
        if name not in self._parts:
            try:
                if name in self._files():
                    importlib.import_module(f"{self.package}.{name}")
                else:
                    part = self._entry_points()[name].load()
                    self._check_form(part)
                    self._parts[name] = part
            except ModuleNotFoundError as error:
                raise missing_package(error, f"{self.kind} {name!r}") from error
        return self._parts[name]

    def check_name(self, name: object) -> None:
        """Raise `UsageError` unless `name` is one of `names()`."""
        if name not in self:
            names = self.names()
            hint = did_you_mean(str(name), names)
            raise UsageError(f"unknown {self.kind} {name!r}{hint or ';'} choose one of: {', '.join(names)}")

    def keywords(self, name: str) -> dict[str, Keyword]:
        """Return the configuration keywords of a part."""
        return self.signature(name).keywords

    def signature(self, name: str) -> Signature:
        """Return the configuration of a part; that of gafx's own parts is read from their source, without an import."""
        self.check_name(name)
        if name in self._files() and name not in self._parts:
            return signature_in_source(self._files()[name])
        part = self.get(name)
        hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
        keywords = {
            p.name: Keyword(p.name, hints.get(p.name, Any), p.default)
            for p in inspect.signature(part).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        return Signature(keywords, **{name: getattr(part, name) for name in _FACTS if hasattr(part, name)})

    def check(self, name: str, arguments: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Check keyword arguments against the part's signature and return them with all defaults filled in.

        Args:
            name: registered name.
            arguments: keyword arguments.
            where: configuration path of the arguments, for messages.

        Raises:
            UsageError: an unknown, missing or wrongly typed argument, or one under an earlier name.
        """
        signature = self.signature(name)
        keywords, prefix = signature.keywords, f"{where}." if where else ""
        for key in arguments:
            if key in signature.renamed:
                raise UsageError(f"{prefix}{key} is now called {prefix}{signature.renamed[key]} ({self.kind} {name!r})")
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
                if key in signature.nested and filled[key] is not None:
                    filled[key] = self._check_nested(filled[key], prefix + key)
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

    def _check_nested(self, parts: Mapping[str, Any], where: str) -> dict[str, Any]:
        if not parts:
            raise UsageError(
                f"{where} is empty; name at least one {self.kind}, e.g. {{a: {{name: {self.names()[0]}}}}}"
            )
        if _is_part(parts):
            return self.check_part(parts, where)
        return {key: self.check_part(values, f"{where}.{key}") for key, values in parts.items()}

    def upgrade(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Return a part of a saved configuration with the present names of its arguments.

        A part that is unknown or malformed is returned as it is: `check_part` reports it.
        """
        if part.get("name") not in self:
            return dict(part)
        signature = self.signature(part["name"])
        renamed = {signature.renamed.get(key, key): value for key, value in part.items()}
        return self._map_nested(
            renamed,
            self.upgrade,
            lambda parts: {k: self.upgrade(v) for k, v in parts.items() if isinstance(v, Mapping)},
        )

    def ordered(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checked part as `run_id` hashes it.

        Nested parts are lists of pairs, since their order is that of the map's channels. Arguments have their earlier
        names, and those added later are left out at their default, so that finished runs keep their id.
        """
        nested = self._map_nested(
            part, self.ordered, lambda parts: [(key, self.ordered(value)) for key, value in parts.items()]
        )
        signature = self.signature(part["name"])
        earlier = {new: old for old, new in signature.renamed.items()}
        return {
            earlier.get(key, key): value
            for key, value in nested.items()
            if not (key in signature.hash_if_changed and value == signature.keywords[key].default)
        }

    def single(self, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the parts that a checked part consists of, at any depth: itself if it nests none."""
        nested = [part[key] for key in self.signature(part["name"]).nested if part.get(key)]
        for parts in nested:
            for inner in [parts] if _is_part(parts) else parts.values():
                yield from self.single(inner)
        if not nested:
            yield dict(part)

    def _map_nested(
        self, part: Mapping[str, Any], one: Callable[[Mapping[str, Any]], Any],
        several: Callable[[Mapping[str, Any]], Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Return a part with each nested value converted: by `one` if it is a part, by `several` if it names parts."""
        nested = self.signature(part["name"]).nested
        return {
            key: (one if _is_part(value) else several)(value) if key in nested and isinstance(value, Mapping) else value
            for key, value in part.items()
        }

    def create(self, name: str, *seam: Any, **arguments: Any) -> Any:
        """Build the part `name` with the positional arguments `seam`, after checking `arguments` as `check` does."""
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
            if module.name != "base" and not module.name.startswith("_")
        }

    def _entry_points(self) -> "dict[str, EntryPoint]":
        return {point.name: point for point in installed().select(group=self.package.replace(".data.", "."))}


@cache
def installed() -> Any:
    """The entry points of all installed packages."""
    from importlib.metadata import entry_points

    return entry_points()


def _is_part(value: Mapping[str, Any]) -> bool:
    """Whether a nested value is one part, not several by names (of which one may be called `name`)."""
    return isinstance(value.get("name"), str)


FRONTENDS = Registry("front-end", "gafx.frontends", 0, "FrontEnd")
CLASSIFIERS = Registry("classifier", "gafx.classifiers", 3, "Classifier")
OBJECTIVES = Registry("objective", "gafx.objectives", 2, "Objective")
SOURCES = Registry("data set", "gafx.data.sources", 1)


def matching(names: Iterable[str], pattern: str | Iterable[str]) -> list[str]:
    """Return the names that match a pattern with the wildcards `*` and `?`, or one of several; all for an empty one.

    Raises:
        UsageError: the pattern is neither text nor several texts.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern) if isinstance(pattern, Iterable) else [pattern]
    if not all(isinstance(one, str) for one in patterns):
        raise UsageError(f"filter={pattern!r} must be a name with the wildcards * and ?, or a list of such names")
    return [name for name in names if not any(patterns) or any(fnmatchcase(name, one) for one in patterns)]


def trains_classifier(objective: object) -> bool:
    """Whether an objective trains the classifier, all or all but its output layer; as `reads_labels`."""
    return objective not in OBJECTIVES or bool(OBJECTIVES.get(str(objective)).trains_classifier)  # type: ignore[attr-defined]


def reads_labels(objective: object) -> bool:
    """Whether an objective trains the classifier on labels; true for one that is not installed here.

    Args:
        objective: its name, as a saved model records it.
    """
    return objective not in OBJECTIVES or bool(OBJECTIVES.get(str(objective)).reads_labels)  # type: ignore[attr-defined]


def trains_head(objective: object) -> bool:
    """Whether an objective trains the classifier's output layer; as `reads_labels`."""
    kind: Any = OBJECTIVES.get(str(objective)) if objective in OBJECTIVES else None
    return kind is None or bool(kind.reads_labels if kind.trains_head is None else kind.trains_head)


def length_unit(frontend: Mapping[str, Any]) -> str:
    """Unit of the length of clips, `s` or `tokens`, of a front-end by its name and arguments; of none, `s`."""
    name = frontend.get("name")
    return str(getattr(FRONTENDS.get(name), "unit", "s")) if isinstance(name, str) and name in FRONTENDS else "s"


def is_multi_label(objective: object) -> bool:
    """Whether an objective predicts independent labels (a sigmoid each); false for one that is not installed here."""
    return objective in OBJECTIVES and bool(OBJECTIVES.get(str(objective)).multi_label)  # type: ignore[attr-defined]


def is_published(data: object) -> bool:
    """Whether a data set is one whose name means the same clips everywhere; false for one that is not installed here.

    Args:
        data: its name, as a saved model records it.
    """
    return data in SOURCES and getattr(SOURCES.get(str(data)), "published", False)


def check_type(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` if it has the annotated type; an int is accepted as a float, a path as text.

    Supports bool, int, float, str, None, Literal, unions, list, tuple, dict and Any.

    Raises:
        UsageError: another type, or a number that is not finite. A number is no text: YAML has read 1.10 as 1.1 and
            2024_11 as 202411 by then.
    """
    if isinstance(value, os.PathLike) and _matches("", annotation):
        value = os.fspath(value)
    if isinstance(value, str):
        check_text(value, where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not _matches(value, annotation) and _matches("", annotation):
            # The text is not known any more: YAML has read 1.10 as 1.1, and 1:30 as 90.
            raise UsageError(
                f"{where} was read as the number {value}, and it is text: put quotes around what was written"
            )
        if not math.isfinite(value):
            raise UsageError(f"{where}={value} must be a finite number")
    if _matches(value, annotation):
        if annotation is float or (
            float in typing.get_args(annotation) and type(value) is int and int not in typing.get_args(annotation)
        ):
            return float(value)
        return tuple(value) if typing.get_origin(annotation) is tuple else value
    hint = ""
    if isinstance(value, list) and list[str] in (annotation, *typing.get_args(annotation)):
        hint = "; put quotes around items that look like numbers or true and false, e.g. ['1.10','on']"
    if isinstance(value, str):
        hint = did_you_mean(value, [c for c in _literals(annotation) if isinstance(c, str)])
    raise UsageError(
        f"{where}={value!r} is a {type(value).__name__}, expected {type_name(annotation)}{hint}".replace(
            "is a str, expected one of", "is not one of"
        )
    )


def check_text(value: str, where: str) -> None:
    """Raise `UsageError` for text with bytes that are no UTF-8: files of a run, in JSON and YAML, cannot hold it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        shown = value.encode(errors="backslashreplace").decode()
        raise UsageError(
            f"{where} ({shown}) holds bytes that are no UTF-8: rename it, e.g. with `convmv -f latin1 -t utf8`"
        ) from None


def is_text(annotation: Any) -> bool:
    """Return whether a value of this type, as it is typed, is text: `str`, alone or with bool and null."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    return str in options and set(options) <= {str, bool, type(None)}


def read_text(typed: str, annotation: Any) -> str | bool | None:
    """Return the value of a text key (`is_text`) exactly as typed, but null, true and false where its type has them."""
    words = {"null": None, "true": True, "false": False}
    if typed.lower() in words and _matches(value := words[typed.lower()], annotation):
        return value
    return typed


def type_name(annotation: Any) -> str:
    """Return the name of a type for messages: `int`, `float or null`, `one of 'mean', 'sum'`."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in _UNIONS:
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
    if origin in _UNIONS:
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


def signature_in_source(path: Path) -> Signature:
    """Read the configuration of the one class or function in `path` that is decorated with `...register`."""
    part = _registered(path)
    if isinstance(part, ast.FunctionDef):
        return Signature(_keywords(part))
    constructor = next((f for f in part.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    facts = {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in part.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value
        if statement.target.id in _FACTS
    }
    return Signature(_keywords(constructor) if constructor else {}, **facts)


def _registered(path: Path) -> ast.ClassDef | ast.FunctionDef:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and any(
            isinstance(decorator, ast.Attribute) and decorator.attr == "register" for decorator in node.decorator_list
        ):
            return node
    raise RuntimeError(f"{path} registers no part: decorate its class or function with `register`")


def _keywords(function: ast.FunctionDef) -> dict[str, Keyword]:
    arguments = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {
        a.arg: Keyword(a.arg, _annotation(a.annotation), REQUIRED if default is None else ast.literal_eval(default))
        for a, default in arguments
    }


def _annotation(node: ast.expr | None) -> Any:
    # Only gafx's own source is evaluated; few names occur in the annotations of configuration keywords.
    names = {"Literal": Literal, "Any": Any}
    return Any if node is None else eval(ast.unparse(node), {"__builtins__": __builtins__, **names})
