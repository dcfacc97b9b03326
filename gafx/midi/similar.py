"""Near-copies among songs: the same notes under another name, in another key or another tempo.

A song is reduced to its melody, the highest note of each onset, and the melody to runs of `RUN` notes: their intervals,
and whether each note comes clearly sooner or later after the last than that did. Neither depends on key or tempo. Two
songs are as similar as the fraction of the runs of one that the other has too, of the one with fewer. docs/midi.md has
the measurements behind the threshold.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.midi.song import Song

RUN = 7  # notes
LEAST = 16  # different runs of a song that can be compared
THRESHOLD = 0.15  # fraction of common runs from which two songs are near-copies
_WIDEST = 24  # semitones; wider intervals count as this
_CLEARLY = 0.5  # octaves of time between two notes, i.e. 1.41 times as long
_MOST_SONGS = 64  # a run that more songs have is a common figure, and not looked at
_TOGETHER = 0.05  # beats: a note this soon after another begins with it

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Similar:
    """Pairs of similar songs, the most similar first; each pair once, the lower number first.

    Attributes:
        first: number of one song.
        second: number of the other.
        score: fraction of common runs, in [0, 1].
        semitones: by which the second is higher.
        few: `(songs,)`, whether a song has too few notes to be compared.
    """

    first: Rows
    second: Rows
    score: npt.NDArray[np.float64]
    semitones: Rows
    few: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)


def find_similar(songs: Iterable[Song], side: Rows | None = None, threshold: float = THRESHOLD) -> Similar:
    """Return all pairs of similar songs.

    Args:
        songs: read one by one, so that not all need be in memory.
        side: `(songs,)` part of each song, negative for none: only pairs of different parts are searched. Default: all
            pairs.
        threshold: least score.
    """
    runs = [_runs(song) for song in songs]
    counts = np.array([one.shape[1] for one in runs], np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    code, pitch = np.concatenate([np.zeros((2, 0), np.int64), *runs], axis=1)
    side = np.arange(len(counts)) if side is None else side
    used = (counts >= LEAST)[owner] & (side[owner] >= 0)
    owner, code, pitch = owner[used], code[used], pitch[used]
    order = np.lexsort((owner, code))
    owner, code, pitch = owner[order], code[order], pitch[order]
    # Neighbours in the sorted list at every distance: each pair of songs with a run in common once for each run.
    common: list[npt.NDArray[np.int64]] = [np.zeros((3, 0), np.int64)]
    begins = np.flatnonzero(np.diff(code, prepend=-1))
    size = np.repeat(np.diff(np.append(begins, len(code))), np.diff(np.append(begins, len(code))))
    here = np.flatnonzero(size <= _MOST_SONGS)
    for step in range(1, _MOST_SONGS):
        here = here[here + step < len(code)]
        here = here[code[here] == code[here + step]]
        if not len(here):
            break
        one, other = owner[here], owner[here + step]
        apart = side[one] != side[other]
        common.append(np.stack([one, other, pitch[here + step] - pitch[here]])[:, apart])
    one, other, moved = np.concatenate(common, axis=1)
    pair, inverse, shared = np.unique(one * len(counts) + other, return_inverse=True, return_counts=True)
    first, second = np.divmod(pair, max(len(counts), 1))
    score = shared / np.maximum(np.minimum(counts[first], counts[second]), 1)
    semitones = _most_frequent(inverse.reshape(-1), moved, len(pair))
    chosen = np.flatnonzero(score >= threshold)
    chosen = chosen[np.lexsort((second[chosen], first[chosen], -score[chosen]))]
    return Similar(first[chosen], second[chosen], score[chosen], semitones[chosen], counts < LEAST)


def _runs(song: Song) -> Rows:
    """Return `(2, runs)`: the different runs of a song's melody as codes, and the pitch that each first begins with."""
    notes = song.notes[~song.notes["drum"]]
    onset = np.cumsum(np.diff(notes["start"], prepend=-1.0) > _TOGETHER)
    order = np.lexsort((-notes["pitch"], onset))
    first = order[np.flatnonzero(np.diff(onset[order], prepend=-1))]  # the highest note of each onset
    pitch, start = notes["pitch"][first].astype(np.int64), notes["start"][first]
    count = len(pitch) - RUN + 1
    if count < 1:
        return np.zeros((2, 0), np.int64)
    interval = np.clip(np.diff(pitch), -_WIDEST, _WIDEST) + _WIDEST
    between = np.maximum(np.diff(start), 1e-6)
    ratio = np.log2(between[1:] / between[:-1])
    rhythm = 1 + (ratio > _CLEARLY).astype(np.int64) - (ratio < -_CLEARLY)
    code = np.zeros(count, np.int64)
    for step in range(RUN - 1):
        code = code * (2 * _WIDEST + 1) + interval[step : step + count]
    for step in range(RUN - 2):
        code = code * 3 + rhythm[step : step + count]
    found, at = np.unique(code, return_index=True)
    return np.stack([found, pitch[:count][at]])


def _most_frequent(group: Rows, values: Rows, groups: int) -> Rows:
    """Return the most frequent value of each group, the lowest of several."""
    pairs, counts = np.unique(np.stack([group, values]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    result = np.zeros(groups, np.int64)
    result[pairs[0][order][::-1]] = pairs[1][order][::-1]
    return result
