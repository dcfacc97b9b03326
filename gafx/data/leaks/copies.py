"""Copies among clips: pairs whose fingerprints agree, found without comparing every clip with every other.

Parts of words (16 to 28 of the 32 bits, four different choices of them) are sorted; equal ones are then neighbours and
vote for a pair of clips and the offset between them. Even where one bit in six is wrong, as after 64 kbit/s or
clipping, some parts of words are intact. Pairs with two votes for one offset are compared in full: the fraction of
differing bits over all words at which both clips have sound.

The search has no Python loop over clips or pairs, and its memory grows with the number of words, not of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.data.leaks.fingerprint import HOP, RATE, Prints

# Words with sound in common, and the largest fraction of differing bits of a copy. Chance agreement is better over
# fewer words. docs/leaks.md describes how the values were found.
LIMITS = ((50, 0.25), (25, 0.20), (12, 0.15), (8, 0.10))
# Clips with fewer words than this are not compared, and the words in common must be a second, or half of the words of
# the clip that has fewer.
LEAST, ENOUGH = LIMITS[-1][0], LIMITS[0][0]
_CHOICES = 4
_WIDTHS = (16, 20, 24, 28)
# Neighbours in the sorted list that an entry is compared with: a word that more clips share carries little information.
_NEIGHBOURS = 32
# Width of the bins of offsets that votes are counted in (words), offsets tried per pair, and words compared at a time.
_BIN, _TRIED, _AT_ONCE = 2, 4, 1 << 20
# Two clips may also agree over a stretch only: this many blocks of this many words, together two seconds.
PART_LIMIT = 0.20
_BLOCK, _BLOCKS = 24, 4
# Fractions of differing bits in a comparison of every fourth word up to which a pair is compared in full.
_GLANCE, _GLANCE_AT_PART = 0.36, 0.30

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Copies:
    """Pairs of clips of which one is a copy of the other or of a part of it; each pair once, the lower row first.

    Attributes:
        first: row of one clip.
        second: row of the other.
        same: whether their bytes are equal.
        error: fraction of differing bits, 0 where the bytes are equal.
        seconds: of sound that were compared: all that both have at this offset, or the stretch in which they agree.
        offset: beginning of the second clip in the first, in seconds; negative where the second begins earlier.
        semitones: by which the second is higher; `None` for audio.
    """

    first: Rows
    second: Rows
    same: npt.NDArray[np.bool_]
    error: Floats
    seconds: Floats
    offset: Floats
    semitones: Rows | None = None

    def __len__(self) -> int:
        return len(self.first)


def find_copies(prints: Prints, side: npt.NDArray[np.int64] | None = None) -> Copies:
    """Return all pairs of copies, those with equal bytes first, then by error.

    Args:
        prints: of the clips. Those with too little sound are compared by their bytes only, silent ones not at all.
        side: `(clips,)` part of each clip, negative for none: only pairs of different parts are searched. Default: all
            pairs.
    """
    side = np.arange(len(prints)) if side is None else side
    groups = _Identical.of(prints, np.flatnonzero((prints.sounding() > 0) & (side >= 0)), side)
    near = _near_copies(prints, groups.representatives(), groups.common_side())
    pairs = np.concatenate([groups.pairs(prints), *(groups.pairs_between(*pair) for pair in near.T.tolist())], axis=1)
    swap = pairs[0] > pairs[1]
    pairs[:2, swap], pairs[5, swap] = pairs[1::-1, swap], -pairs[5, swap]
    first, second, same, error, overlap, offset = pairs[:, np.lexsort((pairs[1], pairs[0], pairs[3], -pairs[2]))]
    step = HOP / RATE
    return Copies(first.astype(np.int64), second.astype(np.int64), same > 0, error, overlap * step, offset * step)


@dataclass(frozen=True)
class _Identical:
    """Clips grouped by their bytes: group k has the rows `rows[starts[k]:starts[k + 1]]`.

    Pairs are returned as `(6, pairs)`: both rows, whether the bytes are equal, error, and overlap and offset in words.
    """

    rows: Rows
    starts: Rows
    side: npt.NDArray[np.int64]

    @classmethod
    def of(cls, prints: Prints, rows: Rows, side: npt.NDArray[np.int64]) -> "_Identical":
        digests, group = np.unique(prints.digest[rows], return_inverse=True)
        order = np.argsort(group, kind="stable")
        return cls(rows[order], np.searchsorted(group[order], np.arange(len(digests) + 1)), side)

    def members(self, group: int) -> Rows:
        return self.rows[self.starts[group] : self.starts[group + 1]]

    def representatives(self) -> Rows:
        """Return one manifest row per group."""
        return self.rows[self.starts[:-1]]

    def common_side(self) -> npt.NDArray[np.int64]:
        """Return the side of all clips of each group, -1 where they are on several."""
        if not len(self.rows):
            return self.rows
        lowest, highest = (least.reduceat(self.side[self.rows], self.starts[:-1]) for least in (np.minimum, np.maximum))
        return np.where(lowest == highest, lowest, -1)

    def pairs(self, prints: Prints) -> Floats:
        """Return the pairs with equal bytes on different sides."""
        found = [np.zeros((2, 0), np.int64)]
        for group in np.flatnonzero(np.diff(self.starts) > 1).tolist():
            members = self.members(group)
            found.append(members[np.stack(np.nonzero(np.triu(self.side[members][:, None] != self.side[members], 1)))])
        first, second = np.concatenate(found, axis=1)
        none = np.zeros(len(first))
        return np.stack([first, second, none + 1, none, prints.sounding()[first], none])

    def pairs_between(self, a: float, b: float, *how: float) -> Floats:
        """Return the pairs of clips on different sides of two groups; `how`: their error, overlap and offset."""
        ours, theirs = self.members(int(a)), self.members(int(b))
        i, j = np.nonzero(self.side[ours][:, None] != self.side[theirs])
        return np.stack([ours[i], theirs[j], *(np.full(len(i), value) for value in (0.0, *how))])


@dataclass(frozen=True)
class _Words:
    """Words with sound of the compared clips: value, position of the clip, and index within the clip.

    `span` is the largest number of words of a clip.
    """

    value: npt.NDArray[np.uint32]
    clip: Rows
    frame: Rows
    span: int

    @classmethod
    def of(cls, prints: Prints, rows: Rows) -> "_Words":
        lengths = np.where(prints.sounding()[rows] >= LEAST, prints.first[rows + 1] - prints.first[rows], 0)
        clip = np.repeat(np.arange(len(rows)), lengths)
        frame = np.arange(len(clip)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        index = prints.first[rows][clip] + frame
        has_sound = prints.sound[index]
        return cls(prints.words[index][has_sound], clip[has_sound], frame[has_sound], int(lengths.max(initial=1)))

    @property
    def bins(self) -> int:
        """Number of bins for all offsets between two clips."""
        return 2 * self.span // _BIN + 2


def _near_copies(prints: Prints, rows: Rows, side: npt.NDArray[np.int64]) -> Floats:
    """Find the near copies among `rows`; `side` as in `_Identical.common_side`.

    Returns:
        `(5, pairs)`: two positions in `rows`, error, and overlap and offset in words.
    """
    words = _Words.of(prints, rows)
    a, b, offset = _candidates(*_votes(words, side), len(rows), words.span, words.bins)
    likely = _glance(prints, rows[a], rows[b], offset)
    around = np.arange(-1, 2 * _BIN + 1)
    a, b = np.repeat(a[likely], len(around)), np.repeat(b[likely], len(around))
    near = _accepted(prints, rows, a, b, (offset[likely][:, None] + around).ravel())
    near = near[:, np.lexsort((near[2], near[1], near[0]))]
    return near[:, (np.diff(near[:2], axis=1, prepend=-1) != 0).any(axis=0)]  # the best offset of each pair


def _glance(prints: Prints, a: Rows, b: Rows, offset: Rows) -> npt.NDArray[np.bool_]:
    """Compare every fourth word at two offsets; return which pairs are worth a full comparison (one in hundreds)."""
    likely = np.zeros(len(a), bool)
    for shift in (0, _BIN):
        seen = _compare(prints, a, b, offset + shift, step=4)
        likely |= (seen.error <= _GLANCE) | (seen.part_error <= _GLANCE_AT_PART)
    return likely


def _accepted(prints: Prints, rows: Rows, a: Rows, b: Rows, offset: Rows) -> Floats:
    """Compare pairs in full; keep those below the limits, over all words in common or over their best stretch.

    Clips agree over a stretch only if they differ after a splice, or if one of them has another sound added.
    """
    found = _compare(prints, rows[a], rows[b], offset)
    sounding = prints.sounding()
    least = np.clip(-(-np.minimum(sounding[rows[a]], sounding[rows[b]]) // 2), LEAST, ENOUGH)
    limit = np.select([found.overlap >= most for most, _ in LIMITS], [error for _, error in LIMITS], -1.0)
    complete = (found.overlap >= least) & (found.error <= limit)
    error = np.where(complete, found.error, found.part_error)
    overlap = np.where(complete, found.overlap, found.part_overlap)
    return np.stack([a, b, error, overlap, offset])[:, complete | (found.part_error <= PART_LIMIT)]


def _votes(words: _Words, side: npt.NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Return ascending codes of (pair, bin of offsets), and the number of equal parts of words of each."""
    width = next((width for width in _WIDTHS if len(words.value) <= 4 << width), _WIDTHS[-1])
    clips, found = len(side), [np.zeros(0, np.int64)]
    for choice in range(_CHOICES):
        turn = np.uint32(32 // _CHOICES * choice)
        turned = (words.value >> turn) | (words.value << ((np.uint32(32) - turn) & np.uint32(31)))
        for a, b, shift in _equal(turned & np.uint32((1 << width) - 1), words.clip, words.frame, side):
            found.append((a * clips + b) * words.bins + (shift + words.span) // _BIN)
    codes = np.concatenate(found)
    found.clear()
    codes.sort()
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])) if len(codes) else codes
    return codes[starts], np.diff(np.append(starts, len(codes)))


def _equal(
    part: npt.NDArray[np.uint32], clip: Rows, frame: Rows, side: npt.NDArray[np.int64]
) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Yield clips a < b with an equal part of a word, and the number of words by which it is later in a."""
    # Of equal neighbours within a clip only the first: a steady sound would vote for itself all the time.
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
    """Return pairs and offsets with at least two votes in two neighbouring bins, the best few offsets of each pair."""
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
    """Error and overlap (words with sound in both) of pairs at offsets, over all words and over the best stretch."""

    error: Floats
    overlap: Floats
    part_error: Floats
    part_overlap: Floats


def _compare(prints: Prints, a: Rows, b: Rows, offset: Rows, *, step: int = 1) -> _Compared:
    """Compare rows a and b at offsets in words; with `step` above 1 only every `step`-th word."""
    lengths = np.diff(prints.first)
    begin = np.maximum(offset, 0)
    in_a, in_b = prints.first[a] + begin, prints.first[b] + begin - offset
    count = -(-np.maximum(np.minimum(lengths[a], lengths[b] + offset) - begin, 0) // step)
    found = [_compare_some(prints, in_a[some], in_b[some], count[some], step) for some in _slices(np.cumsum(count))]
    return _Compared(*np.concatenate([np.zeros((4, 0)), *found], axis=1))


def _slices(ends: Rows) -> Iterator[slice]:
    """Yield slices of pairs with about `_AT_ONCE` words, at least one pair each; `ends`: cumulative words of pairs."""
    done = 0
    while done < len(ends):
        before = int(ends[done - 1]) if done else 0
        until = max(int(np.searchsorted(ends, before + _AT_ONCE, "right")), done + 1)
        yield slice(done, until)
        done = until


def _compare_some(prints: Prints, in_a: Rows, in_b: Rows, count: Rows, step: int) -> Floats:
    """Compare `count` words of each pair, every `step`-th from `in_a` and `in_b` on; rows: fields of `_Compared`."""
    pair = np.repeat(np.arange(len(count)), count)
    index = np.arange(len(pair)) - (np.cumsum(count) - count)[pair]
    ours, theirs = in_a[pair] + step * index, in_b[pair] + step * index
    both = prints.sound[ours] & prints.sound[theirs]
    wrong = np.bitwise_count(prints.words[ours] ^ prints.words[theirs]) * both
    blocks = np.maximum(-(-count // (_BLOCK // step)), 1)
    first = np.cumsum(blocks) - blocks
    block = first[pair] + index // (_BLOCK // step)
    total = int(blocks.sum())
    wrong_in = np.bincount(block, wrong, total).astype(np.float64)
    both_in = np.bincount(block, both, total).astype(np.float64)
    overlap = np.add.reduceat(both_in, first)
    error = np.add.reduceat(wrong_in, first) / (32 * np.maximum(overlap, 1))
    return np.stack([error, step * overlap, *_best_stretch(wrong_in, both_in, first, blocks, step)])


def _best_stretch(wrong: Floats, both: Floats, first: Rows, blocks: Rows, step: int) -> tuple[Floats, Floats]:
    """Return error and overlap of the best `_BLOCKS` blocks in a row of each pair; error 1 where none has enough sound.

    Args:
        wrong: differing bits in each block.
        both: compared words with sound in both clips, of each block.
        first: first block of each pair.
        blocks: number of blocks of each pair.
        step: as in `_compare`.
    """
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
