"""The index of a folder of shards: built once, then data sets of any size are opened by memory-mapping a few files.

`<root>/.gafx-index/` (or `data.options.index`) contains

`scanned/`      for each part of a shard: offset and size of its clips' bytes, lengths, unreadable clips (`scan`)
`copied/`       the clips of shards whose audio is compressed inside Parquet, one after another
`<hash>/`       the columns of a manifest as .npy files, one folder per selection of files and columns, and
                `about.json`: the shards they were built from, classes, skipped rows

Shards are identified by path, size and modification time. If one changes, the columns are written again and only that
shard is scanned again. An interrupted build resumes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafx.data.manifest import Manifest, PublishedSplit, Ragged, Skipped, Spans
from gafx.data.shards.index_files import COLUMNS, Selection, Shard, look_at, read_about, read_column
from gafx.data.shards.indexing import Indexing
from gafx.errors import UsageError
from gafx.io import digest, is_disk_full, locked

__all__ = ["FOLDER", "Selection", "open_shards"]

FOLDER = ".gafx-index"


def open_shards(
    root: Path, selection: Selection, *, index: Path | None = None
) -> tuple[Manifest, dict[str, Ragged], dict[str, Ragged]]:
    """Open a folder of shards; the index is built first if it is missing or shards have changed.

    Args:
        root: the data set's folder.
        selection: shards and columns.
        index: folder of the index; default: `.gafx-index` in the root.

    Returns:
        The manifest; the columns `selection.keep`; and those columns of the skipped rows, in the order of
        `manifest.skipped`.

    Raises:
        UsageError: a shard cannot be read or lacks a column, shards disagree, the index cannot be written, or the disk
            is full.
    """
    place = root / FOLDER if index is None else index / f"{root.name}-{digest(os.path.realpath(root), size=5)}"
    shards = [look_at(root, path) for path in selection.files]
    folder = place / selection.key()
    if (about := read_about(folder, shards)) is None:
        _make(root, selection, place, shards)
        about = read_about(folder, shards)
        if about is None:
            raise UsageError(f"shards under {root} change while they are looked at; wait until they are complete")
    return _open(root, folder, place, about, selection)


def _open(
    root: Path, folder: Path, place: Path, about: dict[str, Any], selection: Selection
) -> tuple[Manifest, dict[str, Ragged], dict[str, Ragged]]:
    """Map the columns, without a loop over the rows."""
    column = {name: read_column(folder, name) for name in COLUMNS}
    count = len(column["row"])
    files = [str(root / path) for path in selection.files] + [str(place / "copied" / name) for name in about["copies"]]
    published = about["published"]
    manifest = Manifest(
        root=root,
        classes=tuple(about["classes"]),
        path=Ragged(column["path_values"], column["path_offsets"]),
        labels=Ragged(column["label_values"], column["label_offsets"]),
        group=column["group"],
        start=np.broadcast_to(np.float64(0), count),
        duration=column["duration"],
        sample_rate=column["sample_rate"],
        row=column["row"],
        fold=column["fold"],
        split=column["split"],
        weight=column["weight"],
        spans=Spans(tuple(files), column["file"], column["offset"], column["size"]),
        skipped=tuple(Skipped(entry["path"], entry["reason"]) for entry in about["unreadable"]),
        missing=about["missing"],
        notes=tuple(about["notes"]),
        published=PublishedSplit(published["protocol"], tuple(published["missing"])) if published else None,
    )
    kept, left = (
        {name: _ragged(folder, f"{which}{number}") for number, name in enumerate(selection.keep)}
        for which in ("kept", "left")
    )
    return manifest, kept, left


def _ragged(folder: Path, name: str) -> Ragged:
    return Ragged(read_column(folder, f"{name}_values"), read_column(folder, f"{name}_offsets"))


def _make(root: Path, selection: Selection, place: Path, shards: Sequence[Shard]) -> None:
    folder = place / selection.key()
    try:
        for name in ("scanned", "copied"):
            (place / name).mkdir(parents=True, exist_ok=True)
        # Of several processes one builds the index; the others wait and find it.
        with locked(place / ".lock", f"waiting for another process that indexes {root}"):
            if read_about(folder, shards) is not None:
                return
            Indexing(root, selection, place, shards).run(folder)
    except OSError as error:
        if is_disk_full(error):
            raise UsageError(
                f"no room for the index of {root} in {place} ({error.strerror}): make room and give the command again, "
                "which continues, or name another folder with data.options.index=<folder>"
            ) from error
        raise UsageError(
            f"the index of {root} cannot be written in {place} ({error.strerror or error}): name a folder that can be "
            "written with data.options.index=<folder>"
        ) from error
