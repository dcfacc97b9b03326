"""Build the index of a folder of shards: read footers, scan the clips in several processes, join the columns."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Ragged
from gafx.data.packing.pool import progress_bar, run_all
from gafx.data.packing.unfinished import read_json
from gafx.data.shards.columns import plain_types, read_groups, read_labels, read_names, read_numbers, read_weights
from gafx.data.shards.index_files import ABOUT, COLUMNS, FORMAT, Selection, Shard, write_columns
from gafx.data.shards.layout import (
    Layout,
    absent_shards,
    checked_column,
    label_column,
    open_shard,
    read_layout,
)
from gafx.data.shards.scan import Part, read_part, scan, scanned
from gafx.errors import UsageError, first_line
from gafx.report.format import size

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("gafx")
# Rows per job, and rows from which on several processes are started.
_ROWS, _WORTH = 1024, 4096


@dataclass
class _Rows:
    """The records (`scan.ROW`) of all rows of all shards, in order.

    Attributes:
        record: of each row.
        shard: number of its shard.
        row: its number within the shard.
        file: number of the file with its bytes: shards first, then copies.
        reasons: why rows cannot be read, by row number.
        copies: size of each file of copied clips by name.
    """

    record: npt.NDArray[Any]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    file: npt.NDArray[np.int32]
    reasons: dict[int, str]
    copies: dict[str, int]

    def name(self, number: int, shards: Sequence[Shard]) -> str:
        return f"{shards[self.shard[number]].path}#{self.row[number]}"


class Indexing:
    """Builds one index.

    Args:
        root: the data set's folder.
        selection: shards and columns.
        place: folder of the index.
        shards: size and time of each.
    """

    def __init__(self, root: Path, selection: Selection, place: Path, shards: Sequence[Shard]):
        self.root, self.selection, self.place, self.shards = root, selection, place, shards
        self.layouts: list[Layout] = []
        self.parts: list[list[Part]] = []  # of each shard

    def run(self, folder: Path) -> None:
        """Scan new and changed shards, write the columns into `folder`, and delete the records of old shards."""
        old = self._old(folder)
        self._plan()
        self._scan()
        self._write(folder)
        for key in old - {shard.key(layout.leaf) for shard, layout in zip(self.shards, self.layouts, strict=True)}:
            for path in (*self.place.glob(f"scanned/{key}-*"), *self.place.glob(f"copied/{key}-*")):
                path.unlink()

    def _old(self, folder: Path) -> set[str]:
        """Return the keys of the shards as they were when these columns were written last."""
        try:
            about: dict[str, Any] = read_json(folder / ABOUT)
            known = {path: (size, mtime) for path, size, mtime in about["shards"]}
        except (ValueError, KeyError, TypeError):
            return set()
        if changed := sum(known.get(shard.path) != (shard.size, shard.mtime) for shard in self.shards):
            _log.info(
                "%d shards under %s have changed since they were indexed: they are scanned again", changed, self.root
            )
        return set(map(str, about.get("keys", ())))

    def _plan(self) -> None:
        """Read the footers: columns, row groups, and the bytes that have to be copied."""
        self.to_copy, self.rows = 0, 0
        for shard in self.shards:
            path = str(self.root / shard.path)
            with open_shard(path) as file:
                layout = read_layout(file, path)
                self.layouts.append(layout)
                key, metadata = shard.key(layout.leaf), file.metadata
                leaf = next(i for i in range(len(file.schema)) if file.schema.column(i).path == layout.leaf)
                parts, first, rows = [], 0, 0
                for group in range(metadata.num_row_groups):
                    about = metadata.row_group(group)
                    rows += about.num_rows
                    if rows >= _ROWS or group == metadata.num_row_groups - 1:
                        found = self.place / "scanned" / f"{key}-{first}.npz"
                        copy = self.place / "copied" / f"{key}-{first}"
                        parts.append(Part(path, layout.audio, layout.leaf, first, group + 1, str(found), str(copy)))
                        first, rows = group + 1, 0
                    if about.column(leaf).compression != "UNCOMPRESSED":
                        self.to_copy += max(0, about.column(leaf).total_uncompressed_size)
                self.parts.append(parts)
                self.rows += metadata.num_rows
        self._agree()

    def _agree(self) -> None:
        """Choose the columns and check that they mean the same in all shards."""
        selection, first, path = self.selection, self.layouts[0], str(self.root / self.shards[0].path)
        ours = first.ours
        self.label = None
        if selection.labels_needed or all(selection.label in layout.columns for layout in self.layouts):
            self.label = label_column(first, selection.label, path)
        written = {name: name for name in ("group", "fold", "weight") if name in ours.get("columns", ())}
        self.group, self.fold = selection.group or written.get("group"), selection.fold or written.get("fold")
        self.weight = written.get("weight")
        for shard, layout in zip(self.shards, self.layouts, strict=True):
            path = str(self.root / shard.path)
            for option, column in self._columns().items():
                if column is not None:
                    checked_column(layout, column, option, path)
            for column in selection.keep:
                checked_column(layout, column, "keep", path)
            if self.label and layout.classes.get(self.label) != first.classes.get(self.label):
                raise UsageError(
                    f"{path} names other classes in column {self.label!r} than {self.shards[0].path}: they are of two "
                    "data sets, or of two versions of one; put them into folders of their own"
                )

    def _columns(self) -> dict[str, str | None]:
        return {"label": self.label, "group": self.group, "fold": self.fold, "weight": self.weight}

    def _published(self) -> dict[str, Any] | None:
        """Return the published split that `gafx pack` recorded, with the clips of it that are missing here."""
        value = self.layouts[0].ours.get("published")
        if not isinstance(value, dict) or not isinstance(value.get("missing"), list):
            return None
        lost = [clip for layout in self.layouts for clip in layout.missing]
        lost += absent_shards(self.selection.files)
        return {"protocol": str(value.get("protocol")), "missing": [*map(str, value["missing"]), *lost]}

    def _missing(self) -> int:
        """Return the number of listed clips that were missing when the shards were written."""
        value = self.layouts[0].ours.get("missing")
        return value if type(value) is int and value > 0 else 0

    def _notes(self) -> list[str]:
        """Return the notes on the data set that the shards were written from."""
        value = self.layouts[0].ours.get("notes")
        return [*map(str, value)] if isinstance(value, list) else []

    def _scan(self) -> None:
        todo = [part for parts in self.parts for part in parts if not scanned(part)]
        if self.to_copy and todo:
            free = shutil.disk_usage(self.place).free
            _log.info(
                "the audio of shards under %s is compressed inside Parquet, where it cannot be read at random: up to "
                "%s are copied once into %s", self.root, size(self.to_copy), self.place,
            )  # fmt: skip
            if self.to_copy > free:
                raise UsageError(
                    f"that needs {size(self.to_copy)}, and {size(free)} are free: make room, name another folder with "
                    "data.options.index=<folder>, or write the shards again with gafx pack --shards"
                )
        workers = min(os.cpu_count() or 1, len(todo)) if self.rows >= _WORTH else 1
        with progress_bar("indexing", self.rows, hidden=self.rows < _WORTH) as bar:
            for rows in run_all(scan, ((part,) for part in todo), workers):
                bar.update(rows)

    def _write(self, folder: Path) -> None:
        """Join the columns of all shards and write them with `about.json`."""
        rows, table = self._collect(), self._read_table()
        assert len(table) == len(rows.record)
        labels, classes, unlabelled = self._labels(table)
        notes = self._notes()
        if self.selection.labels_needed:
            rows.reasons = {**unlabelled, **rows.reasons}
        elif unlabelled:
            example = min(unlabelled)
            notes.append(
                f"{len(unlabelled):,} rows have no label in the shards, or one that is none of the {len(classes)} "
                f"classes (e.g. {rows.name(example, self.shards)}: {unlabelled[example]})"
            )
        about = {
            "format": FORMAT, "shards": [[entry.path, entry.size, entry.mtime] for entry in self.shards],
            "keys": [entry.key(layout.leaf) for entry, layout in zip(self.shards, self.layouts, strict=True)],
            "copies": rows.copies, "classes": classes, "notes": notes, "missing": self._missing(),
            "published": self._published(), "unreadable": [
                {"path": rows.name(number, self.shards), "reason": reason}
                for number, reason in sorted(rows.reasons.items())
            ],
        }  # fmt: skip
        write_columns(folder, self._manifest_columns(rows, table, labels), about)

    def _collect(self) -> _Rows:
        """Read the records that `scan` has written."""
        records, shard, row, file = [], [], [], []
        reasons: dict[int, str] = {}
        copies: dict[str, int] = {}
        total = 0
        for number, parts in enumerate(self.parts):
            within = 0
            for part in parts:
                found, why = read_part(part.found)
                reasons.update({total + at: reason for at, reason in why.items()})
                records.append(found)
                shard.append(np.full(len(found), number, np.int32))
                row.append(np.arange(within, within + len(found)))
                copy = len(self.shards) + len(copies)
                file.append(np.where(found["copied"], copy, number).astype(np.int32))
                if found["copied"].any():
                    copies[os.path.basename(part.copy)] = os.path.getsize(part.copy)
                within, total = within + len(found), total + len(found)
        join = np.concatenate
        return _Rows(join(records), join(shard), join(row), join(file), reasons, copies)

    def _read_table(self) -> "pa.Table":
        """Read the columns of labels, recordings, folds, weights and those to keep, of all shards."""
        import pyarrow as pa

        wanted = list(dict.fromkeys(name for name in (*self._columns().values(), *self.selection.keep) if name))
        tables = []
        for entry in self.shards:
            path = str(self.root / entry.path)
            with open_shard(path) as file:
                try:
                    read = file.read(columns=wanted).select(wanted).replace_schema_metadata(None)
                    tables.append(plain_types(read))
                except (pa.ArrowException, OSError) as error:
                    raise UsageError(
                        f"{path}: its columns {', '.join(wanted)} cannot be read ({first_line(error)}); fetch it "
                        "again, or move it away"
                    ) from error
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise UsageError(f"the shards under {self.root} differ in their columns ({first_line(error)})") from error

    def _manifest_columns(self, rows: _Rows, table: "pa.Table", labels: Ragged) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of the manifest without the rows that are skipped, and those of `selection.keep`."""
        total, skipped = len(rows.record), np.array(sorted(rows.reasons), np.int64)
        kept = np.delete(np.arange(total), skipped)
        record, shard = rows.record[kept], rows.shard[kept]
        names_of_shards = Ragged.of([os.fsencode(entry.path) for entry in self.shards], np.uint8)
        paths, labels = names_of_shards.take(shard.astype(np.int64)), labels.take(kept)
        folds = read_numbers(table[self.fold], "fold", self.fold, 1)[kept] if self.fold else None
        columns: dict[str, npt.NDArray[Any]] = {
            "path_values": paths.values,
            "path_offsets": paths.offsets,
            "label_values": labels.values,
            "label_offsets": labels.offsets,
            "group": read_groups(table[self.group] if self.group else None, self.group, total)[kept],
            "duration": record["frames"] / np.maximum(record["rate"], 1),
            "sample_rate": record["rate"],
            "row": rows.row[kept].astype(np.int64),
            "fold": np.full(len(kept), -1, np.int32) if folds is None else folds,
            "split": np.array(self.selection.splits, np.int8)[shard],
            "weight": read_weights(table[self.weight] if self.weight else None, total)[kept],
            "file": rows.file[kept],
            "offset": record["offset"],
            "size": record["size"],
        }
        assert columns.keys() == set(COLUMNS)
        for number, name in enumerate(self.selection.keep):
            names = read_names(table[name], name)
            for which, chosen in (("kept", kept), ("left", skipped)):
                values = names.take(chosen)
                columns |= {f"{which}{number}_values": values.values, f"{which}{number}_offsets": values.offsets}
        return columns

    def _labels(self, table: "pa.Table") -> tuple[Ragged, tuple[str, ...], dict[int, str]]:
        """Return labels, classes and reasons as `read_labels`; no labels if they may be absent or unusable."""
        if self.label is not None:
            names = self.layouts[0].classes.get(self.label, ())
            # In other writers' shards an empty list is an unlabelled row; `gafx pack` writes labelled clips only.
            ours = all(layout.ours.get("label") == self.label for layout in self.layouts)
            try:
                return read_labels(table[self.label], self.label, names, self.selection.classes, empty_is_label=ours)
            except UsageError:
                if self.selection.labels_needed:
                    raise
        total = len(table)
        none = Ragged(np.zeros(0, np.int32), np.zeros(total + 1, np.int64))
        return none, self.selection.classes or (), dict.fromkeys(range(total), "has no label")
