"""Manifest: the clips of a data set as columns; every source returns one.

Columns are flat numpy arrays, paths included, so that loader workers use the same memory and two million clips cost a
worker no more memory than two thousand.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import Span
from gafx.errors import UsageError
from gafx.io import digest
from gafx.midi.tokens import Scheme, scheme_of
from gafx.report.format import printable

SPLITS = ("train", "val", "test")
# What `Manifest.content_fingerprint` reads: files whose size counts, files of which bytes are read, and their number.
_SIZED_FILES, _SAMPLED_FILES, _SAMPLE_BYTES = 10_000, 64, 4096


@dataclass(frozen=True)
class Ragged:
    """A column whose entries have different lengths: entry i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, entries: Iterable[Sequence[Any]], dtype: Any) -> "Ragged":
        """Build a column from a sequence per entry (bytes for `uint8`)."""
        lists = list(entries)
        offsets = np.concatenate([[0], np.cumsum([len(entry) for entry in lists], dtype=np.int64)]).astype(np.int64)
        if dtype == np.uint8:
            return cls(np.frombuffer(b"".join(lists), np.uint8), offsets)  # type: ignore[arg-type]
        values = [value for entry in lists for value in entry]
        return cls(np.asarray(values, dtype), offsets)

    @classmethod
    def distinct(cls, rows: npt.NDArray[np.int64], values: npt.NDArray[Any], count: int) -> "Ragged":
        """Build `count` entries of int32 from pairs (entry, value >= 0): each value once per entry, in order."""
        keys = rows * (int(values.max(initial=0)) + 1) + values
        first = np.sort(np.unique(keys, return_index=True)[1])
        first = first[np.argsort(rows[first], kind="stable")]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[first], minlength=count))]).astype(np.int64)
        return cls(values[first].astype(np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the number of values of each entry."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> "Ragged":
        """Return some of the entries, in the order of `rows`."""
        lengths = self.lengths()[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        picks = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[picks], offsets)


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and the reason."""

    path: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Return path and reason for JSON; line breaks and bytes that are not UTF-8 are escaped in the path."""
        return {"path": printable(self.path), "reason": self.reason}


@dataclass(frozen=True)
class PublishedSplit:
    """A published split in the `split` column that is not the data set's official one.

    Attributes:
        protocol: its name, e.g. `fault_filtered`. Clips in none of its parts are left out.
        missing: recordings of its parts that this copy of the data lacks, or that cannot be read where they would be
            validated or tested on; the protocol needs all of them.
    """

    protocol: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spans:
    """Byte ranges of clips stored inside other files: index into `files`, first byte and size of each clip."""

    files: tuple[str, ...]
    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    def __getitem__(self, index: int) -> Span:
        return Span(self.files[self.file[index]], int(self.offset[index]), int(self.size[index]))

    def take(self, rows: npt.NDArray[np.int64]) -> "Spans":
        """Return some of the clips, in the order of `rows`."""
        return Spans(self.files, self.file[rows], self.offset[rows], self.size[rows])


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set. Rows are clips ("tracks" in the papers); all columns have the same length.

    Attributes:
        root: folder that the paths are relative to.
        classes: names of the labels, in the order of their numbers; of MIDI the vocabulary, and no clip has a label.
        path: UTF-8 (surrogate-escaped) bytes of each clip's path, or of the path of its shard.
        labels: numbers into `classes`, any number per clip.
        group: number of the recording that the clip came from; no split separates clips of one group.
        start: of the clip within its file, in seconds.
        duration: in seconds; of MIDI in tokens.
        sample_rate: of the file, in Hz; 1 for MIDI.
        row: row within a shard, -1 for a plain file.
        fold: official fold, counted from 1, or -1.
        split: part (index into `SPLITS`) in the official split, or in the one of `published`; or -1.
        weight: relative probability of a clip under `sampling=weighted`.
        spans: byte ranges of the clips, for clips in shards.
        skipped: files that were left out, with reasons.
        missing: number of clips in the data set's own lists that this copy does not have; not counted as unreadable.
        notes: sentences for the first lines of a run and its record: what is missing or left out, and why.
        published: the split in the `split` column, if that is not the official one.
        facts: further facts about each clip (`synthetic`: its score); not copied to workers.
        artist: of each clip, empty where unknown; `None` where the source has no artists.
    """

    root: Path
    classes: tuple[str, ...]
    path: Ragged
    labels: Ragged
    group: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    duration: npt.NDArray[np.float64]
    sample_rate: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int32]
    split: npt.NDArray[np.int8]
    weight: npt.NDArray[np.float64]
    spans: Spans | None = None
    skipped: tuple[Skipped, ...] = ()
    missing: int = 0
    notes: tuple[str, ...] = ()
    published: PublishedSplit | None = None
    facts: Sequence[dict[str, Any]] | None = field(default=None, repr=False, compare=False)
    artist: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.path)

    def take(self, rows: npt.NDArray[np.int64]) -> "Manifest":
        """Return some of the clips, in the order of `rows`; the other fields stay the same."""
        columns: dict[str, Any] = {
            name: value.take(rows)
            for name, value in vars(self).items()
            if isinstance(value, (np.ndarray, Ragged, Spans))
        }
        facts = None if self.facts is None else [self.facts[row] for row in rows.tolist()]
        return replace(self, facts=facts, **columns)

    def relative_path(self, index: int) -> str:
        """Return the name of a clip: its path, with `#<row>` appended for a row of a shard."""
        path = os.fsdecode(self.path[index].tobytes())
        return path if self.row[index] < 0 else f"{path}#{self.row[index]}"

    def file(self, index: int) -> bytes | Span:
        """Return a clip's file: its full path as bytes (names need not be valid text), or its span in a shard."""
        if self.spans is not None:
            return self.spans[index]
        return os.path.join(os.fsencode(self.root), self.path[index].tobytes())

    @property
    def scheme(self) -> Scheme | None:
        """Scheme of the tokens of MIDI files, whose vocabulary is `classes`; `None` for audio."""
        return scheme_of(self.classes)

    def require_audio(self, what: str) -> None:
        """Raise `UsageError` for MIDI files; `what` reads audio."""
        if self.scheme:
            raise UsageError(
                f"{what} reads audio, and {self.root} holds MIDI, notes without sound: only frontend=tokens reads it"
            )

    @property
    def multi_label(self) -> bool:
        """True if any clip has several labels or none."""
        return bool(len(self) and (self.labels.lengths() != 1).any())

    def official_folds(self) -> list[int]:
        """Return the data set's own fold numbers, ascending; none where it has parts, or neither."""
        return [] if (self.split >= 0).any() else np.unique(self.fold[self.fold >= 0]).tolist()

    def first_label(self) -> npt.NDArray[np.int64]:
        """Return each clip's first label, -1 where it has none; splits are stratified by it."""
        labels = np.full(len(self), -1, np.int64)
        has = self.labels.lengths() > 0
        labels[has] = self.labels.values[self.labels.offsets[:-1][has]]
        return labels

    def targets(self, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Return multi-hot targets `(rows, classes)`; all rows by default."""
        labels = self.labels if rows is None else self.labels.take(rows)
        targets = np.zeros((len(labels), len(self.classes)), np.float32)
        targets[np.repeat(np.arange(len(labels)), labels.lengths()), labels.values] = 1
        return targets

    def label_counts(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return `(classes,)`, the number of `rows` with each label."""
        return np.bincount(self.labels.take(rows).values, minlength=len(self.classes))

    def audio_fingerprint(self) -> str:
        """Return a digest of the clips as audio: paths, starts, durations and rates in order, not labels or groups."""
        times = np.rint(np.stack([self.start, self.duration]) * 1e6).astype(np.int64)
        return digest(*map(np.ascontiguousarray, (*self._names(), times, self.sample_rate)))

    def fingerprint(self) -> str:
        """Return a digest of clips, labels, groups and parts; it is the same for every copy of the data set.

        Starts and weights count where any differs from its default: without them the digest is that of versions which
        left them out.
        """
        durations = np.round(self.duration * 1000).astype(np.int64)
        labels = (self.labels.values, self.labels.offsets)
        columns = [*self._names(), *labels, self.group, durations, self.fold, self.split]
        if self.start.any():
            columns.append(np.rint(self.start * 1e6).astype(np.int64))
        if (self.weight != 1).any():
            columns.append(self.weight)
        return digest(repr(self.classes), *map(np.ascontiguousarray, columns))

    @cached_property
    def content_fingerprint(self) -> str:
        """Digest of the files themselves when it is first asked for, which tells other sound under the same names.

        It covers the sizes of up to 10,000 files, evenly spaced, and 4 KiB from the middle of up to 64 of these; a file
        that cannot be read counts as empty. It is the same for every copy of the data set.
        """
        files = list(dict.fromkeys(self._disk_path(row) for row in self._evenly(len(self), _SIZED_FILES)))
        sizes, samples = np.zeros(len(files), np.int64), []
        sampled = set(self._evenly(len(files), _SAMPLED_FILES))
        for number, path in enumerate(files):
            with suppress(OSError):
                sizes[number] = os.stat(path).st_size
                if number in sampled:
                    with open(path, "rb") as file:
                        file.seek(max(0, int(sizes[number]) - _SAMPLE_BYTES) // 2)
                        samples.append(file.read(_SAMPLE_BYTES))
        return digest(sizes, *samples)

    def identity(self) -> dict[str, str]:
        """Return what a run records of its data: `fingerprint` and, as `content`, `content_fingerprint`."""
        return {"fingerprint": self.fingerprint(), "content": self.content_fingerprint}

    def changed_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Return what differs from a recorded `identity`, None if nothing does; older records have no content."""
        if recorded["fingerprint"] != self.fingerprint():
            return "their clips, starts, labels, groups, folds or weights differ"
        if recorded.get("content") not in (None, self.content_fingerprint):
            return "their names and labels agree, but the files have other sizes or contents"
        return None

    def _disk_path(self, row: int) -> bytes:
        file = self.file(row)
        return file if isinstance(file, bytes) else os.fsencode(file.path)

    @staticmethod
    def _evenly(total: int, most: int) -> list[int]:
        """Up to `most` different numbers below `total`, evenly spaced."""
        return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)).tolist() if total else []

    def _names(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the columns that identify clips. Digests of plain files were defined before there were shards."""
        rows = () if self.spans is None else (self.row,)
        return self.path.values, self.path.offsets, *rows


# Columns of a manifest that a source may leave out: field, dtype and default.
_OPTIONAL: dict[str, tuple[str, Any, float]] = {
    "starts": ("start", np.float64, 0.0),
    "rows": ("row", np.int64, -1),
    "folds": ("fold", np.int32, -1),
    "splits": ("split", np.int8, -1),
    "weights": ("weight", np.float64, 1.0),
}


def make_manifest(
    root: Path,
    classes: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[Sequence[int]],
    durations: Sequence[float],
    sample_rates: Sequence[int],
    *,
    groups: Sequence[Any] | None = None,
    artists: Sequence[str] | None = None,
    skipped: Iterable[Skipped] = (),
    notes: Iterable[str] = (),
    **more: Any,
) -> Manifest:
    """Build a `Manifest` from plain sequences, one entry per clip.

    Args:
        root: folder that the paths are relative to.
        classes: names of the labels.
        paths: of the clips.
        labels: numbers into `classes`.
        durations: in seconds.
        sample_rates: in Hz.
        groups: any hashable values; default: each file is a group.
        artists: names, empty where unknown.
        skipped: files that were left out.
        notes: sentences for the record of a run.
        **more: the columns `starts`, `rows`, `folds`, `splits` and `weights` (see `Manifest`), and `Manifest`'s fields
            `missing`, `published` and `facts`.
    """
    names = list(paths) if groups is None else [str(group) for group in groups]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    columns: dict[str, Any] = {}
    for key, (field_name, dtype, default) in _OPTIONAL.items():
        given = more.pop(key, None)
        columns[field_name] = np.full(len(paths), default, dtype) if given is None else np.asarray(given, dtype)
    return Manifest(
        root=root,
        classes=tuple(classes),
        path=Ragged.of([os.fsencode(path) for path in paths], np.uint8),
        labels=Ragged.of(labels, np.int32),
        group=np.array([numbers[name] for name in names], np.int64),
        duration=np.asarray(durations, np.float64),
        sample_rate=np.asarray(sample_rates, np.int32),
        artist=None if artists is None else np.array(artists, np.str_),
        skipped=tuple(skipped),
        notes=tuple(notes),
        **columns,
        **more,
    )


def check_readable(
    manifest: Manifest, *, max_unreadable: float, strict: bool, skipped: Collection[Skipped] | None = None,
    total: int | None = None,
) -> None:  # fmt: skip
    """Refuse a data set with too many unreadable files.

    Args:
        manifest: the data set.
        max_unreadable: largest fraction of its files that may be left out.
        strict: refuse any skipped file.
        skipped: all files that were left out; default: those of the manifest.
        total: number of files that `skipped` is a part of; default: all of the manifest.

    Raises:
        UsageError: a skipped file under `strict`, or a fraction of skipped files above `max_unreadable`.
    """
    skipped = list(manifest.skipped if skipped is None else skipped)
    count, total = len(skipped), len(manifest) + len(manifest.skipped) if total is None else total
    if not count:
        return
    listed = "; ".join(f"{s['path']}: {s['reason']}" for s in (entry.as_dict() for entry in skipped[:5]))
    listed += f"; and {count - 5} more" if count > 5 else ""
    if strict:
        raise UsageError(
            f"{count} of {total} files under {manifest.root} cannot be used and data.strict is set: {listed}"
        )
    if count > max_unreadable * total:
        raise UsageError(
            f"{count} of {total} files under {manifest.root} cannot be used, more than "
            f"data.max_unreadable={max_unreadable}: {listed}. Repair or remove them, or raise data.max_unreadable "
            "(gafx evaluate: max_unreadable)"
        )
