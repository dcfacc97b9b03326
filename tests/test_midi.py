"""MIDI: reading against two other readers, writing, tokens, near-copies, and the data set `midi`."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from io import BytesIO

import mido
import numpy as np
import pretty_midi
import pytest
from midi_files import BROKEN, END, REPAIRED, SOUND, header, track

from gafx.config import AugmentConfig, DataConfig
from gafx.data.augment import check_augment
from gafx.data.dataset import ClipDataset
from gafx.data.leaks.check import find_leaks, list_copies
from gafx.data.midi import TokenReader
from gafx.data.open import file_reader, open_split
from gafx.data.packing.pack import pack
from gafx.data.segments import training_segments
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split
from gafx.errors import UnreadableMidi, UsageError
from gafx.midi.read import read_midi
from gafx.midi.similar import find_similar
from gafx.midi.song import Song, make_notes, sort_notes
from gafx.midi.tokens import SPECIAL, STEPS, UNKNOWN, collect, scheme_of, tokenizer
from gafx.midi.write import midi_bytes, write_midi

ALL = tokenizer("events")


def random_song(seed, *, notes=200, programs=(0,), drums=False, name="", grid=480):
    """Notes at random, none of which overlaps another of its pitch and track."""
    rng = np.random.default_rng(seed)
    start = np.sort(rng.integers(0, notes * grid // 2, notes)) / grid
    last, rows = {}, []
    for begin in start.tolist():
        part = int(rng.integers(len(programs) + drums))
        drum = part == len(programs)
        pitch, length = int(rng.integers(36, 84)), int(rng.integers(1, 2 * grid)) / grid
        if begin < last.get((part, pitch), 0):
            continue
        last[part, pitch] = begin + length
        rows.append(
            (begin, length, pitch, int(rng.integers(1, 128)), 0 if drum else programs[part], drum, part)
        )  # fmt: skip
    tempos = np.array([[0.0, 100.0], [8.0, 125.0], [20.5, 60.0]])
    return Song(make_notes(rows), grid, tempos, name)


def moved(song, semitones=0, slower=1.0):
    notes = song.notes.copy()
    notes["pitch"] += semitones * ~notes["drum"]
    notes["start"], notes["duration"] = np.rint(notes["start"] * slower * 480) / 480, notes["duration"] * slower
    return replace(song, notes=sort_notes(notes))


@pytest.fixture(scope="module")
def song():
    return random_song(1, programs=(0, 33, 56), drums=True)


# -- files -------------------------------------------------------------------------------------------------------------


def test_two_other_readers_find_the_same_notes(song):
    data = midi_bytes(song)
    ours = Counter(
        (round(start, 5), round(end, 5), pitch, velocity, program, drum)
        for start, end, (_, _, pitch, velocity, program, drum, _) in zip(
            song.seconds(song.notes["start"]).tolist(),
            song.seconds(song.notes["start"] + song.notes["duration"]).tolist(),
            song.notes.tolist(),
            strict=True,
        )
    )
    theirs = Counter(
        (round(note.start, 5), round(note.end, 5), note.pitch, note.velocity, part.program, part.is_drum)
        for part in pretty_midi.PrettyMIDI(BytesIO(data)).instruments
        for note in part.notes
    )
    assert ours == theirs
    strokes = [message for message in mido.MidiFile(file=BytesIO(data)) if message.type == "note_on"]
    assert len(strokes) == len(song)
    again = read_midi(data)
    assert np.allclose(again.tempos, song.tempos)
    for column in song.notes.dtype.names:
        if column != "track":  # of the file, which begins with one for the tempos
            assert np.allclose(again.notes[column], song.notes[column]), column


def test_writing_is_repeatable_and_a_key_sounds_once(tmp_path, song):
    write_midi(song, tmp_path / "a.mid")
    assert (tmp_path / "a.mid").read_bytes() == midi_bytes(song)
    read = read_midi(tmp_path / "a.mid")
    assert midi_bytes(replace(read, name="")) == midi_bytes(replace(read_midi(midi_bytes(read)), name=""))
    overlap = Song(make_notes([(0, 4, 60, 80, 0, False, 0), (1, 1, 60, 90, 0, False, 0), (1, 2, 60, 70, 0, False, 0)]))
    notes = read_midi(midi_bytes(overlap)).notes
    assert list(zip(notes["start"], notes["duration"], notes["velocity"], strict=True)) == [(0, 1, 80), (1, 2, 70)]


def test_more_programs_than_channels():
    song = Song(make_notes([(n / 4, 0.25, 60 + n % 12, 80, n, False, n) for n in range(40)]))
    read = read_midi(midi_bytes(song))
    assert sorted(read.notes["program"].tolist()) == list(range(40))
    assert not read.notes["drum"].any()
    parts = pretty_midi.PrettyMIDI(BytesIO(midi_bytes(song))).instruments
    assert sorted(part.program for part in parts for _ in part.notes) == list(range(40))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_why(name):
    data, reason = BROKEN[name]
    with pytest.raises(UnreadableMidi, match=reason):
        read_midi(data)


@pytest.mark.parametrize("name", REPAIRED)
def test_odd_files_are_read(name):
    data, notes, repair = REPAIRED[name]
    song = read_midi(BytesIO(data))
    assert len(song) == notes
    assert (repair in song.repairs[0]) if repair else not song.repairs


def test_notes_without_ends_last_to_the_next_onset():
    """No note of the file has an end; the keys are struck in turn."""
    events = b"".join(bytes([48, 0x90, 60 + n % 7, 80]) for n in range(700))
    song = read_midi(header() + track(events + b"\x30\xff\x2f\0"))
    assert len(song) == 700
    assert np.allclose(song.notes["duration"], 0.1)
    # Only the first of three has none: the others keep theirs.
    events = b"\0\x90\x3c\x50\x60\x90\x3c\x50\x60\x80\x3c\0\x60\x90\x3c\x50\x10\x80\x3c\0"
    song = read_midi(header() + track(events + END))
    assert np.allclose(song.notes["duration"] * 480, [96, 96, 16])


def test_long_files():
    ten_hours = header() + track(bytes([0, 0x90, 60, 80, 96, 0x80, 60, 0]) * 180_000 + END)
    song = read_midi(ten_hours)
    assert (len(song), song.duration) == (180_000, 18_000)
    assert len(ALL.encode(song)) > 360_000


def test_flipped_bytes_raise_or_read():
    """The parser is not Python: in a process of its own, a crash is an exit status."""
    code = f"""
import random
from gafx.errors import UnreadableMidi
from gafx.midi.read import read_midi
rng = random.Random(0)
good = {[*(data for data, *_ in REPAIRED.values()), midi_bytes(random_song(3, programs=(0, 5), drums=True))]!r}
seen = [0, 0]
for _ in range(600):
    data = bytearray(rng.choice(good))
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(8, len(data))
        data[at] = rng.choice([rng.randrange(256), data[at] ^ 1 << rng.randrange(8), 255, 0, 0x90])
    try:
        seen[bool(len(read_midi(bytes(data))))] += 1
    except UnreadableMidi:
        seen[0] += 1
assert min(seen) > 50, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_events_keep_the_music(seed):
    song = random_song(seed, programs=(0, 33, 56), drums=True)
    tokens = ALL.encode(song)
    back = ALL.decode(tokens, tempo=100)
    assert back.skipped == 0
    assert not (tokens == UNKNOWN).any()
    order = np.lexsort(
        (song.notes["pitch"], song.notes["program"], song.notes["drum"], np.rint(song.notes["start"] * STEPS))
    )
    other = np.lexsort((back.notes["pitch"], back.notes["program"], back.notes["drum"], back.notes["start"]))
    before, after = song.notes[order], back.notes[other]
    for column in ("pitch", "program", "drum"):
        assert np.array_equal(before[column], after[column])
    assert np.abs(before["start"] - after["start"]).max() <= 0.5 / STEPS + 1e-9
    assert np.abs(before["velocity"] - after["velocity"]).max() <= 3
    melodic = ~before["drum"]
    error = np.abs(before["duration"] - after["duration"])[melodic]
    assert (error <= np.maximum(1 / STEPS, before["duration"][melodic] / 12)).all()
    assert np.array_equal(ALL.encode(back), tokens)


def test_triplets_and_long_rests_are_exact():
    starts = [0, 1 / 3, 2 / 3, 1, 1.125, 1.25, 700.0, 700 + 1 / 3]
    song = Song(make_notes([(start, 1 / 3, 60, 80, 0, False, 0) for start in starts]))
    back = ALL.decode(ALL.encode(song))
    assert np.allclose(back.notes["start"], starts)
    assert np.allclose(back.notes["duration"], 1 / 3)
    words = [ALL.vocabulary[number] for number in ALL.encode(song)]
    assert words[:5] == ["pitch=60", "length=8", "shift=8", "pitch=60", "length=8"]


@pytest.mark.parametrize("scheme", ["events", "notes"])
def test_any_tokens_decode(scheme, song):
    tokens = ALL if scheme == "events" else tokenizer("notes", collect([song]))
    rng = np.random.default_rng(0)
    ids = rng.integers(-5, len(tokens.vocabulary) + 5, 3000)
    ids = ids[ids != 2]
    found = tokens.decode(ids)
    assert len(found)
    assert read_midi(midi_bytes(found)).duration > 0
    assert found.skipped >= ((ids < 0) | (ids == 3) | (ids >= len(tokens.vocabulary))).sum()
    assert len(tokens.decode([2, *ids])) == 0  # <end> comes first
    assert len(tokens.decode([])) == 0


def test_notes_and_chords_have_the_names_of_the_literature():
    rows = [(0, 1, 41, 80, 0, False, 0), *((1, 1, pitch, 80, 0, False, 0) for pitch in (57, 71, 61, 76))]
    rows += [(2, 1, 60, 80, 0, True, 0), (3, 1, 63, 80, 0, False, 0), (3.001, 1, 51, 80, 0, False, 1)]
    song = Song(make_notes(rows))
    vocabulary = collect([song])
    assert vocabulary == (*SPECIAL, "F2", "3", "9.11.1.4")
    tokens = tokenizer("notes", vocabulary)
    back = tokens.decode(tokens.encode(song))
    assert back.notes["pitch"].tolist() == [41, 57, 59, 61, 64, 51]
    assert np.unique(back.notes["start"]).tolist() == [0, 0.5, 1]
    assert scheme_of(vocabulary) == "notes"
    assert scheme_of(ALL.vocabulary) == "events"
    assert scheme_of(["jazz", "rock"]) is None
    assert np.array_equal(tokenizer("notes", (*SPECIAL, "C4")).encode(song), [UNKNOWN] * 3)


@pytest.mark.parametrize("scheme", ["events", "notes"])
def test_transposed_tokens_are_those_of_the_transposed_song(scheme, song):
    vocabulary = collect((moved(song, by) for by in range(-12, 13)), scheme)
    tokens = tokenizer(scheme, vocabulary)
    ids = tokens.encode(song)
    for by in (-12, -1, 0, 7):
        found = tokens.transpose(ids, by)
        assert np.array_equal(found, tokens.encode(moved(song, by)))
        assert np.array_equal(tokens.transpose(found, -by), ids)
    assert tokens.transpose(ids, 60) is None


# -- the data set ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four performers with three pieces each, a copy in another key and tempo, and files that cannot be used."""
    root = tmp_path_factory.mktemp("midi")
    for performer in range(4):
        (root / f"p{performer}").mkdir()
        for piece in range(3):
            write_midi(random_song(10 * performer + piece), root / f"p{performer}" / f"P{performer}_{piece}.mid")
    write_midi(moved(random_song(11), 4, 1.2), root / "p3" / "P3_other.MID")
    for name, (data, _) in BROKEN.items():
        (root / f"{name}.mid").write_bytes(data)
    write_midi(random_song(99, notes=1), root / "one note.mid")
    (root / "readme.txt").write_text("no music")
    return root


def test_bad_files_are_skipped_with_their_reasons(folder):
    manifest = load_manifest("midi", folder, group_pattern="(P[0-9])_")
    assert len(manifest) == 13
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    assert reasons.pop("one note.mid") == "has 1 note, fewer than data.options.min_notes=16"
    assert len(reasons) == len(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in reasons[f"{name}.mid"]
    assert len(np.unique(manifest.group)) == 4
    reader = TokenReader(manifest)
    for row in range(len(manifest)):
        tokens = reader.read(row, 0, 10**6)[0]
        assert len(tokens) == manifest.duration[row]
        assert tokens[-1] == 2
    song = reader.tokenizer.decode(reader.tokens(0))
    assert np.array_equal(np.sort(song.notes["pitch"]), np.sort(random_song(0).notes["pitch"]))
    assert not any(word.startswith(("program=", "drum=")) for word in manifest.classes)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UsageError, match="holds no MIDI file"):
        load_manifest("midi", tmp_path)
    (tmp_path / "a.mid").write_bytes(b"MThd")
    with pytest.raises(UsageError, match="can be used.*ends within its header"):
        load_manifest("midi", tmp_path)
    (tmp_path / "a.mid").write_bytes(REPAIRED["bytes at the end"][0])
    assert "18 bytes after the last track" in load_manifest("midi", tmp_path).notes[0]


def test_copies_in_another_key_and_tempo_are_found(folder):
    songs = [random_song(seed) for seed in range(40)]
    assert len(find_similar(songs)) == 0
    found = find_similar([*songs, moved(songs[7], -5, 0.87)])
    assert list(zip(found.first, found.second, found.semitones, strict=True)) == [(7, 40, -5)]
    manifest = load_manifest("midi", folder)
    (pair,) = list_copies(manifest)["listed"]
    assert (pair["first"], pair["second"], pair["semitones"]) == ("p1/P1_1.mid", "p3/P3_other.MID", 4)
    rows = np.arange(len(manifest))
    leaks = find_leaks(manifest, Split(rows[:9], rows[:0], rows[9:]))
    assert leaks.copies[0].near_copies == 1
    assert leaks.listed[0].semitones == -4
    assert "-4 semitones" in leaks.describe()


def test_the_same_bytes_are_found_in_short_pieces(tmp_path):
    for name in ("a", "b"):
        write_midi(random_song(0, notes=18), tmp_path / f"{name}.mid")
    record = list_copies(load_manifest("midi", tmp_path))
    assert (record["same_bytes"], record["near_copies"], record["silent"]) == (1, 0, 2)


def test_transposition_is_a_function_of_seed_epoch_and_index(folder):
    manifest = load_manifest("midi", folder)
    reader = TokenReader(manifest)
    segments = training_segments(manifest, np.arange(len(manifest)), 1, 100)
    plain = ClipDataset(manifest, segments, reader, fixed_length=100, pad=True)
    clips = ClipDataset(
        manifest, segments, reader, fixed_length=100, pad=True, augment=AugmentConfig(transpose=2), seed=1
    )
    decode, seen = reader.tokenizer.decode, Counter()
    for epoch in range(3):
        for index in range(len(clips)):
            before, after = plain[epoch, index].wave[0], clips[epoch, index].wave[0]
            assert (after == clips[epoch, index].wave[0]).all()
            rise = decode(after).notes["pitch"] - decode(before).notes["pitch"]
            assert len(set(rise.tolist())) == 1
            seen[int(rise[0])] += 1
    assert set(seen) == {-2, -1, 0, 1, 2}
    assert min(seen.values()) > sum(seen.values()) / 10


def test_a_transposition_that_does_not_fit_is_drawn_again(tmp_path):
    write_midi(Song(make_notes([(n, 1, 126 + n % 2, 80, 0, False, 0) for n in range(20)])), tmp_path / "high.mid")
    manifest = load_manifest("midi", tmp_path)
    segments = training_segments(manifest, np.arange(1), 1, 30)
    clips = ClipDataset(manifest, segments, TokenReader(manifest), fixed_length=30, augment=AugmentConfig(transpose=3))
    tops = {TokenReader(manifest).tokenizer.decode(clips[epoch, 0].wave).notes["pitch"].max() for epoch in range(30)}
    assert tops == {127, 126, 125, 124}


def test_audio_and_midi_are_not_confused(folder, tmp_path):
    manifest = load_manifest("midi", folder)
    with pytest.raises(UsageError, match="gafx pack reads audio"):
        pack(manifest, tmp_path / "cache", sample_rate=16000)
    with pytest.raises(UsageError, match="holds MIDI"):
        file_reader(manifest, 16000, 1)
    with pytest.raises(UsageError, match="augment.speed=1.1 is for audio"):
        check_augment(AugmentConfig(speed=1.1, transpose=3), midi=True)
    with pytest.raises(UsageError, match="augment.transpose=3 is for MIDI"):
        check_augment(AugmentConfig(transpose=3), midi=False)
    config = DataConfig(name="midi", root=str(folder), max_unreadable=1.0)
    with pytest.raises(UsageError, match="objective=classify learns labels"):
        open_split(config, multi_label=False, objective="classify")
    for changed in ({"cache": "c"}, {"group_by": "segment"}):
        with pytest.raises(UsageError, match="data.cache|data.group_by"):
            open_split(replace(config, **changed), multi_label=True, objective="likelihood", reads_labels=False)
    _, parts = open_split(config, multi_label=True, objective="likelihood", reads_labels=False)
    assert len(parts.train) + len(parts.test) == 13


def test_synthetic_scores_as_midi(tmp_path):
    from gafx.data.sources.synthetic import synthesize
    from gafx.studies.synth import compose
    from gafx.studies.synth.midi import PROGRAMS, song_of

    score = compose("bossa", 0, seconds=8.0)
    song = song_of(score)
    assert len(song) == len(score.notes) + len(score.drums)
    part = next(part for part in pretty_midi.PrettyMIDI(BytesIO(midi_bytes(song))).instruments if not part.is_drum)
    assert part.program == PROGRAMS[score.instruments["melody"]]
    melody = [note for note in score.notes if note.part == "melody"]
    assert [note.pitch for note in part.notes] == [note.pitch for note in melody]
    assert np.allclose([note.start for note in part.notes], [note.start for note in melody], atol=2e-3)
    root = synthesize(tmp_path / "scores", tracks=1, seconds=8.0, midi=True, workers=1)
    manifest = load_manifest("midi", root)
    assert len(manifest) + len(manifest.skipped) == 10
    assert any(word.startswith("drum=") for word in manifest.classes)
    # Chords such as 2.1 and 2.10 are no labels that look alike.
    assert not load_manifest("midi", root, scheme="notes").notes
    with pytest.raises(UsageError, match="midi True -> None"):
        synthesize(root, tracks=1, seconds=8.0)


def test_every_instrument_has_a_program():
    from gafx.studies.synth.drums import DRUMS
    from gafx.studies.synth.genres import PROFILES
    from gafx.studies.synth.midi import DRUM_KEYS, PROGRAMS

    names = {name for profile in PROFILES.values() for name in (*profile.lead, *profile.chord, *profile.low)}
    assert names <= set(PROGRAMS)
    assert set(DRUMS) <= set(DRUM_KEYS)


def test_predict_says_that_midi_has_no_sound(tmp_path):
    from gafx.audio.read import probe
    from gafx.errors import UnreadableAudio

    (tmp_path / "a.wav").write_bytes(SOUND)
    with pytest.raises(UnreadableAudio, match="is a MIDI file"):
        probe(tmp_path / "a.wav")
