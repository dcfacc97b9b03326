"""Draw a `Score` from a genre's distributions: all properties of a synthetic track as plain data, without samples.

A track is drawn factor by factor (`FACTORS`). Each factor has its own random generators, keyed by
(seed, genre, index, factor), so the draws of one factor do not affect another, and a track does not depend on the
number of other tracks or their order. A factor that `vary` does not select, and with probability `STRAY` also a
selected one, is drawn from the pool: a uniformly random genre, then that genre's distribution. Under `vary="rhythm"`,
for example, chords and instruments have the distribution of the whole set, independent of the genre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gafx.errors import UsageError, did_you_mean
from gafx.studies.synth.accompaniment import accompany
from gafx.studies.synth.bass import bass_line
from gafx.studies.synth.chance import pick, stream
from gafx.studies.synth.genres import GENRES, PROFILES, Profile
from gafx.studies.synth.harmony import PITCH_CLASSES, PROGRESSIONS, Chord, harmonise
from gafx.studies.synth.melody import melody_line
from gafx.studies.synth.rhythm import SWUNG_EIGHTHS, Clock, Event, Stroke, drum_strokes

FACTORS = ("tempo", "drums", "bass", "harmony", "accompaniment", "melody", "timbre", "loudness", "room")

VARY: dict[str, tuple[str, ...]] = {
    "all": FACTORS,
    "rhythm": ("tempo", "drums"),
    **{factor: (factor,) for factor in FACTORS},
}

STRAY = 0.05
"""Probability that a selected factor is drawn from the pool of all genres; sets the difficulty of the task."""

_TRUTH = (
    "genre", "index", "seed", "vary", "seconds", "tempo", "swing", "drum_pattern", "bass_style", "key", "tonic", "mode",
    "progression", "chords", "accompaniment", "melody_style", "instrument", "instruments", "tilt", "loudness", "room",
    "wet", "sources",
)  # fmt: skip
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
    """One track as plain data; `render` synthesizes it, `truth` returns what a manifest stores.

    Attributes:
        genre: of `GENRES`, the label.
        index: number of the track within its genre.
        seed: seed of the set.
        vary: of `VARY`.
        seconds: length of the track.
        tempo: quarter notes per minute.
        swing: relative length of the first half of a beat (of half a beat if `swing_steps` is 2); 0.5 is straight.
        swing_steps: 4 if eighths swing, 2 if sixteenths do.
        tonic: pitch class, 0 for C to 11 for B.
        mode: of `gafx.studies.synth.harmony.MODES`.
        progression: Roman numerals of the cycle, before sevenths are added.
        chords: (start, end, name) in seconds, without gaps from 0 to `seconds`, names in Harte's syntax ("A:min7").
        drum_pattern, bass_style, accompaniment, melody_style: names in the tables of the modules `rhythm`, `bass`,
            `accompaniment` and `melody`.
        instruments: names of the instruments under "melody", "chords" and "bass", and of the "kit".
        levels: dB of each part relative to the accompaniment ("drums", "bass", "chords", "melody").
        tilt: slope of the mix filter in dB per octave.
        cutoff: upper band limit of the mix in Hz.
        loudness: RMS of the whole track in dBFS (a full-scale square wave is 0).
        room: reverberation time in seconds (decay by 60 dB).
        wet: level of the reverberation relative to the direct sound in dB.
        notes: pitched events, in order of time.
        drums: drum strokes, in order of time.
        sources: factor -> genre whose distribution it was drawn from; may differ from `genre` for factors that are
            not selected, or strayed.
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
        """Name of the instrument of the melody."""
        return self.instruments["melody"]

    def truth(self) -> dict[str, Any]:
        """Return the track's properties for JSON, without the notes. Units as in the attributes."""
        properties = {name: getattr(self, name) for name in _TRUTH}
        return properties | {
            "chords": [list(chord) for chord in self.chords],
            "instruments": dict(self.instruments),
            "sources": dict(self.sources),
        }


def compose(genre: str, index: int, *, seed: int = 0, seconds: float = 10.0, vary: str = "all") -> Score:
    """Draw all properties of one track.

    Args:
        genre: of `GENRES`.
        index: number of the track within its genre, from 0.
        seed: seed of the whole set, from 0.
        seconds: length, 1 to 600.
        vary: the factors that depend on the genre, of `VARY`; the others are drawn from the pool of all genres.

    Returns:
        The same score for the same arguments, in every process.

    Raises:
        UsageError: an unknown genre or `vary`, a negative index or seed, a length out of range.
    """
    _check(genre, index, seed, seconds, vary)
    sources = {factor: _source(seed, genre, index, factor, factor in VARY[vary]) for factor in FACTORS}
    # Styles and notes have separate generators: the number of draws for a bass line may depend on the chords, the
    # choice of its style may not.
    decide = {factor: stream(seed, genre, index, factor) for factor in FACTORS}
    play = {factor: stream(seed, genre, index, factor + " notes") for factor in FACTORS}
    profile = {factor: PROFILES[sources[factor]] for factor in FACTORS}

    tempo = _tempo(decide["tempo"], profile["tempo"])
    bars = int(np.ceil(seconds * tempo / 60.0 / 4.0))

    rng, own = decide["drums"], profile["drums"]
    pattern = pick(rng, own.patterns)
    swing = round(float(rng.uniform(*own.swing)), 3)
    looseness = float(rng.uniform(*own.looseness)) / 1000.0
    drum_level = float(rng.uniform(*own.drum_level))
    fill_rate = float(rng.uniform(0.2, 0.8))
    clock = Clock(tempo, swing, steps=4 if pattern in SWUNG_EIGHTHS else 2)
    strokes = drum_strokes(play["drums"], pattern, bars, looseness, fill_rate)

    rng, own = decide["harmony"], profile["harmony"]
    tonic = int(rng.integers(12))
    mode = pick(rng, own.modes)
    progression = pick(rng, {p: 4.0 if p in own.favourites else 1.0 for p in PROGRESSIONS[mode]})
    bars_per_chord = pick(rng, own.bars_per_chord)
    sevenths = bool(rng.random() < own.sevenths)
    harmony = harmonise(tonic, mode, progression, sevenths, 4.0 * bars_per_chord, 4.0 * bars)

    rng, own = decide["bass"], profile["bass"]
    bass_style = pick(rng, own.bass)
    bass_level = float(rng.uniform(*own.bass_level))
    bass = bass_line(play["bass"], bass_style, harmony, bars, looseness)

    rng, own = decide["accompaniment"], profile["accompaniment"]
    accompaniment = pick(rng, own.accompaniment)
    centre = int(rng.integers(56, 65))
    comping = accompany(play["accompaniment"], accompaniment, harmony, centre, bars, looseness)

    rng, own = decide["melody"], profile["melody"]
    melody_style = pick(rng, own.melody)
    melody_level = float(rng.uniform(-4.0, 3.0))
    register = int(rng.integers(66, 78))
    melody = melody_line(play["melody"], melody_style, harmony, register, bars, looseness)

    rng, own = decide["timbre"], profile["timbre"]
    instruments = {
        "melody": pick(rng, own.lead),
        "chords": pick(rng, own.chord),
        "bass": pick(rng, own.low),
        "kit": pick(rng, own.kit),
    }
    tilt = round(float(rng.normal(*own.tilt)), 3)
    cutoff = round(float(np.exp(rng.uniform(*np.log(own.cutoff)))), 1)

    loudness = float(np.clip(decide["loudness"].normal(*profile["loudness"].loudness), *LOUDNESS_RANGE))
    low, high = profile["room"].room
    room = float(np.exp(decide["room"].uniform(np.log(low), np.log(high))))
    wet = float(decide["room"].uniform(*profile["room"].wet))

    return Score(
        genre=genre,
        index=int(index),
        seed=int(seed),
        vary=vary,
        seconds=float(seconds),
        tempo=tempo,
        swing=swing,
        swing_steps=clock.steps,
        tonic=tonic,
        mode=mode,
        progression=progression,
        chords=_timed(harmony.chords, clock, seconds),
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
        notes=_notes({"bass": bass, "chords": comping, "melody": melody}, clock, seconds),
        drums=_hits(strokes, clock, seconds),
        sources=sources,
    )


def _check(genre: str, index: int, seed: int, seconds: float, vary: str) -> None:
    for value, choices, what in ((genre, GENRES, "genre"), (vary, tuple(VARY), "vary")):
        if value not in choices:
            hint = did_you_mean(str(value), choices) or ";"
            raise UsageError(f"unknown {what} {value!r}{hint} choose one of: {', '.join(choices)}")
    for number, what in ((index, "index"), (seed, "seed")):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
            raise UsageError(f"{what} is {number!r}; it must be a whole number from 0 on")
    low, high = SECONDS_RANGE
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, np.number)) or not low <= seconds <= high:
        raise UsageError(f"seconds is {seconds!r}; choose a length from {low:g} to {high:g}")


def _source(seed: int, genre: str, index: int, factor: str, varied: bool) -> str:
    rng = stream(seed, genre, index, factor + " source")
    stray, pooled = rng.random() < STRAY, GENRES[rng.integers(len(GENRES))]
    return genre if varied and not stray else pooled


def _tempo(rng: np.random.Generator, profile: Profile) -> float:
    low, high = pick(rng, {(low, high): weight for weight, low, high in profile.tempi})
    return round(float(rng.uniform(low, high)), 2)


def _notes(parts: Mapping[str, Sequence[Event]], clock: Clock, seconds: float) -> tuple[Note, ...]:
    notes = []
    for part, events in parts.items():
        for event in events:
            onset = clock.swung(event.start)
            start = max(0.0, onset + event.shift)
            if start < seconds:
                duration = min(max(0.04, clock.swung(event.start + event.length) - onset), seconds - start)
                notes.append(Note(round(start, 5), round(duration, 5), event.pitch, round(event.velocity, 4), part))
    return tuple(sorted(notes))


def _hits(strokes: Sequence[Stroke], clock: Clock, seconds: float) -> tuple[Hit, ...]:
    hits = []
    for stroke in strokes:
        start = max(0.0, clock.swung(stroke.start) + stroke.shift)
        if start < seconds:
            hits.append(Hit(round(start, 5), stroke.drum, round(stroke.velocity, 4)))
    return tuple(sorted(hits))


def _timed(chords: Sequence[Chord], clock: Clock, seconds: float) -> tuple[tuple[float, float, str], ...]:
    """Return (start, end, name) in seconds, without gaps from 0 to `seconds`; chords change on the unswung beat."""
    timed = []
    for chord in chords:
        start = round(clock.straight(chord.start), 5)
        if start < seconds:
            timed.append((start, round(min(clock.straight(chord.end), seconds), 5), chord.name))
    timed[-1] = (timed[-1][0], float(seconds), timed[-1][2])
    return tuple(timed)
