"""AudioSet: ten seconds of sound each from two million videos, 527 classes, several a clip (Gemmeke et al., 2017).

Its publisher gives out lists, not sound; the clips are what people have fetched. `<root>` holds the lists as they are
published (`balanced_train_segments.csv`, `unbalanced_train_segments.csv`, `eval_segments.csv`,
`class_labels_indices.csv`, and `ontology.json` where it is wanted), in itself or in one of its folders, and the clips
at any depth, in any format that is read, named by YouTube id: `<id>`, `Y<id>`, or either with the start behind it
(`_30`, `-30.000`, `_000030`, `_30000` for milliseconds) and, if it is there, the end (`_30.000_40.000`). An id may
itself begin with Y and hold `_` and `-`; since it always has eleven characters and a suffix begins with a separator and
a digit, no name can be read in two ways.

The clips may also lie in Parquet shards, as on the hub: `data/bal_train/*.parquet`, `data/unbal_train/*.parquet` and
`data/eval/*.parquet`, with the columns `audio`, `video_id` and `labels` (mids). There must be a class list then; the
other lists say, where they are there, what belongs to which part, and its labels. Parquet files that are named for no
part, or hold no audio, are left aside; where both shards and files are there, the shards are read.

What is on the lists and not in the folder is counted (`Manifest.missing`), not an error: videos vanish.
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
    Segments,
    class_ancestors,
    class_list,
    find_list,
    read_segments,
    segments_list,
    with_ancestors,
)
from gafx.data.sources._audioset_shards import audio_shards, from_shards
from gafx.data.sources.base import audio_files, probe_all, require_root
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
# A file that is longer than its segment by more than this many seconds is not the segment alone.
_SLACK = 1.0
# A video that ends so many seconds before its segment does still counts as reaching it: lengths were rounded.
_SHORT = 0.5
# Files whose headers are looked at in one go.
_BATCH = 1 << 13
Rows = npt.NDArray[np.int64]


@SOURCES.register
def audioset(
    root: Path | None,
    /,
    *,
    train: Literal["balanced", "unbalanced", "full"] = "balanced",
    ancestors: bool = False,
    index: str | None = None,
) -> Manifest:
    """Read AudioSet, or what there is of it under `root`.

    The parts are the official ones: training by `train`, test the evaluation part. Where no clip of the evaluation part
    is there the data can still be trained on, under protocols that need no parts (`paper`). A group is a video.

    Args:
        root: folder of lists and clips.
        train: which of the two training parts; `full` is both.
        ancestors: add to each clip's labels those classes that stand above them in `ontology.json`.
        index: of clips in Parquet shards: folder for their index, where none can be written into `root`.

    Raises:
        UsageError: missing root, a list that is absent or malformed, no clip of the training parts.
    """
    root = require_root(root, HOW)
    mids, names = class_list(root)
    shards, others = audio_shards(root)
    clip = next(audio_files(root), None) if shards or others else None
    said = []
    if others:
        said.append(
            f"{len(others):,} Parquet files are not named for a part (bal_train, unbal_train, eval) or hold no audio; "
            f"they are left aside (e.g. {others[0]})"
        )
    if shards or (others and clip is None):
        if clip is not None:
            said.append(
                f"the clips are read from the {len(shards):,} Parquet shards, and audio files that lie there as well "
                f"(e.g. {clip}) are left aside; to read those, move the shards away"
            )
        folder = None if index is None else Path(index).expanduser()
        manifest = _from_shards(root, shards, train, mids, names, ancestors, folder)
        return replace(manifest, notes=(*manifest.notes, *said))
    segments, notes = listed_segments(root, train, mids)
    notes += said
    if find_list(root, CLASSES) is None:
        notes.append(f"{CLASSES} is not there: the {len(mids)} classes that the lists use stand in {ONTOLOGY}'s order")
    if ancestors:
        segments = _with_ancestors(segments, root, mids)
    return _from_files(root, names, mids, segments, notes)


def listed_segments(root: Path, train: str, mids: Sequence[str]) -> tuple[Segments, list[str]]:
    """The segments of the training parts that `train` names and of the evaluation part, each once.

    Args:
        root: the data set's folder.
        train: `balanced`, `unbalanced` or `full`.
        mids: the classes.

    Returns:
        The segments, and notes on what was put together or left aside: the same segment listed twice becomes one with
        the labels of both; a video of the evaluation part is left out of training.
    """
    parts = [*_TRAIN[train], *PARTS[2:]]
    notes = []
    if find_list(root, segments_list(PARTS[2])) is None:
        parts.pop()
        notes.append(
            f"{segments_list(PARTS[2])} is not there: protocol official cannot be run, paper and kfold can "
            "(data.test_fraction says how much paper sets aside)"
        )
    segments = read_segments(root, parts, mids)
    tested = segments.part == PARTS.index("eval")
    leaking = ~tested & np.isin(segments.id, segments.id[tested])
    if leaking.any():
        example = segments.id[leaking.argmax()].decode()
        notes.append(
            f"{leaking.sum():,} training segments are of videos in the evaluation part (e.g. {example}); they are left "
            "out of training"
        )
        segments = segments.take(np.flatnonzero(~leaking))
    order = np.lexsort((np.arange(len(segments)), segments.start, segments.id))
    new = np.ones(len(order), bool)
    new[1:] = (segments.id[order[1:]] != segments.id[order[:-1]]) | (np.diff(segments.start[order]) != 0)
    if not new.all():
        first = np.empty(len(order), np.int64)  # of each row the first that lists the same segment
        first[order] = order[new][np.cumsum(new) - 1]
        rows = np.repeat(first, segments.labels.lengths())
        labels = Ragged.distinct(rows, segments.labels.values, len(segments))
        example = segments.id[order[~new][0]].decode()
        notes.append(f"{(~new).sum():,} segments are listed more than once (e.g. {example}); their labels are joined")
        segments = Segments(segments.id, segments.part, segments.start, segments.end, labels).take(np.unique(first))
    return segments, notes


def _from_shards(
    root: Path,
    shards: Sequence[str],
    train: str,
    mids: tuple[str, ...],
    names: tuple[str, ...],
    ancestors: bool,
    index: Path | None,
) -> Manifest:
    wanted = (*_TRAIN[train], *PARTS[2:])
    absent = [segments_list(part) for part in wanted if find_list(root, segments_list(part)) is None]
    segments: Segments | None = None
    notes: list[str] = []
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
    manifest = from_shards(root, shards, mids, names, parts, segments, notes, index)
    if ancestors:
        manifest = replace(manifest, labels=with_ancestors(manifest.labels, class_ancestors(root, mids)))
    return manifest


def _with_ancestors(segments: Segments, root: Path, mids: Sequence[str]) -> Segments:
    labels = with_ancestors(segments.labels, class_ancestors(root, mids))
    return Segments(segments.id, segments.part, segments.start, segments.end, labels)


@dataclass(frozen=True)
class _Copies:
    """Which files may hold which segments: a row a pair, sorted by segment and, within it, in the order of trying."""

    segment: Rows
    file: Rows
    shared: npt.NDArray[np.bool_]  # the name fits several segments of the video

    def __len__(self) -> int:
        return len(self.segment)


def match_files(paths: Sequence[str], segments: Segments) -> tuple[_Copies, Rows]:
    """Find the files of each segment by their names.

    A suffix must agree with the segment's start, in seconds or milliseconds; without one the file may be any segment of
    its video. Files whose suffix names the start come first, then by format in the order of
    `gafx.audio.formats.FORMATS`, then by path.

    Args:
        paths: of the audio files.
        segments: what is listed, each segment once.

    Returns:
        The pairs, and the numbers of the files that fit no segment.
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
    # Some cut fractions of a second off the name; where two segments begin within a second the nearer one is meant.
    nearest = np.full(len(paths), np.inf)
    np.minimum.at(nearest, file[named], apart[named])
    fits = ~named | ((apart < 1) & (apart == nearest[file]))
    segment, file, named = segment[fits], file[fits], named[fits]
    taken = np.bincount(file, minlength=len(paths))
    tried = np.lexsort((file, np.array(ranks)[file], ~named, segment))
    return _Copies(segment[tried], file[tried], taken[file][tried] > 1), np.flatnonzero(taken == 0)


def _from_files(
    root: Path, names: tuple[str, ...], mids: Sequence[str], segments: Segments, notes: list[str]
) -> Manifest:
    paths = list(audio_files(root))
    copies, rest = match_files(paths, segments)
    clips, skipped = _open_copies(root, paths, segments, copies)
    here = np.zeros(len(segments), bool)
    here[copies.segment] = True
    notes = [*_presence(segments, here), *notes]
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
            f"{len(unlisted):,} audio files belong to no segment of AudioSet's lists here and are left aside (e.g. "
            f"{unlisted[0]})"
        )
    train = segments.part[clips.segment] != PARTS.index("eval")
    if not train.any():
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
        split=np.where(train, SPLITS.index("train"), SPLITS.index("test")).astype(np.int8),
        weight=np.ones(count),
        skipped=tuple(skipped),
        missing=int((~here).sum()),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Clips:
    """The segments that can be read: which, in which file, and where in it."""

    segment: Rows
    file: Rows
    start: npt.NDArray[np.float64]
    duration: npt.NDArray[np.float64]
    sample_rate: npt.NDArray[np.int32]
    inside: int


def _open_copies(root: Path, paths: Sequence[str], segments: Segments, copies: _Copies) -> tuple[_Clips, list[Skipped]]:
    """Look at the files, of each segment one after the other until one can be read."""
    seconds, rates = np.full(len(paths), np.nan), np.zeros(len(paths), np.int32)
    looked: dict[int, str] = {}  # why a file cannot be read
    taken: list[Rows] = []
    failed: dict[int, Skipped] = {}  # of each segment without a readable file its first one
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


def _presence(segments: Segments, here: npt.NDArray[np.bool_]) -> list[str]:
    """A sentence a part: how many of its clips are there."""
    notes = []
    for number in np.unique(segments.part).tolist():
        rows = np.flatnonzero(segments.part == number)
        lost = rows[~here[rows]]
        text = f"{PARTS[number]}: {len(rows) - len(lost):,} of {len(rows):,} listed clips are here"
        if len(lost):
            named = ", ".join(f"{segments.id[row].decode()} at {segments.start[row]:g} s" for row in lost[:2])
            text += f", {len(lost):,} missing (e.g. {named})"
        notes.append(text)
    return notes


def _leftovers(root: Path, paths: Sequence[str], rest: Rows, mids: Sequence[str]) -> tuple[list[Skipped], list[str]]:
    """Of the files of no chosen segment: what is no audio file at all, and what is on none of the lists."""
    if not len(rest):
        return [], []
    left = [paths[file] for file in rest.tolist()]
    # `audio_files` lists folders that cannot be opened and links that lead nowhere, too: clips may be behind them.
    odd = [path for path in left if "." not in os.path.basename(path)]
    skipped = probe_all(root, odd)[2]
    left = [path for path in left if "." in os.path.basename(path)]
    others = [part for part in PARTS if find_list(root, segments_list(part)) is not None]
    if left:
        left = [left[file] for file in match_files(left, read_segments(root, others, mids))[1].tolist()]
    return skipped, left
