"""Genre distributions -> a `Score`: every musical decision of a synthetic track, as plain data, without a sample.

A track is decided factor by factor (`FACTORS`). Each factor has its own random streams, keyed by
(seed, genre, index, factor), so no factor's draws can shift another's, and a track does not depend on how many others
are made or in which order. A factor that `vary` freezes, and with probability `STRAY` also one that it varies, is
drawn from the pool: a genre picked uniformly at random, then that genre's distribution. Under `vary="rhythm"`, say,
chords and instruments keep the spread they have in the whole set and merely stop depending on the genre.

Time inside this module is counted in beats (quarter notes) and in steps (sixteenths, 16 to the bar of 4/4), and turned
into seconds at the very end, after swing.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

FACTORS: tuple[str, ...] = (
    "tempo",
    "drums",
    "bass",
    "harmony",
    "accompaniment",
    "melody",
    "timbre",
    "loudness",
    "room",
)

VARY: dict[str, tuple[str, ...]] = {
    "all": FACTORS,
    "rhythm": ("tempo", "drums"),
    **{factor: (factor,) for factor in FACTORS},
}

STRAY = 0.05
"""Probability that a varied factor is drawn from the pool of all genres; the knob by which difficulty was set."""

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

# Sixteen steps a bar. X accent, x plain, o soft (may be left out), g ghost note (often left out).
HIT_STRENGTHS: dict[str, tuple[float, float]] = {"X": (1.0, 1.0), "x": (0.8, 1.0), "o": (0.5, 0.9), "g": (0.22, 0.65)}

DRUM_PATTERNS: dict[str, dict[str, str]] = {
    "none": {},
    "pulse": {"kick": "x...............", "shaker": "....o.......o..."},
    "shaker": {"shaker": "xgogxgogxgogxgog", "tom": "x.....o...o....."},
    "brush_ballad": {"brush": "o.o.x.o.o.o.x.o.", "kick": "x.......o......."},
    "rim_ballad": {"kick": "X.....o.x.......", "rim": "....x.......x...", "hat": "o.o.o.o.o.o.o.o."},
    "four_floor": {"kick": "X...X...X...X...", "clap": "....x.......x...", "open_hat": "..x...x...x...x.",
                   "hat": "o.gog.gog.gog.go"},
    "disco": {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "xo.oxo.oxo.oxo.o",
              "open_hat": "..x...x...x...x."},
    "backbeat": {"kick": "X.......x.x.....", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
    "busy_backbeat": {"kick": "X..x..x.x.x.....", "snare": "....X..g.g..X..g", "hat": "x.o.x.o.x.o.x.oo"},
    "half_time": {"kick": "X.....x...o.....", "snare": "........X.......", "hat": "x.o.x.o.x.o.x.o."},
    "one_drop": {"kick": "........X.......", "rim": "........x.....o.", "hat": "x.o.x.o.x.o.x.o."},
    "steppers": {"kick": "X...X...X...X...", "rim": "......x...o...x.", "hat": "..x...x...x...x.",
                 "snare": "........o......."},
    "bossa": {"kick": "x..ox..ox..ox..o", "rim": "x..x..x...x..x..", "shaker": "xooxxooxxooxxoox"},
    "funk_one": {"kick": "X.x.......x..x..", "snare": "....X..g.g.gX..g", "hat": "xoxoxoxoxoxoxoxo"},
    "funk_two": {"kick": "X..x..g.x.X...g.", "snare": "g...X..g.g..X.g.", "hat": "x.x.x.x.x.x.x...",
                 "open_hat": "..............x."},
    "train": {"brush": "goXggoXggoXggoXg", "kick": "x...x...x...x..."},
    "stomp": {"kick": "X.......X.......", "clap": "....x.......x...", "shaker": "o.o.o.o.o.o.o.o."},
    "shuffle": {"kick": "X.......x.....o.", "snare": "....X.......X...", "hat": "x.o.x.o.x.o.x.o."},
    "swing_ride": {"ride": "x...X.o.x...X.o.", "hat": "....x.......x...", "kick": "o...o...o...o...",
                   "brush": "..g...g....g..g."},
    "swing_brush": {"brush": "x.g.X.o.x.g.X.o.", "hat": "....o.......o...", "kick": "o.......o......."},
}  # fmt: skip

# R root, F fifth, T third, O octave, W next note of a walk, P the key's tonic; "-" holds, "." rests.
BASS_STYLES: dict[str, tuple[str, ...]] = {
    "pedal": ("P---------------",),
    "long": ("R---------------", "R-----------R---", "R-------R-------"),
    "root_fifth": ("R-------F-------", "R---R---F---F---", "R-----.RF-----.."),
    "eighths": ("R-R-R-R-R-R-R-R-", "R-R-R-R-R-R-R-F-"),
    "octave": ("R-O-R-O-R-O-R-O-", "R.O.R.O.R.ORR.O."),
    "offbeat": ("..R-..R-..R-..R-", "..R-..R-..RR..O-"),
    "dub": ("R---..R-F-..R-..", "....R-R-..F-R---", "R-..R---....F-R-"),
    "syncopated": ("R..RO..R..F.O.R.", "R.R...OR..R.F...", "R.....R.O..R..F."),
    "bossa": ("R-----R-F-----F-", "R-----F-F-----R-"),
    "walking": ("W---W---W---W---", "W---W---W-W-W---"),
}

# C chord, D / U strummed down / up, S short chord, A next note of an arpeggio; "-" holds, "." rests.
ACCOMPANIMENTS: dict[str, tuple[str, ...]] = {
    "pad": ("C---------------", "C---------------", "C-------C-------"),
    "blocks": ("C---C---C---C---", "C---C---C---C-C-"),
    "strum": ("D---D-U---U-D-U-", "D---D-D-D-U-D-U-", "D-..D-U-D-..D-U-"),
    "power": ("D-D-D-D-D-D-D-D-", "D-----D-D-D-D---"),
    "stab": ("S..S..S...S.....", "..S....S..S.....", "S......S........"),
    "skank": ("....S.......S...", "..S...S...S...S.", "..S...S...S..SS."),
    "arpeggio": ("A-A-A-A-A-A-A-A-", "A---A---A---A---", "AAAAAAAAAAAAAAAA"),
    "charleston": ("C-----S.........", "..C-......S.....", "......S...C---.."),
    "bossa": ("C--C--C---C--C--", "C-S...C-..S...C-"),
    "scratch": ("..SS.S..S.SS..S.", "S..S.SS...S..SS."),
}

MELODY_STYLES: dict[str, tuple[str, ...]] = {
    "sparse": ("N-------........", "....N-----------", "N---N-----------", "................"),
    "held": ("N---------------", "N-------N-------"),
    "lyrical": ("N-----N-N---N---", "N---N---N-------", "..N-N-N-N-------", "N-----N-N-----..", "N---N-N-N---...."),
    "riff": ("N-N-..N-N-..N-..", "N..N..N-....N-N-", "N.N.N...N.N.N..."),
    "syncopated": ("..N..N..N-..N-N.", "N..N.N.N..N-..N.", "...N--N-...N--N-"),
    "running": ("N-N-N-N-N-N-N-N-", "N-N-N-N-N---..N-", "..N-N-NNN-N-N-N-"),
}


@dataclass(frozen=True)
class Profile:
    """The distributions of one genre. Every mapping is name -> weight; every pair is (low, high) unless said.

    Attributes:
        tempi: (weight, low, high) in BPM, a mixture of uniform ranges.
        patterns: drum pattern names.
        swing: share of the beat (or half beat) taken by its first half, 0.5 is straight, 0.67 a triplet.
        looseness: deviation of the timing in milliseconds.
        drum_level: dB against the accompaniment.
        bass: bass style names.
        bass_level: dB against the accompaniment.
        modes: of `MODES`.
        favourites: progressions with four times the weight of the rest of their mode.
        sevenths: probability that triads become seventh chords.
        bars_per_chord: 0.5, 1 or 2.
        accompaniment: styles.
        melody: styles.
        lead, chord, low, kit: names of instruments and kits in `gafx.data.music.render`.
        tilt: mean and deviation of the spectral tilt of the mix in dB per octave.
        cutoff: upper band limit of the mix in Hz.
        loudness: mean and deviation in dBFS RMS.
        room: reverberation time in seconds.
        wet: level of the room against the dry sound, in dB.
    """

    tempi: tuple[tuple[float, float, float], ...]
    patterns: Mapping[str, float]
    swing: tuple[float, float]
    looseness: tuple[float, float]
    drum_level: tuple[float, float]
    bass: Mapping[str, float]
    bass_level: tuple[float, float]
    modes: Mapping[str, float]
    favourites: frozenset[str]
    sevenths: float
    bars_per_chord: Mapping[float, float]
    accompaniment: Mapping[str, float]
    melody: Mapping[str, float]
    lead: Mapping[str, float]
    chord: Mapping[str, float]
    low: Mapping[str, float]
    kit: Mapping[str, float]
    tilt: tuple[float, float]
    cutoff: tuple[float, float]
    loudness: tuple[float, float]
    room: tuple[float, float]
    wet: tuple[float, float]


PROFILES: dict[str, Profile] = {
    "ambient": Profile(
        tempi=((0.7, 58, 85), (0.3, 85, 112)),
        patterns={"none": 4, "pulse": 4, "shaker": 2, "half_time": 1, "one_drop": 1},
        swing=(0.5, 0.52),
        looseness=(4, 14),
        drum_level=(-16, -6),
        bass={"pedal": 4, "long": 5, "dub": 1},
        bass_level=(-4, 3),
        modes={"major": 2, "minor": 3, "dorian": 3, "mixolydian": 2},
        favourites=frozenset({"I IV", "i IV", "i iv", "I I bVII bVII", "i i IV IV"}),
        sevenths=0.5,
        bars_per_chord={1: 3, 2: 6},
        accompaniment={"pad": 7, "arpeggio": 3, "blocks": 1},
        melody={"sparse": 5, "held": 4, "lyrical": 1},
        lead={"pad": 3, "flute": 2, "vibraphone": 2, "strings": 2, "epiano": 1},
        chord={"pad": 5, "strings": 4, "epiano": 1, "organ": 1, "pluck": 1},
        low={"sub": 5, "synth_bass": 2, "finger_bass": 1},
        kit={"machine": 3, "lofi": 4, "brush": 1},
        tilt=(-2.6, 0.5),
        cutoff=(4000, 9000),
        loudness=(-22, 3),
        room=(1.2, 3.0),
        wet=(-6, 1),
    ),
    "ballad": Profile(
        tempi=((0.75, 62, 88), (0.25, 88, 112)),
        patterns={
            "rim_ballad": 4,
            "brush_ballad": 3,
            "backbeat": 2,
            "half_time": 3,
            "none": 1,
            "swing_brush": 1,
            "swing_ride": 0.5,
        },
        swing=(0.5, 0.56),
        looseness=(4, 12),
        drum_level=(-10, -3),
        bass={"long": 5, "root_fifth": 4, "eighths": 1, "walking": 1, "bossa": 1},
        bass_level=(-4, 2),
        modes={"major": 6, "minor": 4},
        favourites=frozenset({"I V vi IV", "I vi IV V", "I iii IV V", "i bVI bIII bVII", "vi IV I V"}),
        sevenths=0.3,
        bars_per_chord={0.5: 2, 1: 6, 2: 1},
        accompaniment={"blocks": 4, "arpeggio": 4, "pad": 3, "strum": 1},
        melody={"lyrical": 7, "held": 2, "sparse": 1, "running": 1},
        lead={"strings": 2, "flute": 2, "piano": 4, "clarinet": 1, "steel_guitar": 1, "fiddle": 0.5},
        chord={"piano": 5, "strings": 3, "epiano": 3, "nylon_guitar": 1},
        low={"finger_bass": 5, "upright_bass": 2, "sub": 1},
        kit={"acoustic": 4, "brush": 4, "machine": 1},
        tilt=(-1.7, 0.4),
        cutoff=(6000, 11000),
        loudness=(-19, 2),
        room=(0.7, 2.2),
        wet=(-12, -4),
    ),
    "bossa": Profile(
        tempi=((0.7, 112, 150), (0.3, 88, 112)),
        patterns={"bossa": 7, "shaker": 2, "rim_ballad": 1, "brush_ballad": 1},
        swing=(0.5, 0.53),
        looseness=(4, 12),
        drum_level=(-10, -3),
        bass={"bossa": 6, "root_fifth": 3, "long": 1, "walking": 1},
        bass_level=(-4, 1),
        modes={"major": 5, "minor": 4, "dorian": 1},
        favourites=frozenset({"ii V I I", "I vi ii V", "iidim V i i", "i iv v i"}),
        sevenths=0.9,
        bars_per_chord={0.5: 1, 1: 6, 2: 2},
        accompaniment={"bossa": 7, "arpeggio": 1, "charleston": 2, "strum": 1},
        melody={"lyrical": 4, "syncopated": 4, "sparse": 1, "running": 1},
        lead={"flute": 4, "nylon_guitar": 2, "vibraphone": 2, "piano": 1, "clarinet": 2},
        chord={"nylon_guitar": 7, "epiano": 2, "piano": 2},
        low={"upright_bass": 6, "finger_bass": 3, "sub": 1},
        kit={"brush": 5, "acoustic": 3, "lofi": 1},
        tilt=(-0.3, 0.4),
        cutoff=(5500, 11000),
        loudness=(-19, 2),
        room=(0.3, 1.2),
        wet=(-16, -8),
    ),
    "disco": Profile(
        tempi=((0.85, 108, 128), (0.15, 95, 136)),
        patterns={"disco": 7, "four_floor": 3, "backbeat": 1, "funk_one": 1, "funk_two": 1},
        swing=(0.5, 0.53),
        looseness=(1, 6),
        drum_level=(-3, 4),
        bass={"octave": 6, "syncopated": 2, "eighths": 2, "offbeat": 1},
        bass_level=(-1, 4),
        modes={"major": 3, "minor": 5, "dorian": 3},
        favourites=frozenset({"i bVII IV i", "i bVI iv V", "I vi ii V", "i i iv bVII", "I iii IV V"}),
        sevenths=0.45,
        bars_per_chord={0.5: 1, 1: 6, 2: 2},
        accompaniment={"scratch": 4, "stab": 2, "pad": 3, "blocks": 1, "skank": 1},
        melody={"riff": 3, "lyrical": 3, "syncopated": 2, "held": 2},
        lead={"strings": 4, "brass": 4, "saw": 1, "epiano": 1, "flute": 1},
        chord={"strings": 3, "steel_guitar": 3, "epiano": 2, "piano": 2, "brass": 1, "clavinet": 1},
        low={"finger_bass": 6, "synth_bass": 3},
        kit={"acoustic": 5, "machine": 4},
        tilt=(1.4, 0.4),
        cutoff=(8000, 12000),
        loudness=(-15, 2),
        room=(0.3, 1.2),
        wet=(-16, -8),
    ),
    "dub": Profile(
        tempi=((0.7, 66, 86), (0.3, 128, 150)),
        patterns={"one_drop": 6, "steppers": 4, "half_time": 2, "pulse": 1},
        swing=(0.5, 0.6),
        looseness=(3, 9),
        drum_level=(-4, 4),
        bass={"dub": 8, "long": 1, "root_fifth": 1, "syncopated": 1},
        bass_level=(2, 8),
        modes={"minor": 6, "dorian": 2, "major": 2},
        favourites=frozenset({"i iv", "i iv v i", "i i iv bVII", "I IV"}),
        sevenths=0.25,
        bars_per_chord={1: 5, 2: 4},
        accompaniment={"skank": 8, "stab": 2, "pad": 1},
        melody={"sparse": 5, "riff": 2, "held": 1, "syncopated": 1},
        lead={"saw": 2, "organ": 2, "brass": 2, "flute": 2, "square": 2},
        chord={"organ": 5, "steel_guitar": 3, "piano": 2, "epiano": 1},
        low={"sub": 5, "finger_bass": 4, "synth_bass": 1},
        kit={"lofi": 4, "acoustic": 3, "machine": 2},
        tilt=(-2.4, 0.5),
        cutoff=(3500, 8000),
        loudness=(-16, 2),
        room=(0.9, 2.6),
        wet=(-10, -2),
    ),
    "folk": Profile(
        tempi=((0.6, 82, 120), (0.4, 120, 155)),
        patterns={"none": 3, "train": 4, "stomp": 4, "shaker": 2, "backbeat": 1, "shuffle": 1},
        swing=(0.5, 0.6),
        looseness=(6, 16),
        drum_level=(-12, -4),
        bass={"root_fifth": 6, "long": 3, "eighths": 1, "walking": 1, "pedal": 1},
        bass_level=(-7, 0),
        modes={"major": 5, "mixolydian": 3, "dorian": 2, "minor": 1},
        favourites=frozenset({"I IV I V", "I bVII IV I", "I v IV I", "I V vi IV", "i bVII IV i"}),
        sevenths=0.05,
        bars_per_chord={0.5: 2, 1: 7, 2: 1},
        accompaniment={"strum": 7, "arpeggio": 4, "blocks": 1},
        melody={"lyrical": 4, "running": 5, "sparse": 1},
        lead={"flute": 4, "steel_guitar": 3, "fiddle": 4, "nylon_guitar": 1},
        chord={"steel_guitar": 7, "nylon_guitar": 4, "piano": 1},
        low={"upright_bass": 6, "finger_bass": 3},
        kit={"brush": 4, "acoustic": 4, "lofi": 1},
        tilt=(0.7, 0.4),
        cutoff=(7000, 12000),
        loudness=(-19, 2),
        room=(0.2, 1.0),
        wet=(-18, -8),
    ),
    "funk": Profile(
        tempi=((0.75, 90, 114), (0.25, 114, 126)),
        patterns={"funk_one": 5, "funk_two": 5, "busy_backbeat": 3, "disco": 1},
        swing=(0.5, 0.58),
        looseness=(2, 8),
        drum_level=(-2, 4),
        bass={"syncopated": 8, "octave": 2, "eighths": 1},
        bass_level=(-1, 4),
        modes={"dorian": 5, "mixolydian": 5, "minor": 2},
        favourites=frozenset({"i IV", "i i IV IV", "I7 IV7 I7 V7", "I I bVII bVII", "ii i"}),
        sevenths=0.8,
        bars_per_chord={0.5: 1, 1: 4, 2: 5},
        accompaniment={"scratch": 6, "stab": 5, "charleston": 1, "pad": 1, "power": 1},
        melody={"riff": 5, "syncopated": 5, "sparse": 1},
        lead={"brass": 5, "organ": 2, "saw": 2, "epiano": 1, "square": 1, "distorted_guitar": 1},
        chord={"steel_guitar": 4, "epiano": 4, "organ": 3, "clavinet": 3, "distorted_guitar": 1},
        low={"finger_bass": 7, "synth_bass": 3},
        kit={"acoustic": 7, "lofi": 2, "machine": 1},
        tilt=(0.6, 0.4),
        cutoff=(7500, 12000),
        loudness=(-15, 2),
        room=(0.15, 0.7),
        wet=(-20, -10),
    ),
    "house": Profile(
        tempi=((0.9, 116, 130), (0.1, 104, 138)),
        patterns={"four_floor": 8, "disco": 2, "steppers": 1},
        swing=(0.5, 0.58),
        looseness=(0.2, 2),
        drum_level=(0, 6),
        bass={"offbeat": 5, "syncopated": 3, "octave": 2, "eighths": 1},
        bass_level=(0, 6),
        modes={"minor": 6, "dorian": 4, "major": 1},
        favourites=frozenset({"i bVI bIII bVII", "i i iv bVII", "i iv", "i IV"}),
        sevenths=0.5,
        bars_per_chord={1: 5, 2: 5},
        accompaniment={"stab": 6, "pad": 4, "arpeggio": 2, "skank": 1},
        melody={"riff": 4, "sparse": 3, "held": 2, "syncopated": 2},
        lead={"saw": 4, "square": 3, "pluck": 3, "piano": 1, "vibraphone": 1},
        chord={"saw": 2, "organ": 3, "piano": 3, "pad": 3, "pluck": 2},
        low={"synth_bass": 6, "sub": 4},
        kit={"machine": 8, "lofi": 1},
        tilt=(-0.3, 0.4),
        cutoff=(8500, 12000),
        loudness=(-13, 2),
        room=(0.3, 1.6),
        wet=(-16, -6),
    ),
    "rock": Profile(
        tempi=((0.6, 110, 148), (0.4, 76, 110)),
        patterns={"backbeat": 6, "busy_backbeat": 4, "half_time": 2, "shuffle": 1, "train": 1, "stomp": 1},
        swing=(0.5, 0.55),
        looseness=(2, 9),
        drum_level=(-2, 4),
        bass={"eighths": 7, "root_fifth": 2, "long": 1, "octave": 1},
        bass_level=(-4, 1),
        modes={"major": 3, "minor": 4, "mixolydian": 4},
        favourites=frozenset({"I bVII IV I", "I IV bVII IV", "i bVI bIII bVII", "i bVII bVI V", "I V vi IV"}),
        sevenths=0.05,
        bars_per_chord={0.5: 2, 1: 6, 2: 1},
        accompaniment={"power": 7, "strum": 4, "blocks": 1},
        melody={"riff": 4, "lyrical": 3, "running": 2, "syncopated": 1},
        lead={"distorted_guitar": 6, "saw": 1, "organ": 1, "steel_guitar": 2},
        chord={"distorted_guitar": 7, "steel_guitar": 3, "organ": 1, "piano": 1},
        low={"finger_bass": 7, "synth_bass": 1},
        kit={"acoustic": 8, "lofi": 1},
        tilt=(1.2, 0.4),
        cutoff=(6500, 11000),
        loudness=(-13, 2),
        room=(0.3, 1.5),
        wet=(-18, -8),
    ),
    "swing": Profile(
        tempi=((0.65, 120, 190), (0.35, 82, 120)),
        patterns={"swing_ride": 7, "swing_brush": 4, "shuffle": 2, "bossa": 1},
        swing=(0.6, 0.68),
        looseness=(4, 12),
        drum_level=(-8, -1),
        bass={"walking": 8, "root_fifth": 2, "long": 1},
        bass_level=(-2, 4),
        modes={"major": 6, "minor": 3, "mixolydian": 2, "dorian": 1},
        favourites=frozenset({"ii V I I", "I vi ii V", "I7 IV7 I7 V7", "iidim V i i"}),
        sevenths=0.9,
        bars_per_chord={0.5: 4, 1: 6, 2: 1},
        accompaniment={"charleston": 7, "blocks": 2, "stab": 1, "bossa": 1},
        melody={"running": 5, "syncopated": 4, "lyrical": 2},
        lead={"clarinet": 4, "brass": 4, "piano": 2, "vibraphone": 2},
        chord={"piano": 7, "vibraphone": 1, "nylon_guitar": 2, "brass": 1},
        low={"upright_bass": 8, "finger_bass": 1},
        kit={"brush": 6, "acoustic": 4},
        tilt=(-1.2, 0.4),
        cutoff=(4500, 8500),
        loudness=(-18, 2),
        room=(0.3, 1.3),
        wet=(-16, -8),
    ),
}

GENRES: tuple[str, ...] = tuple(sorted(PROFILES))

LOUDNESS_RANGE = (-30.0, -9.0)
SECONDS_RANGE = (1.0, 600.0)


class Note(NamedTuple):
    """A pitched event: times in seconds, `pitch` a MIDI number, `velocity` in (0, 1], `part` bass, chords or melody."""

    start: float
    duration: float
    pitch: int
    velocity: float
    part: str


class Hit(NamedTuple):
    """A drum stroke: time in seconds, `velocity` in (0, 1]."""

    start: float
    drum: str
    velocity: float


@dataclass(frozen=True)
class Score:
    """One track as plain data; `render` turns it into samples, `truth` into what a manifest stores.

    Attributes:
        genre: of `GENRES`, the label.
        index: number of the track within its genre.
        seed: seed of the set.
        vary: of `VARY`.
        seconds: length of the track.
        tempo: quarter notes per minute.
        swing: share of a beat (of half a beat where `swing_steps` is 2) that its first half takes; 0.5 is straight.
        swing_steps: 4 if eighths swing, 2 if sixteenths do.
        tonic: pitch class, 0 for C to 11 for B.
        mode: of `MODES`.
        progression: roman numerals of the cycle, before sevenths were added.
        chords: (start, end, name) in seconds, gapless from 0 to `seconds`, names in Harte's syntax ("A:min7").
        drum_pattern, bass_style, accompaniment, melody_style: names of the tables of this module.
        instruments: names of the instruments under "melody", "chords" and "bass", and of the "kit".
        levels: dB of each part against the accompaniment ("drums", "bass", "chords", "melody").
        tilt: slope of the mix's spectrum in dB per octave, on top of what the instruments make.
        cutoff: upper band limit of the mix in Hz.
        loudness: RMS of the whole track in dBFS (a full-scale square wave is 0).
        room: reverberation time in seconds (decay by 60 dB).
        wet: level of the room against the dry sound in dB.
        notes: pitched events, in order of time.
        drums: drum strokes, in order of time.
        sources: factor -> genre whose distribution it was drawn from; differs from `genre` where the factor is
            frozen or has strayed.
    """

    genre: str
    index: int
    seed: int
    vary: str
    seconds: float
    tempo: float
    swing: float
    swing_steps: int
    tonic: int
    mode: str
    progression: str
    chords: tuple[tuple[float, float, str], ...]
    drum_pattern: str
    bass_style: str
    accompaniment: str
    melody_style: str
    instruments: Mapping[str, str]
    levels: Mapping[str, float]
    tilt: float
    cutoff: float
    loudness: float
    room: float
    wet: float
    notes: tuple[Note, ...]
    drums: tuple[Hit, ...]
    sources: Mapping[str, str]

    @property
    def key(self) -> str:
        """Tonic and mode, for example "A minor"."""
        return f"{PITCH_CLASSES[self.tonic]} {self.mode}"

    @property
    def instrument(self) -> str:
        """Name of the instrument that plays the melody."""
        return self.instruments["melody"]

    def truth(self) -> dict[str, Any]:
        """What is known about the track, ready for JSON. Units as in the attributes; the notes are left out."""
        return {
            "genre": self.genre,
            "index": self.index,
            "seed": self.seed,
            "vary": self.vary,
            "seconds": self.seconds,
            "tempo": self.tempo,
            "swing": self.swing,
            "drum_pattern": self.drum_pattern,
            "bass_style": self.bass_style,
            "key": self.key,
            "tonic": self.tonic,
            "mode": self.mode,
            "progression": self.progression,
            "chords": [list(chord) for chord in self.chords],
            "accompaniment": self.accompaniment,
            "melody_style": self.melody_style,
            "instrument": self.instrument,
            "instruments": dict(self.instruments),
            "tilt": self.tilt,
            "loudness": self.loudness,
            "room": self.room,
            "wet": self.wet,
            "sources": dict(self.sources),
        }


class _Chord(NamedTuple):
    """A chord while composing: times in beats, `root` a pitch class."""

    start: float
    end: float
    root: int
    quality: str

    def tones(self) -> tuple[int, ...]:
        return QUALITIES[self.quality]


class _Event(NamedTuple):
    """A note while composing: `start` in beats before swing, `shift` in seconds after it."""

    start: float
    length: float
    pitch: int
    velocity: float
    shift: float


def stream(seed: int, genre: str, index: int, purpose: str) -> np.random.Generator:
    """The random stream of one purpose of one track; independent of every other stream."""
    # A CRC, not hash(): Python salts the hash of a string anew in every process.
    return np.random.default_rng((seed, crc32(genre.encode()), index, crc32(purpose.encode())))


def compose(genre: str, index: int, *, seed: int = 0, seconds: float = 10.0, vary: str = "all") -> Score:
    """Decide everything about one track.

    Args:
        genre: of `GENRES`.
        index: number of the track within its genre, from 0.
        seed: seed of the whole set, from 0.
        seconds: length, 1 to 600.
        vary: which factors depend on the genre, of `VARY`; the others are drawn from the pool of all genres.

    Returns:
        The same score for the same arguments, in every process.

    Raises:
        ValueError: an unknown genre or `vary`, a negative index or seed, a length out of range.
    """
    _check(genre, index, seed, seconds, vary)
    varied = VARY[vary]
    sources = {factor: _source(seed, genre, index, factor, factor in varied) for factor in FACTORS}
    # Decisions and the notes that follow from them have separate streams: how many random numbers a bass line takes
    # may depend on the chords, the choice of its style may not.
    decide = {factor: stream(seed, genre, index, factor) for factor in FACTORS}
    play = {factor: stream(seed, genre, index, factor + " notes") for factor in FACTORS}
    profile = {factor: PROFILES[sources[factor]] for factor in FACTORS}

    tempo = _tempo(decide["tempo"], profile["tempo"])
    beats = seconds * tempo / 60.0
    bars = int(np.ceil(beats / 4.0))

    rng, own = decide["drums"], profile["drums"]
    pattern = _pick(rng, own.patterns)
    swing = round(float(rng.uniform(*own.swing)), 3)
    looseness = float(rng.uniform(*own.looseness)) / 1000.0
    drum_level = float(rng.uniform(*own.drum_level))
    fill_rate = float(rng.uniform(0.2, 0.8))
    swing_steps = 4 if pattern in ("swing_ride", "swing_brush", "shuffle", "one_drop", "none", "train") else 2
    strokes = _drum_strokes(play["drums"], pattern, bars, looseness, fill_rate)

    rng, own = decide["harmony"], profile["harmony"]
    tonic = int(rng.integers(12))
    mode = _pick(rng, own.modes)
    progression = _pick(rng, {p: 4.0 if p in own.favourites else 1.0 for p in PROGRESSIONS[mode]})
    bars_per_chord = _pick(rng, own.bars_per_chord)
    sevenths = bool(rng.random() < own.sevenths)
    chords = _harmony(tonic, mode, progression, sevenths, 4.0 * bars_per_chord, 4.0 * bars)

    rng, own = decide["bass"], profile["bass"]
    bass_style = _pick(rng, own.bass)
    bass_level = float(rng.uniform(*own.bass_level))
    bass = _bass(play["bass"], bass_style, chords, tonic, mode, bars, looseness)

    rng, own = decide["accompaniment"], profile["accompaniment"]
    accompaniment = _pick(rng, own.accompaniment)
    centre = int(rng.integers(56, 65))
    comping = _accompaniment(play["accompaniment"], accompaniment, chords, centre, bars, looseness, tempo)

    rng, own = decide["melody"], profile["melody"]
    melody_style = _pick(rng, own.melody)
    melody_level = float(rng.uniform(-4.0, 3.0))
    register = int(rng.integers(66, 78))
    melody = _melody(play["melody"], melody_style, chords, tonic, mode, register, bars, looseness)

    rng, own = decide["timbre"], profile["timbre"]
    instruments = {
        "melody": _pick(rng, own.lead),
        "chords": _pick(rng, own.chord),
        "bass": _pick(rng, own.low),
        "kit": _pick(rng, own.kit),
    }
    tilt = round(float(rng.normal(*own.tilt)), 3)
    cutoff = round(float(np.exp(rng.uniform(*np.log(own.cutoff)))), 1)

    loudness = float(np.clip(decide["loudness"].normal(*profile["loudness"].loudness), *LOUDNESS_RANGE))
    low, high = profile["room"].room
    room = float(np.exp(decide["room"].uniform(np.log(low), np.log(high))))
    wet = float(decide["room"].uniform(*profile["room"].wet))

    def clock(beat: float) -> float:
        return _swung(beat, swing, swing_steps) * 60.0 / tempo

    notes = []
    for part, events in (("bass", bass), ("chords", comping), ("melody", melody)):
        for event in events:
            start = max(0.0, clock(event.start) + event.shift)
            duration = max(0.04, clock(event.start + event.length) - clock(event.start))
            if start < seconds:
                duration = min(duration, seconds - start)
                notes.append(Note(round(start, 5), round(duration, 5), event.pitch, round(event.velocity, 4), part))
    hits = []
    for start, drum, velocity, shift in strokes:
        time = max(0.0, clock(start) + shift)
        if time < seconds:
            hits.append(Hit(round(time, 5), drum, round(velocity, 4)))

    timed = []
    for chord in chords:
        start = round(chord.start * 60.0 / tempo, 5)
        if start < seconds:
            end = round(min(chord.end * 60.0 / tempo, seconds), 5)
            timed.append((start, end, f"{PITCH_CLASSES[chord.root]}:{chord.quality}"))
    timed[-1] = (timed[-1][0], float(seconds), timed[-1][2])

    return Score(
        genre=genre,
        index=int(index),
        seed=int(seed),
        vary=vary,
        seconds=float(seconds),
        tempo=tempo,
        swing=swing,
        swing_steps=swing_steps,
        tonic=tonic,
        mode=mode,
        progression=progression,
        chords=tuple(timed),
        drum_pattern=pattern,
        bass_style=bass_style,
        accompaniment=accompaniment,
        melody_style=melody_style,
        instruments=instruments,
        levels={"drums": drum_level, "bass": bass_level, "chords": 0.0, "melody": melody_level},
        tilt=tilt,
        cutoff=cutoff,
        loudness=round(loudness, 3),
        room=round(room, 4),
        wet=round(wet, 3),
        notes=tuple(sorted(notes)),
        drums=tuple(sorted(hits)),
        sources=sources,
    )


def _check(genre: str, index: int, seed: int, seconds: float, vary: str) -> None:
    for value, choices, what in ((genre, GENRES, "genre"), (vary, tuple(VARY), "vary")):
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown {what} {value!r}; choose one of {', '.join(choices)}.{hint}")
    for number, what in ((index, "index"), (seed, "seed")):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
            raise ValueError(f"{what} is {number!r}; it must be a whole number from 0 on.")
    if not SECONDS_RANGE[0] <= seconds <= SECONDS_RANGE[1]:
        raise ValueError(f"seconds is {seconds!r}; choose a length from {SECONDS_RANGE[0]:g} to {SECONDS_RANGE[1]:g}.")


def _source(seed: int, genre: str, index: int, factor: str, varied: bool) -> str:
    rng = stream(seed, genre, index, factor + " source")
    stray, pooled = rng.random() < STRAY, GENRES[rng.integers(len(GENRES))]
    return genre if varied and not stray else pooled


def _pick(rng: np.random.Generator, weights: Mapping[Any, float]) -> Any:
    names = list(weights)
    edges = np.cumsum([weights[name] for name in names])
    return names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def _choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _tempo(rng: np.random.Generator, profile: Profile) -> float:
    low, high = _pick(rng, {(low, high): weight for weight, low, high in profile.tempi})
    return round(float(rng.uniform(low, high)), 2)


def _swung(beat: float, swing: float, steps: int) -> float:
    """Move the middle of every unit (a beat, or half of one) from 0.5 to `swing`, stretching the halves linearly."""
    unit = steps / 4.0
    whole, phase = divmod(beat / unit, 1.0)
    warped = 2.0 * phase * swing if phase < 0.5 else swing + (2.0 * phase - 1.0) * (1.0 - swing)
    return (whole + warped) * unit


def _drum_strokes(
    rng: np.random.Generator, pattern: str, bars: int, looseness: float, fill_rate: float
) -> list[tuple[float, str, float, float]]:
    """(beat, drum, velocity, shift in seconds) of every stroke; a fill or a crash may mark each fourth bar."""
    lines = DRUM_PATTERNS[pattern]
    if not lines:
        return []
    heavy = "snare" in lines or "clap" in lines
    phase = int(rng.integers(4))  # the excerpt starts anywhere in the four-bar phrase
    strokes = []
    for bar in range(bars):
        place = (bar + phase) % 4
        fill = place == 3 and rng.random() < fill_rate
        for drum, line in lines.items():
            for step, mark in enumerate(line):
                if fill and step >= 12 and drum != "kick":
                    continue
                if mark == "." and not (
                    mark == "." and drum in ("kick", "snare", "rim", "tom") and rng.random() < 0.012
                ):
                    continue
                velocity, probability = HIT_STRENGTHS.get(mark, (0.4, 1.0))
                if rng.random() > probability:
                    continue
                velocity *= float(np.exp(rng.normal(0.0, 0.1)))
                strokes.append((4.0 * bar + step / 4.0, drum, min(velocity, 1.0), float(rng.normal(0.0, looseness))))
        if fill:
            for step in range(12, 16):
                if rng.random() < 0.8:
                    drum = ("snare" if step < 14 else "tom") if heavy else "tom"
                    velocity = 0.35 + 0.12 * (step - 12) + 0.2 * rng.random()
                    strokes.append((4.0 * bar + step / 4.0, drum, velocity, float(rng.normal(0.0, looseness))))
        if heavy and place == 0 and rng.random() < 0.4:
            strokes.append((4.0 * bar, "crash", 0.7, 0.0))
    return strokes


_NUMERAL = re.compile(r"(b?)([IViv]+)(7|dim)?")
_DEGREES = {"i": 0, "ii": 2, "iii": 4, "iv": 5, "v": 7, "vi": 9, "vii": 11}


def _harmony(
    tonic: int, mode: str, progression: str, sevenths: bool, beats_per_chord: float, beats: float
) -> list[_Chord]:
    cycle = []
    for numeral in progression.split():
        match = _NUMERAL.fullmatch(numeral)
        assert match is not None, numeral
        flat, roman, suffix = match.groups()
        quality = {"7": "7", "dim": "dim"}.get(suffix or "", "maj" if roman.isupper() else "min")
        if sevenths:
            major = "maj7" if (_DEGREES[roman.lower()] - bool(flat) + 11) % 12 in MODES[mode] else "7"
            quality = {"maj": major, "min": "min7", "dim": "hdim7"}.get(quality, quality)
        cycle.append(((tonic + _DEGREES[roman.lower()] - bool(flat)) % 12, quality))
    chords = []
    for position in range(int(np.ceil(beats / beats_per_chord))):
        root, quality = cycle[position % len(cycle)]
        chords.append(_Chord(position * beats_per_chord, (position + 1) * beats_per_chord, root, quality))
    return chords


def _chord_at(chords: Sequence[_Chord], beat: float) -> _Chord:
    return chords[min(int(beat / (chords[0].end - chords[0].start)), len(chords) - 1)]


def _cells(template: str) -> list[tuple[int, int, str]]:
    """(step, length in steps, letter) of a bar: "R--.O-" holds R for three steps and O for two."""
    return [(m.start(), len(m.group()), m.group()[0]) for m in re.finditer(r"[A-Z]-*", template)]


def _bass(
    rng: np.random.Generator, style: str, chords: Sequence[_Chord], tonic: int, mode: str, bars: int, looseness: float
) -> list[_Event]:
    templates = [_choose(rng, BASS_STYLES[style]) for _ in range(2)]
    lowest = int(rng.integers(28, 33))
    walk = lowest + 7
    events = []
    for bar in range(bars):
        for step, length, letter in _cells(templates[int(bar % 4 == 3)]):
            beat = 4.0 * bar + step / 4.0
            chord = _chord_at(chords, beat)
            root = lowest + (chord.root - lowest) % 12
            if letter == "W":
                walk = _walk(rng, walk, chord, beat, lowest, tonic, mode)
                pitch = walk
            else:
                tones = chord.tones()
                pedal = lowest + (tonic - lowest) % 12
                pitch = {"R": root, "F": root + tones[2], "T": root + tones[1], "O": root + 12, "P": pedal}[letter]
            velocity = min(1.0, (0.85 if step % 4 == 0 else 0.7) * float(np.exp(rng.normal(0.0, 0.08))))
            gap = 0.9 if length > 1 else 0.75
            events.append(_Event(beat, gap * length / 4.0, pitch, velocity, float(rng.normal(0.0, 0.6 * looseness))))
    return events


def _walk(rng: np.random.Generator, last: int, chord: _Chord, beat: float, lowest: int, tonic: int, mode: str) -> int:
    """Next note of a walking bass: the root where the chord starts, else a chord or scale tone near the last."""
    if beat == chord.start:
        classes = {chord.root}
    else:
        classes = {(chord.root + t) % 12 for t in chord.tones()} | {(tonic + s) % 12 for s in MODES[mode]}
    near = [p for p in range(lowest, lowest + 20) if p % 12 in classes and p != last]
    near.sort(key=lambda p: abs(p - last))
    if beat == chord.start:
        return near[0] if near else last
    return near[int(rng.integers(min(3, len(near))))]


def _voicing(chord: _Chord, centre: int) -> list[int]:
    """The chord's tones in close position, each at its octave nearest to `centre`."""
    return sorted(centre - 6 + (chord.root + tone - (centre - 6)) % 12 for tone in chord.tones())


def _accompaniment(
    rng: np.random.Generator,
    style: str,
    chords: Sequence[_Chord],
    centre: int,
    bars: int,
    looseness: float,
    tempo: float,
) -> list[_Event]:
    template = _choose(rng, ACCOMPANIMENTS[style])
    order = _choose(rng, ("up", "down", "up_down"))
    turn = 0
    events = []
    for bar in range(bars):
        cells = _cells(template)
        if style == "pad":
            # A pad moves with the chords, not with the bar.
            starts = sorted({4.0 * bar} | {c.start for c in chords if 4.0 * bar <= c.start < 4.0 * bar + 4.0})
            edges = [*starts, 4.0 * bar + 4.0]
            cells = [(int(4 * (a - 4.0 * bar)), int(4 * (b - a)), "C") for a, b in itertools.pairwise(edges)]
        for step, length, letter in cells:
            beat = 4.0 * bar + step / 4.0
            chord = _chord_at(chords, beat)
            pitches = _voicing(chord, centre)
            accent = (0.8 if step % 8 == 0 else 0.65) * float(np.exp(rng.normal(0.0, 0.1)))
            shift = float(rng.normal(0.0, looseness))
            if letter == "A":
                ladder = [*pitches, pitches[0] + 12]
                ladder = {"up": ladder, "down": ladder[::-1], "up_down": ladder + ladder[-2:0:-1]}[order]
                pitch = ladder[turn % len(ladder)]
                turn += 1
                events.append(_Event(beat, 1.6 * length / 4.0, pitch, min(1.0, accent), shift))
                continue
            hold = {"S": 0.16}.get(letter, 0.95 * length / 4.0)
            if style == "power":
                # Thirds turn to mud under distortion; guitarists leave them out, or nearly.
                root = centre - 14 + (chord.root - centre + 14) % 12
                pitches = [root, root + chord.tones()[2], root + 12]
            elif letter in "DU":
                pitches = [*pitches, pitches[0] + 12]
            if letter == "U":
                pitches = pitches[::-1][:3]
            spread = float(rng.uniform(0.006, 0.014)) if letter in "DU" else 0.0
            for number, pitch in enumerate(pitches):
                velocity = min(1.0, accent * float(np.exp(rng.normal(0.0, 0.05))))
                events.append(_Event(beat, hold, pitch, velocity, shift + number * spread))
    return events


def _melody(
    rng: np.random.Generator,
    style: str,
    chords: Sequence[_Chord],
    tonic: int,
    mode: str,
    register: int,
    bars: int,
    looseness: float,
) -> list[_Event]:
    """Two motifs of a bar each, repeated in a form and bent to the chords: strong notes fall on chord tones."""
    scale = [p for p in range(register - 12, register + 15) if (p - tonic) % 12 in MODES[mode]]
    middle = len(scale) // 2
    motifs = []
    for _ in range(2):
        cells = _cells(_choose(rng, MELODY_STYLES[style]))
        motifs.append((cells, rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3], size=len(cells))))
    if not motifs[0][0]:  # a melody that never sounds would make its stored instrument untrue
        cells = _cells(MELODY_STYLES[style][0])
        motifs[0] = (cells, rng.choice([-2, -1, 1, 2], size=len(cells)))
    form = _choose(rng, ("AABA", "ABAB", "AAAB", "ABAA"))
    events = []
    position = middle
    for bar in range(bars):
        cells, steps = motifs["AB".index(form[bar % 4])]
        position = middle + int(rng.integers(-2, 3))
        for (step, length, _), move in zip(cells, steps, strict=True):
            if rng.random() < 0.12:  # no two repetitions are quite the same
                move = int(rng.integers(-2, 3))
            position = int(np.clip(position + move, 0, len(scale) - 1))
            beat = 4.0 * bar + step / 4.0
            pitch = scale[position]
            if step % 4 == 0 or length >= 4:
                chord = _chord_at(chords, beat)
                tones = {(chord.root + t) % 12 for t in chord.tones()}
                pitch = min(range(pitch - 4, pitch + 5), key=lambda p: (p % 12 not in tones, abs(p - scale[position])))
            velocity = min(1.0, (0.85 if step % 4 == 0 else 0.7) * float(np.exp(rng.normal(0.0, 0.1))))
            shift = float(rng.normal(0.004, 1.2 * looseness))
            events.append(_Event(beat, 0.93 * length / 4.0, pitch, velocity, shift))
    return events
