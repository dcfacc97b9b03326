"""What was said of files as text: a table for people; JSON, lines of JSON and CSV for programs.

Each writer takes one `Prediction` at a time and keeps none, so that what is known is on the page at once.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from gafx.deploy.predict import Array, Prediction, ranked
from gafx.deploy.words import clock, percent, shown
from gafx.report.format import column_names

# Shares are written with so many digits: rounded, those of 500 labels still sum to 1 within a millionth.
_DIGITS = 8
_WIDEST_NAME = 60


class Writer:
    """Writes predictions to `out` one by one; use it as a context manager, which writes what stands around them.

    Args:
        out: a text stream.
        classes: the model's labels.
        files: names of all files, where they are known beforehand (a table's column is as wide as they need).
        top: labels that are told; None for all.
        over_time: tell every window's shares.
    """

    def __init__(
        self, out: TextIO, classes: Sequence[str], *, files: Sequence[str] = (), top: int | None = None,
        over_time: bool = False,
    ):  # fmt: skip
        self.out, self.classes, self.top, self.over_time = out, tuple(classes), top, over_time
        self.width = min(max((len(shown(file)) for file in files), default=0), _WIDEST_NAME)
        self.count = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.out.flush()

    def write(self, found: Prediction) -> None:
        """Write one file's answer."""
        raise NotImplementedError

    def _shares(self, shares: Array) -> dict[str, float]:
        return {label: round(share, _DIGITS) for label, share in ranked(self.classes, shares, self.top)}

    def _json(self, found: Prediction) -> str:
        # Any other encoding may lack letters, and only this escapes them as JSON does.
        plain = (getattr(self.out, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8"
        return json.dumps(self._entry(found), ensure_ascii=plain)

    def _entry(self, found: Prediction) -> dict[str, Any]:
        if found.error is not None or found.shares is None:
            return {"file": found.file, "error": found.error}
        entry: dict[str, Any] = {
            "file": found.file, "seconds": round(found.seconds or 0.0, 3), "shares": self._shares(found.shares),
        }  # fmt: skip
        if self.over_time and found.windows is not None and found.window_shares is not None:
            entry["over_time"] = [
                {"start": round(float(start), 3), "end": round(float(end), 3), "shares": self._shares(shares)}
                for (start, end), shares in zip(found.windows, found.window_shares, strict=True)
            ]
        return entry


class Table(Writer):
    """A line a file (and one a window): length and top labels in percent."""

    def write(self, found: Prediction) -> None:
        name = shown(found.file)
        name = name if len(name) <= _WIDEST_NAME else "..." + name[3 - _WIDEST_NAME :]
        if found.error is not None or found.shares is None:
            self.out.write(f"{name:<{self.width}}  error: {found.error}\n")
            return
        self.out.write(f"{name:<{self.width}}  {clock(found.seconds or 0.0):>8}  {self._words(found.shares)}\n")
        if self.over_time and found.windows is not None and found.window_shares is not None:
            for (start, end), shares in zip(found.windows, found.window_shares, strict=True):
                self.out.write(f"  {clock(start):>8} to {clock(end):<8}  {self._words(shares)}\n")
        self.out.flush()

    def _words(self, shares: Array) -> str:
        return ", ".join(f"{shown(label)} {percent(share)}" for label, share in ranked(self.classes, shares, self.top))


class JsonLines(Writer):
    """A JSON object a line, each complete as soon as its file is."""

    def write(self, found: Prediction) -> None:
        self.out.write(self._json(found) + "\n")
        self.out.flush()


class Json(Writer):
    """One JSON array of the objects that `JsonLines` writes."""

    def __enter__(self) -> "Json":
        self.out.write("[")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # half an array must not look like a whole one
            self.out.write("\n]\n")
            self.out.flush()

    def write(self, found: Prediction) -> None:
        self.out.write(("," if self.count else "") + "\n" + self._json(found))
        self.count += 1


class Csv(Writer):
    """A row a file, or with `over_time` a row a window: a column for every label, in the model's order."""

    def __enter__(self) -> "Csv":
        self.rows = csv.writer(self.out, lineterminator="\n")
        place = ["start", "end"] if self.over_time else ["seconds"]
        before = ["file", *place, "label"]
        self.rows.writerow([*before, *column_names(self.classes, [*before, "error"]), "error"])
        return self

    def write(self, found: Prediction) -> None:
        empty = [""] * len(self.classes)
        if found.error is not None or found.shares is None:
            self.rows.writerow([found.file, *([""] * (2 if self.over_time else 1)), "", *empty, found.error])
        elif self.over_time and found.windows is not None and found.window_shares is not None:
            for (start, end), shares in zip(found.windows, found.window_shares, strict=True):
                self.rows.writerow([found.file, f"{start:.3f}", f"{end:.3f}", *self._cells(shares), ""])
        else:
            self.rows.writerow([found.file, f"{found.seconds:.3f}", *self._cells(found.shares), ""])
        self.out.flush()

    def _cells(self, shares: Array) -> list[str]:
        return [self.classes[int(np.argmax(shares))], *(f"{share:.{_DIGITS}f}" for share in shares)]


WRITERS: Mapping[str, Callable[..., Writer]] = {"table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv}
