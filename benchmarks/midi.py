"""Measure reading, tokens and near-copies on folders of MIDI files; prints the tables of docs/midi.md.

    python benchmarks/midi.py FOLDER ...

Times are CPU seconds of one thread. Errors are those of MIDI -> tokens -> MIDI over all notes. Near-copies are searched
among the pieces themselves, and between them and copies of them that were changed in known ways.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gafx.errors import UnreadableMidi
from gafx.midi.read import is_midi_name, read_midi
from gafx.midi.similar import THRESHOLD, find_similar
from gafx.midi.song import Song, sort_notes
from gafx.midi.tokens import STEPS, collect, tokenizer
from gafx.midi.write import midi_bytes

# Changes of a copy: semitones, factor of the times, fraction of notes left out, std of onsets in beats, grid in beats,
# part of the piece.
CHANGES = {
    "5 semitones higher": (5, 1.0, 0.0, 0.0, 0, 1.0),
    "and 13 % slower, rounded to ticks": (5, 1.13, 0.0, 0.0, 0, 1.0),
    "and 5 % of the notes left out": (5, 1.13, 0.05, 0.0, 0, 1.0),
    "and onsets moved at random, std 0.02 beats": (5, 1.13, 0.05, 0.02, 0, 1.0),
    "a sixth of the piece, higher and slower": (5, 1.13, 0.0, 0.0, 0, 1 / 6),
    "onsets rounded to eighths of a beat": (0, 1.0, 0.0, 0.0, 1 / 8, 1.0),
}


def main() -> None:
    """Print the figures of each folder."""
    for folder in sys.argv[1:]:
        songs = read_all(Path(folder))
        for scheme in ("notes", "events"):
            measure_tokens(songs, scheme)
        measure_copies(songs)


def read_all(folder: Path) -> list[Song]:
    """Read a folder, and print how many files and how long."""
    paths = sorted(path for path in folder.rglob("*") if is_midi_name(str(path)))
    songs, reasons = [], []
    read_midi(paths[0])  # imports symusic
    begin = time.process_time()
    for path in paths:
        try:
            songs.append(read_midi(path))
        except UnreadableMidi as reason:
            reasons.append(f"{path.name}: {reason}")
    seconds = time.process_time() - begin
    notes = sum(map(len, songs))
    print(f"{folder.name}: {len(songs)} of {len(paths)} files read, {notes:,} notes, {seconds:.2f} s; {reasons[:3]}")
    print("  read although something is wrong:", sum(bool(song.repairs) for song in songs))
    begin = time.process_time()
    again = [read_midi(midi_bytes(song)) for song in songs]
    seconds = time.process_time() - begin
    same = sum(
        len(one) == len(other) and np.allclose(one.notes["start"], other.notes["start"])
        and np.allclose(one.notes["duration"], other.notes["duration"])
        and np.array_equal(one.notes["pitch"], other.notes["pitch"])
        for one, other in zip(songs, again, strict=True)
    )  # fmt: skip
    print(f"  written and read again: {same} of {len(songs)} equal, {seconds:.2f} s")
    return songs


def measure_tokens(songs: list[Song], scheme: str) -> None:
    """Print vocabulary, lengths, times and errors of one scheme."""
    tokens = tokenizer(scheme, collect(songs, scheme))
    begin = time.process_time()
    ids = [tokens.encode(song) for song in songs]
    seconds = time.process_time() - begin
    lengths = np.array([len(one) for one in ids])
    low, middle, high = np.percentile(lengths, [0, 50, 100])
    print(
        f"  {scheme}: {len(tokens.vocabulary)} words; {lengths.sum():,} tokens, {low:.0f} to {high:.0f} a piece, "
        f"median {middle:.0f}, {lengths.sum() / sum(map(len, songs)):.2f} a note; {seconds:.2f} s"
    )
    if scheme != "events":
        return
    onset, length, loud, lost = [], [], [], 0
    for song, one in zip(songs, ids, strict=True):
        before, after = _aligned(song), _aligned(tokens.decode(one))
        if not np.array_equal(before["pitch"], after["pitch"]):
            lost += 1
            continue
        onset.append(np.abs(before["start"] - after["start"]))
        length.append(np.abs(before["duration"] - after["duration"])[~before["drum"]])
        loud.append(
            np.abs(_aligned(song, "velocity")["velocity"] - _aligned(tokens.decode(one), "velocity")["velocity"])
        )
    print(f"    pieces with other pitches: {lost}; largest error of a velocity: {np.concatenate(loud).max()}")
    for name, values in (("onset", onset), ("duration", length)):
        parts = np.percentile(np.concatenate(values), [50, 95, 99, 100])
        print(f"    {name}, error in beats: median, 95 %, 99 %, largest:", *(f"{part:.4f}" for part in parts))


def _aligned(song: Song, last: str = "duration") -> np.ndarray:
    """Notes by onset in steps, instrument, pitch and a last column, for two notes of one key."""
    notes = song.notes
    keys = (notes[last], notes["pitch"], notes["program"], notes["drum"], np.rint(notes["start"] * STEPS))
    return notes[np.lexsort(keys)]


def measure_copies(songs: list[Song]) -> None:
    """Print the scores of different pieces and of changed copies."""
    begin = time.process_time()
    found = find_similar(songs, threshold=0.0)
    seconds = time.process_time() - begin
    best = [f"{score:.3f} {songs[a].name} ~ {songs[b].name}"
            for a, b, score in list(zip(found.first, found.second, found.score, strict=True))[:3]]  # fmt: skip
    print(f"  near-copies among them: {(found.score >= THRESHOLD).sum()}; {seconds:.2f} s; highest scores: {best}")
    for name, change in CHANGES.items():
        rng = np.random.default_rng(0)
        copies = [_changed(song, rng, *change) for song in songs]
        side = np.repeat([0, 1], len(songs))
        found = find_similar([*songs, *copies], side, threshold=0.0)
        own = found.second == found.first + len(songs)
        scores = np.zeros(len(songs))
        scores[found.first[own]] = found.score[own]
        long = ~found.few[: len(songs)] & ~found.few[len(songs) :]
        print(
            f"    {name}: {(scores[long] >= THRESHOLD).mean():.1%} of {long.sum()} found; scores: lowest "
            f"{scores[long].min():.2f}, median {np.median(scores[long]):.2f}"
        )


def _changed(
    song: Song, rng: np.random.Generator, semitones: int, slower: float, lost: float, std: float, grid: float,
    part: float,
) -> Song:  # fmt: skip
    notes = song.notes[: max(1, round(part * len(song)))].copy()
    notes = notes[rng.random(len(notes)) >= lost]
    notes["pitch"] += semitones * ~notes["drum"]
    start = notes["start"] * slower + std * rng.standard_normal(len(notes))
    notes["start"] = np.rint(start / grid) * grid if grid else np.rint(start * 480) / 480
    notes["duration"] *= slower
    return replace(song, notes=sort_notes(notes))


if __name__ == "__main__":
    main()
