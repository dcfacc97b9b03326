"""How generated music differs from real music: distributions of its notes, copies from the training, repetition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.midi.song import Song
from gafx.stats.scores import Bootstrap, Score, mean_score
from gafx.studies.music.ngram import Ids, longest_copies

Counts = npt.NDArray[np.float64]

_FARTHEST = 12  # semitones of an interval that has a bin of its own
_DURATIONS = 2.0 ** np.arange(-4.5, 4)  # bounds in beats, halfway on a log scale between 1/16, 1/8, ... and 8 beats
_BAR, _DENSEST = 4.0, 32  # beats whose notes are counted, and the count of the last bin
COPY_LENGTHS = (4, 8, 16)
REPEAT_LENGTH = 4
_BORDERS = 256  # from here on, numbers that occur once


def pitch_classes(song: Song) -> Counts:
    """Number of notes of each pitch class `(12,)`, without drums."""
    return np.bincount(_melodic(song)["pitch"] % 12, minlength=12).astype(float)


def intervals(song: Song) -> Counts:
    """Number of steps between the highest notes of successive onsets of a track: -12 to 12 semitones, beyond at both
    ends `(27,)`."""
    steps = np.concatenate([np.zeros(0, np.int64), *map(np.diff, lines(song))])
    return np.bincount(np.clip(steps, -_FARTHEST - 1, _FARTHEST + 1) + _FARTHEST + 1, minlength=27).astype(float)


def durations(song: Song) -> Counts:
    """Number of notes of each duration: a bin for 1/16, 1/8, ... and 8 beats, beyond at both ends `(10,)`."""
    lasts = _melodic(song)["duration"]
    return np.bincount(np.searchsorted(_DURATIONS, lasts), minlength=len(_DURATIONS) + 1).astype(float)


def densities(song: Song) -> Counts:
    """Number of stretches of four beats with 0, 1, ... notes `(33,)`, drums included; more than 32 count as 32.

    The last stretch counts if it is whole.
    """
    whole = int(song.length // _BAR)
    bar = (song.notes["start"] // _BAR).astype(np.int64)
    notes = np.bincount(bar[bar < whole], minlength=whole)
    return np.bincount(np.minimum(notes, _DENSEST), minlength=_DENSEST + 1).astype(float)


DISTRIBUTIONS: dict[str, Callable[[Song], Counts]] = {
    "pitch_class": pitch_classes, "interval": intervals, "duration": durations, "density": densities,
}  # fmt: skip


def lines(song: Song) -> list[Ids]:
    """The highest pitch of each onset, in order, for each track that is not drums."""
    notes = _melodic(song)
    order = np.lexsort((-notes["pitch"], notes["start"], notes["track"]))
    notes = notes[order]
    first = np.ones(len(notes), bool)
    first[1:] = (np.diff(notes["start"]) != 0) | (np.diff(notes["track"]) != 0)
    notes = notes[first]
    tracks = np.flatnonzero(np.diff(notes["track"])) + 1
    return [each.astype(np.int64) for each in np.split(notes["pitch"], tracks)]


def overlap(first: Counts, second: Counts) -> npt.NDArray[np.float64]:
    """Overlap of two distributions, 0 to 1: the sum over the bins of the smaller probability (histogram intersection).

    Args:
        first, second: counts `(..., bins)`; NaN where either has none.
    """
    with np.errstate(invalid="ignore"):
        return np.minimum(*(each / each.sum(axis=-1, keepdims=True) for each in (first, second))).sum(axis=-1)


def overlap_score(generated: Counts, real: Counts, groups: npt.NDArray[np.int64], *, resamples: int = 1000) -> Score:
    """Overlap of pooled counts, with a bootstrap over the generated pieces and the recordings of the real ones.

    A resample is rougher than the data, so that its overlap is lower: the interval is the value plus the percentiles of
    the resamples' deviations from their mean, at most 1.

    Args:
        generated, real: counts `(pieces, bins)`.
        groups: `(real pieces,)` recording of each real one.
        resamples: of the bootstrap.
    """
    value = float(overlap(generated.sum(axis=0), real.sum(axis=0)))
    pieces, recordings = Bootstrap(np.arange(len(generated)), resamples), Bootstrap(groups, resamples)
    of_group = np.zeros((recordings.count, real.shape[1]))
    np.add.at(of_group, recordings.group, real)
    # Bootstrap draws from one seed: without the turn, equal numbers of pieces and recordings would share their draws.
    drawn = overlap(pieces.draws @ generated, np.roll(recordings.draws, 1, axis=0) @ of_group)
    label = f"bootstrap over {len(generated)} pieces and {recordings.count} recordings, {resamples} resamples, 95 %"
    return pieces.score(value, np.clip(value + drawn - np.nanmean(drawn), 0, 1) if resamples else drawn, label)


def ceiling(
    real: Counts, groups: npt.NDArray[np.int64], sizes: tuple[int, int], *, splits: int = 200, seed: int = 0
) -> Score:
    """Overlap of the training pieces with themselves: of two random halves, whose recordings differ.

    Fewer notes give a rougher distribution and a lower overlap, so no half has more pieces than its set in the
    comparison that this is the ceiling of.

    Args:
        real: counts of the training pieces `(pieces, bins)`.
        groups: `(pieces,)` recording of each.
        sizes: numbers of pieces of the two sets.
        splits: random halves.
        seed: of the halves.

    Returns:
        Mean over the splits, and the range of 95 % of them. NaN with fewer than two recordings.
    """
    names = np.unique(groups)
    if len(names) < 2:
        return Score(float("nan"))
    random, found = np.random.default_rng(seed), []
    for _ in range(splits):
        half = np.isin(groups, random.permutation(names)[: len(names) // 2])
        both = zip((half, ~half), sizes, strict=True)
        sides = [random.permutation(np.flatnonzero(side))[:size] for side, size in both]
        found.append(overlap(*(real[side].sum(axis=0) for side in sides)))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Score(float(np.nanmean(found)), float(low), float(high), f"{splits} random halves of the training, 95 %")


@dataclass(frozen=True)
class Copies:
    """What pieces share with the training pieces.

    Attributes:
        fractions: for each of `COPY_LENGTHS` the fraction of a piece's runs of so many that occur in the training, mean
            over the pieces with such runs.
        longest: longest run that occurs in the training, of any piece.
    """

    fractions: dict[int, Score]
    longest: int


def copies(
    training: Sequence[Ids], pieces: Sequence[Ids], groups: npt.NDArray[np.int64], *, resamples: int = 1000
) -> Copies:
    """Count the runs of pieces that occur in the training; of `lines` as intervals they are found in any key.

    Args:
        training, pieces: sequences of whole numbers from 0 on.
        groups: `(pieces,)` recording of each piece, for the intervals.
        resamples: of the bootstrap.
    """
    found = longest_copies(training, pieces)
    fractions = {}
    for size in COPY_LENGTHS:
        values = np.array([np.mean(each[size - 1 :] >= size) if len(each) >= size else np.nan for each in found])
        fractions[size] = _mean(values, groups, resamples)
    return Copies(fractions, max((int(each.max(initial=0)) for each in found), default=0))


def joined_lines(songs: Sequence[Song]) -> list[Ids]:
    """Intervals of the lines of each song, as whole numbers from 0 on for `copies`; no run reaches over two lines."""
    joined, border = [], _BORDERS
    for song in songs:
        parts = []
        for line in lines(song):
            parts += [np.diff(line) + 127, [border]]
            border += 1
        joined.append(np.concatenate([np.zeros(0, np.int64), *parts[:-1]]).astype(np.int64))
    return joined


def repetition(pieces: Sequence[Ids], groups: npt.NDArray[np.int64], *, resamples: int = 1000) -> Score:
    """Fraction of a piece's runs of `REPEAT_LENGTH` tokens that occurred earlier in it, mean over the pieces."""
    values = np.array([_repeated(each) for each in pieces])
    return _mean(values, groups, resamples)


def _repeated(piece: Ids) -> float:
    count = len(piece) - REPEAT_LENGTH + 1
    if count < 1:
        return float("nan")
    runs = np.lib.stride_tricks.sliding_window_view(piece, REPEAT_LENGTH)
    return 1 - len(np.unique(runs, axis=0)) / count


def _mean(values: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], resamples: int) -> Score:
    known = np.isfinite(values)
    if not known.any():
        return Score(float("nan"))
    return mean_score(values[known], groups[known], resamples=resamples)


def _melodic(song: Song) -> npt.NDArray[np.void]:
    return song.notes[~song.notes["drum"]]
