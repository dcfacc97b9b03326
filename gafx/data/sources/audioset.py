"""AudioSet: segments of 10 s from two million videos, 527 classes, several per clip (Gemmeke et al., 2017).

Its publisher offers lists, not audio. `<root>` contains the published lists (`balanced_train_segments.csv`,
`unbalanced_train_segments.csv`, `eval_segments.csv`, `class_labels_indices.csv`, and `ontology.json` if it is needed),
in itself or in one of its folders, and the clips at any depth, in any format that is read, named by YouTube id: `<id>`,
`Y<id>`, or either followed by the start (`_30`, `-30.000`, `_000030`, `_30000` for milliseconds) and optionally the end
(`_30.000_40.000`). An id may itself begin with Y and contain `_` and `-`; since it always has eleven characters and a
suffix begins with a separator and a digit, names are unambiguous.

The clips may also be in Parquet shards, as on the hub: `data/bal_train/*.parquet`, `data/unbal_train/*.parquet` and
`data/eval/*.parquet`, with the columns `audio`, `video_id` and `labels` (mids). A class list is required then; the
other lists, if they exist, determine parts and labels. Parquet files that are not named for a part, or hold no audio,
are ignored; if there are both shards and files, the shards are read.

Listed clips that are not in the folder are counted (`Manifest.missing`) and are no error: videos get deleted.
"""

import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gafx.audio.formats import FORMATS, format_rank
from gafx.data.manifest import SPLITS, Manifest, Ragged, Skipped
from gafx.data.sources._audioset import (
    CLASSES,
    ONTOLOGY,
    PARTS,
    Notes,
    Segments,
    class_ancestors,
    class_list,
    find_list,
    is_first,
    presence_notes,
    read_segments,
    segments_list,
    with_ancestors,
)
from gafx.data.sources._audioset_shards import audio_shards, from_shards
from gafx.data.sources.base import audio_files, probe_all, published, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES

__all__ = ["PARTS", "Segments", "audioset", "class_list", "listed_segments", "read_segments"]

HOW = (
    "It must hold AudioSet's lists (balanced_train_segments.csv, eval_segments.csv, class_labels_indices.csv; "
    "https://research.google.com/audioset/download.html) and the clips, at any depth, named by YouTube id "
    "(Y<id>.wav, <id>.flac, <id>_30.mp3, <id>_30.000_40.000.wav, ...)"
)
_TRAIN = {"balanced": PARTS[:1], "unbalanced": PARTS[1:2], "full": PARTS[:2]}
_NAME = re.compile(r"Y?([\w-]{11})(?:[_-](\d+(?:\.\d+)?)(?:[_-]\d+(?:\.\d+)?)?)?", re.ASCII)
# A file that is more than this many seconds longer than its segment is a whole video.
_SLACK = 1.0
# A video may end this many seconds before its segment does: lengths were rounded.
_SHORT = 0.5
# Files whose headers are read at a time.
_BATCH = 1 << 13
Rows = npt.NDArray[np.int64]


@SOURCES.register
@published
def audioset(
    root: Path | None,
    /,
    *,
    train: Literal["balanced", "unbalanced", "full"] = "balanced",
    ancestors: bool = False,
    index: str | None = None,
) -> Manifest:
    """Read AudioSet, or the part of it that exists under `root`.

    The parts are the official ones: training by `train`, test is the evaluation part. Without clips of the evaluation
    part, protocols that need no official parts (`paper`) still work. A group is a video.

    Args:
        root: folder of lists and clips.
        train: the training part; `full` is both.
        ancestors: add the ancestors in `ontology.json` to each clip's labels.
        index: folder for the index of clips in Parquet shards, if `root` is read-only.

    Raises:
        UsageError: missing root, a missing or malformed list, no clip of the training parts.
    """
    root = require_root(root, HOW)
    notes = Notes()
    mids, names = class_list(root, notes)
    above = class_ancestors(root, mids) if ancestors else None
    shards, others = audio_shards(root)
    clip = next(audio_files(root), None) if shards or others else None
    if others:
        notes.append(
            f"{len(others):,} Parquet files are not named for a part (bal_train, unbal_train, eval) or hold no audio; "
            f"they are ignored (e.g. {others[0]})"
        )
    if shards or (others and clip is None):
        if clip is not None:
            notes.append(
                f"the clips are read from the {len(shards):,} Parquet shards, and audio files in the same folder "
                f"(e.g. {clip}) are ignored; to read those, move the shards away"
            )
        folder = None if index is None else Path(index).expanduser()
        manifest = _from_shards(root, shards, train, mids, names, folder)
        manifest = replace(manifest, notes=(*manifest.notes, *notes))
    else:
        manifest = _from_files(root, train, mids, names, notes)
    return manifest if above is None else replace(manifest, labels=with_ancestors(manifest.labels, above))


def listed_segments(root: Path, train: str, mids: Sequence[str]) -> tuple[Segments, Notes]:
    """Return the segments of the training parts `train` and of the evaluation part, each once.

    Args:
        root: the data set's folder.
        train: `balanced`, `unbalanced` or `full`.
        mids: the classes.

    Returns:
        The segments, and notes on those that were merged or left out: a segment listed twice becomes one with the
        labels of both; videos of the evaluation part are left out of training.
    """
    parts = [*_TRAIN[train], *PARTS[2:]]
    notes = Notes()
    if find_list(root, segments_list(PARTS[2])) is None:
        parts.pop()
        notes.append(
            f"{segments_list(PARTS[2])} is not there: protocol official cannot be run, paper and kfold can "
            "(data.test_fraction sets the size of paper's test part)"
        )
    segments = read_segments(root, parts, mids)
    tested = segments.part == PARTS.index("eval")
    leaking = ~tested & np.isin(segments.id, segments.id[tested])
    notes.add(
        leaking, segments.id, "{count} training segments are of videos in the evaluation part (e.g. {example}); they "
        "are left out of training",
    )  # fmt: skip
    if leaking.any():
        segments = segments.take(np.flatnonzero(~leaking))
    order = np.lexsort((np.arange(len(segments)), segments.start, segments.id))
    new = is_first(segments.id[order], segments.start[order])
    notes.add(
        ~new, segments.id[order], "{count} segments are listed more than once (e.g. {example}); their labels are joined"
    )
    if not new.all():
        first = np.empty(len(order), np.int64)  # of each row the first that lists the same segment
        first[order] = order[new][np.cumsum(new) - 1]
        rows = np.repeat(first, segments.labels.lengths())
        labels = Ragged.distinct(rows, segments.labels.values, len(segments))
        segments = Segments(segments.id, segments.part, segments.start, segments.end, labels).take(np.unique(first))
    return segments, notes


def _from_shards(
    root: Path,
    shards: Sequence[str],
    train: str,
    mids: tuple[str, ...],
    names: tuple[str, ...],
    index: Path | None,
) -> Manifest:
    wanted = (*_TRAIN[train], *PARTS[2:])
    absent = [segments_list(part) for part in wanted if find_list(root, segments_list(part)) is None]
    segments: Segments | None = None
    notes = Notes()
    if not {*absent} & {segments_list(part) for part in _TRAIN[train]}:
        segments, notes = listed_segments(root, train, mids)
    elif len(absent) == len(wanted):
        notes.append("AudioSet's lists are not there: parts and labels are the shards' own")
    else:
        notes.append(
            f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not there: parts and labels are the shards' "
            "own, the other lists are not used, and what is missing is not counted"
        )
    parts = [PARTS.index(part) for part in wanted]
    return from_shards(root, shards, mids, names, parts, segments, notes, index)


@dataclass(frozen=True)
class _Copies:
    """Pairs of a segment and a file that may contain it, sorted by segment and then by order of preference."""

    segment: Rows
    file: Rows
    shared: npt.NDArray[np.bool_]  # the name fits several segments of the video

    def __len__(self) -> int:
        return len(self.segment)


def match_files(paths: Sequence[str], segments: Segments) -> tuple[_Copies, Rows]:
    """Find the files of each segment by their names.

    A suffix must match the segment's start, in seconds or milliseconds; a file without one may be any segment of its
    video. Files whose suffix names the start come first, then by format in the order of
    `gafx.audio.formats.FORMATS`, then by path.

    Args:
        paths: of the audio files.
        segments: the listed segments, each once.

    Returns:
        The pairs, and the numbers of the files that match no segment.
    """
    keys, suffixes, ranks = bytearray(), array("d"), array("b")
    none = b"\0" * 11
    for path in paths:
        dot = path.rfind(".")
        found = _NAME.fullmatch(path, path.rfind(os.sep, 0, dot) + 1, dot) if dot > 0 else None
        keys += found[1].encode() if found else none
        suffixes.append(float(found[2]) if found and found[2] else float("nan"))
        ranks.append(format_rank(path))
    ids, starts = np.frombuffer(bytes(keys), "S11"), np.array(suffixes)
    order = np.argsort(segments.id, kind="stable")
    listed = segments.id[order]
    left = np.searchsorted(listed, ids, "left")
    counts = np.searchsorted(listed, ids, "right") - left
    file = np.repeat(np.arange(len(paths)), counts)
    within = np.arange(len(file)) - np.repeat(np.cumsum(counts) - counts, counts)
    segment = order[left[file] + within]
    named = ~np.isnan(starts[file])
    apart = np.minimum(
        np.abs(starts[file] - segments.start[segment]), np.abs(starts[file] / 1000 - segments.start[segment])
    )
    # Some names lack the fraction of the start; of two segments that start within a second the nearer one is meant.
    nearest = np.full(len(paths), np.inf)
    np.minimum.at(nearest, file[named], apart[named])
    fits = ~named | ((apart < 1) & (apart == nearest[file]))
    segment, file, named = segment[fits], file[fits], named[fits]
    taken = np.bincount(file, minlength=len(paths))
    tried = np.lexsort((file, np.array(ranks)[file], ~named, segment))
    return _Copies(segment[tried], file[tried], taken[file][tried] > 1), np.flatnonzero(taken == 0)


def _from_files(root: Path, train: str, mids: Sequence[str], names: tuple[str, ...], more_notes: list[str]) -> Manifest:
    segments, notes = listed_segments(root, train, mids)
    notes += more_notes
    if find_list(root, CLASSES) is None:
        notes.append(f"{CLASSES} is not there: the {len(mids)} classes in the lists are in the order of {ONTOLOGY}")
    paths = list(audio_files(root))
    copies, rest = match_files(paths, segments)
    clips, skipped = _open_copies(root, paths, segments, copies)
    here = np.zeros(len(segments), bool)
    here[copies.segment] = True
    notes[:0] = presence_notes(segments, here)
    if clips.inside:
        notes.append(
            f"{clips.inside:,} clips are read out of longer files (whole videos), from start to end of their segment"
        )
    if several := len(copies) - int(here.sum()):
        notes.append(
            f"{several:,} files are further copies of clips; of each clip's the first is taken that can be read: those "
            f"that name the start, then by format ({', '.join(FORMATS)}), then by path"
        )
    strange, unlisted = _leftovers(root, paths, rest, mids)
    skipped += strange
    if unlisted:
        notes.append(
            f"{len(unlisted):,} audio files belong to no segment of AudioSet's lists here and are ignored (e.g. "
            f"{unlisted[0]})"
        )
    is_train = segments.part[clips.segment] != PARTS.index("eval")
    if not is_train.any():
        found = f"{len(paths):,} audio files, but no readable clip of its training parts ({'; '.join(notes)})"
        raise UsageError(f"data.root={str(root)!r} holds {found}. {HOW}")
    count = len(clips.segment)
    return Manifest(
        root=root,
        classes=names,
        path=Ragged.of([os.fsencode(paths[file]) for file in clips.file.tolist()], np.uint8),
        labels=segments.labels.take(clips.segment),
        group=np.unique(segments.id[clips.segment], return_inverse=True)[1].astype(np.int64),
        start=clips.start,
        duration=clips.duration,
        sample_rate=clips.sample_rate,
        row=np.full(count, -1, np.int64),
        fold=np.full(count, -1, np.int32),
        split=np.where(is_train, SPLITS.index("train"), SPLITS.index("test")).astype(np.int8),
        weight=np.ones(count),
        skipped=tuple(skipped),
        missing=int((~here).sum()),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Clips:
    """The readable segments: number, file, start and duration within the file."""

    segment: Rows
    file: Rows
    start: npt.NDArray[np.float64]
    duration: npt.NDArray[np.float64]
    sample_rate: npt.NDArray[np.int32]
    inside: int


def _open_copies(root: Path, paths: Sequence[str], segments: Segments, copies: _Copies) -> tuple[_Clips, list[Skipped]]:
    """Read the headers of the files, for each segment one after the other until one is readable."""
    seconds, rates = np.full(len(paths), np.nan), np.zeros(len(paths), np.int32)
    looked: dict[int, str] = {}  # reason, by file
    taken: list[Rows] = []
    failed: dict[int, Skipped] = {}  # first file, by segment without a readable one
    current = np.flatnonzero(np.diff(copies.segment, prepend=-1))
    while len(current):
        files = np.unique(copies.file[current])
        for begin in range(0, len(files), _BATCH):
            batch = files[begin : begin + _BATCH]
            kept, infos, unread = probe_all(root, [paths[file] for file in batch.tolist()])
            seconds[batch[kept]] = [info.seconds for info in infos]
            rates[batch[kept]] = [info.sample_rate for info in infos]
            whys = {clip.path: clip.reason for clip in unread}
            looked.update({file: whys[paths[file]] for file in np.delete(batch, kept).tolist()})
        segment, file = copies.segment[current], copies.file[current]
        length = segments.end[segment] - segments.start[segment]
        alone = (seconds[file] <= length + _SLACK) & ~copies.shared[current]
        video = (seconds[file] > length + _SLACK) & (seconds[file] >= segments.end[segment] - _SHORT)
        taken.append(current[alone | video])
        for pair in current[~(alone | video)].tolist():
            row, number = int(copies.segment[pair]), int(copies.file[pair])
            why = looked.get(number) or _why_not(segments, row, seconds[number], bool(copies.shared[pair]))
            failed.setdefault(row, Skipped(paths[number], why))
        following = current[~(alone | video)] + 1
        following = following[following < len(copies)]
        current = following[copies.segment[following] == copies.segment[following - 1]]
    pairs = np.sort(np.concatenate(taken)) if taken else np.zeros(0, np.int64)
    segment, file = copies.segment[pairs], copies.file[pairs]
    length = segments.end[segment] - segments.start[segment]
    inside = seconds[file] > length + _SLACK
    start = np.where(inside, segments.start[segment], 0.0)
    duration = np.where(inside, np.minimum(segments.end[segment], seconds[file]) - start, seconds[file])
    read = set(segment.tolist()) if failed else set()
    return (
        _Clips(segment, file, start, duration, rates[file], int(inside.sum())),
        list(dict.fromkeys(failed[row] for row in sorted(failed) if row not in read)),
    )


def _why_not(segments: Segments, row: int, seconds: float, shared: bool) -> str:
    start, end = segments.start[row], segments.end[row]
    if shared and not seconds > end - start + _SLACK:
        return (
            "could be any of several segments of this video that are listed; put the start into its name (<id>_30.wav)"
        )
    return (
        f"is {seconds:.1f} s long: neither its segment ({end - start:g} s) nor a video that reaches the segment's end "
        f"at {end:g} s"
    )


def _leftovers(root: Path, paths: Sequence[str], rest: Rows, mids: Sequence[str]) -> tuple[list[Skipped], list[str]]:
    """Return, of the files without a segment, those that are not audio files, and those on none of the lists."""
    if not len(rest):
        return [], []
    left = [paths[file] for file in rest.tolist()]
    # `audio_files` also returns folders that cannot be opened and broken links: they may contain clips.
    odd = [path for path in left if "." not in os.path.basename(path)]
    skipped = probe_all(root, odd)[2]
    left = [path for path in left if "." in os.path.basename(path)]
    others = [part for part in PARTS if find_list(root, segments_list(part)) is not None]
    if left:
        left = [left[file] for file in match_files(left, read_segments(root, others, mids))[1].tolist()]
    return skipped, left
