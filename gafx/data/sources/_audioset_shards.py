"""AudioSet in Parquet shards in the layout of the hub.

The shards are `data/bal_train/*.parquet`, `data/unbal_train/*.parquet` and `data/eval/*.parquet`; a row is a clip, with
the columns `audio`, `video_id` and `labels` (mids). Parts and labels of the clips come from AudioSet's own lists if the
root contains them, else from the shards.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import SPLITS, Manifest, Ragged
from gafx.data.shards.index import Selection, open_shards
from gafx.data.shards.layout import ColumnAbsent, absent_shards, holds_audio, listed_reasons, part_of, shard_files
from gafx.data.sources._audioset import PARTS, Notes, Segments, is_first, presence_notes
from gafx.errors import UsageError

_BALANCED, _UNBALANCED, _EVAL = range(len(PARTS))
_ID, _LABELS = "video_id", "labels"
_LENGTH = 11
Rows = npt.NDArray[np.int64]


def part_of_shard(path: str) -> int:
    """Return the index into `PARTS` of the part in a shard's path, or -1. `train` alone is the balanced part."""
    if re.search(r"(^|[-_./ ])unbal", path, re.IGNORECASE):
        return _UNBALANCED
    part = part_of(path)
    return {-1: -1, SPLITS.index("train"): _BALANCED}.get(part, _EVAL)


def audio_shards(root: Path) -> tuple[list[str], list[str]]:
    """Return the Parquet files under `root` that are named for a part and hold audio, and the others."""
    shards: list[str] = []
    others: list[str] = []
    held: dict[str, bool] = {}  # whether the first file of each series holds audio; assumed for all of the series
    for path in shard_files(root):
        series = re.sub(r"[0-9a-f]{8,}|[0-9]+", "", path)
        if part_of_shard(path) >= 0 and series not in held:
            held[series] = holds_audio(str(root / path))
        (shards if part_of_shard(path) >= 0 and held[series] else others).append(path)
    return shards, others


def from_shards(
    root: Path,
    shards: Sequence[str],
    mids: Sequence[str],
    names: tuple[str, ...],
    parts: Sequence[int],
    segments: Segments | None,
    notes: Sequence[str],
    index: Path | None,
) -> Manifest:
    """Read AudioSet's clips from shards.

    Args:
        root: folder of the shards.
        shards: their paths in it (`audio_shards`).
        mids: the classes.
        names: of the classes.
        parts: indices into `PARTS`: the wanted training parts, and the evaluation part.
        segments: the listed segments, each once; `None` without the lists: parts and labels are the shards' own then.
        notes: on the lists.
        index: as in `open_shards`.

    Raises:
        UsageError: see `open_shards`; or there is no clip of the training parts.
    """
    there = [(path, part) for path in shards if (part := part_of_shard(path)) in parts]
    if not there:
        wanted = ", ".join(PARTS[part] for part in parts)
        raise UsageError(
            f"{root} holds Parquet files, but none that holds audio and is named for one of the parts "
            f"{wanted} (data/bal_train/00.parquet, data/unbal_train/000.parquet, data/eval/00.parquet, ...)"
        )
    files, parts_of = tuple(path for path, _ in there), tuple(part for _, part in there)
    selection = Selection(
        files, parts_of, label=_LABELS, classes=tuple(mids), keep=(_ID,), labels_needed=segments is None
    )
    try:
        manifest, kept, left = open_shards(root, selection, index=index)
    except ColumnAbsent as error:
        needed = f"{_ID} (YouTube ids)" + (f" and, without its lists, {_LABELS} (mids)" if segments is None else "")
        raise UsageError(
            f"{error.shard}, and no {error.column!r}: AudioSet's shards must have the columns audio, {needed}. Shards "
            "with other columns, such as gafx pack writes, are read by data=shards"
        ) from None
    held = manifest.split.astype(np.int64)
    notes = Notes([*notes, *(f"{note}; the lists count" for note in manifest.notes), *absent_shards(selection.files)])
    clips, id_of = _usable(manifest, kept[_ID], held, notes)
    missing = 0
    if segments is None:
        clips, labels = _by_shards(manifest, clips, id_of, held, notes)
    else:
        clips, segment = _match(clips, id_of, held, segments, notes)
        labels = segments.labels.take(segment)
        _note_differences(manifest.labels.take(clips), labels, id_of[clips], notes)
        held[clips] = segments.part[segment]
        here = _present(segments, segment, _ids(left[_ID]))
        notes += presence_notes(segments, here)
        missing = int((~here).sum())
    train = held[clips] != _EVAL
    if not train.any():
        raise UsageError(
            f"the shards under {root} hold no usable clip of the training parts{listed_reasons(manifest.skipped)} "
            f"({'; '.join(notes)})"
        )
    chosen = manifest.take(clips)
    return replace(
        chosen,
        classes=names,
        labels=labels,
        group=np.unique(id_of[clips], return_inverse=True)[1].astype(np.int64),
        split=np.where(train, SPLITS.index("train"), SPLITS.index("test")).astype(np.int8),
        missing=missing,
        notes=tuple(notes),
    )


def _usable(manifest: Manifest, ids: Ragged, part: Rows, notes: Notes) -> tuple[Rows, npt.NDArray[np.bytes_]]:
    """Return the rows with a video id, the first of each video in each part, and all ids (`S11`)."""
    good, id_of = np.flatnonzero(ids.lengths() == _LENGTH), _ids(ids)
    if bad := len(manifest) - len(good):
        row = int(np.delete(np.arange(len(manifest)), good)[0])
        notes.append(f"{bad:,} rows have no YouTube id of {_LENGTH} characters (e.g. {manifest.relative_path(row)})")
    order = good[np.lexsort((good, part[good], id_of[good]))]
    first = is_first(id_of[order], part[order])
    notes.add(
        ~first, id_of[order], "{count} rows are of videos that their part holds already (e.g. {example}); ignored"
    )
    return np.sort(order[first]), id_of


def _ids(column: Ragged) -> npt.NDArray[np.bytes_]:
    """Return ids as `S11`; empty for values of another length."""
    good = np.flatnonzero(column.lengths() == _LENGTH)
    ids = np.zeros(len(column), f"S{_LENGTH}")
    ids[good] = np.frombuffer(column.take(good).values.tobytes(), f"S{_LENGTH}")
    return ids


def _by_shards(
    manifest: Manifest, clips: Rows, id_of: npt.NDArray[np.bytes_], part: Rows, notes: Notes
) -> tuple[Rows, Ragged]:
    """Return the clips, without those that are in several parts, and their labels according to the shards."""
    tested = part[clips] == _EVAL
    leaking = ~tested & np.isin(id_of[clips], id_of[clips[tested]])
    notes.add(
        leaking, id_of[clips], "{count} training clips are of videos in the evaluation part (e.g. {example}); they "
        "are left out of training",
    )  # fmt: skip
    clips = clips[~leaking]
    order = np.argsort(id_of[clips], kind="stable")
    again = np.zeros(len(order), bool)
    again[order] = ~is_first(id_of[clips[order]])
    notes.add(again, id_of[clips], "{count} videos are in both training parts (e.g. {example}); each is taken once")
    clips = clips[~again]
    return clips, manifest.labels.take(clips)


def _match(
    clips: Rows, id_of: npt.NDArray[np.bytes_], part: Rows, segments: Segments, notes: Notes
) -> tuple[Rows, Rows]:
    """Find the listed segment of each clip.

    Args:
        clips: the rows with an id.
        id_of: ids of all rows.
        part: of all rows, according to the shards.
        segments: the listed segments.
        notes: are extended by the rows that are left out, and disagreements on the part.

    Returns:
        The rows with exactly one listed segment, one row per segment, and the numbers of the segments.
    """
    counts, segment = _listed(segments, id_of[clips])
    notes.add(
        counts > 1, id_of[clips], "{count} rows could be any of several listed segments of their video (e.g. "
        "{example}); ignored",
    )  # fmt: skip
    notes.add(
        counts == 0, id_of[clips], "{count} rows are of videos on none of the lists in use (e.g. {example}); ignored"
    )
    clips, segment = clips[counts == 1], segment[counts == 1]
    # A video may be in shards of two parts; the row in the listed part is preferred.
    agrees = part[clips] == segments.part[segment]
    best = np.lexsort((clips, ~agrees, segment))
    first = is_first(segment[best])
    notes.add(
        ~first, id_of[clips[best]], "{count} videos are in shards of two parts (e.g. {example}); each is taken once"
    )
    best = np.sort(best[first])
    clips, segment, agrees = clips[best], segment[best], agrees[best]
    notes.add(
        ~agrees, id_of[clips], "{count} clips are in shards of another part than in the lists (e.g. {example}); the "
        "lists count",
    )  # fmt: skip
    return clips, segment


def _listed(segments: Segments, ids: npt.NDArray[np.bytes_]) -> tuple[Rows, Rows]:
    """Return, for each id, the number of listed segments of that video, and the segment if there is exactly one."""
    order = np.argsort(segments.id, kind="stable")
    left, right = (np.searchsorted(segments.id[order], ids, side) for side in ("left", "right"))
    segment, one = np.zeros(len(ids), np.int64), right - left == 1
    segment[one] = order[left[one]]
    return right - left, segment


def _note_differences(theirs: Ragged, listed: Ragged, ids: npt.NDArray[np.bytes_], notes: Notes) -> None:
    """Note the clips whose labels in the shards and in the lists differ as sets."""
    width = 1 + max(int(column.values.max(initial=0)) for column in (theirs, listed))
    keys = [np.repeat(np.arange(len(ids)), column.lengths()) * width + column.values for column in (theirs, listed)]
    differ = np.zeros(len(ids), bool)
    differ[np.setxor1d(*keys) // width] = True
    notes.add(differ, ids, "{count} clips have other labels in the shards (e.g. {example}); the lists count")


def _present(segments: Segments, segment: Rows, unusable: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Return which listed segments are in the shards; rows that cannot be used (ids `unusable`) are not missing."""
    here = np.zeros(len(segments), bool)
    here[segment] = True
    counts, skipped = _listed(segments, unusable)
    here[skipped[counts == 1]] = True
    return here
