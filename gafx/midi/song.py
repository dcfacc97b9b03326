"""A piece of music as notes in beats, with its tempos."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# A beat is a quarter note. `pitch` is a MIDI number (60 is C4), `program` a General MIDI instrument counted from 0;
# a drum's pitch says which drum, and its program nothing.
NOTE = np.dtype(
    [
        ("start", np.float64),
        ("duration", np.float64),
        ("pitch", np.int16),
        ("velocity", np.int16),
        ("program", np.int16),
        ("drum", np.bool_),
        ("track", np.int32),
    ]
)
TEMPO = 120.0  # quarter notes per minute where a file has none (Standard MIDI Files 1.0)
TICKS = 480  # per beat, of files that are written


def _standard_tempo() -> npt.NDArray[np.float64]:
    return np.array([[0.0, TEMPO]])


@dataclass(frozen=True, eq=False)
class Song:
    """A piece of music.

    Attributes:
        notes: `(notes,)` of dtype `NOTE`, sorted by start and pitch; start and duration in beats, pitch in 0..127,
            velocity in 1..127, program in 0..127.
        ticks_per_beat: resolution of the file.
        tempos: `(changes, 2)` of beat and quarter notes per minute, by beat, the first at beat 0.
        name: of the file, without its ending.
        repairs: what was wrong with the file and how it was read all the same, a sentence each.
        skipped: number of tokens that fitted nowhere and were left out (of a decoded song).
    """

    notes: npt.NDArray[np.void]
    ticks_per_beat: int = TICKS
    tempos: npt.NDArray[np.float64] = field(default_factory=_standard_tempo)
    name: str = ""
    repairs: tuple[str, ...] = ()
    skipped: int = 0

    @classmethod
    def silence(cls) -> "Song":
        """Return a song without notes."""
        return cls(np.zeros(0, NOTE))

    def __len__(self) -> int:
        return len(self.notes)

    @property
    def length(self) -> float:
        """End of the last note, in beats."""
        return float((self.notes["start"] + self.notes["duration"]).max(initial=0.0))

    @property
    def duration(self) -> float:
        """End of the last note, in seconds."""
        return float(self.seconds(self.length))

    def seconds(self, beats: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the times of positions in beats, in seconds, by the song's tempos; any shape."""
        beat, tempo = self.tempos.T
        times = np.concatenate([[0.0], np.cumsum(np.diff(beat) * 60 / tempo[:-1])])
        where = np.asarray(beats, np.float64)
        number = np.maximum(np.searchsorted(beat, where, "right") - 1, 0)
        return times[number] + (where - beat[number]) * 60 / tempo[number]


def make_notes(rows: Iterable[tuple[float, float, int, int, int, bool, int]]) -> npt.NDArray[np.void]:
    """Return notes of dtype `NOTE`, sorted, from tuples in the order of its fields."""
    return sort_notes(np.array(list(rows), NOTE))


def sort_notes(notes: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return notes sorted by start, pitch and track."""
    return notes[np.lexsort((notes["track"], notes["pitch"], notes["start"]))]
