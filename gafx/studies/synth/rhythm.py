"""Rhythm: drum patterns, rhythms of notes, and the conversion of beats to seconds.

Time is measured in beats (quarter notes) and steps (sixteenths, 16 per bar of 4/4). `Clock` converts beats to seconds
as the last step and applies swing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Sixteen steps per bar. X accent, x plain, o soft (may be left out), g ghost note (often left out).
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

SWUNG_EIGHTHS = frozenset({"swing_ride", "swing_brush", "shuffle", "one_drop", "none", "train"})
"""Drum patterns with swung eighths; the others have swung sixteenths."""


class Event(NamedTuple):
    """A note while composing: `start` and `length` in beats before swing, `pitch` a MIDI number, `shift` in seconds."""

    start: float
    length: float
    pitch: int
    velocity: float
    shift: float


class Stroke(NamedTuple):
    """A drum stroke while composing: `start` in beats before swing, `shift` in seconds."""

    start: float
    drum: str
    velocity: float
    shift: float


@dataclass(frozen=True)
class Clock:
    """Conversion of beats to seconds.

    Attributes:
        tempo: beats per minute.
        swing: relative length of the first half of a unit; 0.5 is straight.
        steps: sixteenths in a unit, 4 if eighths swing, 2 if sixteenths do.
    """

    tempo: float
    swing: float
    steps: int

    def straight(self, beat: float) -> float:
        """Return the time of a beat without swing, in seconds."""
        return beat * 60.0 / self.tempo

    def swung(self, beat: float) -> float:
        """Return the time of a beat in seconds, with the middle of each unit moved from 0.5 to `swing`."""
        unit = self.steps / 4.0
        whole, phase = divmod(beat / unit, 1.0)
        warped = 2.0 * phase * self.swing if phase < 0.5 else self.swing + (2.0 * phase - 1.0) * (1.0 - self.swing)
        return self.straight((whole + warped) * unit)


def cells(template: str) -> list[tuple[int, int, str]]:
    """Parse a bar into (step, length in steps, letter): "R--.O-" is R for three steps and O for two."""
    return [(m.start(), len(m.group()), m.group()[0]) for m in re.finditer(r"[A-Z]-*", template)]


def drum_strokes(rng: np.random.Generator, pattern: str, bars: int, looseness: float, fill_rate: float) -> list[Stroke]:
    """Return the strokes of a pattern, with random fills at the end of four-bar phrases and crashes at their start.

    Args:
        rng: generator for the notes of this part.
        pattern: of `DRUM_PATTERNS`.
        bars: number of bars.
        looseness: std of the timing in seconds.
        fill_rate: probability of a fill.
    """
    lines = DRUM_PATTERNS[pattern]
    if not lines:
        return []
    heavy = "snare" in lines or "clap" in lines
    phase = int(rng.integers(4))  # position of the first bar in its four-bar phrase
    strokes: list[Stroke] = []
    for bar in range(bars):
        bar_in_phrase = (bar + phase) % 4
        fill = bar_in_phrase == 3 and rng.random() < fill_rate
        for drum, line in lines.items():
            for step, mark in enumerate(line):
                if fill and step >= 12 and drum != "kick":
                    continue
                if mark == "." and not (drum in ("kick", "snare", "rim", "tom") and rng.random() < 0.012):
                    continue
                velocity, probability = HIT_STRENGTHS.get(mark, (0.4, 1.0))
                if rng.random() > probability:
                    continue
                velocity *= float(np.exp(rng.normal(0.0, 0.1)))
                shift = float(rng.normal(0.0, looseness))
                strokes.append(Stroke(4.0 * bar + step / 4.0, drum, min(velocity, 1.0), shift))
        if fill:
            for step in range(12, 16):
                if rng.random() < 0.8:
                    drum = ("snare" if step < 14 else "tom") if heavy else "tom"
                    velocity = 0.35 + 0.12 * (step - 12) + 0.2 * rng.random()
                    shift = float(rng.normal(0.0, looseness))
                    strokes.append(Stroke(4.0 * bar + step / 4.0, drum, velocity, shift))
        if heavy and bar_in_phrase == 0 and rng.random() < 0.4:
            strokes.append(Stroke(4.0 * bar, "crash", 0.7, 0.0))
    return strokes
