"""GTZAN: its layout, its protocols, the published fault-filtered split to the last track, and damaged copies."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from gafx.data.manifest import check_readable
from gafx.data.sources.base import load_manifest
from gafx.data.sources.gtzan import GENRES, fault_filtered
from gafx.data.splits import split
from gafx.errors import UsageError

MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "gtzan_mini"
# SHA-256 of the three lists of the split as they were published (coreyker/dnn-mgr: train, valid, test_filtered.txt).
DIGESTS = {
    "train": "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa",
    "val": "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956",
    "test": "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72",
}


def collection(root, extension="wav", genres=GENRES, numbers=range(100)):
    """A stand-in for GTZAN: its names, a hundredth of a second of sound. jazz.00054 is damaged as in many copies."""
    source = root.parent / f"tone.{extension}"
    soundfile.write(source, 0.1 * np.sin(np.arange(221) / 5), 22050, subtype="PCM_16")
    sound = source.read_bytes()
    for genre in genres:
        (root / genre).mkdir(parents=True)
        for number in numbers:
            content = b"\0\5\26\7" + bytes(500) if (genre, number) == ("jazz", 54) else sound
            (root / genre / f"{genre}.{number:05d}.{extension}").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("gtzan") / "genres")


def names(manifest, rows):
    return [Path(manifest.relative_path(int(row))).stem for row in rows]


def test_the_complete_set(whole):
    manifest = load_manifest("gtzan", whole)
    assert manifest.classes == GENRES
    assert len(manifest) == 999
    assert len(np.unique(manifest.group)) == 999
    assert [clip.path for clip in manifest.skipped] == ["jazz/jazz.00054.wav"]
    assert "cannot be decoded" in manifest.skipped[0].reason
    check_readable(manifest, max_unreadable=0.05, strict=False)
    with pytest.raises(UsageError, match=r"jazz\.00054"):
        check_readable(manifest, max_unreadable=0.05, strict=True)
    for row in range(len(manifest)):
        assert manifest.relative_path(row).startswith(manifest.classes[manifest.labels[row][0]])


def test_fault_filtered_is_the_published_split(whole):
    """Counts and digests, from the files' own names: the damaged track is put back where the list has it."""
    manifest = load_manifest("gtzan", whole)
    parts = split(manifest, "fault_filtered")
    assert (len(parts.train), len(parts.val), len(parts.test)) == (442, 197, 290)
    found = {"train": sorted([*names(manifest, parts.train), "jazz.00054"])}
    found |= {part: names(manifest, getattr(parts, part)) for part in ("val", "test")}
    for part, tracks in found.items():
        assert tracks == fault_filtered(part)
        lines = "".join(f"{track.partition('.')[0]}/{track}.wav\n" for track in tracks)
        assert hashlib.sha256(lines.encode()).hexdigest() == DIGESTS[part]
    everything = [track for tracks in found.values() for track in tracks]
    assert len(everything) == len(set(everything)) == 930


def test_fault_filtered_agrees_with_torchaudio():
    published = pytest.importorskip("torchaudio.datasets.gtzan", exc_type=(ImportError, OSError))
    assert fault_filtered("train") == sorted(published.filtered_train)
    assert fault_filtered("val") == sorted(published.filtered_valid)
    assert fault_filtered("test") == sorted(published.filtered_test)


@pytest.mark.parametrize("extension", ["au", "flac"])
def test_with_all_files_readable_and_in_other_formats(tmp_path, extension):
    root = collection(tmp_path / "genres", extension)
    damaged = root / "jazz" / f"jazz.00054.{extension}"
    damaged.write_bytes((root / "jazz" / f"jazz.00053.{extension}").read_bytes())
    manifest = load_manifest("gtzan", tmp_path)  # the folder above the genre folders
    assert len(manifest) == 1000
    assert not manifest.skipped
    parts = split(manifest, "fault_filtered")
    assert (len(parts.train), len(parts.val), len(parts.test)) == (443, 197, 290)
    damaged.unlink()
    manifest = load_manifest("gtzan", root)
    assert [(clip.path, clip.reason[:10]) for clip in manifest.skipped] == [("jazz/jazz.00054", "is missing")]
    assert len(split(manifest, "fault_filtered").train) == 442


def sides(manifest, parts):
    return [set(manifest.group[rows].tolist()) for rows in (parts.train, parts.val, parts.test)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    protocol=st.sampled_from(["paper", "paper_val", "kfold", "kfold_val"]),
    folds=st.integers(2, 12),
)
def test_any_protocol_and_seed(whole, seed, protocol, folds):
    manifest = _loaded(whole)
    parts = split(manifest, protocol, fold=seed % folds + 1, folds=folds, seed=seed)
    train, val, test = sides(manifest, parts)
    assert not (train & val) | (train & test) | (val & test)
    assert len(train) + len(val) + len(test) == 999
    tested = np.bincount(manifest.first_label()[parts.test], minlength=10)
    fraction = 0.2 if protocol.startswith("paper") else 1 / folds
    assert (np.abs(tested - 100 * fraction) <= 1).all()


def _loaded(root, cache={}):  # noqa: B006 - one manifest for all examples
    if root not in cache:
        cache[root] = load_manifest("gtzan", root)
    return cache[root]


def test_an_incomplete_copy(tmp_path):
    root = collection(tmp_path / "genres", numbers=range(7))
    manifest = load_manifest("gtzan", root)
    assert len(manifest) == 70
    for fold in range(1, 8):
        parts = split(manifest, "kfold", fold=fold, folds=7)
        assert np.bincount(manifest.first_label()[parts.test]).tolist() == [1] * 10
    assert len(split(manifest, "paper").test) == 10
    with pytest.raises(UsageError, match=r"863 of its tracks are missing .*blues\.00029.*use paper or kfold"):
        split(manifest, "fault_filtered")
    with pytest.raises(UsageError, match="no official folds or parts"):
        split(manifest, "official")


def test_a_class_without_training_tracks_is_named(tmp_path):
    root = collection(tmp_path / "genres", numbers=range(3))
    for number in (1, 2):
        (root / "reggae" / f"reggae.{number:05d}.wav").write_bytes(b"")
    manifest = load_manifest("gtzan", root)
    alone = int(np.flatnonzero(manifest.first_label() == GENRES.index("reggae"))[0])
    folds = [split_or_error(manifest, fold) for fold in (1, 2, 3)]
    for result in folds:
        if isinstance(result, str):
            assert "no training clip is left for 'reggae'" in result
        else:
            assert alone in result.train
    assert sum(isinstance(result, str) for result in folds) == 1
    for file in (root / "rock").iterdir():
        file.write_bytes(b"no audio")
    with pytest.raises(UsageError, match="no training clip is left for 'rock'"):
        split(load_manifest("gtzan", root), "paper")


def split_or_error(manifest, fold):
    try:
        return split(manifest, "kfold", fold=fold, folds=3)
    except UsageError as error:
        return str(error)


def test_a_copy_without_a_genre(tmp_path):
    root = collection(tmp_path / "genres", genres=GENRES[:8], numbers=range(4))
    with pytest.raises(UsageError, match=r"no track of 'reggae', 'rock' .*genres=\[blues,.*,pop\]"):
        load_manifest("gtzan", root)
    manifest = load_manifest("gtzan", root, genres=list(GENRES[:8]))
    assert manifest.classes == GENRES[:8]
    assert len(manifest) == 32
    with pytest.raises(UsageError, match="unknown genre 'hip hop'; did you mean 'hiphop'"):
        load_manifest("gtzan", root, genres=["hip hop"])


def test_files_that_are_no_tracks_are_listed(tmp_path):
    root = collection(tmp_path / "genres", numbers=range(20))
    sound = (root / "blues" / "blues.00000.wav").read_bytes()
    (root / "blues" / "blues.00100.wav").write_bytes(sound)
    (root / "blues" / "jazz.00003.wav").write_bytes(sound)
    (root / "rock" / "mix.mp3").write_bytes(sound)
    (root / "blues" / "._blues.00000.wav").write_bytes(b"\0")  # hidden: an archive's left-over
    manifest = load_manifest("gtzan", root)
    assert {clip.path: clip.reason for clip in manifest.skipped} == {
        "blues/blues.00100.wav": "is not named as the tracks are (blues.00000 to blues.00099)",
        "blues/jazz.00003.wav": "is not named as the tracks are (blues.00000 to blues.00099)",
        "rock/mix.mp3": "is not named as the tracks are (rock.00000 to rock.00099)",
    }
    assert len(manifest) == 200


def test_of_several_copies_the_first_that_can_be_read(tmp_path):
    root = collection(tmp_path / "genres", numbers=range(6))
    for number in (3, 4):
        soundfile.write(root / "pop" / f"pop.{number:05d}.au", np.zeros(300), 22050, subtype="PCM_16")
    (root / "pop" / "pop.00004.wav").write_bytes(b"damaged")
    for extension in ("wav", "au"):
        (root / "jazz" / f"jazz.00002.{extension}").write_bytes(b"damaged")
    manifest = load_manifest("gtzan", root)
    assert [clip.path for clip in manifest.skipped] == ["jazz/jazz.00002.wav"]
    found = {manifest.relative_path(row) for row in range(len(manifest))}
    assert {"pop/pop.00003.wav", "pop/pop.00004.au"} <= found
    assert len(found) == 59


def test_fault_filtered_is_refused_where_a_test_track_is_damaged(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "genres")
    for name in ("blues.00029", "blues.00012"):  # training, test
        (tmp_path / "genres" / "blues" / f"{name}.wav").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"1 of its tracks are missing .*unreadable.*\(blues\.00012\)"):
        split(load_manifest("gtzan", tmp_path), "fault_filtered")
    shutil.copy(whole / "blues" / "blues.00012.wav", tmp_path / "genres" / "blues")
    parts = split(load_manifest("gtzan", tmp_path), "fault_filtered")
    assert (len(parts.train), len(parts.val), len(parts.test)) == (441, 197, 290)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "music").mkdir()
    with pytest.raises(UsageError, match=r"holds no genre folder of GTZAN.*blues\.00000\.wav.*data\.download=true"):
        load_manifest("gtzan", tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        load_manifest("gtzan", tmp_path / "nowhere")


@pytest.mark.skipif(not MINI.is_dir(), reason="gtzan_mini is not next to the checkout (../shared/data/gtzan_mini)")
def test_gtzan_mini():
    manifest = load_manifest("gtzan", MINI)
    assert len(manifest) == 70
    assert not manifest.skipped
    assert len({os.path.basename(manifest.file(row)) for row in range(70)}) == 70
    assert 15 <= manifest.duration.min() < manifest.duration.max() <= 20
    assert len(np.unique(manifest.duration)) == 70
