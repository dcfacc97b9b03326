"""Data sets: both ESC layouts, folders and CSVs, the synthetic set; missing or wrong files are reported."""

import csv
import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from runs import MEL, SMALL, script

from gafx.audio import formats
from gafx.audio.read import read_segment
from gafx.data.manifest import check_readable
from gafx.data.sources.base import load_manifest
from gafx.data.sources.gtzan import GENRES
from gafx.data.splits import split
from gafx.deploy.files import find_files
from gafx.errors import UsageError

ESC10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "esc10"


def tone(path, seconds=0.2, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(seconds * rate)) / 5), rate)


@pytest.fixture
def esc10(tmp_path):
    for number, name in ((1, "Dog bark"), (2, "Rain")):
        for fold in range(1, 6):
            for take in "AB":
                tone(tmp_path / f"{number:03d} - {name}" / f"{fold}-{number}00{fold}-{take}.ogg")
    return tmp_path


@pytest.fixture
def esc50(tmp_path):
    rows = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    for target, category, in_ten in ((0, "dog", "True"), (1, "rain", "True"), (2, "sea_waves", "False")):
        for fold in range(1, 6):
            name = f"{fold}-{target}0{fold}-A-{target}.wav"
            tone(tmp_path / "audio" / name)
            rows.append([name, fold, target, category, in_ten, f"{target}0{fold}", "A"])
    (tmp_path / "meta").mkdir()
    with (tmp_path / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def test_esc10(esc10):
    (esc10 / "001 - Dog bark" / "notes.wav").write_bytes(b"")
    manifest = load_manifest("esc", esc10)
    assert manifest.classes == ("Dog bark", "Rain")
    assert len(manifest) == 20
    assert len(np.unique(manifest.group)) == 10
    assert np.bincount(manifest.fold).tolist() == [0, 4, 4, 4, 4, 4]
    assert [clip.path for clip in manifest.skipped] == ["001 - Dog bark/notes.wav"]
    parts = split(manifest, "official", fold=3)
    assert {manifest.relative_path(row)[-len("3-1003-A.ogg") :][0] for row in parts.test} == {"3"}


def test_esc50(esc50):
    manifest = load_manifest("esc", esc50)
    assert manifest.classes == ("dog", "rain", "sea waves")
    assert len(manifest) == 15
    assert load_manifest("esc", esc50, subset="esc10").classes == ("dog", "rain")
    (esc50 / "meta" / "esc50.csv").write_text("filename,fold\n")
    with pytest.raises(UsageError, match="lacks the columns"):
        load_manifest("esc", esc50)


@pytest.mark.parametrize(
    ("encoding", "separator"),
    [("cp1252", ","), ("utf-16", "\t"), ("utf-16-le", ","), ("utf-32", ";"), ("cp1252", ";")],
)
def test_esc50_list_that_other_programs_have_saved(encoding, separator, esc50):
    path = esc50 / "meta" / "esc50.csv"
    plain = load_manifest("esc", esc50)
    text = path.read_text("utf-8").replace("rain", "pluie_d'été").replace(",1,", ",1.0,").replace(",", separator)
    path.write_bytes(text.encode(encoding))
    manifest = load_manifest("esc", esc50)
    assert manifest.classes == ("dog", "pluie d'été", "sea waves")
    assert manifest.fold.tolist() == plain.fold.tolist()
    guessed = ("esc50.csv is not UTF-8, and was read as Windows-1252",)
    assert manifest.notes == (guessed if encoding == "cp1252" else ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",2,0,", ",two,0,", r"line 3: fold 'two' must be a whole number"),
        (",2,0,", ",,0,", r"line 3: fold '' must be a whole number"),
        (",dog,", ",,", r"line 2: filename, category or src_file is empty"),
        (",dog,", ",a,dog,", r"line 2: has more than the 7 fields"),
        ("dog", "\0", r"holds NUL bytes: .*save it as UTF-8"),
    ],
)
def test_malformed_esc50_list(old, new, message, esc50):
    path = esc50 / "meta" / "esc50.csv"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(UsageError, match=rf"esc50\.csv(, | ){message}"):
        load_manifest("esc", esc50)


@pytest.mark.skipif(not ESC10.is_dir(), reason="the real ESC-10 is not next to the checkout (../shared/data/esc10)")
def test_real_esc10():
    manifest = load_manifest("esc", ESC10)
    assert len(manifest) == 400
    assert len(manifest.classes) == 10
    assert np.bincount(manifest.labels.values).tolist() == [40] * 10
    assert np.bincount(manifest.fold).tolist() == [0, 80, 80, 80, 80, 80]
    assert not manifest.skipped
    for fold in range(1, 6):
        split(manifest, "official", fold=fold)  # raises where a recording is on two sides


def test_folder_of_classes(tmp_path):
    for name in (
        "blues/a.wav",
        "blues/deep/er/b.flac",
        "jazz/c.ogg",
        "jazz/D.MP3",
        "jazz/e.au",
        "jazz/cover.jpg",
        ".hidden/x.wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("jpg"):
            (tmp_path / name).write_bytes(b"no audio")
        else:
            tone(tmp_path / name)
    os.symlink(tmp_path / "jazz", tmp_path / "jazz" / "loop")
    manifest = load_manifest("folder", tmp_path)
    assert manifest.classes == ("blues", "jazz")
    found = {manifest.relative_path(i): manifest.classes[manifest.labels[i][0]] for i in range(len(manifest))}
    assert found == {
        "blues/a.wav": "blues",
        "blues/deep/er/b.flac": "blues",
        "jazz/D.MP3": "jazz",
        "jazz/c.ogg": "jazz",
        "jazz/e.au": "jazz",
    }


def test_folder_with_a_group_pattern(tmp_path):
    for name in ("a", "b"):
        for song in range(6):
            for part in range(3):
                tone(tmp_path / name / f"song{song}_part{part}.wav")
    manifest = load_manifest("folder", tmp_path, group_pattern=r"(.*)_part\d")
    assert len(np.unique(manifest.group)) == 12
    for seed in range(50):
        parts = split(manifest, "paper", seed=seed)
        assert not set(manifest.group[parts.train]) & set(manifest.group[parts.test])
    with pytest.raises(UsageError, match="group_pattern"):
        load_manifest("folder", tmp_path, group_pattern="(")
    with pytest.raises(UsageError, match="one parenthesis"):
        load_manifest("folder", tmp_path, group_pattern="song")


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_csv(tmp_path):
    for name in ("x/1.wav", "x/2.wav", "y/3.wav", "y/4.wav"):
        tone(tmp_path / name, seconds=1.0)
    write_csv(
        tmp_path / "list.csv",
        [
            ["path", "label", "split", "fold", "group", "start", "duration", "weight"],
            ["x/1.wav", "dog", "train", 1, "r1", "", "", ""],
            ["x/1.wav", "dog", "train", 1, "r1", 0.5, 0.25, 2],
            ["x/2.wav", "cat", "train", 2, "r2", "", "", ""],
            ["y/3.wav", "dog", "test", 1, "r3", "", "", ""],
            ["y/4.wav", "cat", "valid", 2, "r4", 0.75, 9, ""],
        ],
    )
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert manifest.classes == ("cat", "dog")
    assert manifest.duration.tolist() == pytest.approx([1, 0.25, 1, 1, 0.25])
    assert manifest.weight.tolist() == [1, 2, 1, 1, 1]
    assert manifest.group.tolist() == [0, 0, 1, 2, 3]
    parts = split(manifest, "official_val")
    assert (parts.train.tolist(), parts.val.tolist(), parts.test.tolist()) == ([0, 1, 2], [4], [3])


def test_one_file_under_several_names_is_one_recording(tmp_path):
    rows = [["path", "label", "group", "start", "duration"]]
    for label in "xy":
        for number in range(10):
            tone(tmp_path / label / f"{number}.wav", seconds=1.0)
            plain = f"{label}/{number}.wav"
            names = [plain, f"./{plain}", f"x/../{plain}", tmp_path / plain]
            rows += [[name, label, f"g{number}{label}" if i == 1 else "", i / 4, 0.25] for i, name in enumerate(names)]
    write_csv(tmp_path / "alias.csv", rows)
    manifest = load_manifest("folder", tmp_path, csv="alias.csv")
    assert len(manifest) == 80
    assert len(np.unique(manifest.group)) == 20
    # The same segment twice is one clip with the labels of both rows.
    write_csv(tmp_path / "twice.csv", [["path", "label"], ["x/1.wav", "a"], ["./x/1.wav", "b"], ["x/2.wav", "a"]])
    manifest = load_manifest("folder", tmp_path, csv="twice.csv")
    assert manifest.targets().tolist() == [[1, 1], [1, 0]]


def test_formats_that_are_not_read_are_listed(tmp_path):
    for label in "ab":
        tone(tmp_path / label / "x.wav")
    (tmp_path / "a" / "y.m4a").write_bytes(b"0" * 100)
    manifest = load_manifest("folder", tmp_path)
    assert len(manifest) == 2
    assert [(clip.path, "convert it" in clip.reason) for clip in manifest.skipped] == [("a/y.m4a", True)]


# libsndfile's name of the content that a file with each extension is given.
CONTENT = {
    ".wav": "WAV", ".wave": "WAVEX", ".bwf": "WAV", ".rf64": "RF64", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG",
    ".opus": "OGG", ".mp3": "MP3", ".mp2": "MP3", ".mpga": "MP3", ".au": "AU", ".snd": "AU",
    ".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF", ".caf": "CAF", ".w64": "W64",
}  # fmt: skip


def test_one_list_of_extensions(tmp_path):
    """Data sets and `gafx predict` find the same files; what data sets do not read they count, and nothing else."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for extension, form in CONTENT.items():
            subtype = "OPUS" if extension == ".opus" else None
            wave = 0.1 * np.sin(np.arange(4800) / 5)
            soundfile.write(tmp_path / label / f"x{extension.upper()}", wave, 48000, format=form, subtype=subtype)
    for name in ("y.m4a", "y.wma", "y.amr", ".hidden.aac"):
        (tmp_path / "a" / name).write_bytes(b"0" * 100)
    for name in ("notes.txt", "list.csv", "cover.jpg", "noextension", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"0" * 100)
    manifest = load_manifest("folder", tmp_path)
    assert set(formats.READ) <= set(CONTENT)
    read = {f"{label}/x{extension.upper()}" for label in "ab" for extension in formats.READ}
    assert {manifest.relative_path(row) for row in range(len(manifest))} == read
    for row in range(len(manifest)):
        assert read_segment(manifest.file(row), 0, 1600, sample_rate=16000).shape == (1, 1600)
    reasons = {clip.path: clip.reason for clip in manifest.skipped}
    rarer = {extension for extension in CONTENT if extension not in formats.READ}
    skipped = {f"{label}/x{extension.upper()}" for label in "ab" for extension in rarer}
    assert reasons.keys() == skipped | {"a/y.m4a", "a/y.wma", "a/y.amr"}
    assert all("gafx predict reads" in reasons[path] for path in skipped)
    assert all("with gafx[formats]" in reasons[f"a/y.{name}"] for name in ("m4a", "wma", "amr"))
    (note,) = manifest.notes
    assert note.startswith("skipped, of formats that data sets do not read: 2 .aif")
    assert note.endswith("1 .amr, 1 .m4a, 1 .wma")
    assert {os.path.relpath(path, tmp_path) for path in find_files([str(tmp_path)]).files} - {"a/.hidden.aac"} == {
        *read, *reasons
    }  # fmt: skip
    with pytest.raises(UsageError, match="13 of 39 files"):
        check_readable(manifest, max_unreadable=0.05, strict=False)


def test_a_class_without_a_readable_file_is_not_left_out_silently(tmp_path):
    for label in "ab":
        tone(tmp_path / label / "x.wav")
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c" / "three.aifc", np.zeros(800), 8000, format="AIFF")
    with pytest.raises(UsageError, match=r"no file of 'c' \(1 skipped\) .* can be read \(c/three.aifc: is of a format"):
        load_manifest("folder", tmp_path)
    write_csv(tmp_path / "list.csv", [["path", "label"], ["a/x.wav", "a"], ["b/x.wav", "b"], ["c/three.aifc", "c"]])
    with pytest.raises(UsageError, match=r"no file of 'c' \(1 skipped\)"):
        load_manifest("folder", tmp_path, csv="list.csv")
    # Of many tags a rare one may be lost with its file, which is noted.
    write_csv(tmp_path / "list.csv", [["path", "label"], ["a/x.wav", "a"], ["b/x.wav", "a;b"], ["c/three.aifc", "c"]])
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert manifest.classes == ("a", "b")
    assert "labels without a readable file are left out: 'c' (1 skipped)" in manifest.notes


def test_a_closed_class_folder_stops_and_a_closed_folder_in_it_is_listed(tmp_path, monkeypatch):
    for path in ("a/x.wav", "b/x.wav", "b/closed/y.wav", "c/x.wav"):
        tone(tmp_path / path)
    scandir = os.scandir

    def refused(path):
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # the tests may run as root, who can open everything
    closed = {"closed"}
    manifest = load_manifest("folder", tmp_path)
    assert [clip.as_dict() for clip in manifest.skipped] == [
        {"path": "b/closed", "reason": "is a folder that cannot be opened (Permission denied)"}
    ]
    closed = {"c"}
    with pytest.raises(UsageError, match=r"no file of 'c' .*cannot be opened \(Permission denied\)"):
        load_manifest("folder", tmp_path)


@pytest.mark.parametrize(
    ("label", "encoding", "read_as"),
    [("Café", "cp1252", "Windows-1252"), ("Müsik “live”", "cp1252", "Windows-1252"), ("a\x81é", "latin-1", "Latin-1"),
     ("Café", "utf-16", None), ("Café", "utf-8-sig", None), ("Café", "utf-16-le", None), ("Café", "utf-16-be", None),
     ("Café", "utf-32", None), ("Café", "utf-32-le", None), ("Café", "utf-32-be", None)],
)  # fmt: skip
def test_csv_in_other_encodings(label, encoding, read_as, tmp_path):
    name = "tön.wav"
    tone(tmp_path / name)
    tone(tmp_path / "x.wav")
    raw = os.path.join(os.fsencode(tmp_path), "älter.wav".encode("latin-1"))  # a file of a Latin-1 system
    with open(raw, "wb") as file:
        file.write((tmp_path / "x.wav").read_bytes())
    rows = f"path,label\r\n{name},{label}\r\nx.wav,b\r\n" + ("älter.wav,b\r\n" if read_as else "")
    (tmp_path / "list.csv").write_bytes(rows.encode(encoding))
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert manifest.classes == tuple(sorted([label, "b"]))
    assert len(manifest) == 2 + bool(read_as)
    assert not manifest.skipped
    assert [note.rpartition(" ")[2] for note in manifest.notes] == ([read_as] if read_as else [])


@pytest.mark.parametrize("content", [b"PK\3\4\0\0\xff\n", b"path,label\nx.wav,\0a\n", b"\0\0\0\0"])
def test_a_csv_with_nul_bytes_is_refused(content, tmp_path):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"list\.csv holds NUL bytes: its encoding is unknown.*save it as UTF-8"):
        load_manifest("folder", tmp_path, csv="list.csv")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_with_other_separators(separator, tmp_path):
    for name in ("a.wav", "b,c.wav"):
        tone(tmp_path / name)
    rows = [["path", "label", "start"], ["a.wav", "dog;rain", "0.1"], ["b,c.wav", "rain, light", ""]]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert manifest.classes == ("dog", "rain", "rain, light")
    assert manifest.targets().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert [manifest.relative_path(row) for row in range(2)] == ["a.wav", "b,c.wav"]
    assert manifest.start.tolist() == pytest.approx([0.1, 0])


def test_class_folders_that_are_no_utf8_are_refused(tmp_path):
    for label in (b"a", b"caf\xe9"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), label))
    with pytest.raises(UsageError, match=r"class folder b'caf\\xe9'.*no UTF-8: rename it"):
        load_manifest("folder", tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        ("Café", "Cafe\u0301"), ("1", "1.0"), ("a b", "a\u00a0b"), ("ﬁn", "fin"), ("dog", "do\u200bg"),
        ("dog", "dog\ufeff"), ("1", "1\u200d"), ("Dog", "dog"), ("NaN", "nan"), ("Straße", "STRASSE"),
    ],
)  # fmt: skip
def test_classes_that_look_alike_are_noted(labels, tmp_path, caplog):
    tone(tmp_path / "x.wav")
    write_csv(
        tmp_path / "list.csv", [["path", "label", "start"], *[["x.wav", each, n / 20] for n, each in enumerate(labels)]]
    )
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert len(manifest.classes) == 2
    (note,) = manifest.notes
    assert "look alike" in note
    assert all(" ".join(f"U+{ord(c):04X}" for c in each) in note for each in labels)
    assert note in caplog.text


@pytest.mark.parametrize(("text", "fold"), [("1.0", 1), ("2", 2), (" 3.0 ", 3), ("", -1)])
def test_folds_as_pandas_writes_them(text, fold, tmp_path):
    tone(tmp_path / "x.wav")
    write_csv(tmp_path / "list.csv", [["path", "label", "fold"], ["x.wav", "a", text]])
    assert load_manifest("folder", tmp_path, csv="list.csv").fold.tolist() == [fold]


def test_audio_files_outside_the_class_folders_are_noted(tmp_path):
    for name in ("a/x.wav", "b/x.wav", "loose.wav"):
        tone(tmp_path / name)
    assert load_manifest("folder", tmp_path).notes == (
        "1 audio file is in no class folder and is left out: 'loose.wav'",
    )


def test_the_documented_list_of_formats():
    text = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    for extension in (*formats.READ, *formats.RARER, *formats.FFMPEG, *formats.NOT_READ):
        assert f"`{extension}`" in text, extension


def test_a_truncated_wav_is_unreadable_and_a_streamed_one_is_not(tmp_path):
    for label in "ab":
        tone(tmp_path / label / "x.wav", seconds=1.0)
    whole = (tmp_path / "a" / "x.wav").read_bytes()
    (tmp_path / "a" / "cut.wav").write_bytes(whole[:9000])
    (tmp_path / "a" / "streamed.wav").write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    manifest = load_manifest("folder", tmp_path)
    assert [clip.path for clip in manifest.skipped] == ["a/cut.wav"]
    assert "truncated" in manifest.skipped[0].reason
    assert len(manifest) == 3


def test_csv_with_several_labels(tmp_path):
    for number in range(12):
        tone(tmp_path / f"{number}.wav")
    rows = [[f"{n}.wav", ["dog;rain", "rain", "dog"][n % 3]] for n in range(12)]
    write_csv(tmp_path / "tags.csv", [["path", "labels"], *rows])
    manifest = load_manifest("folder", tmp_path, csv="tags.csv")
    assert manifest.multi_label
    assert manifest.targets()[:3].tolist() == [[1, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([["file_name", "label"], ["a.wav", "x"]], ["lacks the columns", "path"]),
        ([["path", "label"]], ["lists no file"]),
        ([["path", "label", "split"], ["a.wav", "x", "tset"]], ["line 2", "'tset'", "train, val, test"]),
        ([["path", "label", "fold"], ["a.wav", "x", "one"]], ["line 2", "one"]),
        ([["path", "label", "start"], ["a.wav", "x", "-1"]], ["line 2", "start"]),
        ([["path", "label"], ["", "x"]], ["line 2", "path is empty"]),
        ([["path", "label"], ["a.wav", "x" * 140_000]], ["line", "quotation mark"]),
        ([["path", "label", "fold"], ["a.wav", "x", "0"]], ["line 2", "counted from 1"]),
        ([["path", "label", "fold"], ["a.wav", "x", "1.5"]], ["line 2", "whole number"]),
        ([["path", "label", "fold"], ["a.wav", "x", "nan"]], ["line 2", "whole number"]),
        ([["path", "label", "fold"], ["a.wav", "x", "inf"]], ["line 2", "whole number"]),
        ([["path", "label", "start"], ["a.wav", "x", "0,5"]], ["line 2", "start '0,5'", "decimal point"]),
        ([["path", "label"], ["a.wav", "x", "y"]], ["line 2", "more than the 2 fields", "','", "quotation marks"]),
    ],
)
def test_malformed_csv(tmp_path, rows, parts):
    write_csv(tmp_path / "list.csv", rows)
    with pytest.raises(UsageError) as caught:
        load_manifest("folder", tmp_path, csv="list.csv")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_csv_naming_missing_files_skips_and_counts_them(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav")
    write_csv(tmp_path / "list.csv", [["path", "label"], ["a.wav", "x"], ["gone.wav", "y"], ["b.wav", "y"]])
    manifest = load_manifest("folder", tmp_path, csv="list.csv")
    assert [(clip.path, clip.reason) for clip in manifest.skipped] == [("gone.wav", "does not exist")]
    with pytest.raises(UsageError, match=r"1 of 3 files .*gone.wav: does not exist"):
        check_readable(manifest, max_unreadable=0.05, strict=False)
    check_readable(manifest, max_unreadable=0.5, strict=False)
    with pytest.raises(UsageError, match=r"data\.strict"):
        check_readable(manifest, max_unreadable=0.5, strict=True)


@pytest.mark.parametrize("name", ["esc", "folder"])
def test_a_missing_root_says_what_must_lie_where(name, tmp_path):
    for root in (None, tmp_path / "nowhere"):
        with pytest.raises(UsageError) as caught:
            load_manifest(name, root)
        assert "data.root" in str(caught.value)
        assert ("https://github.com/karolpiczak/ESC-50" if name == "esc" else "<class name>") in str(caught.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        load_manifest(name, tmp_path / "file")


def test_a_class_folder_without_files(tmp_path):
    tone(tmp_path / "full" / "a.wav")
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match=r"class folder without audio files.*'void'.*remove the folder"):
        load_manifest("folder", tmp_path)
    with pytest.raises(UsageError, match="holds no class folder"):
        load_manifest("folder", tmp_path / "void")


def test_a_single_class(tmp_path):
    for number in range(5):
        tone(tmp_path / "only" / f"{number}.wav")
    with pytest.raises(UsageError, match=r"single class \('only'\)"):
        split(load_manifest("folder", tmp_path), "paper")


def test_odd_file_names(tmp_path):
    names = [b"plain.wav", b"new\nline.wav", b"latin-\xe9.wav"]
    tone(tmp_path / "source.wav")
    audio = (tmp_path / "source.wav").read_bytes()
    for label in (b"a", b"b"):
        (tmp_path / "set" / label.decode()).mkdir(parents=True)
        for name in names:
            with open(os.path.join(os.fsencode(tmp_path), b"set", label, name), "wb") as file:
                file.write(audio)
    manifest = load_manifest("folder", tmp_path / "set")
    assert len(manifest) == 6
    assert not manifest.skipped
    assert all(os.path.exists(manifest.file(row)) for row in range(6))


def test_synthetic_is_whole_and_deterministic(synthetic_root, tmp_path):
    manifest = load_manifest("synthetic", synthetic_root, tracks=4, seconds=1.5)
    assert (len(manifest), len(manifest.classes)) == (40, 10)
    assert manifest.facts is not None
    assert {"tempo", "key", "instrument", "loudness", "chords"} <= set(manifest.facts[0])
    again = load_manifest("synthetic", tmp_path / "again", tracks=4, seconds=1.5)
    assert again.fingerprint() == manifest.fingerprint()
    for row in (0, 17, 39):
        assert Path(os.fsdecode(manifest.file(row))).read_bytes() == Path(os.fsdecode(again.file(row))).read_bytes()
    truth = [json.loads(line) for line in (synthetic_root / "truth.jsonl").read_text().splitlines()]
    assert truth[5]["path"] == manifest.relative_path(5)


def test_synthetic_refuses_a_folder_of_something_else(synthetic_root, tmp_path):
    with pytest.raises(UsageError, match=r"other arguments \(tracks 4 -> 5\)"):
        load_manifest("synthetic", synthetic_root, tracks=5, seconds=1.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.wav").write_text("x")
    with pytest.raises(UsageError, match="is no synthetic data set.*data=folder"):
        load_manifest("synthetic", tmp_path / "mine")
    with pytest.raises(UsageError, match="vary='rythm'"):
        load_manifest("synthetic", tmp_path / "new", vary="rythm")


def test_synthetic_is_made_by_one_of_several_processes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gafx.log import show_log; show_log()\n"
        "from gafx.data.sources.synthetic import synthesize\n"
        "if __name__ == '__main__': synthesize(Path(sys.argv[1]), tracks=1, seconds=1.0, workers=1)"
    )
    command = [sys.executable, "-c", code, tmp_path / "deep" / "set"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "".join(errors).count("making 10 synthetic tracks") == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]
    assert len(load_manifest("synthetic", tmp_path / "deep" / "set", tracks=1, seconds=1.0)) == 10


def test_fingerprint_changes_with_labels_and_not_with_place(tmp_path):
    import shutil

    for label in "ab":
        tone(tmp_path / "one" / label / "x.wav")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert (
        load_manifest("folder", tmp_path / "one").fingerprint()
        == load_manifest("folder", tmp_path / "two").fingerprint()
    )
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert (
        load_manifest("folder", tmp_path / "one").fingerprint()
        != load_manifest("folder", tmp_path / "two").fingerprint()
    )


@pytest.mark.parametrize(
    "changed",
    [
        "x.wav,a,0.5,1.0,1\ny.wav,b,0.0,1.0,1",
        "x.wav,a,0.25,1.0,1\ny.wav,b,0.125,1.0,1",
        "x.wav,a,0.25,1.0,1\ny.wav,b,0.0,1.0,3",
    ],
)
def test_fingerprint_changes_with_starts_and_weights(changed, tmp_path):
    def fingerprint(rows):
        (tmp_path / "list.csv").write_text(f"path,label,start,duration,weight\n{rows}\n")
        return load_manifest("folder", tmp_path, csv="list.csv").fingerprint()

    for name in ("x", "y"):
        tone(tmp_path / f"{name}.wav", seconds=2.0)
    first = "x.wav,a,0.25,1.0,1\ny.wav,b,0.0,1.0,1"
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(changed)


@pytest.mark.parametrize("change", ["content", "size", "removed"])
def test_other_sound_under_the_same_names_is_noticed(change, tmp_path):
    import shutil

    for label in "ab":
        tone(tmp_path / "one" / label / "x.wav")
    before = load_manifest("folder", tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    after = load_manifest("folder", tmp_path / "two")
    assert after.changed_since(before.identity()) is None
    assert after.changed_since({"fingerprint": before.fingerprint()}) is None  # recorded by an earlier version
    file = tmp_path / "two" / "a" / "x.wav"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    {"content": lambda: file.write_bytes(content), "size": lambda: file.write_bytes(content + b"LIST\0\0\0\0"),
     "removed": file.unlink}[change]()  # fmt: skip
    after = dataclasses.replace(after)  # which has not looked at its files yet
    assert "files have other sizes or contents" in after.changed_since(before.identity())


# --- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serves `tmp_path/served` over HTTP, with the digests that the hub announces for its large files."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def end_headers(self):
            path = Path(self.translate_path(self.path))
            if path.is_file():
                self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
                self.send_header("X-Repo-Commit", "main")
            super().end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield served, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_esc50_is_fetched_checked_and_read(esc50, server, tmp_path, monkeypatch):
    from gafx.data.download.install import tree_digest
    from gafx.data.sources import esc

    served, address = server
    with zipfile.ZipFile(served / "master.zip", "w") as archive:
        for path in sorted([*(esc50 / "audio").iterdir(), *(esc50 / "meta").iterdir()]):
            archive.write(path, f"ESC-50-master/{path.relative_to(esc50)}")
    monkeypatch.setattr(esc, "ARCHIVE", f"{address}/master.zip")
    root = tmp_path / "data" / "ESC-50"
    with pytest.raises(UsageError, match=r"not those of ESC-50 as they are known"):
        load_manifest("esc", root, download=True)
    assert not root.exists()
    digest = tree_digest(esc50, [f"audio/{path.name}" for path in (esc50 / "audio").iterdir()])
    monkeypatch.setattr(esc, "AUDIO_DIGEST", digest)
    manifest = load_manifest("esc", root, download=True)
    assert manifest.fingerprint() == load_manifest("esc", esc50).fingerprint()
    (served / "master.zip").unlink()
    load_manifest("esc", root, download=True)  # it is there: nothing is fetched


def test_gtzan_is_fetched_from_the_hub_by_a_run(server, tmp_path):
    """train.py with data.download=true, against a server in the hub's layout; the process has no other network."""
    served, address = server
    tone(tmp_path / "tone.wav", rate=22050)
    archive = served / "datasets" / "marsyas" / "gtzan" / "resolve" / "main" / "data" / "genres.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for genre in GENRES:
            for number in range(5):
                tar.add(tmp_path / "tone.wav", f"genres/{genre}/{genre}.{number:05d}.wav")
    root = tmp_path / "data" / "gtzan"
    arguments = ["data=gtzan", "data.download=true", f"data.root={root}", *SMALL[3:], *MEL, "data.segment_seconds=0.2",
                 "max_steps=1", f"output_dir={tmp_path / 'outputs'}"]  # fmt: skip
    done = script("train.py", *arguments, HF_HUB_OFFLINE="0", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    assert "gtzan, protocol paper: 40 training, 0 validation, 10 test tracks" in done.stderr
    assert len(load_manifest("gtzan", root)) == 50
    assert [path.name for path in root.parent.iterdir() if "download" in path.name] == []


def test_what_cannot_be_fetched_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"'folder' cannot be fetched; those that can: esc, gtzan"):
        load_manifest("folder", tmp_path, download=True)
    with pytest.raises(UsageError, match=r"needs data\.root"):
        load_manifest("gtzan", None, download=True)
