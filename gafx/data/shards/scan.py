"""Look at the clips of a shard once: where their bytes are in the file, how long they are, which cannot be read."""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gafx.audio.decode import Encoded
from gafx.audio.read import probe
from gafx.data.shards.layout import first_line, open_shard
from gafx.errors import UnreadableAudio
from gafx.io import flush

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# What is recorded of a row. `frames` is 0 for one that cannot be read; `copied` ones lie in the copy, not in the shard.
ROW = np.dtype(
    [("frames", "<i8"), ("rate", "<i4"), ("copied", "?"), ("offset", "<i8"), ("size", "<i8")]
)  # fmt: skip
# Rows decoded at a time, and places that begin like a clip before it is held not to be there.
_BATCH, _TRIES = 16, 32


@dataclass(frozen=True)
class Part:
    """Row groups `first` to `last` (exclusive) of a shard, and the files that what is found is written to."""

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
    """Look at the clips of a part; the number of rows. What an earlier call has found is kept."""
    if scanned(part):
        return len(read_part(part.found)[0])
    reasons: dict[int, str] = {}
    with (
        open_shard(part.path) as file,
        _Copy(part.copy) as copy,
        open(part.path, "rb") as raw,
        mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        counts = [file.metadata.row_group(number).num_rows for number in range(part.first, part.last)]
        rows = np.zeros(sum(counts), ROW)
        row = 0
        for number, count in zip(range(part.first, part.last), counts, strict=True):
            chunk, end = _Chunk(file, number, part), row + count
            for content, name in _contents(file, number, part, count):
                try:
                    if isinstance(content, Exception):
                        raise UnreadableAudio(f"cannot be read from its shard ({first_line(content)})")
                    _look(rows[row : row + 1], content, name, chunk, data, copy)
                except UnreadableAudio as error:
                    reasons[row] = str(error)
                row += 1
            assert row == end
    aside = f"{part.found}.{os.getpid()}"
    with open(aside, "wb") as out:
        texts = json.dumps({str(row): reason for row, reason in reasons.items()}).encode()
        np.savez(out, rows=rows, reasons=np.frombuffer(texts, np.uint8))
    flush(Path(aside))
    os.replace(aside, part.found)
    return len(rows)


def scanned(part: Part) -> bool:
    """Whether what `scan` would find is there already."""
    if not os.path.exists(part.found):
        return False
    return os.path.exists(part.copy) or not read_part(part.found)[0]["copied"].any()


def read_part(path: str) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """What `scan` has found: records (`ROW`) and, of the rows that cannot be read, why."""
    with np.load(path, allow_pickle=False) as found:
        reasons = json.loads(found["reasons"].tobytes())
        return found["rows"], {int(row): str(reason) for row, reason in reasons.items()}


class _Chunk:
    """Where in its file the bytes of a row group's clips are."""

    def __init__(self, file: "pq.ParquetFile", group: int, part: Part):
        leaf = next(number for number, column in enumerate(_columns(file)) if column == part.leaf)
        column = file.metadata.row_group(group).column(leaf)
        self.plain = column.compression == "UNCOMPRESSED"
        first = column.dictionary_page_offset if column.has_dictionary_page else None
        self.begin = self.at = max(0, min(column.data_page_offset, first or column.data_page_offset))
        self.end = self.begin + column.total_compressed_size

    def locate(self, data: mmap.mmap, content: bytes) -> int | None:
        """The place of a clip's bytes, if they are there as they are.

        Pages that are not compressed hold each value in one segment, one after another; a value that occurs twice may
        stand there once.
        """
        head = content[:64]
        for at in (self.at, self.begin):
            for _ in range(_TRIES):
                at = data.find(head, at, self.end)
                if at < 0:
                    break
                if data[at : at + len(content)] == content:
                    self.at = at + len(content)
                    return at
                at += 1
        return None


def _columns(file: "pq.ParquetFile") -> Iterator[str]:
    return (file.schema.column(number).path for number in range(len(file.schema)))


def _contents(
    file: "pq.ParquetFile", group: int, part: Part, count: int
) -> Iterator[tuple[bytes | Exception | None, str | None]]:
    """The bytes and the path of each row of a row group; the error, where they cannot be read."""
    import pyarrow as pa

    given = 0
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[part.audio]):
            column = batch.column(0)
            names = None
            if part.nested:
                # `flatten` rather than `field`: a row that is null as a whole is null in its fields.
                fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
                column, names = fields["bytes"], fields.get("path")
            for row in range(min(len(column), count - given)):
                yield (
                    column[row].as_py(),
                    str(names[row].as_py()) if names is not None and names[row].is_valid else None,
                )
                given += 1
        error: Exception = ValueError("it holds fewer rows than it says")
    except (pa.ArrowException, OSError) as caught:
        error = caught
    for _ in range(given, count):
        yield error, None


class _Copy:
    """A file of the clips that cannot be read where they are; made with its first, and gets its name at the end."""

    def __init__(self, path: str):
        self.path, self.aside = path, f"{path}.{os.getpid()}"
        self.file: BinaryIO | None = None

    def __enter__(self) -> "_Copy":
        return self

    def add(self, content: bytes) -> int:
        if self.file is None:
            self.file = open(self.aside, "wb")  # noqa: SIM115 (closed at exit)
        offset = self.file.tell()
        self.file.write(content)
        return offset

    def __exit__(self, kind: object, *_: object) -> None:
        if self.file is None:
            return
        self.file.close()
        if kind is None:
            flush(Path(self.aside))
            os.replace(self.aside, self.path)
        else:
            os.unlink(self.aside)


def _look(
    record: npt.NDArray[Any], content: bytes | None, name: str | None, chunk: _Chunk, data: mmap.mmap, copy: _Copy
) -> None:
    if content is None:
        raise UnreadableAudio(
            "holds no audio"
            if name is None
            else f"holds no audio but a path ({name[:200]!r}), which is not followed: write the shard with the audio "
            "in it, as Dataset.to_parquet and push_to_hub of `datasets` do"
        )
    info = probe(Encoded(content))
    place = chunk.locate(data, content) if chunk.plain else None
    record["frames"], record["rate"], record["size"] = info.frames, info.sample_rate, len(content)
    record["copied"] = place is None
    record["offset"] = copy.add(content) if place is None else place
