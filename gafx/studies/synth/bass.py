"""Bass: styles, and the bass line of a style for given chords."""

from __future__ import annotations

import numpy as np

from gafx.studies.synth.chance import choose
from gafx.studies.synth.harmony import Harmony
from gafx.studies.synth.rhythm import Event, cells

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


def bass_line(rng: np.random.Generator, style: str, harmony: Harmony, bars: int, looseness: float) -> list[Event]:
    """Return the notes of the bass: one pattern for three bars and another for the fourth.

    Args:
        rng: generator for the notes of this part.
        style: of `BASS_STYLES`.
        harmony: key and chords.
        bars: number of bars.
        looseness: std of the timing in seconds.
    """
    templates = [choose(rng, BASS_STYLES[style]) for _ in range(2)]
    lowest = int(rng.integers(28, 33))
    walk = lowest + 7
    events = []
    for bar in range(bars):
        for step, length, letter in cells(templates[int(bar % 4 == 3)]):
            beat = 4.0 * bar + step / 4.0
            chord = harmony.at(beat)
            root = lowest + (chord.root - lowest) % 12
            if letter == "W":
                walk = _walk(rng, walk, harmony, beat, lowest)
                pitch = walk
            else:
                tones = chord.tones
                pedal = lowest + (harmony.tonic - lowest) % 12
                pitch = {"R": root, "F": root + tones[2], "T": root + tones[1], "O": root + 12, "P": pedal}[letter]
            velocity = min(1.0, (0.85 if step % 4 == 0 else 0.7) * float(np.exp(rng.normal(0.0, 0.08))))
            gap = 0.9 if length > 1 else 0.75
            events.append(Event(beat, gap * length / 4.0, pitch, velocity, float(rng.normal(0.0, 0.6 * looseness))))
    return events


def _walk(rng: np.random.Generator, last: int, harmony: Harmony, beat: float, lowest: int) -> int:
    """Return the next note of a walking bass: the root at the start of a chord, else a near chord or scale tone."""
    chord = harmony.at(beat)
    classes = {chord.root} if beat == chord.start else chord.pitch_classes | harmony.scale
    near = [p for p in range(lowest, lowest + 20) if p % 12 in classes and p != last]
    near.sort(key=lambda p: abs(p - last))
    if beat == chord.start:
        return near[0] if near else last
    return near[int(rng.integers(min(3, len(near))))]
