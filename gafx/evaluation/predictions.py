"""Predictions of the test part: `predictions.npz` in full precision, and `predictions.csv` for people.

Programs read the npz file: six decimals, as in the CSV, turn small probabilities of a tagger into ties and change its
scores.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError
from gafx.io import atomic_write
from gafx.report.format import column_names
from gafx.stats.scores import Score, calibration_score

FILE = "predictions.npz"
_COMMON = ("classes", "columns")  # fields that hold for all rows
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PredictionTable:
    """Predictions of test tracks (or of their segments), a row per track, in the order of the manifest's rows.

    Attributes:
        row: `(n,)` int64 row of the manifest.
        clip: `(n,)` name of the file relative to the data's root.
        track: `(n,)` name of the recording: that of its first clip.
        group: `(n,)` int64 number of the recording in the manifest.
        fold: `(n,)` int64 fold that was tested, -1 for a protocol without folds.
        run: `(n,)` name of the run's folder.
        label: `(n,)` true labels, joined by `;`.
        targets: `(n, classes)` uint8, 1 for each true label.
        values: `(n, columns)` float64 output of the objective: probabilities of the classes, or errors.
        classes: labels.
        columns: names of the first of `values`' columns; those of further ones are known to the objective.
        start_seconds: `(n,)` start of each segment; None for whole tracks.
        predicted: `(n, classes)` float64 probabilities that `gafx predict` gives by default, for one label per clip:
            the mean over overlapping windows, at the model's temperature; NaN where one could not be read. None where
            they were not computed (segments, several views, several labels).
    """

    row: Array
    clip: Array
    track: Array
    group: Array
    fold: Array
    run: Array
    label: Array
    targets: Array
    values: Array
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    start_seconds: Array | None = None
    predicted: Array | None = None

    def __len__(self) -> int:
        return len(self.row)

    def correct(self) -> Array:
        """`(n,)` bool: whether the class of the largest value is the true one."""
        return np.asarray(self.values.argmax(axis=1) == self.targets.argmax(axis=1))

    def calibration_score(self, resamples: int) -> Score | None:
        """Calibration error of `predicted` with its interval; None where there are none."""
        if self.predicted is None:
            return None
        kept = ~np.isnan(self.predicted).any(axis=1)
        truth = self.targets.argmax(axis=1)[kept]
        return calibration_score(self.predicted[kept], truth, self.group[kept], resamples=resamples)

    def take(self, picks: Array) -> "PredictionTable":
        """Some of the rows, in the order of `picks`."""
        changed: dict[str, Any] = {name: value[picks] for name, value in self._by_row().items()}
        return replace(self, **changed)

    def write(self, path: Path) -> None:
        """Write all columns as a compressed npz file without pickled objects: `numpy.load(path)` reads it."""
        arrays: dict[str, Any] = {
            name: value.astype(str) if value.dtype == object else value for name, value in self._by_row().items()
        }
        arrays |= {name: np.array(getattr(self, name), str) for name in _COMMON}
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, folder: Path) -> "PredictionTable":
        """Read the predictions.npz of an evaluated run.

        Raises:
            UsageError: it is missing (the run was evaluated by an earlier version) or damaged.
        """
        path = folder / FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {f.name: file[f.name] for f in fields(cls) if f.name in file.files}
            table = {name: value.astype(object) if value.dtype.kind == "U" else value for name, value in arrays.items()}
            table |= {name: tuple(table[name].tolist()) for name in _COMMON}
            return cls(**table)
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist: evaluate the run again, gafx evaluate {folder}") from None
        except Exception as error:  # zipfile, zlib and NumPy each raise their own
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} is damaged ({reason}): evaluate the run again, gafx evaluate {folder}") from error

    def write_csv(self, path: Path, *, predicts: bool) -> None:
        """Write a line per row: names, fold, true label, prediction, named values with six decimals, start, run.

        The column of a class is named by the class; one that is called like another column of the file has
        `probability:` in front (see `gafx.report.format.column_names`).

        Args:
            path: of the CSV file.
            predicts: whether the largest value is a prediction (false where the values are errors).
        """
        before = ["clip", "track", "fold", "label", *(["prediction"] if predicts else [])]
        after = [*([] if self.start_seconds is None else ["start_seconds"]), "run"]
        with atomic_write(path, newline="", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow([*before, *column_names(self.columns, [*before, *after]), *after])
            for index, values in enumerate(self.values):
                fold = self.fold[index]
                writer.writerow([
                    self.clip[index], self.track[index], "" if fold < 0 else fold, self.label[index],
                    *([self.classes[int(values.argmax())]] if predicts else []),
                    *(f"{value:.6f}" for value in values[: len(self.columns)]),
                    *([] if self.start_seconds is None else [f"{self.start_seconds[index]:.3f}"]), self.run[index],
                ])  # fmt: skip

    def _by_row(self) -> dict[str, Array]:
        names = (f.name for f in fields(self) if f.name not in _COMMON)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def concatenate(tables: Sequence[PredictionTable]) -> PredictionTable:
    """Rows of several tables of the same data, one table after the other; columns that one of them lacks are None."""
    columns = [table._by_row() for table in tables]
    # Values without a name, e.g. of the dimensions of a latent vector, may be of other numbers.
    width = min(table.values.shape[1] for table in tables)
    for part in columns:
        part["values"] = part["values"][:, :width]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in columns]) if all(name in part for part in columns) else None
        for name in columns[0]
    }
    return replace(tables[0], **joined)
