"""MIDI files as songs.

The file's chunks are checked and written anew before symusic parses the events: its header may announce another number
of tracks, the file may be wrapped in RIFF, and only complete tracks are parsed. Notes without an end are kept.
"""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UnreadableMidi, first_line, require
from gafx.midi.song import NOTE, TEMPO, Song, sort_notes
from gafx.report.format import duration, plural, size

EXTENSIONS = (".mid", ".midi", ".kar", ".rmi")
NAMES = "mid, midi, kar or rmi"
# A day, and as many beats as it has at 600 a minute: what lasts longer is a damaged time in a file.
MOST_SECONDS, MOST_BEATS = 86400.0, 864000.0
MOST_BYTES = 1 << 24
_MOST_ENDS = 1 << 27  # bytes of the events that end notes which have no end

_END_OF_TRACK = b"\xff\x2f\x00"
# What the messages of symusic's parser mean.
_REASONS = {
    "Unexpected running status": "has data where an event must begin: a track is damaged",
    "Unexpected EOF": "is damaged: an event reaches beyond the end of its track",
    "Get velocity": "is damaged: a velocity is above 127",
    "Get pitch": "is damaged: a pitch is above 127",
    "Unknown or unsupported status": "is damaged: an event begins with a byte that no event has",
}
# Frames per second of SMPTE time, by the number in the header; 29 stands for 29.97.
_FRAMES = (24, 25, 29, 30)


def is_midi_name(path: str) -> bool:
    """Return whether a file is named like MIDI."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def read_midi(source: str | bytes | os.PathLike[str] | IO[bytes]) -> Song:
    """Read a MIDI file of type 0 or 1, also one wrapped in RIFF.

    Notes without an end last to the next onset of their track, or to its end. SMPTE time is read as 60
    beats a minute. A zero duration becomes one tick. `Song.repairs` has a sentence for each thing that was not as it
    should be.

    Args:
        source: path, open binary file, or the file's content (`bytes` are content, never a path).

    Raises:
        UnreadableMidi: no MIDI file; a damaged or truncated one; several songs in one file (type 2); no notes; longer
            than `MOST_SECONDS` or `MOST_BEATS`.
        UsageError: symusic is not installed.
    """
    symusic = require("symusic", "reading MIDI")
    data, name = _content(source)
    division, tracks, repairs = _tracks(data)
    smpte = bool(division & 0x8000)
    if smpte:
        frames, ticks = 256 - (division >> 8), division & 0xFF
        if frames not in _FRAMES or not ticks:
            raise UnreadableMidi(f"has a header with an impossible time base ({frames} frames of {ticks} ticks)")
        division = round((29.97 if frames == 29 else frames) * ticks)
        repairs.append("counts time in SMPTE frames: read as 60 beats a minute")
    if not division:
        raise UnreadableMidi("has a header with 0 ticks per beat, so that its times mean nothing")
    header = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), division)
    try:
        score = symusic.Score.from_midi(header + b"".join(map(_chunk, tracks)))
        notes, unended = _with_unended(_notes(score), tracks, lambda all: symusic.Score.from_midi(header + all))
    except UnreadableMidi:
        raise
    except Exception as error:  # of symusic's parser, whose types are not documented
        text = first_line(error)
        known = next((reason for key, reason in _REASONS.items() if key in text), None)
        raise UnreadableMidi(known or f"cannot be parsed ({text})") from error
    if unended:
        repairs.append(
            f"{plural(unended, 'note has no end: it lasts', 'notes have no end: they last')} to the next onset of the "
            "track"
        )
    if not len(notes):
        raise UnreadableMidi("holds no notes")
    notes["duration"] = np.maximum(notes["duration"], 1)
    for column in ("start", "duration"):
        notes[column] /= division
    tempos = _tempos(score, division, repairs) if not smpte else np.array([[0.0, 60.0]])
    song = Song(sort_notes(notes), division, tempos, name, tuple(repairs))
    if song.duration > MOST_SECONDS or song.length > MOST_BEATS:
        raise UnreadableMidi(
            f"lasts {duration(song.duration)} and {song.length:,.0f} beats, more than {duration(MOST_SECONDS)} or "
            f"{MOST_BEATS:,.0f} beats: a time in it is damaged"
        )
    return song


def _content(source: str | bytes | os.PathLike[str] | IO[bytes]) -> tuple[bytes, str]:
    """Return the bytes of a source, at most `MOST_BYTES` of them, and its name."""
    if isinstance(source, bytes):
        data, name = source, ""
    elif isinstance(source, (str, os.PathLike)):
        try:
            with open(source, "rb") as file:
                data, name = file.read(MOST_BYTES + 1), Path(source).stem
        except OSError as error:
            raise UnreadableMidi(f"cannot be opened ({error.strerror})") from error
    else:
        data, name = source.read(MOST_BYTES + 1), Path(str(getattr(source, "name", ""))).stem
    if len(data) > MOST_BYTES:
        raise UnreadableMidi(f"is larger than {size(MOST_BYTES)}")
    return data, name


def _tracks(data: bytes) -> tuple[int, list[bytes], list[str]]:
    """Return the header's time base, the contents of the tracks, and what is odd about the chunks."""
    if data[:4] == b"RIFF" and data[8:12] == b"RMID" and (start := data.find(b"MThd", 12, 4096)) >= 0:
        data = data[start:]
    if not data:
        raise UnreadableMidi("is empty")
    if data[:4] != b"MThd":
        raise UnreadableMidi("is no MIDI file: it does not begin with MThd")
    if len(data) < 14:
        raise UnreadableMidi(f"is truncated: it ends within its header, after {plural(len(data), 'byte')}")
    length, kind, announced, division = struct.unpack_from(">IHHH", data, 4)
    if length < 6 or kind > 2:
        raise UnreadableMidi(f"has a damaged header (type {kind}, {plural(length, 'byte')})")
    tracks: list[bytes] = []
    repairs: list[str] = []
    begin = 8 + length
    while begin < len(data):
        name, there = data[begin : begin + 4], len(data) - begin - 8
        if there < 0 or not (name.isascii() and name.decode("ascii").isprintable()):
            if len(tracks) < announced or not (tracks and tracks[-1].endswith(_END_OF_TRACK)):
                raise UnreadableMidi(
                    f"is damaged: after {plural(len(tracks), 'track')} of {announced}, at byte {begin:,}, no track "
                    "begins; the length of the one before is wrong"
                )
            repairs.append(f"{plural(len(data) - begin, 'byte')} after the last track left out")
            break
        length = struct.unpack_from(">I", data, begin + 4)[0]
        if name == b"MTrk":
            if length > there:
                raise UnreadableMidi(
                    f"is truncated: track {len(tracks) + 1} of {max(announced, len(tracks) + 1)} should have "
                    f"{plural(length, 'byte')} and has {there:,}"
                )
            tracks.append(data[begin + 8 : begin + 8 + length])
        begin += 8 + length
    if not tracks:
        raise UnreadableMidi("holds no tracks")
    if kind == 2 and len(tracks) > 1:
        raise UnreadableMidi(f"holds {len(tracks):,} songs (type 2), not one: save them as files of their own")
    if len(tracks) != announced:
        repairs.append(f"announces {plural(announced, 'track')} and holds {len(tracks):,}")
    return division, tracks, repairs


def _chunk(track: bytes) -> bytes:
    return b"MTrk" + struct.pack(">I", len(track)) + track


def _with_unended(
    notes: npt.NDArray[np.void], tracks: Sequence[bytes], parse: Callable[[bytes], Any]
) -> tuple[npt.NDArray[np.void], int]:
    """Return the notes of tracks with those that have no end, which the parser leaves out, and the number of these.

    Every key is ended at the end of its track, then the keys that had notes open again, twice as often, until no more
    notes appear: each end takes one note of its key.
    """
    found, pitches, times = notes, range(128), 1
    while True:
        ends = b"\0".join(bytes([0x80 | channel, pitch, 0]) for channel in range(16) for pitch in pitches)
        ends = b"\0".join([ends] * times)
        if len(ends) * len(tracks) > _MOST_ENDS:
            raise UnreadableMidi("has too many tracks, or notes without an end")
        more = _notes(parse(b"".join(_chunk(_ended(track, ends)) for track in tracks)))
        if len(more) == len(found):
            return (_shortened(found, notes) if times > 1 else notes), len(found) - len(notes)
        if times == 1:
            pitches = np.unique(_wrong_keys(_keys(more), _keys(notes)) & 127).tolist()
        found, times = more, 2 * times


def _ended(track: bytes, ends: bytes) -> bytes:
    """Return a track with these events at its end; the first takes over the time of the end."""
    if track.endswith(_END_OF_TRACK):
        return track[: -len(_END_OF_TRACK)] + ends + b"\0" + _END_OF_TRACK
    return track + b"\0" + ends


def _notes(score: Any) -> npt.NDArray[np.void]:
    """Return the notes of a symusic score, times in ticks."""
    parts: list[npt.NDArray[np.void]] = [np.zeros(0, NOTE)]
    for number, track in enumerate(score.tracks):
        columns = track.notes.numpy()
        notes = np.zeros(len(columns["time"]), NOTE)
        notes["start"] = columns["time"]
        for column in ("duration", "pitch", "velocity"):
            notes[column] = columns[column]
        notes["program"], notes["drum"], notes["track"] = track.program, track.is_drum, number
        parts.append(notes)
    return np.concatenate(parts)


def _shortened(closed: npt.NDArray[np.void], plain: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Give each note of the keys that lack an end the first end after its start, if that is before the next of the key.

    The parser takes ends in the order of the starts: after a missing one, each note has that of the next. A note that
    is left without lasts until the next onset of its track, or to the track's end.

    Args:
        closed: notes as read with enough ends at the end of each track.
        plain: notes as read without these, whose ends are those of the file; keys without a difference are kept.
    """
    key, plain_key = _keys(closed), _keys(plain)
    finish, plain_finish = closed["start"] + closed["duration"], plain["start"] + plain["duration"]
    onsets = {track: np.unique(closed["start"][closed["track"] == track]) for track in np.unique(closed["track"])}
    for one in _wrong_keys(key, plain_key).tolist():
        rows = np.flatnonzero(key == one)
        rows = rows[np.argsort(closed["start"][rows], kind="stable")]
        start, onset = closed["start"][rows], onsets[one >> 7]
        end = _next(np.sort(plain_finish[plain_key == one]), start, np.inf)
        unended = (end > np.append(start[1:], np.inf)) | np.isinf(end)
        end[unended] = _next(onset, start[unended], finish[rows].max())
        closed["duration"][rows] = np.maximum(end - start, 0)
    return closed


def _next(times: npt.NDArray[np.float64], after: npt.NDArray[np.float64], last: float) -> npt.NDArray[np.float64]:
    """Return the first of ascending `times` after each of `after`, or `last`."""
    return np.append(times, last)[np.searchsorted(times, after, "right")]


def _keys(notes: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    return (notes["track"].astype(np.int64) << 7) | notes["pitch"]


def _wrong_keys(closed: npt.NDArray[np.int64], plain: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the keys with other numbers of notes in the two readings."""
    keys, counts = np.unique(closed, return_counts=True)
    others = dict(zip(*(column.tolist() for column in np.unique(plain, return_counts=True)), strict=True))
    return np.array([key for key, n in zip(keys.tolist(), counts.tolist(), strict=True) if others.get(key) != n])


def _tempos(score: Any, division: int, repairs: list[str]) -> npt.NDArray[np.float64]:
    """Return the tempo changes by beat, the first at beat 0; impossible ones are left out."""
    changes: dict[float, float] = {0.0: TEMPO}
    found: Sequence[Any] = sorted(score.tempos, key=lambda change: change.time)
    for change in found:
        if np.isfinite(change.qpm) and change.qpm > 0:
            changes[change.time / division] = float(change.qpm)
    if lost := sum(not (np.isfinite(change.qpm) and change.qpm > 0) for change in found):
        repairs.append(f"{plural(lost, 'tempo')} of 0 left out")
    return np.array(list(changes.items()))
