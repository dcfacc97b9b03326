"""Songs as sequences of tokens, and back.

A vocabulary is a tuple of words; a token is the number of a word. The first four words are `SPECIAL`. Two schemes:

`notes`, as in the studies of jazz with VAEs: a word for each onset, of a note its name (`F2`), of a chord the pitch
classes in normal order (`9.11.1.4`), folded into one octave. Rhythm, dynamics, instruments and drums are lost. The
vocabulary is collected from songs.

`events`: time shifts, pitches with durations, velocities, programs and drums, so that a sequence can be played. Time
is counted in 24ths of a beat, which holds triplets and 32nds alike and is 21 ms at 120 beats a minute; onsets are
rounded from the beginning of the song, so that errors do not add up. A velocity or program is a token only where it
changes (as in Oore et al., "This time with feeling", 2018): a sequence begins at velocity 80 and program 0. A drum
stroke has no duration.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError
from gafx.midi.song import TEMPO, Song, make_notes

Scheme = Literal["notes", "events"]
SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
PAD, BEGIN, END, UNKNOWN = range(4)

# Where a sequence of tokens takes the place of a wave: one token is one sample, at this "sampling rate".
TOKEN_RATE = 1

STEPS = 24  # per beat
# Time shifts and durations in steps: all up to a beat, then six to the octave up to 16 beats. A longer shift is several
# tokens, so that any time is reached exactly; a duration is the nearest of these.
SPANS = (*range(1, 25), *range(28, 49, 4), *range(56, 97, 8), *range(112, 193, 16), *range(224, 385, 32))
VELOCITIES = (*range(4, 125, 4), 127)
START_VELOCITY, START_PROGRAM = 80, 0
_DRUM_STEPS = 6  # duration of a drum stroke when it is played
_NOTE_BEATS = 0.5  # duration of an onset of the scheme `notes` when it is played
_LOWEST_CHORD = 48  # C3: the octave that a chord's first pitch class is played in

_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Songs to tokens and back, for one vocabulary; `tokenizer` makes it.

    Attributes:
        scheme: of the tokens.
        vocabulary: the words, `SPECIAL` first.
    """

    scheme: Scheme
    vocabulary: tuple[str, ...]
    _number: dict[str, int] = field(init=False, repr=False)
    _moved: dict[int, Tokens] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {word: number for number, word in enumerate(self.vocabulary)})

    def encode(self, song: Song) -> Tokens:
        """Return a song as tokens `(tokens,)`, without `<begin>` and `<end>`; words outside it are `<unknown>`."""
        get = self._number.get
        return np.array([get(word, UNKNOWN) for word in words(song, self.scheme)], np.int64)

    def decode(self, tokens: npt.ArrayLike, tempo: float = TEMPO) -> Song:
        """Return the song of any tokens, up to the first `<end>`.

        Tokens that fit nowhere, such as a duration without a pitch, are left out; `Song.skipped` is their number.
        `<pad>` and `<begin>` are nothing. A pitch without a duration is as long as the one before it.

        Args:
            tokens: whole numbers, of any shape; those outside the vocabulary are left out as well.
            tempo: quarter notes per minute; also the speed of the scheme `notes`, whose onsets are half a beat each.
        """
        ids = np.asarray(tokens).astype(np.int64).ravel()
        if len(ends := np.flatnonzero(ids == END)):
            ids = ids[: ends[0]]
        ids = ids[(ids != PAD) & (ids != BEGIN)]
        known = ids[(ids > UNKNOWN) & (ids < len(self.vocabulary))]
        play = _play_notes if self.scheme == "notes" else _play_events
        rows, skipped = play([self.vocabulary[number] for number in known.tolist()])
        song = Song(make_notes(rows), tempos=np.array([[0.0, float(tempo)]]))
        return replace(song, skipped=skipped + len(ids) - len(known))

    def transpose(self, tokens: npt.ArrayLike, semitones: int) -> Tokens | None:
        """Return tokens moved by semitones; `None` where one leaves MIDI's range or has no word in the vocabulary.

        Drums stay as they are.
        """
        if semitones not in self._moved:
            move = _moved_note if self.scheme == "notes" else _moved_event
            moved = [self._number.get(move(word, semitones), -1) for word in self.vocabulary[len(SPECIAL) :]]
            self._moved[semitones] = np.array([*range(len(SPECIAL)), *moved], np.int64)
        found = self._moved[semitones][np.asarray(tokens, np.int64)]
        return None if (found < 0).any() else found


def tokenizer(scheme: str, vocabulary: Sequence[str] | None = None) -> Tokenizer:
    """Return the tokenizer of a scheme.

    Args:
        scheme: `notes` or `events`.
        vocabulary: words, `SPECIAL` first, e.g. of `collect` or a model's classes. Default: all of `events`.

    Raises:
        UsageError: an unknown scheme; `notes` without a vocabulary; words of another scheme.
    """
    if scheme not in get_args(Scheme):
        raise UsageError(f"scheme={scheme!r} is none of {', '.join(get_args(Scheme))}")
    if vocabulary is None:
        if scheme == "notes":
            raise UsageError("the scheme 'notes' needs a vocabulary, which is collected from songs")
        vocabulary = (*SPECIAL, *_event_words())
    if (other := scheme_of(vocabulary)) != scheme:
        raise UsageError(f"the vocabulary is of {f'the scheme {other!r}' if other else 'no tokens'}, not of {scheme!r}")
    return Tokenizer(scheme, tuple(vocabulary))


def scheme_of(vocabulary: Sequence[str]) -> Scheme | None:
    """Return the scheme of a vocabulary, e.g. of a model's classes; `None` if it is none of tokens."""
    if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
        return None
    return "events" if any("=" in word for word in vocabulary[len(SPECIAL) :]) else "notes"


def collect(songs: Iterable[Song], scheme: Scheme = "notes", min_count: int = 1) -> tuple[str, ...]:
    """Return the vocabulary of songs; see `vocabulary_of`."""
    counts: Counter[str] = Counter()
    for song in songs:
        counts.update(words(song, scheme))
    return vocabulary_of(counts, scheme, min_count)


def vocabulary_of(counts: Mapping[str, int], scheme: Scheme, min_count: int = 1) -> tuple[str, ...]:
    """Return a vocabulary from the number of times that each word occurs.

    Of `notes` it has every word that occurs, notes by pitch and then chords. Of `events` it has all time shifts,
    durations, velocities and pitches, and those programs and drums that occur.

    Args:
        counts: of `words`.
        scheme: of the words.
        min_count: words of `notes` that occur less often are left out, and read as `<unknown>`.
    """
    if scheme == "notes":
        return (*SPECIAL, *sorted((word for word, count in counts.items() if count >= min_count), key=_sorting))
    optional = ("program=", "drum=")
    return (*SPECIAL, *(word for word in _event_words() if not word.startswith(optional) or counts.get(word)))


def words(song: Song, scheme: Scheme) -> list[str]:
    """Return a song as words."""
    return _note_words(song) if scheme == "notes" else _words_of_events(song)


@cache
def _event_words() -> tuple[str, ...]:
    groups: dict[str, Iterable[int]] = {
        "shift": SPANS, "length": SPANS, "velocity": VELOCITIES, "pitch": range(128), "program": range(128),
        "drum": range(128),
    }  # fmt: skip
    return tuple(f"{name}={value}" for name, values in groups.items() for value in values)


def _words_of_events(song: Song) -> list[str]:
    notes = song.notes
    start = np.rint(notes["start"] * STEPS).astype(np.int64)
    program = np.where(notes["drum"], -1, notes["program"])
    order = np.lexsort((notes["pitch"], program, start))
    length = _nearest(notes["duration"] * STEPS, SPANS)
    velocity = _nearest(notes["velocity"], VELOCITIES)
    found: list[str] = []
    now, loud, instrument = 0, START_VELOCITY, START_PROGRAM
    columns = (start, program, notes["pitch"], length, velocity)
    for onset, plays, pitch, lasts, level in zip(*(column[order].tolist() for column in columns), strict=True):
        if onset > now:
            found += _shifts(onset - now)
            now = onset
        if level != loud:
            found.append(f"velocity={level}")
            loud = level
        if plays < 0:
            found.append(f"drum={pitch}")
            continue
        if plays != instrument:
            found.append(f"program={plays}")
            instrument = plays
        found += (f"pitch={pitch}", f"length={lasts}")
    return found


def _shifts(steps: int) -> list[str]:
    found = [f"shift={SPANS[-1]}"] * (steps // SPANS[-1])
    rest = steps % SPANS[-1]
    while rest:
        span = next(span for span in reversed(SPANS) if span <= rest)
        found.append(f"shift={span}")
        rest -= span
    return found


def _nearest(values: npt.NDArray[Any], choices: Sequence[int]) -> Tokens:
    """Return the nearest of ascending choices to each value, the higher of two."""
    table = np.asarray(choices)
    return table[np.searchsorted((table[1:] + table[:-1]) / 2, values, "right")]


def _play_events(found: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """Return notes as tuples in the order of `NOTE`, a track for each program, and the number of words left out."""
    rows: list[list[Any]] = []
    tracks: dict[int, int] = {}
    now, loud, program, skipped, last = 0, START_VELOCITY, START_PROGRAM, 0, STEPS // 2
    waiting: list[Any] | None = None  # a pitch whose duration has not come yet
    for word in found:
        name, _, text = word.partition("=")
        value = int(text)
        if name == "length":
            if waiting is None:
                skipped += 1
            else:
                waiting[1], last = value / STEPS, value
            waiting = None
            continue
        waiting = None
        if name == "shift":
            now += value
        elif name == "velocity":
            loud = value
        elif name == "program":
            program = value
        else:
            drum = name == "drum"
            track = tracks.setdefault(-1 if drum else program, len(tracks))
            steps = _DRUM_STEPS if drum else last
            rows.append([now / STEPS, steps / STEPS, value, loud, 0 if drum else program, drum, track])
            waiting = None if drum else rows[-1]
    return [tuple(row) for row in rows], skipped


def _moved_event(word: str, semitones: int) -> str:
    name, _, value = word.partition("=")
    return f"pitch={int(value) + semitones}" if name == "pitch" else word


def _note_words(song: Song) -> list[str]:
    """Return a word for each onset; onsets in one 24th of a beat are one."""
    notes = song.notes[~song.notes["drum"]]
    onset = np.rint(notes["start"] * STEPS).astype(np.int64)
    order = np.lexsort((notes["pitch"], onset))
    onset, pitch = onset[order], notes["pitch"][order]
    begins = np.flatnonzero(np.diff(onset, prepend=-1))
    found = []
    for group in np.split(pitch, begins[1:]) if len(pitch) else []:
        pitches = sorted(set(group.tolist()))
        found.append(_name(pitches[0]) if len(pitches) == 1 else _chord(pitches))
    return found


def _name(pitch: int) -> str:
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def _pitch(name: str) -> int:
    step = next(length for length in (2, 1) if name[:length] in _NAMES)
    return 12 * (int(name[step:]) + 1) + _NAMES.index(name[:step])


def _chord(pitches: Iterable[int]) -> str:
    """Pitch classes in normal order: the rotation with the smallest span, then the one packed most to the left."""
    classes = sorted({pitch % 12 for pitch in pitches})
    turns = [classes[start:] + classes[:start] for start in range(len(classes))]
    best = min(turns, key=_packing)
    return ".".join(map(str, best))


def _packing(turn: Sequence[int]) -> tuple[int, ...]:
    return (*((one - turn[0]) % 12 for one in reversed(turn)), turn[0])


def _is_chord(word: str) -> bool:
    return word[:1].isdigit()


def _sorting(word: str) -> tuple[bool, int, str]:
    return (True, word.count("."), word) if _is_chord(word) else (False, _pitch(word), word)


def _moved_note(word: str, semitones: int) -> str:
    if _is_chord(word):
        return _chord(int(one) + semitones for one in word.split("."))
    return _name(pitch) if 0 <= (pitch := _pitch(word) + semitones) < 128 else ""


def _play_notes(found: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """Return notes as tuples in the order of `NOTE`; every word can be played."""
    rows: list[tuple[Any, ...]] = []
    for number, word in enumerate(found):
        pitches = [_pitch(word)] if not _is_chord(word) else []
        if not pitches:
            first, *others = (int(one) for one in word.split("."))
            pitches = [_LOWEST_CHORD + first]
            for one in others:  # each above the one before
                pitches.append(pitches[-1] + (one - pitches[-1]) % 12)
        rows += [
            (number * _NOTE_BEATS, _NOTE_BEATS, pitch, START_VELOCITY, START_PROGRAM, False, 0) for pitch in pitches
        ]
    return rows, 0
