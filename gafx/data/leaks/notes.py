"""Copies among MIDI files: the same bytes, or the same notes under another name, in another key or tempo."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations

import numpy as np
import numpy.typing as npt

from gafx.data.leaks.copies import Copies
from gafx.data.manifest import Manifest
from gafx.data.midi import read_piece
from gafx.errors import UnreadableMidi
from gafx.io import file_digest
from gafx.midi.similar import find_similar
from gafx.midi.song import Song

Rows = npt.NDArray[np.int64]


def find_midi_copies(manifest: Manifest, side: Rows) -> tuple[Copies, int, int]:
    """Find the pairs of near-copies on different sides.

    Args:
        manifest: of MIDI files.
        side: `(clips,)` part of each clip, negative for none.

    Returns:
        The pairs, the number of unreadable files, and that of pieces with too few notes to be compared.
    """
    digests: list[str] = []
    seconds: list[float] = []

    def songs() -> Iterator[Song]:
        for row in range(len(manifest)):
            song, content = Song.silence(), ""
            if side[row] >= 0:
                with suppress(UnreadableMidi, OSError):
                    song, content = read_piece(manifest, row), file_digest(manifest.root / manifest.relative_path(row))
            digests.append(content)
            seconds.append(song.duration)
            yield song

    found = find_similar(songs(), side)
    unreadable = sum(not content for content, part in zip(digests, side, strict=True) if part >= 0)
    # Also those that are too short to be compared by their notes.
    equal = [(a, b, 1.0, 0) for a, b in _equal(digests) if side[a] != side[b]]
    pairs = {pair[:2]: pair for pair in zip(found.first, found.second, found.score, found.semitones, strict=True)}
    pairs |= {pair[:2]: pair for pair in equal}
    table = np.array(list(pairs.values()), np.float64).reshape(-1, 4)
    first, second = table[:, :2].astype(np.int64).T
    same = np.array([digests[a] == digests[b] for a, b in zip(first, second, strict=True)], bool)
    order = np.lexsort((second, first, -table[:, 2], ~same))
    copies = Copies(
        first[order], second[order], same[order], 1 - table[order, 2],
        np.minimum(np.array(seconds)[first], np.array(seconds)[second])[order], np.zeros(len(order)),
        table[order, 3].astype(np.int64),
    )  # fmt: skip
    return copies, unreadable, int(found.few[side >= 0].sum()) - unreadable


def _equal(digests: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of equal digests, the lower number first; empty ones are of no file."""
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(digests):
        if content:
            rows.setdefault(content, []).append(row)
    for group in rows.values():
        yield from combinations(group, 2)
