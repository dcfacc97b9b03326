"""AudioSet in Parquet shards, as it lies on the hub: `data/bal_train/*.parquet`, `data/unbal_train/*.parquet`,
`data/eval/*.parquet`, with the columns `audio`, `video_id` and `labels` (mids), a clip a row.

Which clips belong to which part, and their labels, are said by AudioSet's own lists where they lie in the root as well;
without them by the shards.
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
from gafx.data.sources._audioset import PARTS, Segments
from gafx.errors import UsageError

_BALANCED, _UNBALANCED, _EVAL = range(len(PARTS))
_ID, _LABELS = "video_id", "labels"
_LENGTH = 11
Rows = npt.NDArray[np.int64]


def part_of_shard(path: str) -> int:
    """The number into `PARTS` that a shard's path says; -1 where it says none. `train` alone is the balanced part."""
    if re.search(r"(^|[-_./ ])unbal", path, re.IGNORECASE):
        return _UNBALANCED
    part = part_of(path)
    return {-1: -1, SPLITS.index("train"): _BALANCED}.get(part, _EVAL)


def audio_shards(root: Path) -> tuple[list[str], list[str]]:
    """The Parquet files under `root` that are named for a part and hold audio, and the others."""
    shards: list[str] = []
    others: list[str] = []
    held: dict[str, bool] = {}  # of each series: that its first file holds audio is taken to be true of all
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
    """AudioSet's clips out of shards.

    Args:
        root: folder of the shards.
        shards: their paths in it (`audio_shards`).
        mids: the classes.
        names: theirs.
        parts: numbers into `PARTS`: the training parts that are wanted, and the evaluation part.
        segments: what the lists say, each segment once; `None` where they are not there: then parts and labels are the
            shards' own.
        notes: on the lists.
        index: as in `open_shards`.

    Raises:
        UsageError: see `open_shards`; or no clip of the training parts.
    """
    there = [(path, part) for path in shards if (part := part_of_shard(path)) in parts]
    if not there:
        wanted = ", ".join(PARTS[part] for part in parts)
        raise UsageError(
            f"{root} holds Parquet files, but none that holds audio and whose name or folder says that it is of "
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
    clips, id_of, said = _usable(manifest, kept[_ID], held)
    notes = [*notes, *(f"{note}; the lists count" for note in manifest.notes), *absent_shards(selection.files), *said]
    if segments is None:
        clips, labels, said = _by_shards(manifest, clips, id_of, held)
        missing = 0
    else:
        clips, labels, held, missing, said = _by_lists(manifest, clips, id_of, held, segments, _ids(left[_ID]))
    train = held[clips] != _EVAL
    if not train.any():
        raise UsageError(
            f"the shards under {root} hold no usable clip of the training parts{listed_reasons(manifest.skipped)} "
            f"({'; '.join([*notes, *said])})"
        )
    chosen = manifest.take(clips)
    return replace(
        chosen,
        classes=names,
        labels=labels,
        group=np.unique(id_of[clips], return_inverse=True)[1].astype(np.int64),
        split=np.where(train, SPLITS.index("train"), SPLITS.index("test")).astype(np.int8),
        missing=missing,
        notes=(*notes, *said),
    )


def _usable(manifest: Manifest, ids: Ragged, part: Rows) -> tuple[Rows, npt.NDArray[np.bytes_], list[str]]:
    """The rows that have a video id, each video's first in each part, and all ids (`S11`)."""
    notes = []
    good, id_of = np.flatnonzero(ids.lengths() == _LENGTH), _ids(ids)
    if bad := len(manifest) - len(good):
        row = int(np.delete(np.arange(len(manifest)), good)[0])
        notes.append(f"{bad:,} rows have no YouTube id of {_LENGTH} characters (e.g. {manifest.relative_path(row)})")
    order = good[np.lexsort((good, part[good], id_of[good]))]
    again = np.zeros(len(order), bool)
    again[1:] = (id_of[order[1:]] == id_of[order[:-1]]) & (part[order[1:]] == part[order[:-1]])
    if again.any():
        example = id_of[order[again.argmax()]].decode(errors="replace")
        notes.append(f"{again.sum():,} rows are of videos that their part holds already (e.g. {example}); left aside")
    return np.sort(order[~again]), id_of, notes


def _ids(column: Ragged) -> npt.NDArray[np.bytes_]:
    """Ids as `S11`; empty for what is none."""
    good = np.flatnonzero(column.lengths() == _LENGTH)
    ids = np.zeros(len(column), f"S{_LENGTH}")
    ids[good] = np.frombuffer(column.take(good).values.tobytes(), f"S{_LENGTH}")
    return ids


def _by_shards(
    manifest: Manifest, clips: Rows, id_of: npt.NDArray[np.bytes_], part: Rows
) -> tuple[Rows, Ragged, list[str]]:
    """Parts and labels as the shards say: no list is there to ask."""
    notes = []
    tested = part[clips] == _EVAL
    leaking = ~tested & np.isin(id_of[clips], id_of[clips[tested]])
    if leaking.any():
        example = id_of[clips[leaking.argmax()]].decode(errors="replace")
        notes.append(
            f"{leaking.sum():,} training clips are of videos in the evaluation part (e.g. {example}); they are left "
            "out of training"
        )
        clips = clips[~leaking]
    order = np.argsort(id_of[clips], kind="stable")
    again = np.zeros(len(order), bool)
    again[order[1:]] = id_of[clips[order[1:]]] == id_of[clips[order[:-1]]]
    if again.any():
        example = id_of[clips[again.argmax()]].decode(errors="replace")
        notes.append(f"{again.sum():,} videos are in both training parts (e.g. {example}); each is taken once")
        clips = clips[~again]
    return clips, manifest.labels.take(clips), notes


def _by_lists(
    manifest: Manifest,
    clips: Rows,
    id_of: npt.NDArray[np.bytes_],
    part: Rows,
    segments: Segments,
    unusable: npt.NDArray[np.bytes_],
) -> tuple[Rows, Ragged, Rows, int, list[str]]:
    """Parts and labels as AudioSet's lists say, and how far the shards agree.

    Args:
        manifest: the rows that can be used.
        clips: those that have an id.
        id_of: ids of all rows.
        part: of all rows, as the shards say.
        segments: what is listed.
        unusable: ids of the rows that cannot be used. They are skipped, and not missing.

    Returns:
        The clips, their labels, the part of every row, the number of segments that no row holds, and notes.
    """
    notes = []
    order = np.argsort(segments.id, kind="stable")
    listed = segments.id[order]
    left, right = (np.searchsorted(listed, id_of[clips], side) for side in ("left", "right"))
    several, unlisted = right - left > 1, right == left
    if several.any():
        example = id_of[clips[several.argmax()]].decode()
        notes.append(
            f"{several.sum():,} rows could be any of several listed segments of their video (e.g. {example}); left "
            "aside"
        )
    if unlisted.any():
        example = id_of[clips[unlisted.argmax()]].decode(errors="replace")
        notes.append(f"{unlisted.sum():,} rows are of videos on none of the lists in use (e.g. {example}); left aside")
    one = right - left == 1
    clips, segment = clips[one], order[left[one]]
    # A video may be in shards of two parts; the one of its listed part is taken.
    agrees = part[clips] == segments.part[segment]
    best = np.lexsort((clips, ~agrees, segment))
    first = np.ones(len(best), bool)
    first[1:] = segment[best[1:]] != segment[best[:-1]]
    if not first.all():
        example = id_of[clips[best[~first][0]]].decode()
        notes.append(f"{(~first).sum():,} videos are in shards of two parts (e.g. {example}); each is taken once")
    best = np.sort(best[first])
    clips, segment, agrees = clips[best], segment[best], agrees[best]
    if not agrees.all():
        example = id_of[clips[(~agrees).argmax()]].decode()
        notes.append(
            f"{(~agrees).sum():,} clips lie in shards of another part than the lists name (e.g. {example}); the lists "
            "count"
        )
    theirs, labels = manifest.labels.take(clips), segments.labels.take(segment)
    differing = _differing(theirs, labels)
    if len(differing):
        example = id_of[clips[differing[0]]].decode()
        notes.append(f"{len(differing):,} clips have other labels in the shards (e.g. {example}); the lists count")
    part = part.copy()
    part[clips] = segments.part[segment]
    here = np.zeros(len(segments), bool)
    here[segment] = True
    left, right = (np.searchsorted(listed, unusable, side) for side in ("left", "right"))
    here[order[left[right - left == 1]]] = True
    for number in np.unique(segments.part).tolist():
        rows = segments.part == number
        notes.append(f"{PARTS[number]}: {int(here[rows].sum()):,} of {int(rows.sum()):,} listed clips are here")
    return clips, labels, part, int((~here).sum()), notes


def _differing(one: Ragged, other: Ragged) -> Rows:
    """The entries of two columns that are not the same as sets."""
    width = 1 + max(int(column.values.max(initial=0)) for column in (one, other))
    keys = [np.repeat(np.arange(len(column)), column.lengths()) * width + column.values for column in (one, other)]
    return np.unique(np.setxor1d(*keys) // width)
