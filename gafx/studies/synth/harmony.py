"""Harmony: keys, chords, and chord progressions over time in beats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}

# Semitones above the root, named in Harte's chord syntax.
QUALITIES: dict[str, tuple[int, ...]] = {
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "hdim7": (0, 3, 6, 10),
}

# Roman numerals count from the major scale, whatever the mode: bVI is eight semitones above the tonic.
PROGRESSIONS: dict[str, tuple[str, ...]] = {
    "major": (
        "I V vi IV",
        "I vi IV V",
        "I IV I V",
        "ii V I I",
        "I vi ii V",
        "IV I V vi",
        "I iii IV V",
        "I IV",
        "vi IV I V",
    ),
    "minor": (
        "i bVI bIII bVII",
        "i iv v i",
        "i bVII bVI V",
        "i iv",
        "iidim V i i",
        "i bVI iv V",
        "i i iv bVII",
    ),
    "dorian": ("i IV", "i i IV IV", "i bVII IV i", "ii i", "i ii bIII IV", "i v IV i"),
    "mixolydian": ("I bVII IV I", "I IV bVII IV", "I I bVII bVII", "I v IV I", "I7 IV7 I7 V7"),
}

_NUMERAL = re.compile(r"(b?)([IViv]+)(7|dim)?")
_DEGREES = {"i": 0, "ii": 2, "iii": 4, "iv": 5, "v": 7, "vi": 9, "vii": 11}


class Chord(NamedTuple):
    """A chord from beat `start` to beat `end`; `root` is a pitch class, `quality` one of `QUALITIES`."""

    start: float
    end: float
    root: int
    quality: str

    @property
    def name(self) -> str:
        """Name in Harte's syntax, for example "A:min7"."""
        return f"{PITCH_CLASSES[self.root]}:{self.quality}"

    @property
    def tones(self) -> tuple[int, ...]:
        """Semitones above the root."""
        return QUALITIES[self.quality]

    @property
    def pitch_classes(self) -> set[int]:
        """Pitch classes of the chord's tones."""
        return {(self.root + tone) % 12 for tone in self.tones}

    def voicing(self, centre: int) -> list[int]:
        """Return the tones in close position, ascending, each in its octave nearest to the MIDI number `centre`."""
        return sorted(centre - 6 + (self.root + tone - (centre - 6)) % 12 for tone in self.tones)


@dataclass(frozen=True)
class Harmony:
    """A key and a sequence of chords.

    Attributes:
        tonic: pitch class, 0 for C to 11 for B.
        mode: of `MODES`.
        chords: of equal length, without gaps from beat 0.
    """

    tonic: int
    mode: str
    chords: tuple[Chord, ...]

    @property
    def scale(self) -> set[int]:
        """Pitch classes of the key."""
        return {(self.tonic + step) % 12 for step in MODES[self.mode]}

    def at(self, beat: float) -> Chord:
        """Return the chord at `beat`."""
        first = self.chords[0]
        return self.chords[min(int(beat / (first.end - first.start)), len(self.chords) - 1)]


def harmonise(tonic: int, mode: str, progression: str, sevenths: bool, beats_per_chord: float, beats: float) -> Harmony:
    """Repeat a progression of Roman numerals for `beats` beats; with `sevenths` triads become seventh chords."""
    cycle = []
    for numeral in progression.split():
        match = _NUMERAL.fullmatch(numeral)
        assert match is not None, numeral
        flat, roman, suffix = match.groups()
        degree = _DEGREES[roman.lower()] - bool(flat)
        quality = {"7": "7", "dim": "dim"}.get(suffix or "", "maj" if roman.isupper() else "min")
        if sevenths:
            major = "maj7" if (degree + 11) % 12 in MODES[mode] else "7"
            quality = {"maj": major, "min": "min7", "dim": "hdim7"}.get(quality, quality)
        cycle.append(((tonic + degree) % 12, quality))
    chords = []
    for position in range(int(np.ceil(beats / beats_per_chord))):
        root, quality = cycle[position % len(cycle)]
        chords.append(Chord(position * beats_per_chord, (position + 1) * beats_per_chord, root, quality))
    return Harmony(tonic, mode, tuple(chords))
