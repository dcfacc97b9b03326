"""Copies among clips: pairs whose fingerprints agree, found without comparing each clip with each.

Parts of words (16 to 28 of the 32 bits, four different choices of them) are sorted; equal ones stand side by side then
and vote for a pair of clips and the offset between them. Even where one bit in six is wrong, as after 64 kbit/s or
clipping, some parts of words are whole. Pairs with two votes for one offset are compared in full: the share of
differing bits over all moments at which both clips have sound.

No step loops over clips or pairs in Python, and what is kept grows with the number of words, not of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.data.leaks.fingerprint import HOP, RATE, Prints

# Moments of sound in common, and the largest share of differing bits that is a copy still. Chance agrees better over
# fewer moments. Where these come from: docs/leaks.md.
LIMITS = ((50, 0.25), (25, 0.20), (12, 0.15), (8, 0.10))
# Fewer words than this are no fingerprint, and what two clips have in common must be a second of sound, or half of that
# of the clip that has less.
LEAST, ENOUGH = LIMITS[-1][0], LIMITS[0][0]
_CHOICES = 4
_WIDTHS = (16, 20, 24, 28)
# Neighbours that an entry of the sorted list is compared with: a word that more clips than that share says little.
_NEIGHBOURS = 32
# Offsets that votes are counted by, in words; those that a pair is tried at; and words compared at a time.
_BIN, _TRIED, _AT_ONCE = 2, 4, 1 << 20
# Two clips may also agree over a stretch alone, of so many blocks of so many words: two seconds.
PART_LIMIT = 0.20
_BLOCK, _BLOCKS = 24, 4
# Shares of differing bits up to which what a glance saw is compared in full.
_GLANCE, _GLANCE_AT_PART = 0.36, 0.30

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Pairs of clips of which one is a copy of the other, or of a part of it; a pair of rows once, the lower first.

    Attributes:
        first: row of the one clip.
        second: row of the other.
        same: whether their bytes are the same.
        error: share of differing bits, 0 where the bytes are the same.
        seconds: of sound that were compared: all that both have at this offset, or the stretch in which they agree.
        offset: seconds into the first clip at which the second begins; below 0 where it begins before.
    """

    first: Rows
    second: Rows
    same: npt.NDArray[np.bool_]
    error: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)


def find_copies(prints: Prints, side: npt.NDArray[np.int64] | None = None) -> Copies:
    """All pairs of copies, those of the same bytes first, then by error.

    Args:
        prints: of the clips. Those with too little sound are only compared byte for byte, silent ones not at all.
        side: `(clips,)` part of each clip, below 0 for none: only pairs of different parts are looked for. Default:
            all pairs.
    """
    compared = prints.sounding() > 0
    if side is None:
        side = np.arange(len(prints))
    compared &= side >= 0
    rows = np.flatnonzero(compared)
    digests, kind = np.unique(prints.digest[rows], return_inverse=True)
    order = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[order], np.arange(len(digests) + 1))
    kinds = _Kinds(rows[order], starts, side)
    pairs = [_pairs_of_kinds(kinds, prints)]
    one = kinds.one()
    lower, upper, error, overlap, offset = _near(prints, one, kinds.side_of_all())
    for a, b, *found in zip(lower, upper, error, overlap, offset, strict=True):
        pairs.append(_expand(kinds, int(a), int(b), *found))
    columns = [np.concatenate(column) for column in zip(*pairs, strict=True)]
    first, second, same, error, overlap, offset = columns
    swap = first > second
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    offset = np.where(swap, -offset, offset)
    place = np.lexsort((second, first, error, ~same))
    step = np.float64(HOP / RATE)
    return Copies(first[place], second[place], same[place], error[place], overlap[place] * step, offset[place] * step)


@dataclass(frozen=True)
class _Kinds:
    """Clips by their bytes: kind k has the rows `rows[starts[k]:starts[k + 1]]`."""

    rows: Rows
    starts: Rows
    side: npt.NDArray[np.int64]

    def members(self, kind: int) -> Rows:
        return self.rows[self.starts[kind] : self.starts[kind + 1]]

    def one(self) -> Rows:
        """A row of each kind."""
        return self.rows[self.starts[:-1]]

    def side_of_all(self) -> npt.NDArray[np.int64]:
        """The side that all clips of a kind are on, -1 where they are on several."""
        side = self.side[self.one()]
        if len(self.rows):
            lowest = np.minimum.reduceat(self.side[self.rows], self.starts[:-1])
            highest = np.maximum.reduceat(self.side[self.rows], self.starts[:-1])
            side = np.where(lowest == highest, lowest, -1)
        return side


Columns = tuple[Rows, Rows, npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.float64], Rows]


def _pairs_of_kinds(kinds: _Kinds, prints: Prints) -> Columns:
    """Pairs of the same bytes."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for kind in np.flatnonzero(np.diff(kinds.starts) > 1).tolist():
        members = kinds.members(kind)
        a, b = np.nonzero(np.triu(kinds.side[members][:, None] != kinds.side[members], 1))
        firsts.append(members[a])
        seconds.append(members[b])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    overlap = prints.sounding()[first].astype(np.float64)
    return first, second, np.ones(len(first), bool), np.zeros(len(first)), overlap, np.zeros(len(first), np.int64)


def _expand(kinds: _Kinds, a: int, b: int, error: float, overlap: float, offset: int) -> Columns:
    """The pairs of clips that a pair of kinds stands for."""
    ours, theirs = kinds.members(a), kinds.members(b)
    i, j = np.nonzero(kinds.side[ours][:, None] != kinds.side[theirs])
    count = len(i)
    return (
        ours[i], theirs[j], np.zeros(count, bool), np.full(count, error), np.full(count, overlap),
        np.full(count, offset, np.int64),
    )  # fmt: skip


def _near(
    prints: Prints, rows: Rows, side: npt.NDArray[np.int64]
) -> tuple[Rows, Rows, npt.NDArray[np.float64], npt.NDArray[np.float64], Rows]:
    """Pairs (a, b) of positions in `rows`, their error, overlap and offset in words."""
    lengths = np.where(prints.sounding()[rows] >= LEAST, prints.first[rows + 1] - prints.first[rows], 0)
    clip = np.repeat(np.arange(len(rows)), lengths)
    frame = np.arange(len(clip)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = prints.first[rows][clip] + frame
    heard = prints.sound[place]
    clip, frame, words = clip[heard], frame[heard], prints.words[place][heard]
    span = int(lengths.max(initial=1))
    bins = 2 * span // _BIN + 2
    votes = _votes(words, clip, frame, side, span, bins)
    a, b, offset = _candidates(*votes, len(rows), span, bins)
    # At first a glance at every fourth word, at two offsets: of hundreds of candidates one is a copy.
    near = np.zeros(len(a), bool)
    for shift in (0, _BIN):
        seen = _compare(prints, rows[a], rows[b], offset + shift, step=4)
        near |= (seen.error <= _GLANCE) | (seen.part_error <= _GLANCE_AT_PART)
    around = np.arange(-1, 2 * _BIN + 1)
    a, b = np.repeat(a[near], len(around)), np.repeat(b[near], len(around))
    offset = (offset[near][:, None] + around).ravel()
    found = _compare(prints, rows[a], rows[b], offset)
    error, overlap = found.error, found.overlap
    sounding = prints.sounding()
    least = np.clip(-(-np.minimum(sounding[rows[a]], sounding[rows[b]]) // 2), LEAST, ENOUGH)
    limit = np.select([overlap >= most for most, _ in LIMITS], [share for _, share in LIMITS], -1.0)
    whole = (overlap >= least) & (error <= limit)
    # Clips that part at a splice, or of which one has another sound besides.
    error = np.where(whole, error, found.part_error)
    overlap = np.where(whole, overlap, found.part_overlap)
    good = np.flatnonzero(whole | (found.part_error <= PART_LIMIT))
    # Of each pair the best offset.
    good = good[np.lexsort((error[good], b[good], a[good]))]
    pair = a[good] * len(rows) + b[good]
    good = good[np.concatenate([[True], pair[1:] != pair[:-1]])] if len(good) else good
    return a[good], b[good], error[good], overlap[good], offset[good]


def _votes(
    words: npt.NDArray[np.uint32], clip: Rows, frame: Rows, side: npt.NDArray[np.int64], span: int, bins: int
) -> tuple[Rows, Rows]:
    """Codes of (pair, bin of offsets), ascending, and how many parts of words stand for each."""
    width = next((width for width in _WIDTHS if len(words) <= 4 << width), _WIDTHS[-1])
    clips, found = len(side), [np.zeros(0, np.int64)]
    for choice in range(_CHOICES):
        turn = np.uint32(32 // _CHOICES * choice)
        part = ((words >> turn) | (words << ((np.uint32(32) - turn) & np.uint32(31)))) & np.uint32((1 << width) - 1)
        for a, b, shift in _equal(part, clip, frame, side):
            found.append((a * clips + b) * bins + (shift + span) // _BIN)
    codes = np.concatenate(found)
    found.clear()
    codes.sort()
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])) if len(codes) else codes
    return codes[starts], np.diff(np.append(starts, len(codes)))


def _equal(
    part: npt.NDArray[np.uint32], clip: Rows, frame: Rows, side: npt.NDArray[np.int64]
) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Clips a < b with an equal part of a word, and how many words later a has it; with no loop over clips."""
    # Of a stretch of equal ones in a clip only the first: a steady sound would vote for itself all the time.
    fresh = np.ones(len(part), bool)
    fresh[1:] = (part[1:] != part[:-1]) | (clip[1:] != clip[:-1])
    # Shuffled, so that the neighbours of an entry are of any clip.
    entries = np.random.default_rng(0).permutation(np.flatnonzero(fresh))
    entries = entries[np.argsort(part[entries], kind="stable")]
    key = part[entries]
    here = np.arange(len(entries))
    for step in range(1, _NEIGHBOURS + 1):
        here = here[: np.searchsorted(here, len(entries) - step)]
        here = here[key[here] == key[here + step]]
        if not len(here):
            return
        one, other = entries[here], entries[here + step]
        a, b = clip[one], clip[other]
        apart = (a != b) & ((side[a] != side[b]) | (side[a] < 0))
        one, other = one[apart], other[apart]
        swap = clip[one] > clip[other]
        one, other = np.where(swap, other, one), np.where(swap, one, other)
        yield clip[one], clip[other], frame[one] - frame[other]


def _candidates(codes: Rows, counts: Rows, clips: int, span: int, bins: int) -> tuple[Rows, Rows, Rows]:
    """Pairs and offsets worth comparing: two votes in two neighbouring bins, the few best of each pair."""
    both = counts.copy()
    next_to = (codes[1:] == codes[:-1] + 1) & (codes[1:] // bins == codes[:-1] // bins)
    both[:-1] += np.where(next_to, counts[1:], 0)
    chosen = np.flatnonzero(both >= 2)
    pair = codes[chosen] // bins
    order = np.lexsort((-both[chosen], pair))
    chosen, pair = chosen[order], pair[order]
    starts = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.zeros(0, np.int64)
    rank = np.arange(len(pair)) - np.repeat(starts, np.diff(np.append(starts, len(pair))))
    chosen, pair = chosen[rank < _TRIED], pair[rank < _TRIED]
    offset = codes[chosen] % bins * _BIN - span
    return pair // clips, pair % clips, offset


@dataclass(frozen=True)
class _Compared:
    """Pairs at offsets: share of differing bits, and moments at which both have sound; and of their best stretch."""

    error: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]
    part_error: npt.NDArray[np.float64]
    part_overlap: npt.NDArray[np.float64]


def _compare(prints: Prints, a: Rows, b: Rows, offset: Rows, *, step: int = 1) -> _Compared:
    """Compare rows a and b at offsets (in words); with a `step` above 1 only every so many words."""
    lengths = np.diff(prints.first)
    begin = np.maximum(offset, 0)
    in_a, in_b = prints.first[a] + begin, prints.first[b] + begin - offset
    count = -(-np.maximum(np.minimum(lengths[a], lengths[b] + offset) - begin, 0) // step)
    ends = np.cumsum(count)
    found = _Compared(*(np.ones(len(a)) if "error" in name else np.zeros(len(a)) for name in _Compared.__annotations__))
    done = 0
    while done < len(a):
        before = int(ends[done - 1]) if done else 0
        until = max(int(np.searchsorted(ends, before + _AT_ONCE, "right")), done + 1)
        some = slice(done, until)
        pair = np.repeat(np.arange(until - done), count[some])
        place = np.arange(len(pair)) - (ends - count - before)[some][pair]
        ours, theirs = in_a[some][pair] + step * place, in_b[some][pair] + step * place
        both = prints.sound[ours] & prints.sound[theirs]
        wrong = np.bitwise_count(prints.words[ours] ^ prints.words[theirs]) * both
        blocks = np.maximum(-(-count[some] // (_BLOCK // step)), 1)
        first = np.cumsum(blocks) - blocks
        block = first[pair] + place // (_BLOCK // step)
        total = int(blocks.sum())
        wrong_in = np.bincount(block, wrong, total).astype(np.float64)
        both_in = np.bincount(block, both, total).astype(np.float64)
        found.overlap[some] = np.add.reduceat(both_in, first)
        found.error[some] = np.add.reduceat(wrong_in, first) / (32 * np.maximum(found.overlap[some], 1))
        found.part_error[some], found.part_overlap[some] = _best_stretch(wrong_in, both_in, first, blocks, step)
        done = until
    found.overlap[:] *= step
    return found


def _best_stretch(
    wrong: npt.NDArray[np.float64], both: npt.NDArray[np.float64], first: Rows, blocks: Rows, step: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each pair the stretch of `_BLOCKS` blocks with the least error; error 1 where none has enough sound."""
    last = np.repeat(first + blocks, blocks)
    begin = np.arange(len(wrong))
    end = np.minimum(begin + _BLOCKS, len(wrong))
    wrong, both = np.concatenate([[0], np.cumsum(wrong)]), np.concatenate([[0], np.cumsum(both)])
    overlap = both[end] - both[begin]
    fits = (begin + _BLOCKS <= last) & (step * overlap >= ENOUGH)
    error = np.where(fits, (wrong[end] - wrong[begin]) / (32 * np.maximum(overlap, 1)), 1.0)
    least = np.minimum.reduceat(error, first)
    best = np.flatnonzero(error == np.repeat(least, blocks))
    _, one = np.unique(np.searchsorted(first, best, "right"), return_index=True)
    return least, step * overlap[best[one]]
