"""What lies in an index of shards: which shards it was made from, and the columns of a manifest as mapped arrays."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError
from gafx.io import flush, write_text

FORMAT, ABOUT = "gafx-index-2", "about.json"
COLUMNS = (
    "path_values", "path_offsets", "label_values", "label_offsets", "group", "duration", "sample_rate", "row", "fold",
    "split", "weight", "file", "offset", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which shards are read, and which of their columns.

    Attributes:
        files: paths relative to the root, in order.
        splits: the part (index into `SPLITS`) that each holds, or -1.
        label: column of labels; `None` for the first that is called like one.
        group: column of recordings; `None` for each row its own, unless `gafx pack` has written one.
        fold: column of folds; `None` for none, unless `gafx pack` has written one.
        classes: the labels in their order; `None` for those that the shards name, or that occur.
        keep: further columns that are wanted as strings.
        labels_needed: leave out rows without a usable label; if not, rows keep those of their labels that can be used,
            and shards may lack the column.
    """

    files: tuple[str, ...]
    splits: tuple[int, ...]
    label: str | None = None
    group: str | None = None
    fold: str | None = None
    classes: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    labels_needed: bool = True

    def key(self) -> str:
        """A name for the folder of its columns."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(errors="surrogateescape"), digest_size=10).hexdigest()


@dataclass(frozen=True)
class Shard:
    """A shard as it lies there: its path under the root, size in bytes, time in nanoseconds."""

    path: str
    size: int
    mtime: int

    def key(self, audio: str) -> str:
        text = json.dumps([self.path, self.size, self.mtime, audio]).encode(errors="surrogateescape")
        return hashlib.blake2b(text, digest_size=10).hexdigest()


def look_at(root: Path, path: str) -> Shard:
    """A shard as it lies under `root` now; `UsageError` where it cannot be looked at."""
    try:
        status = os.stat(root / path)
    except OSError as error:
        raise UsageError(f"{root / path} cannot be opened ({error.strerror}); fetch it again") from error
    return Shard(path, status.st_size, status.st_mtime_ns)


def read_about(folder: Path, shards: Sequence[Shard]) -> dict[str, Any] | None:
    """What is written about the columns in `folder`, if they are there, whole and of these shards."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["shards"] != [[shard.path, shard.size, shard.mtime] for shard in shards]:
            return None
        columns = {name: (folder / name).stat().st_size for name in about["files"]}
        copies = {name: (folder.parent / "copied" / name).stat().st_size for name in about["copies"]}
        return about if (columns, copies) == (about["files"], about["copies"]) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A column, mapped into memory."""
    try:
        # An array over the map, not `np.memmap`: indexing that is five times as slow.
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
    except ValueError:  # nothing can be mapped of an empty file
        return np.load(folder / f"{name}.npy", allow_pickle=False)


def write_columns(folder: Path, columns: dict[str, npt.NDArray[Any]], about: dict[str, Any]) -> None:
    """Write columns and, last, what is to be known about them; the folder is whole or not there."""
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, values in columns.items():
        np.save(aside / f"{name}.npy", np.ascontiguousarray(values))
        flush(aside / f"{name}.npy")
    about["files"] = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
    write_text(aside / ABOUT, json.dumps(about, ensure_ascii=True) + "\n")
    flush(aside / ABOUT)
    aside.rename(folder)
    with contextlib.suppress(OSError):
        flush(folder.parent)
