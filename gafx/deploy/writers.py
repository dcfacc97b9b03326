"""Predictions as text: a table for people; JSON, JSON lines and CSV for programs.

A writer takes one `Prediction` at a time and keeps none: each is written as soon as it is known.
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from gafx.deploy.predict import DIGITS, Array, Prediction, columns, ranked
from gafx.report.format import clock, printable, probability

_MAX_NAME_WIDTH = 60


def listed(labels: Iterable[tuple[str, float]]) -> str:
    """Labels and probabilities for people: `rock 62 %, jazz 9.0 %`."""
    return ", ".join(f"{printable(label)} {probability(value)}" for label, value in labels)


def json_line(entry: Mapping[str, Any], out: TextIO) -> str:
    """An object in JSON on one line that the encoding of `out` can represent."""
    # Encodings other than UTF-8 lack characters, which only ASCII escapes can represent in JSON.
    encoding = (getattr(out, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(entry, ensure_ascii=encoding != "utf8")


class Writer:
    """Context manager that writes predictions to `out`, with what the format needs before and after them.

    Args:
        out: text stream.
        classes: labels of the model.
        files: names of all files, if known beforehand; they give the width of the table's column.
        top: number of labels; None for all.
        over_time: also write the probabilities of each window.
    """

    def __init__(
        self, out: TextIO, classes: Sequence[str], *, files: Sequence[str] = (), top: int | None = None,
        over_time: bool = False,
    ):  # fmt: skip
        self.out, self.classes, self.top, self.over_time = out, tuple(classes), top, over_time
        self.width = min(max((len(_name(file)) for file in files), default=0), _MAX_NAME_WIDTH)
        self.count = 0
        self.begin()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # half an array must not look complete
            self.end()
            self.out.flush()

    def write(self, found: Prediction) -> None:
        """Write the prediction of one file and flush the stream."""
        self.add(found)
        self.count += 1
        self.out.flush()

    def begin(self) -> None:
        """Write what precedes the predictions."""

    def add(self, found: Prediction) -> None:
        """Write one prediction."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what follows the predictions."""


class Table(Writer):
    """One line per file (and per window): length and the most probable labels."""

    def add(self, found: Prediction) -> None:
        name = f"{_name(found.file):<{self.width}}"
        if found.probabilities is None:
            self.out.write(f"{name}  error: {found.error}\n")
            return
        self.out.write(f"{name}  {clock(found.seconds or 0.0):>8}  {self._labels(found.probabilities)}\n")
        for start, end, values in found.by_window() if self.over_time else ():
            self.out.write(f"  {clock(start):>8} to {clock(end):<8}  {self._labels(values)}\n")

    def _labels(self, values: Array) -> str:
        return listed(ranked(self.classes, values, self.top))


class JsonLines(Writer):
    """One JSON object per line, complete as soon as its file is."""

    def add(self, found: Prediction) -> None:
        self.out.write(self._json(found) + "\n")

    def _json(self, found: Prediction) -> str:
        return json_line(found.to_dict(self.top, over_time=self.over_time), self.out)


class Json(JsonLines):
    """One JSON array of the objects that `JsonLines` writes."""

    def begin(self) -> None:
        self.out.write("[")

    def add(self, found: Prediction) -> None:
        self.out.write(("," if self.count else "") + "\n" + self._json(found))

    def end(self) -> None:
        self.out.write("\n]\n")


class Csv(Writer):
    """One row per file, or per window with `over_time`: a column for each label, in the model's order."""

    def begin(self) -> None:
        self.rows = csv.writer(self.out, lineterminator="\n")
        self.rows.writerow(columns(self.classes, self.over_time))
        self.times = 2 if self.over_time else 1

    def add(self, found: Prediction) -> None:
        for row in found.rows(over_time=self.over_time):
            digits = (3 if number <= self.times else DIGITS for number in range(len(row)))
            self.rows.writerow(
                f"{cell:.{most}f}" if isinstance(cell, float) else cell for cell, most in zip(row, digits, strict=True)
            )


def _name(file: str) -> str:
    """A file's name in at most `_MAX_NAME_WIDTH` characters, its end rather than its beginning."""
    name = printable(file)
    return name if len(name) <= _MAX_NAME_WIDTH else "..." + name[3 - _MAX_NAME_WIDTH :]


WRITERS: Mapping[str, Callable[..., Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv}
