"""Columns of a shard and the part of the data set it belongs to. Nothing here imports pyarrow at import time."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.data.manifest import SPLITS, Skipped
from gafx.errors import UsageError, first_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Usual names of the column of labels, in order of preference.
LABELS = ("label", "labels", "genre", "genres", "category", "class", "tags", "target")
# Keys of the schema's metadata: features as `datasets` writes them, and what `gafx pack --shards` adds.
FEATURES, OURS = b"huggingface", b"gafx"
# Key of the file's metadata: clips of a published split that could not be read when the shard was written.
MISSING = b"gafx_missing"
_PARTS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART = re.compile(
    r"(?:^|[-._ ])(?:"
    + "|".join(f"(?P<{part}>{'|'.join(names)})" for part, names in _PARTS.items())
    + r")(?:$|[-._ 0-9])",
    re.IGNORECASE,
)
# Some releases of `datasets` append a hash to the number.
_NUMBERED = re.compile(r"(.*?)-(\d{5,})-of-(\d{5,})(-[0-9a-f]{8,})?\.parquet")


class NoAudio(UsageError):
    """A Parquet file has no column of audio."""


class ColumnAbsent(UsageError):
    """A shard lacks the column `column`; `shard` lists those that it has."""

    def __init__(self, option: str, column: str, shard: str):
        super().__init__(f"data.options.{option}={column!r}: {shard}")
        self.column, self.shard = column, shard


@dataclass(frozen=True)
class Layout:
    """The columns of a shard.

    Attributes:
        audio: the column of clips.
        nested: whether its type is struct{bytes, path}, not binary.
        columns: all columns and their types, for messages.
        classes: class names of the columns of class numbers, from the metadata.
        ours: the metadata of `gafx pack --shards`; empty for other writers' shards.
        missing: clips of a published split that belong into this shard and could not be read.
    """

    audio: str
    nested: bool
    columns: dict[str, str]
    classes: dict[str, tuple[str, ...]]
    ours: dict[str, Any]
    missing: tuple[str, ...] = ()

    @property
    def leaf(self) -> str:
        """The Parquet column of the bytes."""
        return f"{self.audio}.bytes" if self.nested else self.audio


@contextmanager
def open_shard(path: str) -> "Iterator[pq.ParquetFile]":
    """Open a shard; raises `UsageError` for a file that is not a complete Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as Parquet ({first_line(error)}): it is damaged or was cut short; fetch it again, "
            "or move it away"
        ) from error
    with file:
        size = os.path.getsize(path)
        if not 0 <= file.metadata.num_rows <= size:
            raise UsageError(f"{path} claims {file.metadata.num_rows:,} rows in {size:,} bytes; move it away")
        yield file


def read_layout(file: "pq.ParquetFile", path: str) -> Layout:
    """Read the columns of a shard and their metadata.

    Raises:
        UsageError: no column of audio, or two columns of the same name.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise UsageError(
            f"{path} has several columns called {twice!r} ({', '.join(map(str, schema.names))}), and nothing says "
            "which one is meant: write it again with unique names"
        )
    columns = {field.name: str(field.type) for field in schema}

    def holds_audio(kind: Any) -> bool | None:
        """Return whether a type is struct{bytes} (True) or binary (False); None for other types."""
        if pa.types.is_struct(kind) and (place := kind.get_field_index("bytes")) >= 0:
            kind, nested = kind.field(place).type, True
        else:
            nested = False
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        return nested if any(test(kind) for test in tests) else None

    fits = {field.name: nested for field in schema if (nested := holds_audio(field.type)) is not None}
    features = _json(schema.metadata, FEATURES)
    features = _mapping(_mapping(features.get("info")).get("features"))
    declared = [name for name in fits if _mapping(features.get(name)).get("_type") == "Audio"]
    chosen = next((name for name in (*declared, "audio", *(name for name in fits if fits[name])) if name in fits), None)
    if chosen is None:
        raise NoAudio(
            f"{path} has no column of audio (struct<bytes: binary, path: string>, as `datasets` writes it); its "
            f"columns are {_listed(columns)}"
        )
    classes = {name: names for name in columns if (names := _class_names(features.get(name)))}
    missing = _json(file.metadata.metadata, MISSING).get("clips")
    missing = tuple(map(str, missing)) if isinstance(missing, list) else ()
    return Layout(chosen, bool(fits[chosen]), columns, classes, _json(schema.metadata, OURS), missing)


def holds_audio(path: str) -> bool:
    """Return whether a Parquet file has a column of audio; True for a file that cannot be read."""
    try:
        with open_shard(path) as file:
            read_layout(file, path)
    except NoAudio:
        return False
    except UsageError:
        return True
    return True


def label_column(layout: Layout, wanted: str | None, path: str) -> str:
    """Return the column of labels: `wanted`, or the first with a usual name.

    Raises:
        UsageError: the shard does not have it, or none with a usual name.
    """
    if wanted is None:
        ours = layout.ours.get("label")
        wanted = next((name for name in (ours, *LABELS) if name in layout.columns), None)
        if wanted is None:
            raise UsageError(
                f"{path} has no column called {', '.join(LABELS)}; say which holds the labels with "
                f"data.options.label=<column>: {_listed(layout.columns)}"
            )
    return checked_column(layout, wanted, "label", path)


def checked_column(layout: Layout, column: str, option: str, path: str) -> str:
    """Return `column` if the shard has it; else raise `ColumnAbsent`, which names the option and lists the columns."""
    if column not in layout.columns:
        raise ColumnAbsent(option, column, f"{path} has the columns {_listed(layout.columns)}")
    return column


def part_of(path: str) -> int:
    """Return the part (index into `SPLITS`) that the name of a shard or of one of its folders contains, or -1.

    As `datasets` does: `train-00000-of-00002.parquet`, `data/validation-*.parquet`, `bal_train/00.parquet`.
    """
    *folders, file = Path(path).with_suffix("").parts
    for name in (file, *reversed(folders)):
        if found := _PART.search(name):
            return next(number for number, part in enumerate(SPLITS) if found[part])
    return -1


def shard_files(root: Path) -> list[str]:
    """Return sorted paths, relative to `root`, of the shards at any depth below it; hidden folders are skipped."""

    def closed(error: OSError) -> None:
        raise UsageError(f"{error.filename} is a folder of shards that cannot be opened ({error.strerror})") from error

    found = []
    for folder, folders, names in os.walk(root, onerror=closed, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in names
            if name.lower().endswith(".parquet") and not name.startswith(".")
        ]
    return sorted(found)


def absent_shards(files: Iterable[str]) -> Iterator[str]:
    """Yield a note for each series `<name>-00000-of-00005.parquet` that is incomplete."""
    series: dict[tuple[str, int, str], set[int]] = {}
    for path in files:
        if (found := _NUMBERED.fullmatch(path)) and 0 < int(found[3]) <= 1_000_000:
            series.setdefault((found[1], int(found[3]), "-*" if found[4] else ""), set()).add(int(found[2]))
    for (name, count, rest), numbers in sorted(series.items()):
        if absent := sorted(set(range(count)) - numbers):
            yield (
                f"{count - len(absent)} of the {count} shards {name}-*.parquet are here (not "
                f"{name}-{absent[0]:05d}-of-{count:05d}{rest}.parquet, say)"
            )


def listed_reasons(skipped: Sequence[Skipped]) -> str:
    """Return the reasons of the first skipped rows, to append to a message; empty without skipped rows."""
    if not skipped:
        return ""
    listed = "; ".join(f"{entry['path']}: {entry['reason']}" for entry in (clip.as_dict() for clip in skipped[:3]))
    return f": {len(skipped):,} rows are skipped ({listed}{', ...' if len(skipped) > 3 else ''})"


def features_json(
    audio_rate: int | None, label: str, classes: Sequence[str], several: bool, more: Mapping[str, str]
) -> str:
    """Return the metadata that `datasets` reads the columns' features from.

    Args:
        audio_rate: of all clips, in Hz; `None` if they differ.
        label: the column of labels.
        classes: their names.
        several: whether a clip may have several labels.
        more: further columns and their types.
    """
    names = {"names": list(classes), "_type": "ClassLabel"}
    # `Sequence`, not `List`: releases before 4 know only this name, and later ones accept it.
    labels = {"feature": names, "length": -1, "_type": "Sequence"} if several else names
    audio = {"sampling_rate": audio_rate, "_type": "Audio"} if audio_rate else {"_type": "Audio"}
    numbers = {name: {"dtype": kind, "_type": "Value"} for name, kind in more.items()}
    return json.dumps({"info": {"features": {"audio": audio, label: labels, **numbers}}}, ensure_ascii=False)


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the names of a `ClassLabel`, alone or in a list, in the format of any release of `datasets`."""
    for _ in range(3):
        if isinstance(feature, list) and feature:
            feature = feature[0]
        elif isinstance(feature, dict) and isinstance(feature.get("feature"), dict | list):
            feature = feature["feature"]
    feature = _mapping(feature)
    if feature.get("_type") != "ClassLabel":
        return ()
    names, count = feature.get("names"), feature.get("num_classes")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(map(str, range(count))) if isinstance(count, int) and 0 < count <= 1_000_000 else ()


def _json(metadata: dict[bytes, bytes] | None, key: bytes) -> dict[str, Any]:
    try:
        return _mapping(json.loads((metadata or {}).get(key, b"{}")))
    except ValueError:
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())
