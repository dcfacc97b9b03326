"""Scan the clips of a shard once: offset and size of their bytes in the file, their lengths, unreadable ones."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gafx.audio.decode import Encoded
from gafx.audio.read import probe
from gafx.data.shards.layout import open_shard
from gafx.errors import UnreadableAudio, first_line
from gafx.io import atomic_write, read_at

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Record of a row. `frames` is 0 for an unreadable clip; `offset` of a `copied` clip is in the copy, not in the shard.
ROW = np.dtype(
    [("frames", "<i8"), ("rate", "<i4"), ("copied", "?"), ("offset", "<i8"), ("size", "<i8")]
)  # fmt: skip
# Rows decoded at a time, and candidates with the first bytes of a clip to try before it counts as not found.
_BATCH, _TRIES = 16, 32
_BLOCK = 1 << 16  # bytes read at a time


@dataclass(frozen=True)
class Part:
    """Row groups of a shard that are scanned as one job.

    Attributes:
        path: of the shard.
        audio: column of the clips.
        leaf: Parquet column of their bytes.
        first, last: row groups, `last` exclusive.
        found, copy: files that the records and the copied clips are written to.
    """

    path: str
    audio: str
    leaf: str
    first: int
    last: int
    found: str
    copy: str

    @property
    def nested(self) -> bool:
        return self.leaf != self.audio


def scan(part: Part) -> int:
    """Scan the clips of a part and return the number of rows. Records of an earlier call are kept."""
    if scanned(part):
        return len(read_part(part.found)[0])
    reasons: dict[int, str] = {}
    with (
        open_shard(part.path) as file,
        contextlib.ExitStack() as stack,
        open(part.path, "rb") as raw,
    ):
        copy = _Copy(Path(part.copy), stack)
        counts = [file.metadata.row_group(number).num_rows for number in range(part.first, part.last)]
        rows = np.zeros(sum(counts), ROW)
        row = 0
        for number, count in zip(range(part.first, part.last), counts, strict=True):
            chunk, end = _Chunk(file, number, part), row + count
            for content, name in _contents(file, number, part, count):
                try:
                    if isinstance(content, Exception):
                        raise UnreadableAudio(f"cannot be read from its shard ({first_line(content)})")
                    _fill(rows[row : row + 1], content, name, chunk, raw, copy)
                except UnreadableAudio as error:
                    reasons[row] = str(error)
                row += 1
            assert row == end
    texts = json.dumps({str(row): reason for row, reason in reasons.items()}).encode()
    with atomic_write(Path(part.found), "wb", sync=True) as out:
        np.savez(out, rows=rows, reasons=np.frombuffer(texts, np.uint8))
    return len(rows)


def scanned(part: Part) -> bool:
    """Return whether the records of a part, and its copied clips if it has any, exist already."""
    if not os.path.exists(part.found):
        return False
    return os.path.exists(part.copy) or not read_part(part.found)[0]["copied"].any()


def read_part(path: str) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """Return the records (`ROW`) that `scan` has written, and the reasons of unreadable rows by row."""
    with np.load(path, allow_pickle=False) as found:
        reasons = json.loads(found["reasons"].tobytes())
        return found["rows"], {int(row): str(reason) for row, reason in reasons.items()}


class _Chunk:
    """The bytes of a row group's clips in the file."""

    def __init__(self, file: "pq.ParquetFile", group: int, part: Part):
        leaf = next(number for number, column in enumerate(_columns(file)) if column == part.leaf)
        column = file.metadata.row_group(group).column(leaf)
        self.plain = column.compression == "UNCOMPRESSED"
        first = column.dictionary_page_offset if column.has_dictionary_page else None
        self.begin = self.at = max(0, min(column.data_page_offset, first or column.data_page_offset))
        self.end = self.begin + column.total_compressed_size

    def locate(self, file: IO[bytes], content: bytes) -> int | None:
        """Return the offset of a clip's bytes, None if they are not stored contiguously and uncompressed.

        Uncompressed pages store values contiguously, one after another; a value that occurs twice may be stored once.
        """
        head = content[:64]
        for at in (self.at, self.begin):
            for _ in range(_TRIES):
                at = _find(file, head, at, self.end)
                if at < 0:
                    break
                if read_at(file, at, len(content)) == content:
                    self.at = at + len(content)
                    return at
                at += 1
        return None


def _find(file: IO[bytes], wanted: bytes, start: int, end: int) -> int:
    """Return where bytes first occur in a part of a file, -1 where they do not."""
    while start < end and (block := read_at(file, start, min(_BLOCK, end - start))):
        if (found := block.find(wanted)) >= 0:
            return start + found
        start += max(1, len(block) - len(wanted) + 1)  # they may lie across two blocks
    return -1


def _columns(file: "pq.ParquetFile") -> Iterator[str]:
    return (file.schema.column(number).path for number in range(len(file.schema)))


def _contents(
    file: "pq.ParquetFile", group: int, part: Part, count: int
) -> Iterator[tuple[bytes | Exception | None, str | None]]:
    """Yield bytes and path of each row of a row group; the error instead of bytes that cannot be read."""
    import pyarrow as pa

    given = 0
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[part.audio]):
            column = batch.column(0)
            names = None
            if part.nested:
                # `flatten`, not `field`: a row that is null must be null in its fields too.
                fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
                column, names = fields["bytes"], fields.get("path")
            for row in range(min(len(column), count - given)):
                yield (
                    column[row].as_py(),
                    str(names[row].as_py()) if names is not None and names[row].is_valid else None,
                )
                given += 1
        error: Exception = ValueError("it has fewer rows than its metadata say")
    except (pa.ArrowException, OSError) as caught:
        error = caught
    for _ in range(given, count):
        yield error, None


class _Copy:
    """A file of the clips that are compressed in the shard; created with the first one.

    Args:
        path: of the file.
        stack: completes the file when it closes.
    """

    def __init__(self, path: Path, stack: contextlib.ExitStack):
        self.path, self.stack = path, stack
        self.file: IO[Any] | None = None

    def add(self, content: bytes) -> int:
        """Append a clip and return its offset."""
        if self.file is None:
            self.file = self.stack.enter_context(atomic_write(self.path, "wb", sync=True))
        offset = self.file.tell()
        self.file.write(content)
        return offset


def _fill(
    record: npt.NDArray[Any], content: bytes | None, name: str | None, chunk: _Chunk, file: IO[bytes], copy: _Copy
) -> None:
    """Fill a clip's record; raises `UnreadableAudio`."""
    if content is None:
        raise UnreadableAudio(
            "holds no audio"
            if name is None
            else f"holds no audio but a path ({name[:200]!r}), which is not followed: write the shard with the audio "
            "in it, as Dataset.to_parquet and push_to_hub of `datasets` do"
        )
    info = probe(Encoded(content))
    place = chunk.locate(file, content) if chunk.plain else None
    record["frames"], record["rate"], record["size"] = info.frames, info.sample_rate, len(content)
    record["copied"] = place is None
    record["offset"] = copy.add(content) if place is None else place
