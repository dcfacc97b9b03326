"""Melody: rhythms of motifs, and a melody composed of two motifs."""

from __future__ import annotations

import numpy as np

from gafx.studies.synth.chance import choose
from gafx.studies.synth.harmony import Harmony
from gafx.studies.synth.rhythm import Event, cells

# N next note; "-" holds, "." rests.
MELODY_STYLES: dict[str, tuple[str, ...]] = {
    "sparse": ("N-------........", "....N-----------", "N---N-----------", "................"),
    "held": ("N---------------", "N-------N-------"),
    "lyrical": ("N-----N-N---N---", "N---N---N-------", "..N-N-N-N-------", "N-----N-N-----..", "N---N-N-N---...."),
    "riff": ("N-N-..N-N-..N-..", "N..N..N-....N-N-", "N.N.N...N.N.N..."),
    "syncopated": ("..N..N..N-..N-N.", "N..N.N.N..N-..N.", "...N--N-...N--N-"),
    "running": ("N-N-N-N-N-N-N-N-", "N-N-N-N-N---..N-", "..N-N-NNN-N-N-N-"),
}


def melody_line(
    rng: np.random.Generator, style: str, harmony: Harmony, register: int, bars: int, looseness: float
) -> list[Event]:
    """Return the notes of a melody: two motifs of one bar, repeated in a form; strong notes are moved to chord tones.

    Args:
        rng: generator for the notes of this part.
        style: of `MELODY_STYLES`.
        harmony: key and chords.
        register: MIDI number at the middle of the melody's range.
        bars: number of bars.
        looseness: std of the timing in seconds.
    """
    key = harmony.scale
    scale = [p for p in range(register - 12, register + 15) if p % 12 in key]
    middle = len(scale) // 2
    motifs = []
    for _ in range(2):
        rhythm = cells(choose(rng, MELODY_STYLES[style]))
        motifs.append((rhythm, rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3], size=len(rhythm))))
    if not motifs[0][0]:  # a melody that never sounds would make its stored instrument untrue
        rhythm = cells(MELODY_STYLES[style][0])
        motifs[0] = (rhythm, rng.choice([-2, -1, 1, 2], size=len(rhythm)))
    form = choose(rng, ("AABA", "ABAB", "AAAB", "ABAA"))
    events = []
    position = middle
    for bar in range(bars):
        rhythm, steps = motifs["AB".index(form[bar % 4])]
        position = middle + int(rng.integers(-2, 3))
        for (step, length, _), move in zip(rhythm, steps, strict=True):
            if rng.random() < 0.12:  # no two repetitions are quite the same
                move = int(rng.integers(-2, 3))
            position = int(np.clip(position + move, 0, len(scale) - 1))
            beat = 4.0 * bar + step / 4.0
            pitch = scale[position]
            if step % 4 == 0 or length >= 4:
                tones = harmony.at(beat).pitch_classes
                pitch = min(range(pitch - 4, pitch + 5), key=lambda p: (p % 12 not in tones, abs(p - scale[position])))
            velocity = min(1.0, (0.85 if step % 4 == 0 else 0.7) * float(np.exp(rng.normal(0.0, 0.1))))
            shift = float(rng.normal(0.004, 1.2 * looseness))
            events.append(Event(beat, 0.93 * length / 4.0, pitch, velocity, shift))
    return events
