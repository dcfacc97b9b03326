"""Labels of the user's choice among those of a model: fractions, aliases, and "none of these"."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from gafx.deploy.predict import Prediction

Array = npt.NDArray[Any]
Labels = Sequence[str] | Mapping[str, str | Sequence[str]]
_MAX_NAMED = 5
# The label where a threshold is not reached.
NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Choice:
    """Some labels of a model under names of one's own.

    Attributes:
        names: of the chosen labels.
        columns: for each name, the positions of its labels among the model's classes.
        exclusive: the model's probabilities sum to 1, so those of joined labels are added; of a tagging model, whose
            labels may apply together, the largest is taken.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    exclusive: bool

    @classmethod
    def of(cls, classes: Sequence[str], labels: Labels, *, exclusive: bool) -> "Choice":
        """Find labels among the classes of a model; case, `_`, punctuation and spaces need not agree.

        Args:
            classes: labels of the model.
            labels: names of labels, or a mapping of names to a label or several labels.
            exclusive: see above.

        Raises:
            UsageError: a label that the model does not have, one that is given twice, none, or no text.
        """
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise UsageError(f"labels={labels!r} is no list: give a list of labels, or a mapping of names to labels")
        named = labels if isinstance(labels, Mapping) else [(label, label) for label in labels]
        pairs = list(named.items() if isinstance(named, Mapping) else named)
        if not pairs:
            raise UsageError("no label is chosen: name at least two of the model's labels")
        columns: list[tuple[int, ...]] = []
        taken: dict[int, str] = {}
        for number, (name, chosen) in enumerate(pairs):
            if name == NONE_OF_THESE:
                raise UsageError(
                    f"the name {name!r} is that of files where no label reaches the threshold: give another one"
                )
            if name in [other for other, _ in pairs[:number]]:
                raise UsageError(f"the label {name!r} is given twice: give each label once")
            wanted = [chosen] if isinstance(chosen, str) or not isinstance(chosen, Iterable) else list(chosen)
            for each in (name, *wanted):
                if not isinstance(each, str):
                    raise UsageError(
                        f"{each!r} among the labels is no text: give a list of labels, or a mapping of names to a "
                        "label or a list of labels"
                    )
            members = [_find(label, classes) for label in wanted]
            if not members:
                raise UsageError(f"{name!r} names no label: name at least one of the model's labels")
            for member in members:
                if member in taken:
                    both = f"in {name!r}" if taken[member] == name else f"for {taken[member]!r} and {name!r}"
                    raise UsageError(
                        f"the model's label {classes[member]!r} is given twice, {both}, and would count twice: give "
                        "each label once"
                    )
                taken[member] = name
            columns.append(tuple(members))
        return cls(tuple(name for name, _ in pairs), tuple(columns), exclusive)

    def of_model(self, values: Array) -> Array:
        """The model's own probabilities of the chosen labels: `(..., classes)` -> `(..., names)`."""
        joined = np.sum if self.exclusive else np.max
        return np.stack([joined(values[..., list(each)], axis=-1) for each in self.columns], axis=-1)

    def apply(self, found: "Prediction") -> "Prediction":
        """A prediction of these labels alone, with fractions that sum to 1 as its probabilities."""
        file = None if found.probabilities is None else self.of_model(found.probabilities)
        windows = None if found.window_probabilities is None else self.of_model(found.window_probabilities)
        return replace(
            found, classes=self.names, model_probabilities=file, window_model_probabilities=windows,
            probabilities=None if file is None else fractions(file),
            window_probabilities=None if windows is None else fractions(windows),
        )  # fmt: skip


def fractions(values: Array) -> Array:
    """Values over their sum; zeros where all are 0."""
    return values / np.maximum(values.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def label_of(
    classes: Sequence[str], probabilities: Array, model_probabilities: Array | None, threshold: float | None
) -> str:
    """The most probable label, or `none of these`.

    Args:
        classes: labels.
        probabilities: `(classes,)`, of chosen labels their fractions.
        model_probabilities: `(classes,)` the model's own ones of chosen labels; None if none were chosen.
        threshold: least of the model's probabilities with which a label applies; None: one always does.
    """
    own = probabilities if model_probabilities is None else model_probabilities
    if threshold is not None and own.max() < threshold:
        return NONE_OF_THESE
    return classes[int(np.argmax(probabilities))]


def parse_labels(text: str, classes: Sequence[str]) -> dict[str, list[str]]:
    """Labels of the command line: `Blues,hiphop=Hip hop music,voice=Speech+Singing,"Male speech, man speaking"`.

    Args:
        text: labels separated by commas; what is between double quotes is taken as it is (`""` is a quote).
        classes: labels of the model; what is exactly one of them is not taken apart at `=` or `+`.

    Raises:
        UsageError: an empty label, a name twice, or a quote without its end.
    """
    if text.count('"') % 2:
        raise UsageError(f"--labels {text}: a double quote has no end")
    chosen: dict[str, list[str]] = {}
    for field in _split(text, ","):
        whole = _unquoted(field)
        name, label = whole, field
        if whole not in classes and "=" in whole:
            # An alias may be inside the quotes: "man=Male speech, man speaking".
            first, *rest = _split(field, "=", most=1)
            name, label = (_unquoted(first), rest[0]) if rest else map(str.strip, whole.split("=", 1))
        one = _unquoted(label)
        labels = [one] if one in classes else [_unquoted(part) for part in _split(label, "+")]
        if not name or not all(labels):
            raise UsageError(f"--labels {text} has an empty label: separate labels by one comma, e.g. Jazz,Blues")
        if name in chosen:
            raise UsageError(f"--labels names {name!r} twice: give each label once")
        chosen[name] = labels
    return chosen


def _find(label: str, classes: Sequence[str]) -> int:
    position = _position(label, classes)
    if position is not None:
        return position
    key = _key(label)
    near = [name for name in classes if key and key in _key(name)]
    hint = did_you_mean(label, classes)
    if near:
        more = f" and {len(near) - _MAX_NAMED} more" if len(near) > _MAX_NAMED else ""
        hint = f"; with these letters it has {', '.join(near[:_MAX_NAMED])}{more}"
    known = hint or f"; its first labels are {', '.join(classes[:_MAX_NAMED])}"
    raise UsageError(f"the model has no label {label!r} among its {len(classes)}{known}")


def _position(label: str, classes: Sequence[str]) -> int | None:
    """Position of a label as it is written, else of the only one that differs in case and punctuation alone."""
    if label in classes:
        return list(classes).index(label)
    key = _key(label)
    same = [position for position, name in enumerate(classes) if key and _key(name) == key]
    return same[0] if len(same) == 1 else None


def _key(label: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", label.casefold()))


def _split(text: str, separator: str, most: int = 0) -> list[str]:
    """Parts of a text between separators that are outside double quotes."""
    parts = re.findall(rf'(?:^|{re.escape(separator)})((?:"[^"]*"|[^"{re.escape(separator)}])*)', text)
    return [parts[0], separator.join(parts[1:])] if most and len(parts) > 2 else parts


def _unquoted(text: str) -> str:
    return re.sub(r'"((?:[^"]|"")*)"', lambda found: found[1].replace('""', '"'), text.strip()).strip()
