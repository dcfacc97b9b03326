"""An index of shards in the making: footers read, clips looked at by all processors, columns put together."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gafx.data.manifest import Ragged
from gafx.data.packing.pool import run_all
from gafx.data.shards.columns import plain_types, read_groups, read_labels, read_names, read_numbers, read_weights
from gafx.data.shards.index_files import ABOUT, COLUMNS, FORMAT, Selection, Shard, write_columns
from gafx.data.shards.layout import (
    Layout,
    absent_shards,
    checked_column,
    first_line,
    label_column,
    open_shard,
    read_layout,
)
from gafx.data.shards.scan import Part, read_part, scan, scanned
from gafx.errors import UsageError

# Rows of a shard that are looked at in one go, and rows from which on it is worth starting processes.
_ROWS, _WORTH = 1024, 4096


class Indexing:
    """An index in the making.

    Args:
        root: the data set's folder.
        selection: which shards and columns.
        place: folder of the index.
        shards: as they lie under `root`.
    """

    def __init__(self, root: Path, selection: Selection, place: Path, shards: Sequence[Shard]):
        self.root, self.selection, self.place, self.shards = root, selection, place, shards
        self.layouts: list[Layout] = []
        self.parts: list[list[Part]] = []  # of each shard

    def run(self, folder: Path) -> None:
        """Look at what is new in the shards, write the columns into `folder`, and forget what has gone."""
        old = self._old(folder)
        self._plan()
        self._scan()
        shutil.rmtree(folder, ignore_errors=True)
        self._write(folder)
        for key in old - {shard.key(layout.leaf) for shard, layout in zip(self.shards, self.layouts, strict=True)}:
            for path in (*self.place.glob(f"scanned/{key}-*"), *self.place.glob(f"copied/{key}-*")):
                path.unlink()

    def _old(self, folder: Path) -> set[str]:
        """Keys of the shards as they were when these columns were last made."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            known = {path: (size, mtime) for path, size, mtime in about["shards"]}
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        if changed := sum(known.get(shard.path) != (shard.size, shard.mtime) for shard in self.shards):
            _say(f"{changed} shards under {self.root} have changed since they were indexed: they are looked at again")
        return set(map(str, about.get("keys", ())))

    def _plan(self) -> None:
        """Read the footers: columns, row groups, and how much has to be copied."""
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
        """Choose the columns, which must mean the same in all shards."""
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
        """A published division as `gafx pack` writes it into the metadata; what this copy lacks of it stands there."""
        value = self.layouts[0].ours.get("published")
        if not isinstance(value, dict) or not isinstance(value.get("missing"), list):
            return None
        lost = [clip for layout in self.layouts for clip in layout.missing]
        lost += absent_shards(self.selection.files)
        return {"protocol": str(value.get("protocol")), "missing": [*map(str, value["missing"]), *lost]}

    def _missing(self) -> int:
        """How many clips `gafx pack` has written that its data set lacked."""
        value = self.layouts[0].ours.get("missing")
        return value if type(value) is int and value > 0 else 0

    def _notes(self) -> list[str]:
        """What `gafx pack` has written that there was to say of its data set."""
        value = self.layouts[0].ours.get("notes")
        return [*map(str, value)] if isinstance(value, list) else []

    def _scan(self) -> None:
        todo = [part for parts in self.parts for part in parts if not scanned(part)]
        if self.to_copy and todo:
            free = shutil.disk_usage(self.place).free
            _say(
                f"the audio of shards under {self.root} is compressed inside Parquet, where it cannot be read at "
                f"random: up to {self.to_copy / 1e6:,.0f} MB are copied once into {self.place}"
            )
            if self.to_copy > free:
                raise UsageError(
                    f"that needs {self.to_copy / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free: make room, name "
                    "another folder with data.options.index=<folder>, or write the shards anew with gafx pack --shards"
                )
        workers = min(os.cpu_count() or 1, len(todo)) if self.rows >= _WORTH else 1
        bar = tqdm(
            total=self.rows, desc="indexing", unit="clip", file=sys.stderr, dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0, disable=self.rows < _WORTH,
        )  # fmt: skip
        with bar:
            for rows in run_all(scan, ((part,) for part in todo), workers):
                bar.update(rows)

    def _write(self, folder: Path) -> None:
        """Put the columns together. `about.json` comes last."""
        import pyarrow as pa

        records, reasons, shard_of, row_of, copy_of = [], {}, [], [], []
        copies: dict[str, int] = {}
        total = 0
        for number, parts in enumerate(self.parts):
            within = 0
            for part in parts:
                found, why = read_part(part.found)
                reasons.update({total + row: reason for row, reason in why.items()})
                records.append(found)
                shard_of.append(np.full(len(found), number, np.int32))
                row_of.append(np.arange(within, within + len(found)))
                copy_of.append(np.full(len(found), len(self.shards) + len(copies), np.int32))
                if found["copied"].any():
                    copies[os.path.basename(part.copy)] = os.path.getsize(part.copy)
                within, total = within + len(found), total + len(found)
        record, shard, row = np.concatenate(records), np.concatenate(shard_of), np.concatenate(row_of)
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
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise UsageError(f"the shards under {self.root} differ in their columns ({first_line(error)})") from error
        assert len(table) == len(record)
        labels, classes, unlabelled = self._labels(table, total)
        notes = self._notes()
        if self.selection.labels_needed:
            reasons = {**unlabelled, **reasons}
        elif unlabelled:
            example = min(unlabelled)
            notes.append(
                f"{len(unlabelled):,} rows have no label in the shards, or one that is none of the {len(classes)} "
                f"classes (e.g. {self.shards[shard[example]].path}#{row[example]}: {unlabelled[example]})"
            )
        kept = np.flatnonzero(~np.isin(np.arange(total), list(reasons)))
        unreadable = [
            {"path": f"{self.shards[shard[number]].path}#{row[number]}", "reason": reasons[number]}
            for number in sorted(reasons)
        ]
        record, shard = record[kept], shard[kept]
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
            "row": row[kept].astype(np.int64),
            "fold": np.full(len(kept), -1, np.int32) if folds is None else folds,
            "split": np.array(self.selection.splits, np.int8)[shard],
            "weight": read_weights(table[self.weight] if self.weight else None, total)[kept],
            "file": np.where(record["copied"], np.concatenate(copy_of)[kept], shard).astype(np.int32),
            "offset": record["offset"],
            "size": record["size"],
        }
        for number, name in enumerate(self.selection.keep):
            names = read_names(table[name], name)
            for which, rows in (("kept", kept), ("left", np.array(sorted(reasons), np.int64))):
                values = names.take(rows)
                columns |= {f"{which}{number}_values": values.values, f"{which}{number}_offsets": values.offsets}
        assert columns.keys() >= set(COLUMNS)
        keys = [entry.key(layout.leaf) for entry, layout in zip(self.shards, self.layouts, strict=True)]
        about = {
            "format": FORMAT, "shards": [[entry.path, entry.size, entry.mtime] for entry in self.shards], "keys": keys,
            "copies": copies, "classes": classes, "unreadable": unreadable, "notes": notes,
            "missing": self._missing(), "published": self._published(),
        }  # fmt: skip
        write_columns(folder, columns, about)

    def _labels(self, table: Any, total: int) -> tuple[Ragged, tuple[str, ...], dict[int, str]]:
        """See `read_labels`."""
        if self.label is not None:
            names = self.layouts[0].classes.get(self.label, ())
            # Of others' shards an empty list is a row that nobody has labelled; what we write has been looked at.
            ours = all(layout.ours.get("label") == self.label for layout in self.layouts)
            try:
                return read_labels(table[self.label], self.label, names, self.selection.classes, none_is_said=ours)
            except UsageError:
                if self.selection.labels_needed:
                    raise
        none = Ragged(np.zeros(0, np.int32), np.zeros(total + 1, np.int64))
        return none, self.selection.classes or (), dict.fromkeys(range(total), "has no label")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
