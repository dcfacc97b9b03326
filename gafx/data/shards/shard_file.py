"""Write one Parquet shard: its schema with metadata, and its rows."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gafx.data.manifest import Manifest, Skipped
from gafx.data.packing.cache import DIGEST
from gafx.data.shards.encode import Codec, EncodedClip
from gafx.data.shards.layout import FEATURES, MISSING, OURS, features_json
from gafx.io import file_digest, flush

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "gafx-shards-1"
ROW_GROUP = 16  # rows


class ShardFile:
    """One shard while it is written; rows are added in order. As a context manager it is closed without an exception.

    Args:
        path: of the file.
        manifest: the data set.
        codec: of the clips.
        rate: the sampling rate of all clips in Hz, None if they differ.
        facts: of the data set as a whole (`missing`, `notes`), for the metadata; empty ones are omitted.
    """

    def __init__(self, path: Path, manifest: Manifest, codec: Codec, rate: int | None, facts: Mapping[str, Any]):
        import pyarrow.parquet as pq

        self.path, self.manifest, self.codec = path, manifest, codec
        self.schema, leaves = _schema(manifest, rate, facts)
        self.clips: list[EncodedClip] = []
        self.unreadable: list[dict[str, str]] = []
        self.scaled: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self.rounded = self.count = 0
        # Encoded audio cannot be compressed further and does not repeat: no dictionary, no statistics.
        self.writer: pq.ParquetWriter = pq.ParquetWriter(
            self.path, self.schema, compression={"audio.bytes": "none", **dict.fromkeys(leaves, "snappy")},
            use_dictionary=leaves, column_encoding={"audio.bytes": "PLAIN"}, write_statistics=leaves,
        )  # fmt: skip

    def add(self, clips: Sequence[EncodedClip]) -> None:
        """Append clips; unreadable ones are recorded and left out."""
        for clip in clips:
            name = self.manifest.relative_path(clip.row)
            if clip.content is None:
                self.unreadable.append(Skipped(name, clip.reason).as_dict())
                if self.manifest.split[clip.row] > 0:  # published results need all validation and test clips
                    self.lost.append(name)
                continue
            if clip.gain != 1:
                self.scaled.append({"path": Skipped(name, "").as_dict()["path"], "factor": clip.gain})
            self.rounded += not clip.exact
            self.count += 1
            self.clips.append(clip)
            if len(self.clips) == ROW_GROUP:
                self._flush()

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # of a full disk, for one: the error that is raised already says why
            self.writer.close()

    def close(self) -> None:
        """Complete the file and flush it to the disk."""
        self._flush()
        if self.manifest.published is not None and self.lost:
            self.writer.add_key_value_metadata({MISSING: json.dumps({"clips": self.lost}).encode()})
        self.writer.close()
        flush(self.path)

    def record(self) -> dict[str, Any]:
        """Return counts, size and digest of the closed file, for `shards.json`."""
        return {
            "clips": self.count, "bytes": self.path.stat().st_size, "digest": file_digest(self.path, DIGEST),
            "unreadable": self.unreadable, "scaled": self.scaled, "rounded": self.rounded,
        }  # fmt: skip

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.clips:
            return
        manifest, rows = self.manifest, [clip.row for clip in self.clips]
        audio = [{"bytes": clip.content, "path": _name(manifest, clip.row, self.codec)} for clip in self.clips]
        labels = [manifest.labels[row].tolist() for row in rows]
        columns: dict[str, Any] = {
            "audio": audio,
            "label": [entry[0] for entry in labels] if not manifest.multi_label else None,
            "labels": labels,
            "group": manifest.group[rows],
            "fold": manifest.fold[rows],
            "weight": manifest.weight[rows],
        }
        arrays = [pa.array(columns[field.name], field.type) for field in self.schema]
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema), row_group_size=ROW_GROUP)
        self.clips.clear()


def _schema(manifest: Manifest, rate: int | None, facts: Mapping[str, Any]) -> "tuple[pa.Schema, list[str]]":
    """Return the schema with its metadata, and the Parquet columns other than the audio's bytes."""
    import pyarrow as pa

    several = manifest.multi_label
    label = "labels" if several else "label"
    more = {"group": "int64"}
    if (manifest.fold >= 0).any():
        more["fold"] = "int64"
    if (manifest.weight != 1).any():
        more["weight"] = "float64"
    ours: dict[str, Any] = {"format": FORMAT, "label": label, "columns": list(more)}
    if manifest.published is not None:
        published = manifest.published
        ours["published"] = {"protocol": published.protocol, "missing": list(published.missing)}
    ours |= {name: value for name, value in facts.items() if value}
    kinds = {"int64": pa.int64(), "float64": pa.float64()}
    fields = [
        pa.field("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field(label, pa.list_(pa.int64()) if several else pa.int64()),
        *(pa.field(name, kinds[kind]) for name, kind in more.items()),
    ]
    metadata = {
        FEATURES: features_json(rate, label, manifest.classes, several, more).encode(),
        OURS: json.dumps(ours).encode(),
    }
    leaves = ["audio.path", f"{label}.list.element" if several else label, *more]
    return pa.schema(fields, metadata=metadata), leaves


def _name(manifest: Manifest, row: int, codec: Codec) -> str:
    """Return the name of a clip's audio: its path with the new extension, and its start if it is a segment."""
    path = PurePosixPath(Skipped(os.fsdecode(manifest.path[row].tobytes()), "").as_dict()["path"])
    inside = f"-{manifest.row[row]}" if manifest.row[row] >= 0 else ""
    start = float(manifest.start[row])
    return str(path.with_name(f"{path.stem}{inside}{f'@{start:.3f}' if start else ''}.{codec}"))
