"""Genres: the distributions that all properties of a track are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The distributions of one genre. Mappings are name -> weight; pairs are (low, high) unless stated otherwise.

    Attributes:
        tempi: mixture of uniform distributions, (weight, low, high) in BPM.
        patterns: drum patterns of `gafx.studies.synth.rhythm`.
        swing: relative length of the first half of a beat (or half beat); 0.5 is straight, 0.67 a triplet.
        looseness: std of the timing in milliseconds.
        drum_level: dB relative to the accompaniment.
        bass: styles of `gafx.studies.synth.bass`.
        bass_level: dB relative to the accompaniment.
        modes: of `gafx.studies.synth.harmony`.
        favourites: progressions with four times the weight of the others in their mode.
        sevenths: probability that triads become seventh chords.
        bars_per_chord: 0.5, 1 or 2.
        accompaniment: styles of `gafx.studies.synth.accompaniment`.
        melody: styles of `gafx.studies.synth.melody`.
        lead, chord, low: names in `gafx.studies.synth.instruments`.
        kit: names in `gafx.studies.synth.drums`.
        tilt: mean and std of the spectral tilt of the mix in dB per octave.
        cutoff: upper band limit of the mix in Hz.
        loudness: mean and std in dBFS RMS.
        room: reverberation time in seconds.
        wet: level of the reverberation relative to the direct sound, in dB.
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
        swing=(0.5, 0.52), looseness=(4, 14), drum_level=(-16, -6),
        bass={"pedal": 4, "long": 5, "dub": 1}, bass_level=(-4, 3),
        modes={"major": 2, "minor": 3, "dorian": 3, "mixolydian": 2}, sevenths=0.5, bars_per_chord={1: 3, 2: 6},
        favourites=frozenset({"I IV", "i IV", "i iv", "I I bVII bVII", "i i IV IV"}),
        accompaniment={"pad": 7, "arpeggio": 3, "blocks": 1}, melody={"sparse": 5, "held": 4, "lyrical": 1},
        lead={"pad": 3, "flute": 2, "vibraphone": 2, "strings": 2, "epiano": 1},
        chord={"pad": 5, "strings": 4, "epiano": 1, "organ": 1, "pluck": 1},
        low={"sub": 5, "synth_bass": 2, "finger_bass": 1}, kit={"machine": 3, "lofi": 4, "brush": 1},
        tilt=(-2.6, 0.5), cutoff=(4000, 9000), loudness=(-22, 3), room=(1.2, 3.0), wet=(-6, 1),
    ),
    "ballad": Profile(
        tempi=((0.75, 62, 88), (0.25, 88, 112)),
        patterns={"rim_ballad": 4, "brush_ballad": 3, "backbeat": 2, "half_time": 3, "none": 1, "swing_brush": 1,
            "swing_ride": 0.5},
        swing=(0.5, 0.56), looseness=(4, 12), drum_level=(-10, -3),
        bass={"long": 5, "root_fifth": 4, "eighths": 1, "walking": 1, "bossa": 1}, bass_level=(-4, 2),
        modes={"major": 6, "minor": 4}, sevenths=0.3, bars_per_chord={0.5: 2, 1: 6, 2: 1},
        favourites=frozenset({"I V vi IV", "I vi IV V", "I iii IV V", "i bVI bIII bVII", "vi IV I V"}),
        accompaniment={"blocks": 4, "arpeggio": 4, "pad": 3, "strum": 1},
        melody={"lyrical": 7, "held": 2, "sparse": 1, "running": 1},
        lead={"strings": 2, "flute": 2, "piano": 4, "clarinet": 1, "steel_guitar": 1, "fiddle": 0.5},
        chord={"piano": 5, "strings": 3, "epiano": 3, "nylon_guitar": 1},
        low={"finger_bass": 5, "upright_bass": 2, "sub": 1}, kit={"acoustic": 4, "brush": 4, "machine": 1},
        tilt=(-1.7, 0.4), cutoff=(6000, 11000), loudness=(-19, 2), room=(0.7, 2.2), wet=(-12, -4),
    ),
    "bossa": Profile(
        tempi=((0.7, 112, 150), (0.3, 88, 112)),
        patterns={"bossa": 7, "shaker": 2, "rim_ballad": 1, "brush_ballad": 1},
        swing=(0.5, 0.53), looseness=(4, 12), drum_level=(-10, -3),
        bass={"bossa": 6, "root_fifth": 3, "long": 1, "walking": 1}, bass_level=(-4, 1),
        modes={"major": 5, "minor": 4, "dorian": 1}, sevenths=0.9, bars_per_chord={0.5: 1, 1: 6, 2: 2},
        favourites=frozenset({"ii V I I", "I vi ii V", "iidim V i i", "i iv v i"}),
        accompaniment={"bossa": 7, "arpeggio": 1, "charleston": 2, "strum": 1},
        melody={"lyrical": 4, "syncopated": 4, "sparse": 1, "running": 1},
        lead={"flute": 4, "nylon_guitar": 2, "vibraphone": 2, "piano": 1, "clarinet": 2},
        chord={"nylon_guitar": 7, "epiano": 2, "piano": 2},
        low={"upright_bass": 6, "finger_bass": 3, "sub": 1}, kit={"brush": 5, "acoustic": 3, "lofi": 1},
        tilt=(-0.3, 0.4), cutoff=(5500, 11000), loudness=(-19, 2), room=(0.3, 1.2), wet=(-16, -8),
    ),
    "disco": Profile(
        tempi=((0.85, 108, 128), (0.15, 95, 136)),
        patterns={"disco": 7, "four_floor": 3, "backbeat": 1, "funk_one": 1, "funk_two": 1},
        swing=(0.5, 0.53), looseness=(1, 6), drum_level=(-3, 4),
        bass={"octave": 6, "syncopated": 2, "eighths": 2, "offbeat": 1}, bass_level=(-1, 4),
        modes={"major": 3, "minor": 5, "dorian": 3}, sevenths=0.45, bars_per_chord={0.5: 1, 1: 6, 2: 2},
        favourites=frozenset({"i bVII IV i", "i bVI iv V", "I vi ii V", "i i iv bVII", "I iii IV V"}),
        accompaniment={"scratch": 4, "stab": 2, "pad": 3, "blocks": 1, "skank": 1},
        melody={"riff": 3, "lyrical": 3, "syncopated": 2, "held": 2},
        lead={"strings": 4, "brass": 4, "saw": 1, "epiano": 1, "flute": 1},
        chord={"strings": 3, "steel_guitar": 3, "epiano": 2, "piano": 2, "brass": 1, "clavinet": 1},
        low={"finger_bass": 6, "synth_bass": 3}, kit={"acoustic": 5, "machine": 4},
        tilt=(1.4, 0.4), cutoff=(8000, 12000), loudness=(-15, 2), room=(0.3, 1.2), wet=(-16, -8),
    ),
    "dub": Profile(
        tempi=((0.7, 66, 86), (0.3, 128, 150)),
        patterns={"one_drop": 6, "steppers": 4, "half_time": 2, "pulse": 1},
        swing=(0.5, 0.6), looseness=(3, 9), drum_level=(-4, 4),
        bass={"dub": 8, "long": 1, "root_fifth": 1, "syncopated": 1}, bass_level=(2, 8),
        modes={"minor": 6, "dorian": 2, "major": 2}, sevenths=0.25, bars_per_chord={1: 5, 2: 4},
        favourites=frozenset({"i iv", "i iv v i", "i i iv bVII", "I IV"}),
        accompaniment={"skank": 8, "stab": 2, "pad": 1}, melody={"sparse": 5, "riff": 2, "held": 1, "syncopated": 1},
        lead={"saw": 2, "organ": 2, "brass": 2, "flute": 2, "square": 2},
        chord={"organ": 5, "steel_guitar": 3, "piano": 2, "epiano": 1},
        low={"sub": 5, "finger_bass": 4, "synth_bass": 1}, kit={"lofi": 4, "acoustic": 3, "machine": 2},
        tilt=(-2.4, 0.5), cutoff=(3500, 8000), loudness=(-16, 2), room=(0.9, 2.6), wet=(-10, -2),
    ),
    "folk": Profile(
        tempi=((0.6, 82, 120), (0.4, 120, 155)),
        patterns={"none": 3, "train": 4, "stomp": 4, "shaker": 2, "backbeat": 1, "shuffle": 1},
        swing=(0.5, 0.6), looseness=(6, 16), drum_level=(-12, -4),
        bass={"root_fifth": 6, "long": 3, "eighths": 1, "walking": 1, "pedal": 1}, bass_level=(-7, 0),
        modes={"major": 5, "mixolydian": 3, "dorian": 2, "minor": 1}, sevenths=0.05,
        bars_per_chord={0.5: 2, 1: 7, 2: 1},
        favourites=frozenset({"I IV I V", "I bVII IV I", "I v IV I", "I V vi IV", "i bVII IV i"}),
        accompaniment={"strum": 7, "arpeggio": 4, "blocks": 1}, melody={"lyrical": 4, "running": 5, "sparse": 1},
        lead={"flute": 4, "steel_guitar": 3, "fiddle": 4, "nylon_guitar": 1},
        chord={"steel_guitar": 7, "nylon_guitar": 4, "piano": 1},
        low={"upright_bass": 6, "finger_bass": 3}, kit={"brush": 4, "acoustic": 4, "lofi": 1},
        tilt=(0.7, 0.4), cutoff=(7000, 12000), loudness=(-19, 2), room=(0.2, 1.0), wet=(-18, -8),
    ),
    "funk": Profile(
        tempi=((0.75, 90, 114), (0.25, 114, 126)),
        patterns={"funk_one": 5, "funk_two": 5, "busy_backbeat": 3, "disco": 1},
        swing=(0.5, 0.58), looseness=(2, 8), drum_level=(-2, 4),
        bass={"syncopated": 8, "octave": 2, "eighths": 1}, bass_level=(-1, 4),
        modes={"dorian": 5, "mixolydian": 5, "minor": 2}, sevenths=0.8, bars_per_chord={0.5: 1, 1: 4, 2: 5},
        favourites=frozenset({"i IV", "i i IV IV", "I7 IV7 I7 V7", "I I bVII bVII", "ii i"}),
        accompaniment={"scratch": 6, "stab": 5, "charleston": 1, "pad": 1, "power": 1},
        melody={"riff": 5, "syncopated": 5, "sparse": 1},
        lead={"brass": 5, "organ": 2, "saw": 2, "epiano": 1, "square": 1, "distorted_guitar": 1},
        chord={"steel_guitar": 4, "epiano": 4, "organ": 3, "clavinet": 3, "distorted_guitar": 1},
        low={"finger_bass": 7, "synth_bass": 3}, kit={"acoustic": 7, "lofi": 2, "machine": 1},
        tilt=(0.6, 0.4), cutoff=(7500, 12000), loudness=(-15, 2), room=(0.15, 0.7), wet=(-20, -10),
    ),
    "house": Profile(
        tempi=((0.9, 116, 130), (0.1, 104, 138)),
        patterns={"four_floor": 8, "disco": 2, "steppers": 1},
        swing=(0.5, 0.58), looseness=(0.2, 2), drum_level=(0, 6),
        bass={"offbeat": 5, "syncopated": 3, "octave": 2, "eighths": 1}, bass_level=(0, 6),
        modes={"minor": 6, "dorian": 4, "major": 1}, sevenths=0.5, bars_per_chord={1: 5, 2: 5},
        favourites=frozenset({"i bVI bIII bVII", "i i iv bVII", "i iv", "i IV"}),
        accompaniment={"stab": 6, "pad": 4, "arpeggio": 2, "skank": 1},
        melody={"riff": 4, "sparse": 3, "held": 2, "syncopated": 2},
        lead={"saw": 4, "square": 3, "pluck": 3, "piano": 1, "vibraphone": 1},
        chord={"saw": 2, "organ": 3, "piano": 3, "pad": 3, "pluck": 2},
        low={"synth_bass": 6, "sub": 4}, kit={"machine": 8, "lofi": 1},
        tilt=(-0.3, 0.4), cutoff=(8500, 12000), loudness=(-13, 2), room=(0.3, 1.6), wet=(-16, -6),
    ),
    "rock": Profile(
        tempi=((0.6, 110, 148), (0.4, 76, 110)),
        patterns={"backbeat": 6, "busy_backbeat": 4, "half_time": 2, "shuffle": 1, "train": 1, "stomp": 1},
        swing=(0.5, 0.55), looseness=(2, 9), drum_level=(-2, 4),
        bass={"eighths": 7, "root_fifth": 2, "long": 1, "octave": 1}, bass_level=(-4, 1),
        modes={"major": 3, "minor": 4, "mixolydian": 4}, sevenths=0.05, bars_per_chord={0.5: 2, 1: 6, 2: 1},
        favourites=frozenset({"I bVII IV I", "I IV bVII IV", "i bVI bIII bVII", "i bVII bVI V", "I V vi IV"}),
        accompaniment={"power": 7, "strum": 4, "blocks": 1},
        melody={"riff": 4, "lyrical": 3, "running": 2, "syncopated": 1},
        lead={"distorted_guitar": 6, "saw": 1, "organ": 1, "steel_guitar": 2},
        chord={"distorted_guitar": 7, "steel_guitar": 3, "organ": 1, "piano": 1},
        low={"finger_bass": 7, "synth_bass": 1}, kit={"acoustic": 8, "lofi": 1},
        tilt=(1.2, 0.4), cutoff=(6500, 11000), loudness=(-13, 2), room=(0.3, 1.5), wet=(-18, -8),
    ),
    "swing": Profile(
        tempi=((0.65, 120, 190), (0.35, 82, 120)),
        patterns={"swing_ride": 7, "swing_brush": 4, "shuffle": 2, "bossa": 1},
        swing=(0.6, 0.68), looseness=(4, 12), drum_level=(-8, -1),
        bass={"walking": 8, "root_fifth": 2, "long": 1}, bass_level=(-2, 4),
        modes={"major": 6, "minor": 3, "mixolydian": 2, "dorian": 1}, sevenths=0.9, bars_per_chord={0.5: 4, 1: 6, 2: 1},
        favourites=frozenset({"ii V I I", "I vi ii V", "I7 IV7 I7 V7", "iidim V i i"}),
        accompaniment={"charleston": 7, "blocks": 2, "stab": 1, "bossa": 1},
        melody={"running": 5, "syncopated": 4, "lyrical": 2},
        lead={"clarinet": 4, "brass": 4, "piano": 2, "vibraphone": 2},
        chord={"piano": 7, "vibraphone": 1, "nylon_guitar": 2, "brass": 1},
        low={"upright_bass": 8, "finger_bass": 1}, kit={"brush": 6, "acoustic": 4},
        tilt=(-1.2, 0.4), cutoff=(4500, 8500), loudness=(-18, 2), room=(0.3, 1.3), wet=(-16, -8),
    ),
}  # fmt: skip

GENRES: tuple[str, ...] = tuple(sorted(PROFILES))
