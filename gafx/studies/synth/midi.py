"""Scores as MIDI: a program of General MIDI for each part, drums on channel 10."""

import numpy as np

from gafx.midi.song import Song, make_notes
from gafx.studies.synth.score import Score

# Programs counted from 0, the nearest that General MIDI has to each instrument.
PROGRAMS = {
    "piano": 0, "epiano": 4, "clavinet": 7, "vibraphone": 11, "organ": 16, "nylon_guitar": 24, "steel_guitar": 25,
    "distorted_guitar": 30, "upright_bass": 32, "finger_bass": 33, "synth_bass": 38, "sub": 39, "fiddle": 110,
    "pluck": 45, "strings": 48, "brass": 61, "clarinet": 71, "flute": 73, "square": 80, "saw": 81, "pad": 89,
}  # fmt: skip
DRUM_KEYS = {
    "kick": 36, "rim": 37, "snare": 38, "clap": 39, "brush": 40, "hat": 42, "tom": 45, "open_hat": 46, "crash": 49,
    "ride": 51, "shaker": 70,
}  # fmt: skip
_PARTS = ("melody", "chords", "bass")
_STROKE = 0.25  # beats that a drum's key is held


def song_of(score: Score) -> Song:
    """Return a score as a song at its tempo, a track for each part; swing and loose timing are kept."""
    beats = score.tempo / 60
    rows = [
        (note.start * beats, note.duration * beats, note.pitch, _velocity(note.velocity),
         PROGRAMS[score.instruments[note.part]], False, _PARTS.index(note.part))
        for note in score.notes
    ]  # fmt: skip
    rows += [
        (hit.start * beats, _STROKE, DRUM_KEYS[hit.drum], _velocity(hit.velocity), 0, True, len(_PARTS))
        for hit in score.drums
    ]
    return Song(make_notes(rows), tempos=np.array([[0.0, score.tempo]]), name=f"{score.genre}.{score.index:05d}")


def _velocity(level: float) -> int:
    return max(1, min(127, round(127 * level)))
