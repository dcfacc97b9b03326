"""UrbanSound8K: with and without its CSV, incomplete copies, and a CSV that contradicts the files."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gafx.data.sources.base import load_manifest
from gafx.data.sources.urbansound8k import CLASSES
from gafx.data.splits import split
from gafx.errors import UsageError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "urbansound8k"
COLUMNS = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]


def collection(root, extension="wav", folds=(1, 2, 10), classes=(0, 3, 8)):
    """Two clips of one source recording in every fold and class; return the rows of the CSV, whose names are .wav."""
    rows = []
    for fold in folds:
        folder = root / "audio" / f"fold{fold}"
        folder.mkdir(parents=True)
        for label in classes:
            source = 1000 * fold + label
            for cut in (2, 11):
                name = f"{source}-{label}-0-{cut}"
                soundfile.write(folder / f"{name}.{extension}", 0.1 * np.sin(np.arange(800 + fold) / 5), 8000)
                named = CLASSES[label].replace(" ", "_")
                rows.append(dict(zip(COLUMNS, (f"{name}.wav", source, 0.5, 4.5, 1, fold, label, named), strict=True)))
    return rows


def write_table(root, rows, encoding="utf-8", end="\r\n"):
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, lineterminator=end)
    table.writeheader()
    table.writerows(rows)
    (root / "metadata").mkdir(exist_ok=True)
    (root / "metadata" / "UrbanSound8K.csv").write_bytes(text.getvalue().encode(encoding))


def clips(manifest, rows=None):
    """Fold and class of clips by their names, as the manifest has them."""
    rows = range(len(manifest)) if rows is None else rows.tolist()
    return {
        Path(manifest.relative_path(row)).stem: (int(manifest.fold[row]), manifest.classes[manifest.labels[row][0]])
        for row in rows
    }


def test_a_csv_that_other_programs_have_saved(tmp_path):
    rows = collection(tmp_path)
    plain = load_manifest("urbansound8k", tmp_path).fingerprint()
    write_table(tmp_path, [{**row, "fold": f"{row['fold']}.0"} for row in rows], "utf-16")
    assert load_manifest("urbansound8k", tmp_path).fingerprint() == plain
    path = tmp_path / "metadata" / "UrbanSound8K.csv"
    path.write_bytes(path.read_text("utf-16").replace(",", ";").replace("start", "début").encode("cp1252"))
    manifest = load_manifest("urbansound8k", tmp_path)
    assert manifest.fingerprint() == plain
    assert manifest.notes[0] == "UrbanSound8K.csv is not UTF-8, and was read as Windows-1252"


@pytest.mark.parametrize("extension", ["wav", "ogg", "flac"])
def test_the_csv_and_the_names_say_the_same(tmp_path, extension):
    rows = collection(tmp_path, extension)
    plain = load_manifest("urbansound8k", tmp_path)
    assert plain.classes == ("air conditioner", "dog bark", "siren")
    expected = {row["slice_file_name"][:-4]: (row["fold"], row["class"].replace("_", " ")) for row in rows}
    assert clips(plain) == expected
    assert Path(plain.relative_path(0)) == Path(f"audio/fold1/1000-0-0-2.{extension}")
    # Numbers are sorted as numbers: slice 2 before 11, fold 2 before 10.
    assert list(expected) == list(clips(plain))
    write_table(tmp_path, rows[::-1], "utf-8-sig")
    listed = load_manifest("urbansound8k", tmp_path)
    assert listed.fingerprint() == plain.fingerprint()
    assert (listed.skipped, listed.missing) == ((), 0)
    write_table(tmp_path, rows, end="\n")
    assert load_manifest("urbansound8k", tmp_path).fingerprint() == plain.fingerprint()


def test_official_folds_keep_sources_together(tmp_path):
    collection(tmp_path / "UrbanSound8K")
    manifest = load_manifest("urbansound8k", tmp_path)  # the folder above
    assert len(manifest) == 18
    sources = [Path(manifest.relative_path(row)).stem.split("-")[0] for row in range(len(manifest))]
    assert len(set(sources)) == 9
    pairs = {(source, int(group)) for source, group in zip(sources, manifest.group, strict=True)}
    assert len(pairs) == len({group for _, group in pairs}) == 9
    parts = split(manifest, "official", fold=10)
    assert {fold for fold, _ in clips(manifest, parts.test).values()} == {10}
    assert {fold for fold, _ in clips(manifest, parts.train).values()} == {1, 2}
    with pytest.raises(UsageError, match=r"data\.fold=3 is not one of the official folds \[1, 2, 10\]"):
        split(manifest, "official", fold=3)
    parts = split(manifest, "kfold", fold=1, folds=3)
    assert not set(manifest.group[parts.train]) & set(manifest.group[parts.test])


def test_an_incomplete_copy_is_said(tmp_path):
    rows = collection(tmp_path)
    assert load_manifest("urbansound8k", tmp_path).notes == (
        "UrbanSound8K: 18 of the 8,732 published clips are here, without metadata/UrbanSound8K.csv",
        "3 of the 10 official folds are here: 1, 2, 10",
        "no clip of car horn, children playing, drilling, engine idling, gun shot, jackhammer, street music is here: "
        "the labels are the other 3",
    )
    write_table(tmp_path, rows)
    for path in (tmp_path / "audio" / "fold2").iterdir():
        path.unlink()
    (tmp_path / "audio" / "fold10" / "10003-3-0-2.wav").unlink()
    manifest = load_manifest("urbansound8k", tmp_path)
    assert (len(manifest), manifest.missing, manifest.skipped) == (11, 7, ())
    assert manifest.notes[:2] == (
        "UrbanSound8K: 11 of 18 listed clips are here, 7 missing (e.g. fold2/2000-0-0-2); 8,732 are published",
        "2 of the 10 official folds are here: 1, 10",
    )


def test_the_published_set_has_no_notes(tmp_path, monkeypatch):
    monkeypatch.setattr("gafx.data.sources.urbansound8k.CLIPS", 200)
    rows = collection(tmp_path, folds=range(1, 11), classes=range(10))
    plain = load_manifest("urbansound8k", tmp_path)
    assert (plain.classes, plain.notes) == (CLASSES, ())
    write_table(tmp_path, rows)
    assert load_manifest("urbansound8k", tmp_path).notes == ()


def test_files_that_are_no_clips_are_skipped_with_a_reason(tmp_path):
    rows = collection(tmp_path)
    fold = tmp_path / "audio" / "fold1"
    sound = (fold / "1000-0-0-2.wav").read_bytes()
    (tmp_path / "audio" / "fold11").mkdir()
    for name in ("fold1/take one.wav", "fold1/1-10-0-0.wav", "1-1-0-0.wav", "fold11/1-1-0-0.wav"):
        (tmp_path / "audio" / name).write_bytes(sound)
    (fold / "1003-3-0-2.wav").write_bytes(b"RIFF")
    (fold / "1003-3-0-2.wav.txt").write_text("no audio")
    (fold / "7-7-0-0.wma").write_bytes(b"no sound")
    manifest = load_manifest("urbansound8k", tmp_path)
    assert len(manifest) == 17
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    for name in ("fold1/take one.wav", "fold1/1-10-0-0.wav", "1-1-0-0.wav", "fold11/1-1-0-0.wav"):
        assert "is not named audio/fold1 to fold10/SOURCE-CLASS" in reasons.pop(f"audio/{name}")
    assert "convert it to wav" in reasons.pop("audio/fold1/7-7-0-0.wma")
    assert "cannot be decoded" in reasons.pop("audio/fold1/1003-3-0-2.wav")
    assert not reasons

    write_table(tmp_path, rows[1:])
    manifest = load_manifest("urbansound8k", tmp_path)
    assert len(manifest) == 16
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    assert reasons["audio/fold1/1000-0-0-2.wav"] == "is not listed in metadata/UrbanSound8K.csv"
    assert manifest.missing == 0


def test_of_two_formats_the_readable_one_is_used(tmp_path):
    collection(tmp_path)
    (tmp_path / "audio" / "fold1" / "1000-0-0-2.wav").rename(tmp_path / "kept.wav")
    (tmp_path / "audio" / "fold1" / "1000-0-0-2.wav").write_bytes(b"damaged")
    samples, rate = soundfile.read(tmp_path / "kept.wav")
    soundfile.write(tmp_path / "audio" / "fold1" / "1000-0-0-2.flac", samples, rate)
    manifest = load_manifest("urbansound8k", tmp_path)
    assert (len(manifest), manifest.skipped) == (18, ())
    assert manifest.relative_path(0) == "audio/fold1/1000-0-0-2.flac"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 2}, r"1000-0-0-2 is in fold 2, but its file is audio.fold1.1000-0-0-2\.wav"),
        ({"fold": 11}, r"fold '11' of 1000-0-0-2 is none of 1 to 10"),
        ({"classID": 3}, r"classID '3' contradicts the name 1000-0-0-2, which says '0'"),
        ({"class": "dog_bark"}, r"class 'dog_bark' contradicts the name 1000-0-0-2, which says 'air conditioner'"),
        ({"fsID": 7}, r"fsID '7' contradicts the name 1000-0-0-2, which says '1000'"),
        ({"slice_file_name": "a.wav"}, r"slice_file_name 'a\.wav' is not SOURCE-CLASS-OCCURRENCE-SLICE\.wav"),
        ({"slice_file_name": "1000-0-0-11.wav"}, r"1000-0-0-11 is listed a second time"),
    ],
)
def test_a_row_that_contradicts_the_files_is_named(tmp_path, changes, message):
    rows = collection(tmp_path)
    write_table(tmp_path, [*rows[1:], {**rows[0], **changes}])
    with pytest.raises(UsageError, match=rf"UrbanSound8K\.csv, line 19: {message}\. Correct it"):
        load_manifest("urbansound8k", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 0: lacks the columns slice_file_name, fsID, fold, classID, class"),
        (b"slice_file_name;fsID;fold;classID;class\n", "lists none of the clips"),
        (b"slice_file_name|fsID|fold|classID|class\n", "line 1: lacks the columns"),
        (b"slice_file_name,fsID,fold,classID,class\n1000-0-0-2.wav,1000\n", "line 2: fold '' of 1000-0-0-2"),
        (b"\xff\xfes", "UrbanSound8K.csv is damaged UTF-16 .*: save it as UTF-8"),
        (b"slice_file_name,fsID,fold,classID,class\n\0", "holds NUL bytes: .* save it as UTF-8"),
    ],
)
def test_a_malformed_csv(tmp_path, content, message):
    collection(tmp_path)
    write_table(tmp_path, [])
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_manifest("urbansound8k", tmp_path)


def test_a_source_in_two_folds_is_reported_and_never_split(tmp_path):
    collection(tmp_path)
    fold = tmp_path / "audio" / "fold2"
    (tmp_path / "audio" / "fold1" / "1003-3-0-11.wav").rename(fold / "1003-3-0-11.wav")
    manifest = load_manifest("urbansound8k", tmp_path)
    assert manifest.notes[-1] == (
        "1 source recording in several folds, where UrbanSound8K has none (e.g. 1003 in 1 and 2): protocol official "
        "refuses them"
    )
    with pytest.raises(UsageError, match="1 recordings have clips on both sides of protocol 'official'"):
        split(manifest, "official", fold=1)


def test_a_wrong_folder(tmp_path):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError, match=r"data\.root.*weebly\.com/urbansound8k.*asks for a form"):
            load_manifest("urbansound8k", root)
    (tmp_path / "audio").mkdir()
    with pytest.raises(UsageError, match="holds no clip of UrbanSound8K"):
        load_manifest("urbansound8k", tmp_path)
    rows = collection(tmp_path / "other")
    write_table(tmp_path / "other", [{**rows[0], "slice_file_name": "8-8-0-0.wav", "fsID": 8, "classID": 8,
                                      "class": "siren"}])  # fmt: skip
    with pytest.raises(UsageError, match="lists none of the clips"):
        load_manifest("urbansound8k", tmp_path / "other")


@pytest.mark.skipif(not REAL.is_dir(), reason="UrbanSound8K is not next to the checkout (../shared/data/urbansound8k)")
def test_two_real_folds():
    manifest = load_manifest("urbansound8k", REAL)
    assert manifest.classes == CLASSES
    assert np.bincount(manifest.fold).tolist() == [0, 873, 888]
    assert not manifest.skipped
    assert manifest.notes[1] == "2 of the 10 official folds are here: 1, 2"
    for fold in (1, 2):
        split(manifest, "official", fold=fold)  # raises where a recording is on two sides
