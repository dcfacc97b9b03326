"""Label tracks, selection tables, merged segments and cut-outs: a file is covered once and its audio copied exactly."""

import csv
import io
import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

import gafx
from gafx.cli import main
from gafx.deploy.cut_outs import Cutter, safe_name
from gafx.deploy.labels import NONE_OF_THESE
from gafx.deploy.predict import Prediction
from gafx.deploy.writers import Audacity, Csv, Raven
from gafx.errors import UnreadableAudio

RATE = 22050
CLASSES = ("dog/cat", "rain", "wind")


def prediction(labels, *, file="a.wav", window=2.0, hop=1.0, seconds=None, **more):
    """Windows whose labels are given by index, None for a silent one; the last window ends with the file."""
    starts = hop * np.arange(len(labels))
    windows = np.stack([starts, starts + window], axis=1)
    if seconds is not None:
        windows[-1] = seconds - window, seconds
    values = np.full((len(labels), len(CLASSES)), 0.1)
    for number, label in enumerate(labels):
        values[number, label or 0] = 0.8 - 0.01 * number
    silent = np.array([label is None for label in labels])
    levels = np.where(silent, -90.0, -20.0 - np.arange(len(labels)))
    return Prediction(
        file, CLASSES, seconds or float(windows[-1, 1]), values.mean(axis=0), windows, values, level=-20.0,
        window_count=len(labels), silent_windows=int(silent.sum()), window_levels=levels, window_silent=silent, **more,
    )  # fmt: skip


# --- segments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hop", "seconds"), [(1.0, None), (2.0, None), (0.5, None), (1.0, 6.3), (2.0, 11.0)])
def test_segments_cover_the_file_once(hop, seconds):
    found = prediction([0, 0, 1, None, None], hop=hop, seconds=seconds)
    for merge in (False, True):
        parts = found.segments(merge=merge)
        assert parts[0].start == 0
        assert parts[-1].end == found.windows[-1, 1] == pytest.approx(found.seconds)
        assert all(a.end == b.start for a, b in pairwise(parts))
        assert sum(part.windows for part in parts) == 5
    for time in np.linspace(0.0137, found.seconds - 0.01, 200):  # each moment has the label of the nearest window
        nearest = int(np.abs(found.windows.mean(axis=1) - time).argmin())
        part = next(part for part in found.segments() if part.start <= time < part.end)
        assert part.label == (
            None if found.window_silent[nearest] else found._label_of(found.window_probabilities[nearest], None)
        )


def test_neighbours_of_one_label_are_merged():
    found = prediction([0, 0, 1, None, None, 1])
    parts = found.segments(merge=True)
    assert [(part.start, part.end, part.label, part.windows) for part in parts] == [
        (0, 2.5, "dog/cat", 2), (2.5, 3.5, "rain", 1), (3.5, 5.5, None, 2), (5.5, 7, "rain", 1),
    ]  # fmt: skip
    np.testing.assert_allclose(parts[0].probabilities, found.window_probabilities[:2].mean(axis=0))
    assert parts[2].probabilities is None
    assert [part.level for part in parts] == [-20, -22, -90, -25]
    assert [segment.label for segment, *_ in found.labelled(merge=True)] == ["dog/cat", "rain", "rain"]
    own = found.segments(overlap=True)
    assert [(part.start, part.end) for part in own] == [tuple(window) for window in found.windows]


def test_none_of_these_is_no_label():
    found = prediction([0, 0, 1], threshold=0.785)
    assert [part.label for part in found.segments(merge=True)] == ["dog/cat", NONE_OF_THESE]
    assert len(found.labelled()) == 2
    assert Prediction("a.wav", CLASSES, 1.0, np.ones(3) / 3).segments() == []


# --- label files ------------------------------------------------------------------------------------------------------


def written(kind, found, **options):
    out = io.StringIO()
    with kind(out, CLASSES, **options) as writer:
        writer.write(found)
    return out.getvalue()


def test_label_tracks_of_audacity():
    found = prediction([0, 0, 1, None])
    assert written(Audacity, found, merge=True) == "0.000000\t2.500000\tdog/cat\n2.500000\t3.500000\train\n"
    assert written(Audacity, found).splitlines()[1] == "1.500000\t2.500000\tdog/cat"
    odd = Prediction("a.wav", ("a\tb\nc", "x"), 1.0, np.array([1, 0]), np.array([[0, 1]]), np.array([[1, 0]]))
    assert written(Audacity, odd) == "0.000000\t1.000000\ta\\tb\\nc\n"


def test_selection_tables_of_raven():
    found = prediction([0, 0, 1, None, 2], file="/x/a.wav")
    rows = list(csv.DictReader(io.StringIO(written(Raven, found, merge=True, sample_rate=16000)), delimiter="\t"))
    assert list(rows[0])[:7] == [
        "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
    ]  # fmt: skip
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert {(row["View"], row["Channel"], row["Low Freq (Hz)"], row["High Freq (Hz)"]) for row in rows} == {
        ("Spectrogram 1", "1", "0", "8000")
    }
    assert [(float(row["Begin Time (s)"]), float(row["End Time (s)"])) for row in rows] == [
        (0, 2.5),
        (2.5, 3.5),
        (4.5, 6),
    ]
    assert all(row["File Offset (s)"] == row["Begin Time (s)"] for row in rows)
    assert {(row["Begin File"], row["Begin Path"]) for row in rows} == {("a.wav", "/x/a.wav")}
    assert [row["Label"] for row in rows] == ["dog/cat", "rain", "wind"]
    assert float(rows[0]["Probability"]) == pytest.approx(0.795)


def test_merged_rows_of_csv():
    rows = list(csv.DictReader(io.StringIO(written(Csv, prediction([0, 0, None]), over_time=True, merge=True))))
    assert [(row["start"], row["end"], row["label"]) for row in rows] == [
        ("0.000", "2.500", "dog/cat"), ("2.500", "4.000", ""),
    ]  # fmt: skip


# --- cut-outs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate", "channels", "how", "suffix"),
    [
        ("a.wav", 44100, 2, {"subtype": "PCM_16"}, ".flac"),
        ("a.flac", 22050, 1, {"subtype": "PCM_24"}, ".flac"),
        ("a.wav", 8000, 1, {"subtype": "PCM_U8"}, ".flac"),
        ("a.wav", 48000, 2, {"subtype": "FLOAT"}, ".wav"),
        ("a.ogg", 44100, 1, {}, ".wav"),
        ("a.wav", 8000, 9, {"subtype": "PCM_16"}, ".wav"),
        ("a.mp3", 44100, 2, {}, ".wav"),
    ],
)
def test_cut_outs_hold_the_samples_of_the_source(name, rate, channels, how, suffix, rng, wav_factory, tmp_path):
    length = round(6.9 * rate) + 1
    path = wav_factory(name, (0.3 * rng.standard_normal((length, channels))).clip(-1, 1), rate, **how)
    source = soundfile.read(path, dtype="float32", always_2d=True)[0]
    found = prediction([0, 0, None, 1, 1, 0], file=str(path), seconds=round(len(source) * RATE / rate) / RATE)
    cutter = Cutter(tmp_path / "cut", CLASSES)
    paths = cutter.cut(found)
    assert [path.parent.name for path in paths] == ["dog_cat", "rain", "dog_cat"]
    assert cutter.count == 3
    assert {path.suffix for path in paths} == {suffix}
    cuts = [soundfile.read(path, dtype="float32", always_2d=True) for path in paths]
    assert {found_rate for _, found_rate in cuts} == {rate}
    spans = [(round(part.start * rate), round(part.end * rate)) for part, *_ in found.labelled(merge=True)]
    spans[-1] = (spans[-1][0], len(source))
    for (samples, _), (start, end) in zip(cuts, spans, strict=True):
        np.testing.assert_array_equal(samples, source[start:end])
    assert not [path for path in (tmp_path / "cut").rglob("*") if path.is_file() and path.stat().st_size == 0]


def test_cut_outs_of_a_damaged_file(rng, wav_factory, tmp_path):
    """The labelled part is cut, as floats."""
    path = wav_factory("a.wav", 0.1 * rng.standard_normal(4 * RATE), RATE, subtype="PCM_16")
    source = soundfile.read(path, dtype="float32")[0][: 2 * RATE]
    path.write_bytes(path.read_bytes()[: 44 + 2 * 2 * RATE])
    first, second = Cutter(tmp_path / "cut", CLASSES).cut(prediction([0, 1, 1], file=str(path), seconds=2.0, hop=0.5))
    pieces = [soundfile.read(each, dtype="float32")[0] for each in (first, second)]
    np.testing.assert_array_equal(np.concatenate(pieces), source)
    assert first.suffix == ".wav"


def test_cut_outs_replace_nothing(rng, wav_factory, tmp_path):
    path = wav_factory("a.wav", 0.1 * rng.standard_normal(3 * RATE))
    found = prediction([1, 1], file=str(path))
    (first,) = Cutter(tmp_path / "cut", CLASSES).cut(found)
    content = first.read_bytes()
    first.write_bytes(b"mine")
    (second,) = Cutter(tmp_path / "cut", CLASSES).cut(found)
    assert first.read_bytes() == b"mine"
    assert second != first
    assert second.read_bytes() == content
    soundfile.write(path, np.zeros(RATE), RATE)
    with pytest.raises(UnreadableAudio, match="does not exist"):
        Cutter(tmp_path / "cut", CLASSES).cut(prediction([1, 1], file=str(path) + "x"))
    assert len(list((tmp_path / "cut").rglob("*.*"))) == 2


@pytest.mark.parametrize(
    ("label", "name"),
    [("rain", "rain"), ("a/b\\c", "a_b_c"), ("../up", "_up"), ("..", "_"), ("", "_"), ("CON", "_CON"),
     ("nul.x", "_nul.x"), ("a\0\n?", "a___"), (" x. ", "x"), ("é" * 80, "é" * 50), ("Musik, laut", "Musik, laut")],
)  # fmt: skip
def test_names_of_folders(label, name):
    assert safe_name(label) == name


def test_labels_of_one_name_have_folders_of_their_own(tmp_path):
    names = Cutter(tmp_path, ["a/b", "a_b", "A:B", "other"]).names
    assert len({name.lower() for name in names.values()}) == 4


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=list(CLASSES), segment_seconds=0.5).eval()
    model.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    with torch.no_grad():
        model.classifier.output.weight.mul_(30)
    return model.save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def album(rng, wav_factory, tmp_path):
    for name in ("a.wav", "b.flac", "sub/a.wav"):
        wav_factory(f"album/{name}", 0.2 * rng.standard_normal(round(2.2 * RATE)))
    (tmp_path / "album/broken.wav").write_bytes(b"RIFF of nothing")
    return tmp_path / "album"


def run(capsys, *arguments):
    try:
        main([str(item) for item in arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code
    message = capsys.readouterr()
    return status, message.out, message.err


@pytest.mark.parametrize(("form", "suffix"), [("audacity", ".txt"), ("raven", ".Table.1.selections.txt")])
def test_a_file_for_each_input(form, suffix, album, saved, tmp_path, capsys):
    folder = tmp_path / "labels"
    status, out, err = run(capsys, "predict", album, "--model", saved, f"--{form}", "--merge", "--output", folder)
    assert (status, out) == (1, "")
    assert "broken.wav" in err
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"a{suffix}", f"a-2{suffix}", f"b{suffix}"])
    (found,) = gafx.predict(album / "b.flac", saved, over_time=True)
    status, out, _ = run(capsys, "predict", album / "b.flac", "--model", saved, f"--{form}", "--merge")
    assert status == 0
    assert out == (folder / f"b{suffix}").read_text()
    assert len(out.splitlines()) - (form == "raven") == len(found.segments(merge=True))
    target = tmp_path / "one.txt"
    run(capsys, "predict", album / "b.flac", "--model", saved, f"--{form}", "--merge", "--output", target)
    assert target.read_text() == out


def test_targets_of_label_files(album, saved, tmp_path, capsys):
    status, _, err = run(capsys, "predict", album, "--model", saved, "--audacity")
    assert status == 2
    assert "--audacity writes a file for each of the 4 files: name a folder with --output" in err
    (tmp_path / "taken.txt").write_text("mine")
    for option in (["--audacity", "--output"], ["--segments"]):
        status, _, err = run(capsys, "predict", album, "--model", saved, *option, tmp_path / "taken.txt")
        assert status == 2
        assert "taken.txt is a file" in err
    assert (tmp_path / "taken.txt").read_text() == "mine"
    status, _, err = run(capsys, "predict", album, "--model", saved, "--audacity", "--output", tmp_path / "new.txt")
    assert status == 2
    assert "new.txt is a file for one input, and --audacity writes one for each of the 4 files" in err
    assert not (tmp_path / "new.txt").exists()


def test_merged_windows_and_cut_outs_agree(album, saved, tmp_path, capsys):
    status, out, err = run(
        capsys, "predict", album / "a.wav", "--model", saved, "--json", "--merge", "--segments", tmp_path / "cut"
    )
    assert status == 0
    (entry,) = json.loads(out)
    cuts = sorted((tmp_path / "cut").rglob("*.flac"), key=lambda path: path.name)
    assert len(cuts) == len(entry["over_time"])
    assert f"{len(cuts)} cut-out" in err
    for part, path in zip(entry["over_time"], cuts, strict=True):
        assert path.parent.name == safe_name(part["label"])
        assert path.name == f"a_{part['start']:09.3f}-{part['end']:09.3f}.flac"
    pieces = np.concatenate([soundfile.read(path)[0] for path in cuts])
    np.testing.assert_array_equal(pieces, soundfile.read(album / "a.wav")[0])
