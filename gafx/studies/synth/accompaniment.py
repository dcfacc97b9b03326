"""Accompaniment: styles of playing chords, and the notes of a style."""

from __future__ import annotations

import itertools

import numpy as np

from gafx.studies.synth.chance import choose
from gafx.studies.synth.harmony import Harmony
from gafx.studies.synth.rhythm import Event, cells

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


def accompany(
    rng: np.random.Generator, style: str, harmony: Harmony, centre: int, bars: int, looseness: float
) -> list[Event]:
    """Return the notes of the chords in a style.

    Args:
        rng: generator for the notes of this part.
        style: of `ACCOMPANIMENTS`.
        harmony: key and chords.
        centre: MIDI number at the middle of the chords' range.
        bars: number of bars.
        looseness: std of the timing in seconds.
    """
    template = choose(rng, ACCOMPANIMENTS[style])
    order = choose(rng, ("up", "down", "up_down"))
    turn = 0
    events = []
    for bar in range(bars):
        bar_cells = cells(template)
        if style == "pad":
            # A pad starts new notes with the chords, not with the bar.
            starts = sorted({4.0 * bar} | {c.start for c in harmony.chords if 4.0 * bar <= c.start < 4.0 * bar + 4.0})
            edges = [*starts, 4.0 * bar + 4.0]
            bar_cells = [(int(4 * (a - 4.0 * bar)), int(4 * (b - a)), "C") for a, b in itertools.pairwise(edges)]
        for step, length, letter in bar_cells:
            beat = 4.0 * bar + step / 4.0
            chord = harmony.at(beat)
            pitches = chord.voicing(centre)
            accent = (0.8 if step % 8 == 0 else 0.65) * float(np.exp(rng.normal(0.0, 0.1)))
            shift = float(rng.normal(0.0, looseness))
            if letter == "A":
                ladder = [*pitches, pitches[0] + 12]
                ladder = {"up": ladder, "down": ladder[::-1], "up_down": ladder + ladder[-2:0:-1]}[order]
                pitch = ladder[turn % len(ladder)]
                turn += 1
                events.append(Event(beat, 1.6 * length / 4.0, pitch, min(1.0, accent), shift))
                continue
            hold = {"S": 0.16}.get(letter, 0.95 * length / 4.0)
            if style == "power":
                # Power chords have no third: its intermodulation under distortion is dissonant.
                root = centre - 14 + (chord.root - centre + 14) % 12
                pitches = [root, root + chord.tones[2], root + 12]
            elif letter in "DU":
                pitches = [*pitches, pitches[0] + 12]
            if letter == "U":
                pitches = pitches[::-1][:3]
            spread = float(rng.uniform(0.006, 0.014)) if letter in "DU" else 0.0
            for number, pitch in enumerate(pitches):
                velocity = min(1.0, accent * float(np.exp(rng.normal(0.0, 0.05))))
                events.append(Event(beat, hold, pitch, velocity, shift + number * spread))
    return events
