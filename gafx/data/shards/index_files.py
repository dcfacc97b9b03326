"""Files of an index of shards: a description of the shards, and the columns of a manifest as memory-mapped arrays."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.data.packing.unfinished import read_json
from gafx.errors import UsageError
from gafx.io import atomic_folder, digest, flush, write_text

FORMAT, ABOUT = "gafx-index-2", "about.json"
COLUMNS = (
    "path_values", "path_offsets", "label_values", "label_offsets", "group", "duration", "sample_rate", "row", "fold",
    "split", "weight", "file", "offset", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """The shards and the columns to read.

    Attributes:
        files: paths relative to the root, in order.
        splits: each shard's part (index into `SPLITS`), or -1.
        label: column of labels; `None` for the first with a usual name (`layout.LABELS`).
        group: column of recordings; `None` for the one that `gafx pack` has written, else each row its own.
        fold: column of folds; `None` for the one that `gafx pack` has written, else none.
        classes: in their order; `None` for those that the shards name, or that occur.
        keep: further columns, read as strings.
        labels_needed: leave out rows without a usable label; if not, rows keep their usable labels, and shards may
            lack the column.
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
        """Return the name of the folder of its columns."""
        return digest(json.dumps(asdict(self)), size=10)


@dataclass(frozen=True)
class Shard:
    """A shard: its path under the root, size in bytes, modification time in nanoseconds."""

    path: str
    size: int
    mtime: int

    def key(self, audio: str) -> str:
        """Return the name of the records of its column `audio`."""
        return digest(json.dumps([self.path, self.size, self.mtime, audio]), size=10)


def look_at(root: Path, path: str) -> Shard:
    """Return a shard with its present size and time; `UsageError` if it cannot be accessed."""
    try:
        status = os.stat(root / path)
    except OSError as error:
        raise UsageError(f"{root / path} cannot be opened ({error.strerror}); fetch it again") from error
    return Shard(path, status.st_size, status.st_mtime_ns)


def read_about(folder: Path, shards: Sequence[Shard]) -> dict[str, Any] | None:
    """Return the description of the columns in `folder` if they are complete and of these shards, else None."""
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        if about["format"] != FORMAT or about["shards"] != [[shard.path, shard.size, shard.mtime] for shard in shards]:
            return None
        columns = {name: (folder / name).stat().st_size for name in about["files"]}
        copies = {name: (folder.parent / "copied" / name).stat().st_size for name in about["copies"]}
        return about if (columns, copies) == (about["files"], about["copies"]) else None
    except (OSError, KeyError, TypeError, AttributeError):
        return None


def read_column(folder: Path, name: str) -> npt.NDArray[Any]:
    """Return a column, memory-mapped."""
    try:
        # A plain array over the map: indexing `np.memmap` is five times as slow.
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
    except ValueError:  # an empty file cannot be mapped
        return np.load(folder / f"{name}.npy", allow_pickle=False)


def write_columns(folder: Path, columns: dict[str, npt.NDArray[Any]], about: dict[str, Any]) -> None:
    """Write columns and their description as a folder, atomically; it replaces an existing one."""
    with atomic_folder(folder, replace=True) as part:
        for name, values in columns.items():
            np.save(part / f"{name}.npy", np.ascontiguousarray(values))
            flush(part / f"{name}.npy")
        about["files"] = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        write_text(part / ABOUT, json.dumps(about) + "\n", sync=True)
