"""Songs as MIDI files."""

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gafx.io import write_bytes
from gafx.midi.song import Song

_DRUMS = 9  # channel of General MIDI's drums, counted from 0
_CHANNELS = [channel for channel in range(16) if channel != _DRUMS]
_SLOWEST = 60e6 / 0xFFFFFF  # quarter notes per minute that three bytes of microseconds hold
_LONGEST = 0x0FFFFFFF  # ticks between two events, four bytes of seven bits


def write_midi(song: Song, path: str | os.PathLike[str]) -> None:
    """Write a song as a MIDI file of type 1, atomically; the same bytes for the same song.

    A track for tempos and name, then one for each track, program and drum kit of the song. A key sounds once: of two
    notes of one pitch that overlap in a track, the first ends where the second begins, and of two that begin together
    the longer one is written, since readers differ in which end belongs to which.

    Args:
        song: times are rounded to `song.ticks_per_beat`; a note lasts at least one tick.
        path: of the file to create or replace.
    """
    write_bytes(Path(path), midi_bytes(song))


def midi_bytes(song: Song) -> bytes:
    """Return a song as the content of a MIDI file; see `write_midi`."""
    notes = song.notes
    kinds = np.stack([notes["track"], notes["drum"], np.where(notes["drum"], 0, notes["program"])]).astype(np.int64)
    parts, part = np.unique(kinds, axis=1, return_inverse=True)
    part = part.reshape(-1)
    melodic = np.cumsum(parts[1] == 0) - 1
    tracks = [_head(song)]
    for number, (_, drum, program) in enumerate(parts.T.tolist()):
        channel = _DRUMS if drum else _CHANNELS[melodic[number] % len(_CHANNELS)]
        # More parts than channels share them: each of their notes then names its program.
        shared = not drum and int((parts[1] == 0).sum()) > len(_CHANNELS)
        change = b"" if drum else bytes([0xC0 | channel, program])
        tracks.append(_part(notes[part == number], song.ticks_per_beat, channel, change, always=shared))
    header = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), song.ticks_per_beat)
    return header + b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)


def _head(song: Song) -> bytes:
    """The first track: name and tempos."""
    events = [(0, 0, b"\xff\x03" + _number(len(name := song.name.encode("utf-8", "replace"))) + name)]
    for beat, tempo in song.tempos.tolist():
        microseconds = round(60e6 / min(max(tempo, _SLOWEST), 60e6))
        events.append((round(beat * song.ticks_per_beat), 1, b"\xff\x51\x03" + microseconds.to_bytes(3, "big")))
    return _track(events)


def _part(notes: npt.NDArray[np.void], ticks: int, channel: int, change: bytes, *, always: bool) -> bytes:
    """A track of notes of one channel; `change` is the event that chooses its instrument."""
    start = np.rint(notes["start"] * ticks).astype(np.int64)
    end = np.maximum(np.rint((notes["start"] + notes["duration"]) * ticks).astype(np.int64), start + 1)
    order = np.lexsort((end, start, notes["pitch"]))
    notes, start, end = notes[order], start[order], end[order]
    follows = notes["pitch"][1:] == notes["pitch"][:-1]
    end[:-1] = np.where(follows, np.minimum(end[:-1], start[1:]), end[:-1])
    events = [(0, 0, change)] if change else []
    for one, begin, finish in zip(notes.tolist(), start.tolist(), end.tolist(), strict=True):
        if finish > begin:
            _, _, pitch, velocity, *_ = one
            events.append((finish, 1, bytes([0x80 | channel, pitch, 0])))
            events += [(begin, 2, change)] if always else []
            events.append((begin, 2, bytes([0x90 | channel, pitch, min(max(velocity, 1), 127)])))
    return _track(events)


def _track(events: list[tuple[int, int, bytes]]) -> bytes:
    """Events as (tick, rank among those of one tick, bytes), in any order, as the content of a track."""
    parts, now = [], 0
    for tick, _, event in sorted(events, key=lambda event: event[:2]):
        while tick - now > _LONGEST:
            parts += [_number(_LONGEST), b"\xff\x01\0"]  # an empty text
            now += _LONGEST
        parts += [_number(tick - now), event]
        now = tick
    return b"".join([*parts, b"\0\xff\x2f\0"])


def _number(value: int) -> bytes:
    """A number of variable length: seven bits a byte, all but the last with the highest bit set."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(0x80 | value & 0x7F)
    return bytes(reversed(digits))
