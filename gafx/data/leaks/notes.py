"""Copies among MIDI files: the same bytes, or the same notes under another name, in another key or tempo."""

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
    songs, digests = [], []
    unreadable = 0
    for row in range(len(manifest)):
        song, content = Song.silence(), ""
        if side[row] >= 0:
            try:
                song, content = read_piece(manifest, row), file_digest(manifest.root / manifest.relative_path(row))
            except (UnreadableMidi, OSError):
                unreadable += 1
        songs.append(song)
        digests.append(content)
    found = find_similar(songs, side)
    same = np.array([digests[a] == digests[b] for a, b in zip(found.first, found.second, strict=True)], bool)
    seconds = np.array([song.duration for song in songs])
    order = np.lexsort((found.second, found.first, -found.score, ~same))
    first, second = found.first[order], found.second[order]
    copies = Copies(
        first, second, same[order], 1 - found.score[order], np.minimum(seconds[first], seconds[second]),
        np.zeros(len(order)), found.semitones[order],
    )  # fmt: skip
    return copies, unreadable, int(found.few[side >= 0].sum()) - unreadable
