"""Short MIDI files of random tunes, for runs on tokens."""

from pathlib import Path

import numpy as np

from gafx.midi.song import Song, make_notes
from gafx.midi.write import write_midi


def write_tunes(folder: Path, count: int = 12, notes: int = 24) -> Path:
    """Write files `<letter>_<number>.mid` of one voice, each with its own pitches and rhythm; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        starts = np.cumsum(rng.choice([0.25, 0.5, 1.0], notes))
        pitches = 60 + rng.choice([0, 2, 4, 7, 9], notes) + number % 4
        rows = [(start, 0.25, int(pitch), 80, 0, False, 0) for start, pitch in zip(starts, pitches, strict=True)]
        write_midi(Song(make_notes(rows)), folder / f"{'abcdef'[number % 6]}_{number}.mid")
    return folder
