"""Leak check: find test audio that a model may have been trained on.

It looks for copies of clips, identical or by fingerprint; recordings, files and artists with clips in two parts of a
split; and files whose names are numbered parts of one whole. The check only reports: GTZAN is used with its known
duplicates, and their effect is for the reader to judge. docs/leaks.md has thresholds, measurements and limits.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gafx.data.leaks.copies import LEAST, Copies, find_copies
from gafx.data.leaks.describe import EXAMPLES, LISTED, NAMES, describe_check, describe_copies
from gafx.data.leaks.fingerprint import Prints, fingerprint_clips, unread
from gafx.data.leaks.notes import find_midi_copies
from gafx.data.manifest import Manifest
from gafx.data.splits import Split
from gafx.report.format import printable

FOLDER = ".fingerprints"  # cache, in the output folder of the runs
# Most hours of audio without a cached fingerprint that a run reads: some minutes on two cores.
MOST_HOURS = 24.0
# Pairs of parts that are compared.
COMPARED = (("test", "train"), ("val", "train"), ("test", "val"))
_PART_OF = re.compile(
    r"(.+)[\s_.\-(\[]+(?:part|pt|piece|seg|segment|chunk|slice|excerpt|section|split)[\s_.\-]*\d+[)\]]?", re.IGNORECASE
)

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two clips of which one is a copy of the other or of a part of it.

    Attributes:
        first: path of the clip in the first of `parts`.
        second: path of the clip in the second.
        parts: names of the parts; empty where no split is checked.
        kind: "same bytes" or "near copy".
        error: fraction of differing fingerprint bits.
        seconds: of sound compared.
        offset: beginning of the second clip in the first, in seconds; negative where the second begins earlier.
        labels: of the first and of the second clip.
        one_recording: whether both belong to one group of the data set.
        semitones: by which the second clip is higher, of MIDI; its `error` is the share of runs of notes that differ,
            and its `seconds` are those of the shorter piece.
    """

    first: str
    second: str
    parts: tuple[str, ...]
    kind: str
    error: float
    seconds: float
    offset: float
    labels: tuple[str, str]
    one_recording: bool
    semitones: int | None = None


@dataclass(frozen=True)
class Between:
    """Number of pairs of copies between two parts, and of clips of the first part that are in such a pair."""

    parts: tuple[str, str]
    same_bytes: int
    near_copies: int
    labels_differ: int
    clips: int


@dataclass(frozen=True)
class Crossing:
    """Number of recordings, files, names or artists with clips in several parts, and some examples."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaks:
    """Result of `find_leaks`.

    Attributes:
        clips: number of clips of each part.
        copies: counts for each pair of parts; empty where no audio was compared.
        listed: the first `LISTED` pairs, test with training clips first.
        recordings: groups of the manifest with clips in several parts.
        files: files with segments in several parts.
        names: names that differ only in a part number, e.g. song_part1 and song_part2.
        artists: artists with clips in several parts; `None` where the data set has no artists.
        unreadable: number of clips that could not be read.
        silent: number of clips with too little sound, or too few notes, to be compared.
        unchecked: checks that were left out, and why; empty if there are none.
        elapsed: duration of the check in seconds.
    """

    clips: dict[str, int]
    copies: tuple[Between, ...]
    listed: tuple[Pair, ...]
    recordings: Crossing
    files: Crossing
    names: Crossing
    artists: Crossing | None
    unreadable: int
    silent: int
    unchecked: str
    elapsed: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with their description as lines of text under `words`."""
        record = asdict(self)
        return {**record, "words": describe_check(record)}

    def describe(self) -> str:
        """Return the description as text of a few lines."""
        return "\n".join(self.as_dict()["words"])


def find_leaks(
    manifest: Manifest,
    parts: Split,
    *,
    cache: Path | None = None,
    most_hours: float = MOST_HOURS,
    most_listed: int | None = LISTED,
) -> Leaks:
    """Find copies, recordings, files, names and artists in two parts of a split.

    Args:
        manifest: the data set.
        parts: its split.
        cache: folder for fingerprints.
        most_hours: audio is compared only if at most this many hours have no cached fingerprint.
        most_listed: number of pairs to list; `None` lists all.
    """
    begin = time.perf_counter()
    side = np.full(len(manifest), -1, np.int64)
    clips = {}
    for number, part in enumerate(("train", "val", "test")):
        rows = getattr(parts, part)
        side[rows], clips[part] = number, len(rows)
    rows = np.flatnonzero(side >= 0)
    copies: list[Between] = []
    listed: list[Pair] = []
    unreadable = silent = 0
    unchecked = ""
    hours = 0.0 if manifest.scheme else float(manifest.duration[unread(manifest, rows, cache)].sum()) / 3600
    if hours <= most_hours:
        found, unreadable, silent = _find(manifest, rows, cache, side)
        for pair in COMPARED:
            if clips[pair[0]] and clips[pair[1]]:
                room = None if most_listed is None else most_listed - len(listed)
                between, pairs = _copies_between(manifest, found, side, pair, room)
                copies.append(between)
                listed += pairs
    else:
        unchecked = (
            f"copies of clips: {hours:,.1f} hours of audio would have to be read, more than {most_hours:g}; gafx leaks "
            "reads them, and later runs use its result"
        )
    artists = None if manifest.artist is None else manifest.artist.tolist()
    return Leaks(
        clips=clips, copies=tuple(copies), listed=tuple(listed),
        recordings=_crossing(manifest, manifest.group, side), files=_crossing(manifest, _file_numbers(manifest), side),
        names=_crossing_names(manifest, side),
        artists=None if artists is None else _crossing(manifest, _numbers(n or None for n in artists), side, artists),
        unreadable=unreadable, silent=silent, unchecked=unchecked, elapsed=round(time.perf_counter() - begin, 2),
    )  # fmt: skip


def list_copies(manifest: Manifest, *, cache: Path | None = None) -> dict[str, Any]:
    """Find all pairs of copies in a data set, whatever their parts; return a record for JSON.

    Args:
        manifest: the data set.
        cache: folder for fingerprints.
    """
    rows = np.arange(len(manifest))
    found, unreadable, silent = _find(manifest, rows, cache, rows)
    listed = [asdict(_pair(manifest, found, index)) for index in range(len(found))]
    record: dict[str, Any] = {
        "clips": len(manifest), "recordings": len(np.unique(manifest.group)), "same_bytes": int(found.same.sum()),
        "near_copies": int((~found.same).sum()),
        "labels_differ": sum(pair["labels"][0] != pair["labels"][1] for pair in listed),
        "one_recording": sum(pair["one_recording"] for pair in listed),
        "unreadable": unreadable, "silent": silent, "listed": listed,
    }  # fmt: skip
    return {**record, "words": describe_copies(record)}


def _find(manifest: Manifest, rows: Rows, cache: Path | None, side: Rows) -> tuple[Copies, int, int]:
    """Return the copies among clips of different sides, and how many of `rows` are unreadable, or too short."""
    if manifest.scheme:
        return find_midi_copies(manifest, side)
    prints = read_prints(manifest, rows, cache)
    unreadable = len(prints.unreadable)  # their fingerprints are empty as well
    return find_copies(prints, side), unreadable, int((prints.sounding()[rows] < LEAST).sum()) - unreadable


def read_prints(manifest: Manifest, rows: Rows, cache: Path | None) -> Prints:
    """Compute or load fingerprints of clips, with a progress bar if that takes long."""
    with tqdm(total=len(unread(manifest, rows, cache)), desc="leak check", unit="clip", delay=3, disable=None) as bar:
        return fingerprint_clips(manifest, rows, folder=cache, progress=bar.update)


def clip_name(manifest: Manifest, row: int) -> str:
    """Return the path of a clip, with its beginning if that is not the file's."""
    path = printable(manifest.relative_path(row))
    return path if manifest.start[row] == 0 else f"{path} from {manifest.start[row]:g} s"


def _pair(manifest: Manifest, found: Copies, index: int, parts: tuple[str, ...] = (), *, swap: bool = False) -> Pair:
    """Return a found pair with paths and labels; with `swap` the second clip first."""
    a, b = int(found.first[index]), int(found.second[index])
    offset = float(found.offset[index])
    if swap:
        a, b, offset = b, a, -offset
    return Pair(
        first=clip_name(manifest, a), second=clip_name(manifest, b), parts=parts,
        kind="same bytes" if found.same[index] else "near copy", error=round(float(found.error[index]), 4),
        seconds=round(float(found.seconds[index]), 2), offset=round(offset, 2) + 0.0,
        labels=(_label(manifest, a), _label(manifest, b)), one_recording=bool(manifest.group[a] == manifest.group[b]),
        semitones=None if found.semitones is None else int(found.semitones[index]) * (-1 if swap else 1),
    )  # fmt: skip


def _copies_between(
    manifest: Manifest, found: Copies, side: Rows, parts: tuple[str, str], most: int | None
) -> tuple[Between, list[Pair]]:
    """Return counts of the copies between two parts and their first `most` pairs, clips of the first part first."""
    first, second = (list(NAMES).index(part) for part in parts)
    swap = side[found.first] == second
    ours, theirs = np.where(swap, found.second, found.first), np.where(swap, found.first, found.second)
    indices = np.flatnonzero((side[ours] == first) & (side[theirs] == second))
    pairs = [_pair(manifest, found, index, parts, swap=bool(swap[index])) for index in indices[:most].tolist()]
    ours, theirs = ours[indices], theirs[indices]
    # Many copies of one clip are many more pairs, so their labels are compared by number.
    rows, label = np.union1d(ours, theirs), np.full(len(manifest), -1)
    label[rows] = _numbers(_label(manifest, row) for row in rows.tolist())
    same, differ = int(found.same[indices].sum()), int((label[ours] != label[theirs]).sum())
    return Between(parts, same, len(indices) - same, differ, len(np.unique(ours))), pairs


def _label(manifest: Manifest, row: int) -> str:
    return ";".join(manifest.classes[number] for number in sorted(manifest.labels[row].tolist()))


def _file_numbers(manifest: Manifest) -> Rows:
    """Return a number for each clip's file."""
    if (spans := manifest.spans) is not None:
        columns = np.stack([spans.file.astype(np.int64), spans.offset], axis=1)
        return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _numbers(manifest.path[row].tobytes() for row in range(len(manifest)))


def _numbers(names: Iterable[Any]) -> Rows:
    """Number names; equal ones get equal numbers, `None` gets -1."""
    known: dict[Any, int] = {}
    return np.array([-1 if name is None else known.setdefault(name, len(known)) for name in names], np.int64)


def _crossing(manifest: Manifest, number: Rows, side: Rows, names: Sequence[str] | None = None) -> Crossing:
    """Count the numbers (recordings, files, ...; -1 for none) whose clips are in several parts."""
    rows = np.flatnonzero((side >= 0) & (number >= 0))
    both = np.unique(np.stack([number[rows], side[rows]], axis=1), axis=0)[:, 0] if len(rows) else rows
    values, times = np.unique(both, return_counts=True)
    shared = values[times > 1]
    examples = []
    for value in shared[:EXAMPLES].tolist():
        row = int(rows[np.flatnonzero(number[rows] == value)[0]])
        examples.append(names[row] if names is not None else printable(manifest.relative_path(row)))
    return Crossing(len(shared), tuple(examples))


def _crossing_names(manifest: Manifest, side: Rows) -> Crossing:
    """Count names in several parts that differ only in a part number; rows of shards have no names."""
    if manifest.spans is not None:
        return Crossing(0)

    def base(path: str) -> str | None:
        folder, name = os.path.split(path)
        found = _PART_OF.fullmatch(os.path.splitext(name)[0])
        return found and os.path.join(folder, found[1])

    return _crossing(manifest, _numbers(base(manifest.relative_path(row)) for row in range(len(manifest))), side)
