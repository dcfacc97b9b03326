"""MIDI files made byte by byte, sound and broken ones."""

import struct

END = b"\0\xff\x2f\0"


def header(kind=1, tracks=1, division=480):
    return b"MThd" + struct.pack(">IHHH", 6, kind, tracks, division)


def track(events, length=None):
    return b"MTrk" + struct.pack(">I", len(events) if length is None else length) + events


def note(pitch=60, ticks=100):
    return bytes([0, 0x90, pitch, 80, ticks, 0x80, pitch, 0])


SOUND = header() + track(note() * 20 + END)
RIFF = b"RIFF" + struct.pack("<I", 12 + len(SOUND)) + b"RMIDdata" + struct.pack("<I", len(SOUND)) + SOUND

# Name -> content, and what the reason must say.
BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"a list of songs\n" * 9, "is no MIDI file"),
    "cut in the header": (SOUND[:10], "ends within its header"),
    "no tracks": (header(tracks=0), "holds no tracks"),
    "no notes": (header() + track(END), "holds no notes"),
    "several songs": (header(2, 2) + 2 * track(note() + END), "holds 2 songs"),
    "no such type": (header(7) + track(note() + END), "damaged header"),
    "no ticks": (header(division=0) + track(note() + END), "0 ticks per beat"),
    "impossible frames": (header(division=0x8128) + track(note() + END), "impossible time base"),
    "truncated": (SOUND[:-30], "is truncated: track 1 of 1 should have 164 bytes and has 134"),
    "track length too short": (header() + track(note() * 4 + END, 12), "the length of the one before is wrong"),
    "track length too long": (header() + track(note() + END, 99), "is truncated"),
    "running status damaged": (header() + track(b"\0\x3c\x50" + note() + END), "data where an event must begin"),
    "event beyond the track": (header() + track(note() + b"\0\xff\x03\x70abc"), "reaches beyond the end"),
    "velocity above 127": (header() + track(b"\0\x90\x3c\xf0" + END), "a velocity is above 127"),
    "damaged time": (header() + track(b"\xff\xff\xff\x7f\x90\x3c\x50\x10\x80\x3c\0" + END), "a time in it is damaged"),
}

# Name -> content, number of notes, and what a repair must say.
REPAIRED = {
    "RIFF": (RIFF, 20, ""),
    "type 0": (header(0) + track(note() + END), 1, ""),
    "long header": (b"MThd" + struct.pack(">IHHHH", 8, 1, 1, 480, 0) + track(note() + END), 1, ""),
    "a chunk of another kind": (header() + b"XFIH\0\0\0\4abcd" + track(note() + END), 1, ""),
    "no end of track": (header() + track(note()), 1, ""),
    "no end of a note": (header() + track(b"\0\x90\x40\x50" + note() + END), 2, "1 note has no end"),
    "tempo 0": (header() + track(b"\0\xff\x51\x03\0\0\0" + note() + END), 1, "1 tempo of 0"),
    "fewer tracks": (header(tracks=5) + track(note() + END), 1, "announces 5 tracks and holds 1"),
    "more tracks": (header() + track(note() + END) + track(note(64) + END), 2, "announces 1 track and holds 2"),
    "bytes at the end": (SOUND + b"\0\xff" * 9, 20, "18 bytes after the last track"),
    "SMPTE time": (header(division=0xE728) + track(note() + END), 1, "SMPTE"),
}
