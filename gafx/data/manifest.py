"""A data set as columns: what every source returns and everything else reads.

Columns are flat numpy arrays, paths included, so that loader workers share them and two million clips cost a worker no
more memory than two thousand.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import Span
from gafx.errors import UsageError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Ragged:
    """A column whose entries have different lengths: entry i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, entries: Iterable[Sequence[Any]], dtype: Any) -> "Ragged":
        lists = list(entries)
        offsets = np.concatenate([[0], np.cumsum([len(entry) for entry in lists], dtype=np.int64)]).astype(np.int64)
        if dtype == np.uint8:
            return cls(np.frombuffer(b"".join(lists), np.uint8), offsets)  # type: ignore[arg-type]
        values = [value for entry in lists for value in entry]
        return cls(np.asarray(values, dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> "Ragged":
        lengths = self.lengths()[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        picks = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[picks], offsets)


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        # File names can hold line ends, and bytes that are no UTF-8 (kept as surrogates): lists show them escaped.
        path = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in self.path)
        return {"path": path, "reason": self.reason}


@dataclass(frozen=True)
class PublishedSplit:
    """A published division that the `split` column holds, where it is not the data set's official one.

    Attributes:
        protocol: its name, e.g. `fault_filtered`. Clips in none of its parts are left out of it.
        missing: recordings of its parts that this copy of the data lacks, or that cannot be read where they would be
            tested; without them it cannot be run.
    """

    protocol: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spans:
    """Where clips lie that are files inside other files: a number into `files`, first byte and size of each."""

    files: tuple[str, ...]
    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    def __getitem__(self, index: int) -> Span:
        return Span(self.files[self.file[index]], int(self.offset[index]), int(self.size[index]))


@dataclass(frozen=True)
class Manifest:
    """The clips of a data set. Rows are clips ("tracks" in the papers); all columns have the same length.

    Attributes:
        root: folder that the paths are relative to.
        classes: names of the labels, in the order of their numbers.
        path: UTF-8 (surrogate-escaped) bytes of each clip's path; of its shard's, where it lies in one.
        labels: numbers into `classes`, one or several a clip.
        group: the recording a clip came from; no split separates one.
        start: seconds into the file at which the clip begins.
        duration: seconds.
        sample_rate: of the file, in Hz.
        row: row inside a shard, -1 for a plain file.
        fold: official fold, counted from 1, or -1.
        split: part (index into `SPLITS`) of the official division, or of the one that `published` names; or -1.
        weight: how often `sampling=weighted` draws a clip, relative to the others.
        spans: where the clips' bytes are, for clips in shards.
        skipped: files that were left out, with reasons.
        missing: clips that the data set's own lists name and this copy does not have; they are not counted as
            unreadable.
        notes: sentences for the run's first lines and its record: what is missing, what was left aside, and why.
        published: whose parts `split` holds, where that is not the official division.
        facts: what else the source knows of each clip (`synthetic`: the truth it was composed from); never copied to
            workers.
        artist: each clip's artist, empty where one is not known; `None` where the source knows none.
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
        """Some of the clips, in the order of `rows`; what is said of the whole stays."""
        columns = ("group", "start", "duration", "sample_rate", "row", "fold", "split", "weight")
        spans = self.spans
        return replace(
            self,
            path=self.path.take(rows),
            labels=self.labels.take(rows),
            spans=spans and Spans(spans.files, spans.file[rows], spans.offset[rows], spans.size[rows]),
            facts=None if self.facts is None else [self.facts[row] for row in rows.tolist()],
            artist=None if self.artist is None else self.artist[rows],
            **{name: getattr(self, name)[rows] for name in columns},
        )

    def relative_path(self, index: int) -> str:
        """What a clip is called: its path, with `#row` behind it for a row of a shard."""
        path = os.fsdecode(self.path[index].tobytes())
        return path if self.row[index] < 0 else f"{path}#{self.row[index]}"

    def file(self, index: int) -> bytes | Span:
        """A clip's file: its full path, as bytes (file names need not be valid text), or where it lies in another."""
        if self.spans is not None:
            return self.spans[index]
        return os.path.join(os.fsencode(self.root), self.path[index].tobytes())

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels, or none."""
        return bool(len(self) and (self.labels.lengths() != 1).any())

    def official_folds(self) -> list[int]:
        """Return the data set's own fold numbers, ascending; none where it has parts, or neither."""
        return [] if (self.split >= 0).any() else np.unique(self.fold[self.fold >= 0]).tolist()

    def first_label(self) -> npt.NDArray[np.int64]:
        """Each clip's first label, -1 where it has none: what splits are stratified by."""
        labels = np.full(len(self), -1, np.int64)
        has = self.labels.lengths() > 0
        labels[has] = self.labels.values[self.labels.offsets[:-1][has]]
        return labels

    def targets(self, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """`(rows, classes)` of zeros and ones; all rows by default."""
        labels = self.labels if rows is None else self.labels.take(rows)
        targets = np.zeros((len(labels), len(self.classes)), np.float32)
        targets[np.repeat(np.arange(len(labels)), labels.lengths()), labels.values] = 1
        return targets

    def label_counts(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`(classes,)`: how many of `rows` have each label."""
        return np.bincount(self.labels.take(rows).values, minlength=len(self.classes))

    def audio_fingerprint(self) -> str:
        """Hash of which samples the clips are: paths, starts, durations and rates, in order; not labels or groups."""
        digest = hashlib.blake2b(digest_size=8)
        times = np.rint(np.stack([self.start, self.duration]) * 1e6).astype(np.int64)
        for column in (*self._names(), times, self.sample_rate):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hash of clips, labels, groups and parts: two copies of one data set agree wherever they lie."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=8)
        durations = np.round(self.duration * 1000).astype(np.int64)
        for column in (*self._names(), self.labels.values, self.labels.offsets,
                       self.group, durations, self.fold, self.split):  # fmt: skip
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def _names(self) -> tuple[npt.NDArray[Any], ...]:
        """The columns that tell clips apart. Hashes of plain files were made before there were rows."""
        rows = () if self.spans is None else (self.row,)
        return self.path.values, self.path.offsets, *rows


def make_manifest(
    root: Path,
    classes: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[Sequence[int]],
    durations: Sequence[float],
    sample_rates: Sequence[int],
    *,
    groups: Sequence[Any] | None = None,
    starts: Sequence[float] | None = None,
    folds: Sequence[int] | None = None,
    splits: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    skipped: Iterable[Skipped] = (),
    missing: int = 0,
    notes: Iterable[str] = (),
    published: PublishedSplit | None = None,
    facts: Sequence[dict[str, Any]] | None = None,
    artists: Sequence[str] | None = None,
) -> Manifest:
    """Build a `Manifest` from plain sequences. `groups` may hold any hashable values; the default is a group a file."""
    count = len(paths)
    names = list(paths) if groups is None else [str(g) for g in groups]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Manifest(
        root=root,
        classes=tuple(classes),
        path=Ragged.of([os.fsencode(p) for p in paths], np.uint8),
        labels=Ragged.of(labels, np.int32),
        group=np.array([numbers[name] for name in names], np.int64),
        start=np.zeros(count) if starts is None else np.asarray(starts, np.float64),
        duration=np.asarray(durations, np.float64),
        sample_rate=np.asarray(sample_rates, np.int32),
        row=np.full(count, -1, np.int64),
        fold=np.full(count, -1, np.int32) if folds is None else np.asarray(folds, np.int32),
        split=np.full(count, -1, np.int8) if splits is None else np.asarray(splits, np.int8),
        weight=np.ones(count) if weights is None else np.asarray(weights, np.float64),
        skipped=tuple(skipped),
        missing=missing,
        notes=tuple(notes),
        published=published,
        facts=facts,
        artist=None if artists is None else np.array(artists, np.str_),
    )


def check_readable(
    manifest: Manifest, *, max_unreadable: float, strict: bool, skipped: Collection[Skipped] | None = None
) -> None:
    """Refuse a data set of which too much is unreadable.

    Args:
        manifest: the data set.
        max_unreadable: largest share of its files that may be left out.
        strict: allow none.
        skipped: all files that were left out; default: those that the manifest knows of.

    Raises:
        UsageError: a skipped file under `strict`, or a share of skipped files above `max_unreadable`.
    """
    skipped = list(manifest.skipped if skipped is None else skipped)
    count, total = len(skipped), len(manifest) + len(manifest.skipped)
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
            f"data.max_unreadable={max_unreadable}: {listed}. Mend or remove them, or raise data.max_unreadable "
            "(evaluate.py: max_unreadable)"
        )
