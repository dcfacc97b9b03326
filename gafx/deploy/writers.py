"""Predictions as text: a table for people; JSON, JSON lines and CSV for programs; label tracks for audio editors.

A writer takes one `Prediction` at a time and keeps none: each is written as soon as it is known.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from gafx.deploy.labels import NONE_OF_THESE
from gafx.deploy.predict import DIGITS, Array, Prediction, Segment, columns, ranked
from gafx.io import atomic_write
from gafx.outputs import Outputs
from gafx.report.format import clock, decibels, plural, printable, probability

_MAX_NAME_WIDTH = 60


def listed(labels: Iterable[tuple[str, float]]) -> str:
    """Labels and probabilities for people: `rock 62 %, jazz 9.0 %`."""
    return ", ".join(f"{printable(label)} {probability(value)}" for label, value in labels)


def json_line(entry: Mapping[str, Any], out: IO[str]) -> str:
    """An object in JSON on one line that the encoding of `out` can represent."""
    # Encodings other than UTF-8 lack characters, which only ASCII escapes can represent in JSON.
    encoding = (getattr(out, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(entry, ensure_ascii=encoding != "utf8")


def answer(
    label: str | None, classes: tuple[str, ...], probabilities: Array | None, level: float | None, top: int | None
) -> str:
    """Text on a file, a window or a segment: its labels, `none of these`, or its level if it is silent."""
    if probabilities is None:
        return f"silent ({decibels(-math.inf if level is None else level)})"
    return label if label == NONE_OF_THESE else listed(ranked(classes, probabilities, top))


class Writer:
    """Context manager that writes predictions to `out`, with what the format needs before and after them.

    Args:
        out: text stream.
        classes: labels of the model.
        files: names of all files, if known beforehand; they give the width of the table's column.
        top: number of labels; None for all.
        over_time: also write the probabilities of each window.
        merge: join neighbouring windows of the same label, see `Prediction.segments`.
        sample_rate: of the model, in Hz; half of it is the upper frequency in selection tables.
    """

    suffix = ""  # of the name of a file for one input

    def __init__(
        self, out: IO[str], classes: Sequence[str], *, files: Sequence[str] = (), top: int | None = None,
        over_time: bool = False, merge: bool = False, sample_rate: int = 0,
    ):  # fmt: skip
        self.out, self.classes, self.top, self.over_time = out, tuple(classes), top, over_time
        self.merge, self.sample_rate = merge, sample_rate
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
        if found.error is not None:
            self.out.write(f"{name}  error: {found.error}\n")
            return
        text = answer(found.label, self.classes, found.probabilities, found.level, self.top)
        if found.label == NONE_OF_THESE and found.probabilities is not None:
            own = found.probabilities if found.model_probabilities is None else found.model_probabilities
            ((name_of_best, most),) = ranked(self.classes, own, 1)
            text += f" (at most {printable(name_of_best)} {probability(most)})"
        if 0 < found.silent_windows < found.window_count:
            text += f"; {found.silent_windows} of {plural(found.window_count, 'window')} silent"
        self.out.write(f"{name}  {clock(found.seconds or 0.0):>8}  {text}\n")
        parts = found.segments(merge=self.merge, overlap=not self.merge) if self.over_time else []
        step = _step(parts)
        for part in parts:
            text = answer(part.label, self.classes, part.probabilities, part.level, self.top)
            self.out.write(f"  {clock(part.start, step):>8} to {clock(part.end, step):<8}  {text}\n")


class JsonLines(Writer):
    """One JSON object per line, complete as soon as its file is."""

    def add(self, found: Prediction) -> None:
        self.out.write(self._json(found) + "\n")

    def _json(self, found: Prediction) -> str:
        return json_line(found.to_dict(self.top, over_time=self.over_time, merge=self.merge), self.out)


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
        # Decimals of file, times and label; of probabilities; of level, silence, error and note.
        self.digits = [3] * (4 if self.over_time else 3) + [DIGITS] * len(self.classes) + [2, 4, 0, 0]

    def add(self, found: Prediction) -> None:
        for row in found.rows(over_time=self.over_time, merge=self.merge):
            self.rows.writerow(
                f"{cell:.{most}f}" if isinstance(cell, float) else cell
                for cell, most in zip(row, self.digits, strict=True)
            )


class Audacity(Writer):
    """A label track of Audacity: start and end in seconds and the label, separated by tabs."""

    suffix = ".txt"

    def add(self, found: Prediction) -> None:
        for segment, label, _ in found.labelled(merge=self.merge):
            self.out.write(f"{segment.start:.6f}\t{segment.end:.6f}\t{printable(label)}\n")


class Raven(Writer):
    """A selection table of Raven: a row per segment, over the whole range of frequencies that the model hears."""

    suffix = ".Table.1.selections.txt"  # as Raven names them

    def begin(self) -> None:
        self.selections = 0
        self._line(
            "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
            "Begin File", "Begin Path", "File Offset (s)", "Label", "Probability",
        )  # fmt: skip

    def add(self, found: Prediction) -> None:
        path = printable(os.path.abspath(found.file))
        for segment, label, value in found.labelled(merge=self.merge):
            self.selections += 1
            start = f"{segment.start:.6f}"
            self._line(
                self.selections, "Spectrogram 1", 1, start, f"{segment.end:.6f}", 0, f"{self.sample_rate / 2:g}",
                os.path.basename(path), path, start, printable(label), f"{value:.4f}",
            )  # fmt: skip

    def _line(self, *cells: object) -> None:
        self.out.write("\t".join(map(str, cells)) + "\n")


class PerFile:
    """Context manager that writes a file for each prediction into a folder; none for files that could not be read.

    Args:
        kind: `Audacity` or `Raven`.
        folder: it is created; files of earlier runs are replaced.
        outputs: checks the paths.
        names: of the written files by the input, see `gafx.deploy.files.output_names`.
        *args, **options: of `kind`, without `out`.
    """

    def __init__(
        self, kind: type[Writer], folder: Path, outputs: Outputs, names: Mapping[str, str], *args: Any, **options: Any
    ):
        self.kind, self.folder, self.outputs, self.names = kind, folder, outputs, names
        self.args, self.options = args, options
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "PerFile":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, found: Prediction) -> None:
        """Write the file of one prediction atomically."""
        if found.error is not None:
            return
        path = self.outputs.claim(self.folder / self.names[found.file], "--output")
        with (
            atomic_write(path, errors="backslashreplace", newline="") as out,
            self.kind(out, *self.args, **self.options) as writer,
        ):
            writer.write(found)


def _name(file: str) -> str:
    """A file's name in at most `_MAX_NAME_WIDTH` characters, its end rather than its beginning."""
    name = printable(file)
    return name if len(name) <= _MAX_NAME_WIDTH else "..." + name[3 - _MAX_NAME_WIDTH :]


def _step(parts: Sequence[Segment]) -> float:
    """Step for which `clock` shows where segments begin and end: a second where all do at whole ones."""
    if all(time == round(time) for part in parts for time in (part.start, part.end)):
        return 1.0
    return min([0.1, *(later.start - part.start for part, later in pairwise(parts))])


WRITERS: Mapping[str, type[Writer]] = {
    "table": Table, "json": Json, "jsonl": JsonLines, "csv": Csv, "audacity": Audacity, "raven": Raven,
}  # fmt: skip
