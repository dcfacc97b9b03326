"""FMA: its metadata and archives as they are published, official parts, artists, and its known faults."""

import csv
import json

import numpy as np
import pytest
import soundfile
from runs import SMALL, script, train

from gafx.data.manifest import SPLITS
from gafx.data.sources.base import load_manifest
from gafx.data.sources.fma import CUT_SHORT, GENRES, WITHOUT_AUDIO
from gafx.data.splits import split
from gafx.errors import UsageError

HEADER = [
    ["", "album", "album", "artist", "artist", "set", "set", "track", "track", "track"],
    ["", "comments", "id", "bio", "id", "split", "subset", "bit_rate", "genre_top", "title"],
    ["track_id", "", "", "", "", "", "", "", "", ""],
]
PARTS = ("training", "training", "training", "validation", "test", "test")


def write_tracks(root, rows):
    """tracks.csv of rows (number, subset, split, genre, artist), with texts that hold commas, quotes and line ends."""
    path = root / "fma_metadata" / "tracks.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows(HEADER)
        for number, subset, part, genre, artist in rows:
            bio = f'<p>Écrit "live",\nat home, in {number}</p>'
            table.writerow([number, 0, number + 7, bio, artist, part, subset, 256000, genre, f"Song, {number}"])
    return path


def write_clip(root, number, folder="fma_small", extension="mp3", seconds=0.5, rate=22050):
    path = root / folder / f"{number:06d}"[:3] / f"{number:06d}.{extension}"
    path.parent.mkdir(parents=True, exist_ok=True)
    pitch = 0.02 * (1 + number % 8)
    soundfile.write(path, 0.2 * np.sin(np.arange(int(seconds * rate)) * pitch), rate)
    return path


def collection(root, subset="small"):
    """Six tracks a genre and the six that are known to be faulty, of which 133297 is not there at all."""
    rows = []
    for place, genre in enumerate(GENRES[subset]):
        for take, part in enumerate(PARTS):
            number = 2 + 1000 * take + place
            of = "small" if genre in GENRES["small"] else "medium"
            rows.append((number, of, part, genre, f"{part}{number % 5}"))
            write_clip(root, number, f"fma_{subset}", seconds=6.0 if take else 5.5)
    rows.append((40000, "large", "training", "Rock", "large"))
    for number, seconds in zip(CUT_SHORT, (1.6, 0.5, 1.5), strict=True):
        rows.append((number, "small", "training", "Rock", "cut"))
        write_clip(root, number, f"fma_{subset}", seconds=seconds)
    for number in WITHOUT_AUDIO:
        rows.append((number, "small", "training", "Hip-Hop", "mute"))
        if number != 133297:
            write_clip(root, number, f"fma_{subset}").write_bytes(b"")
    write_tracks(root, rows)
    return root, rows


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("fma"))


@pytest.mark.parametrize("subset", ["small", "medium"])
def test_the_subsets(tmp_path, small, subset):
    root, rows = small if subset == "small" else collection(tmp_path, "medium")
    manifest = load_manifest("fma", root, subset=subset)
    assert manifest.classes == GENRES[subset] == tuple(sorted(GENRES[subset]))
    assert len(GENRES[subset]) == (8 if subset == "small" else 16)
    assert len(manifest) == 6 * len(manifest.classes)
    listed = {number: (part, genre, artist) for number, _, part, genre, artist in rows}
    artists = {}
    for row in range(len(manifest)):
        part, genre, artist = listed[int(manifest.relative_path(row)[-10:-4])]
        assert manifest.relative_path(row).startswith(f"fma_{subset}/00")
        assert manifest.classes[manifest.labels[row][0]] == genre
        assert SPLITS[manifest.split[row]] == {"training": "train", "validation": "val", "test": "test"}[part]
        assert artists.setdefault(artist, manifest.group[row]) == manifest.group[row]
    assert len(set(artists.values())) == len(artists)


def test_known_faults_are_skipped_and_counted(small):
    manifest = load_manifest("fma", small[0])
    reasons = {entry.path[-10:-4]: entry.reason for entry in manifest.skipped}
    assert set(reasons) == {"098565", "098567", "098569", "099134", "108925"}
    assert reasons["098567"] == "is 0.5 s long where FMA's clips have 30 s (a known fault of FMA)"
    assert reasons["099134"] == "is empty (0 bytes) (a known fault of FMA)"
    assert manifest.missing == 1
    assert manifest.notes[0] == (
        "FMA small: 53 of 54 listed clips are here, 1 missing (e.g. 133297); 8,000 are published, and tracks.csv here "
        "lists 54"
    )
    assert manifest.notes[1].startswith("5 clips cannot be used, known faults of FMA among them: 098565, ")
    kept = load_manifest("fma", small[0], min_seconds=1.0)
    assert len(kept) == len(manifest) + 2
    assert load_manifest("fma", small[0], min_seconds=5.7).skipped[0].reason.startswith("is 5.5 s long")
    with pytest.raises(UsageError, match="min_seconds=31 must be between 0 and 30"):
        load_manifest("fma", small[0], min_seconds=31.0)


def test_protocols_keep_artists_apart(small):
    manifest = load_manifest("fma", small[0])
    assert not any("artists" in note for note in manifest.notes)
    official, chosen = split(manifest, "official"), split(manifest, "official_val")
    assert (len(official.train), len(official.val), len(official.test)) == (32, 0, 16)
    assert (len(chosen.train), len(chosen.val), len(chosen.test)) == (24, 8, 16)
    for protocol in ("paper", "paper_val", "kfold"):
        parts = split(manifest, protocol, folds=3, test_fraction=0.3, val_fraction=0.3)
        sides = [set(manifest.group[rows].tolist()) for rows in (parts.train, parts.val, parts.test)]
        assert not sides[0] & sides[2]
        assert not sides[0] & sides[1]


def test_an_artist_in_two_official_parts_is_said_not_refused(tmp_path, small):
    root, rows = small
    (tmp_path / "fma_small").symlink_to(root / "fma_small")
    write_tracks(tmp_path, [(*row[:4], "both") if row[0] in (2, 5002) else row for row in rows])
    manifest = load_manifest("fma", tmp_path)
    assert manifest.notes[-1].startswith("1 artists have clips in several official parts (e.g. artist both)")
    assert len(split(manifest, "official").test) == 16


def test_where_the_files_may_lie(tmp_path, small):
    root, rows = small
    write_tracks(tmp_path, rows[:48]).rename(tmp_path / "tracks.csv")
    for folder in (root / "fma_small").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    manifest = load_manifest("fma", tmp_path)
    assert manifest.relative_path(0) == "000/000002.mp3"
    assert manifest.missing == 0
    assert "5 clips are not of FMA small and are ignored" in manifest.notes[1]


def test_copies_in_several_formats_and_other_files(tmp_path):
    root, rows = collection(tmp_path)
    write_clip(root, 2, extension="flac", seconds=6.0)
    write_clip(root, 3, extension="wav").write_bytes(b"no audio")
    (root / "fma_small" / "cover.wav").write_bytes(b"")
    write_tracks(root, [*rows, (7, "small", "test", "", "nobody"), (8, "small", "test", "Rock", "")])
    manifest = load_manifest("fma", root)
    paths = [manifest.relative_path(row) for row in range(len(manifest))]
    assert {"fma_small/000/000002.flac", "fma_small/000/000003.mp3"} < set(paths)
    assert manifest.skipped[0].as_dict() == {"path": "000007", "reason": "has no genre_top in tracks.csv"}
    assert "1 tracks of FMA small have no genre_top and are left out" in manifest.notes
    assert manifest.notes[-1] == "1 audio files are not named as FMA's clips are (e.g. fma_small/cover.wav)"


def test_metadata_in_another_encoding(tmp_path, small):
    root, rows = small
    path = write_tracks(tmp_path, rows)
    (tmp_path / "fma_small").symlink_to(root / "fma_small")
    path.write_bytes(path.read_text("utf-8").encode("cp1252"))
    manifest = load_manifest("fma", tmp_path)
    assert manifest.fingerprint() == load_manifest("fma", root).fingerprint()
    assert "tracks.csv is not UTF-8, and was read as Windows-1252" in manifest.notes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace("genre_top", "genre"), "lacks the columns track/genre_top: it must be tracks.csv"),
        (lambda text: text.replace("track_id", "id"), "no third line that begins with track_id"),
        (
            lambda text: text.replace("Pop", "Polka", 1),
            r"line \d+: genre_top 'Polka' of track 8 is none of FMA small's",
        ),
        (
            lambda text: text.replace(",test,", ",exam,", 1),
            r"split 'exam' of track \d+ is none of training, validation, test",
        ),
        (lambda text: text[: text.index('"<p>')], r"tracks.csv, line 4: has too few fields; is the file whole\?"),
        (lambda text: text.replace("small", "large"), "lists no track of FMA small"),
    ],
)
def test_malformed_metadata(tmp_path, small, change, sentence):
    path = write_tracks(tmp_path, small[1])
    (tmp_path / "fma_small").mkdir()
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        load_manifest("fma", tmp_path)


def test_what_is_not_there(tmp_path, small):
    with pytest.raises(UsageError, match=r"holds neither tracks.csv nor fma_metadata/tracks.csv.*github.com/mdeff/fma"):
        load_manifest("fma", tmp_path)
    write_tracks(tmp_path, small[1])
    with pytest.raises(UsageError, match="holds none of the folders fma_medium, fma_large"):
        load_manifest("fma", tmp_path, subset="medium")
    (tmp_path / "fma_small").mkdir()
    with pytest.raises(UsageError, match="holds no clip of FMA small"):
        load_manifest("fma", tmp_path)


def test_training_and_evaluation_with_weighted_loss(tmp_path, small):
    options = [option for option in SMALL if "options" not in option]
    run = train(
        "experiment=fma_medium", *options, "frontend=mel", f"data.root={small[0]}", "data.options.subset=small",
        "data.max_unreadable=0.2", "epochs=1", f"output_dir={tmp_path}",
    )  # fmt: skip
    done = script("evaluate.py", run, "max_unreadable=0.2")
    assert done.returncode == 0, done.stderr
    assert "macro-F1" in done.stdout
    assert "5 unreadable files skipped" in done.stdout
    result = json.loads((run / "result.json").read_text())
    assert (result["protocol"], result["tracks"], result["groups"]) == ("official", 16, 5)
    assert "macro_f1" in result["scores"]["track"]
    reasons = {entry["path"]: entry["reason"] for entry in result["skipped"]}
    assert len(reasons) == 5
    assert "a known fault of FMA" in reasons["fma_small/098/098567.mp3"]
