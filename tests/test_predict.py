"""Labelling files: the same probabilities from every interface, errors of broken files, memory of bounded size."""

import csv
import errno
import io
import json
import os
import re
import stat
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from pages import ROOT, blocks, run_python

import gafx
from gafx.audio.read import read_segment
from gafx.cli import main
from gafx.data.segments import evaluation_segments
from gafx.deploy import writers
from gafx.deploy.files import find_files
from gafx.deploy.predict import predict_files, probabilities
from gafx.deploy.windows import Computed, FileDone, Layout, compute, layout_for
from gafx.errors import UsageError
from gafx.inference import Probabilities
from gafx.report.format import clock, probability

CLASSES = ["blues", "hip-hop", "pop"]
RATE = 22050
WINDOW = 0.5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=WINDOW).eval()
    built.fit_statistics(torch.rand(4, 1, 11025) - 0.5)
    with torch.no_grad():  # a new head gives nearly equal probabilities
        built.classifier.output.weight.mul_(30)
    return built


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("model") / "model")


def sound(rng, seconds, rate=RATE, channels=1):
    time_axis = np.arange(round(seconds * rate)) / rate
    sweep = np.sin(2 * np.pi * (200 + 300 * time_axis) * time_axis)
    return 0.3 * sweep[:, None] + 0.05 * rng.standard_normal((len(time_axis), channels))


@pytest.fixture
def album(rng, wav_factory, tmp_path):
    """Files of many lengths and formats, three of them broken, and one that is no audio."""
    for name, seconds, rate, channels, how in (
        ("a.wav", 2.3, 44100, 2, {}), ("b.flac", 0.2, 22050, 1, {}), ("c.ogg", 1.1, 48000, 1, {}),
        ("d.mp3", 0.9, 44100, 2, {}), ("e.aiff", 0.5, 22050, 1, {}), ("f.opus", 0.7, 48000, 1,
        {"format": "OGG", "subtype": "OPUS"}), ("sub/g.wav", 0.001, 22050, 1, {}),
    ):  # fmt: skip
        wav_factory(f"album/{name}", sound(rng, seconds, rate, channels), rate, **how)
    (tmp_path / "album/broken.wav").write_bytes(b"RIFF of nothing")
    (tmp_path / "album/empty.mp3").touch()
    (tmp_path / "album/film.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(64))
    (tmp_path / "album/cover.jpg").write_bytes(b"no sound")
    return tmp_path / "album"


def run(capsys, *arguments):
    """A `gafx` command in this process: its status, standard output and standard error."""
    try:
        main([str(item) for item in arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code
    message = capsys.readouterr()
    return status, message.out, message.err


# --- windows ----------------------------------------------------------------------------------------------------------


def blocks_of(samples, sizes):
    start = 0
    while start < samples.shape[1]:
        yield samples[:, start : start + sizes[0]]
        start += sizes[0]
        sizes = [*sizes[1:], sizes[0]]


@pytest.mark.parametrize("length", [1, 60, 99, 100, 101, 109, 110, 149, 150, 155, 200, 205, 250, 399, 1000])
@pytest.mark.parametrize("hop", [100, 50, 33, 1])
def test_windows_of_a_stream(length, hop):
    layout = Layout(sample_rate=10, channels=2, window=100, hop=hop, least=20)
    samples = np.stack([np.arange(length), -np.arange(length)]).astype(np.float32)
    for sizes in ([7], [1000], [100], [1, 250, 3]):
        cut = list(layout.cut(blocks_of(samples, sizes)))
        starts = [start for start, _ in cut]
        if length < 100:
            assert starts == [0]
            np.testing.assert_array_equal(cut[0][1], np.resize(samples[0], max(length, 20)) * np.array([[1], [-1]]))
            continue
        expected = list(range(0, length - 100 + 1, hop))
        if length - expected[-1] - 100 >= 10:
            expected.append(length - 100)
        assert starts == expected
        for start, wave in cut:
            np.testing.assert_array_equal(wave, samples[:, start : start + 100])


def test_without_overlap_windows_are_the_segments_of_evaluation(model, rng, wav_factory):
    for seconds in (0.3, 0.5, 0.54, 0.56, 1.0, 1.9):
        path = wav_factory(f"{seconds}.wav", sound(rng, seconds))
        manifest = gafx.load_manifest("folder", write_list(path))
        segments = evaluation_segments(manifest, np.array([0]), RATE, round(WINDOW * RATE), model.min_samples())
        found = list(compute(lambda wave: wave.mean(axis=(1, 2)), [path], layout_for(model)))
        assert [item.start for item in found if isinstance(item, Computed)] == segments.start.tolist()
        assert [item.samples for item in found if isinstance(item, Computed)] == segments.length.tolist()


def write_list(path):
    """A class folder that holds this one file."""
    folder = path.parent / f"set-{path.stem}"
    (folder / "label").mkdir(parents=True)
    (folder / "label" / path.name).hardlink_to(path)
    return folder


def test_a_file_is_finished_after_its_windows_and_waits_for_no_other_length(model, rng, wav_factory):
    short = wav_factory("short.wav", sound(rng, 0.3))
    long = wav_factory("long.wav", sound(rng, 3.0))
    found = list(compute(lambda wave: wave.mean(axis=(1, 2)), [short, *[long] * 70], layout_for(model), batch_size=4))
    done: set[int] = set()
    for item in found:
        assert item.file not in done
        if isinstance(item, FileDone):
            done.add(item.file)
    assert done == set(range(71))
    assert next(n for n, item in enumerate(found) if item.file == 0) < len(found) - 2  # not left to the very end


def test_a_long_wait_for_one_file_does_not_lock(model, rng, wav_factory, tmp_path):
    """More broken files behind an odd one than may wait for it."""
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    short = wav_factory("short.wav", sound(rng, 0.3))
    answers = list(predict_files(Probabilities(model), [short, *[tmp_path / "bad.wav"] * 400, short]))
    assert [answer.error is None for answer in answers] == [True, *[False] * 400, True]


def test_readers_end_with_whoever_listens(model, rng, wav_factory):
    path = wav_factory("a.wav", sound(rng, 5.0))
    before = threading.active_count()
    answers = predict_files(Probabilities(model), [path] * 50, batch_size=2, readers=3)
    next(answers)
    answers.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_errors_of_the_model_are_raised(model, rng, wav_factory):
    path = wav_factory("a.wav", sound(rng, 5.0))

    def fail(wave):
        raise RuntimeError("no memory, say")

    with pytest.raises(RuntimeError, match="no memory"):
        list(compute(fail, [path] * 9, layout_for(model), batch_size=1))


def test_blocks_not_files_fill_the_memory(model):
    """Ten hours as a stream: what the cutter holds does not grow."""
    layout = layout_for(model)
    held = 0
    block = np.zeros((1, 10 * RATE), np.float32)
    for number, (start, wave) in enumerate(layout.cut(block for _ in range(360))):
        held = max(held, wave.nbytes)
        assert start == number * layout.hop
    assert number == 2 * 3600 - 1
    assert held == 4 * layout.window


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_probabilities_are_the_mean_over_windows_that_equal_single_ones(model, album):
    answers = {answer.file.rpartition("/")[2]: answer for answer in gafx.predict(album, model, over_time=True)}
    assert {name for name, answer in answers.items() if answer.error} == {"broken.wav", "empty.mp3", "film.m4a"}
    assert "mp4" in answers["film.m4a"].error
    for name, answer in answers.items():
        if answer.error:
            assert answer.probabilities is answer.seconds is answer.windows is None
            assert answer.top() == []
            continue
        assert answer.probabilities.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(answer.window_probabilities.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(answer.window_probabilities.mean(axis=0), answer.probabilities, atol=1e-12)
        assert answer.top(1)[0][0] == CLASSES[int(answer.probabilities.argmax())]
        if name.endswith("aiff"):
            continue
        whole = read_segment(answer.file, 0, 10**9, sample_rate=RATE)
        for (start, end), values in zip(answer.windows, answer.window_probabilities, strict=True):
            wave = whole[:, round(start * RATE) : round(end * RATE)]
            if wave.shape[1] < model.min_samples():
                wave = np.resize(wave, (1, model.min_samples()))
            alone = Probabilities(model)(torch.from_numpy(wave)[None]).detach()[0]
            np.testing.assert_allclose(values, alone, atol=1e-5)


def test_overlap_and_windows_of_another_length(model, rng, wav_factory):
    path = wav_factory("a.wav", sound(rng, 3.0))
    (answer,) = gafx.predict(path, model, overlap=0.75, window_seconds=1.0, over_time=True)
    np.testing.assert_allclose(answer.windows[:, 0], np.arange(0, 2.01, 0.25), atol=1e-3)  # whole samples
    np.testing.assert_allclose(np.diff(answer.windows), 1.0)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("readers", [1, 3])
def test_neither_batches_nor_readers_change_predictions(model, album, batch_size, readers):
    plain = list(gafx.predict(album, model))
    other = list(gafx.predict(album, model, batch_size=batch_size, readers=readers))
    assert [answer.file for answer in other] == [answer.file for answer in plain]
    for a, b in zip(plain, other, strict=True):
        assert a.error == b.error
        if a.error is None:
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


def test_temperature(model, saved, rng, wav_factory):
    from gafx.saving.hub import write_calibration

    path = wav_factory("a.wav", sound(rng, 0.5))
    (plain,) = gafx.predict(path, saved)
    write_calibration(saved, {"temperature": 4.0, "part": "validation", "tracks": 7})
    try:
        (cooled,) = gafx.predict(path, saved)
    finally:
        model.save(saved)
    logits = np.log(plain.probabilities) / 4
    np.testing.assert_allclose(cooled.probabilities, np.exp(logits) / np.exp(logits).sum(), rtol=1e-5)


def test_tagging_probabilities_are_independent(rng, wav_factory):
    torch.manual_seed(1)
    tagger = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=0.5).eval()
    tagger.info.objective = "tag"
    path = wav_factory("a.wav", sound(rng, 0.5))
    (answer,) = gafx.predict(path, tagger)
    wave = torch.from_numpy(read_segment(path, 0, 11025, sample_rate=RATE))[None]
    np.testing.assert_allclose(answer.probabilities, tagger(wave).sigmoid().detach()[0], atol=1e-6)
    assert not probabilities(tagger).sums_to_one


def test_a_model_whose_output_is_not_finite(rng, wav_factory):
    broken = gafx.create_model("mel", {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=0.5).eval()
    torch.nn.init.constant_(broken.classifier.output.bias, float("nan"))
    (answer,) = gafx.predict(wav_factory("a.wav", sound(rng, 0.5)), broken)
    assert "not finite" in answer.error


@pytest.mark.parametrize(
    ("options", "message"),
    [({"overlap": 1.0}, "overlap"), ({"overlap": -0.1}, "overlap"), ({"window_seconds": 1e-5}, "window"),
     ({"window_seconds": 1e9}, "window")],
)  # fmt: skip
def test_options_out_of_range_are_refused_at_once(model, options, message):
    with pytest.raises(UsageError, match=message):
        gafx.predict("a.wav", model, **options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"readers": 0}])
def test_counts_out_of_range(model, options):
    with pytest.raises(UsageError, match="at least 1"):
        list(gafx.predict("a.wav", model, **options))


def test_models_without_labels(model):
    regression = gafx.create_model("gafx_r", {"name": "ast", "depth": 1}, classes=["x"], segment_seconds=0.5)
    regression.info.objective = "mel_regression"
    with pytest.raises(UsageError, match="uses no labels"):
        gafx.predict("a.wav", regression)
    bare = gafx.GAFX(model.frontend, model.classifier)
    with pytest.raises(UsageError, match=r"no information on its outputs \(model.info\)"):
        gafx.predict("a.wav", bare)
    with pytest.raises(UsageError, match="pass window_seconds"):
        layout_for(bare)


# --- files ------------------------------------------------------------------------------------------------------------


def test_find_files(album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_files(["album", "album/a.wav", "nowhere.wav", "album/*.ogg", "album/cover.jpg"])
    names = [name.removeprefix("album/") for name in found.files]
    assert names == ["a.wav", "b.flac", "broken.wav", "c.ogg", "d.mp3", "e.aiff", "empty.mp3", "f.opus", "film.m4a",
                     "sub/g.wav", "nowhere.wav", "cover.jpg"]  # fmt: skip
    assert found.passed_over == 1
    assert find_files(["album/**/*.wav"]).files == ["album/a.wav", "album/broken.wav", "album/sub/g.wav"]
    assert find_files(["none*.wav"]).files == ["none*.wav"]
    assert find_files(["-"], [b"album/a.wav\n", b"\n", b"x y.wav\r\n"]).files == ["album/a.wav", "x y.wav"]
    assert find_files(["-"], [b"a\nb.wav\0c.wav\0"]).files == ["a\nb.wav", "c.wav"]


def test_links_and_loops(rng, wav_factory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wav_factory("music/one.wav", sound(rng, 0.1))
    wav_factory("elsewhere/two.wav", sound(rng, 0.1))
    (tmp_path / "music/back").symlink_to(".")
    (tmp_path / "music/linked").symlink_to("../elsewhere")
    (tmp_path / "music/again.wav").symlink_to("one.wav")
    assert find_files(["music"]).files == ["music/again.wav", "music/linked/two.wav"]
    assert len(find_files(["music/**/*.wav"]).files) == 2
    assert find_files(["music/one.wav", "./music/one.wav", "music"]).files == ["music/one.wav", "music/linked/two.wav"]


def test_names_with_brackets_and_bytes(rng, wav_factory, tmp_path):
    path = wav_factory("take [1].wav", sound(rng, 0.5))
    assert find_files([str(path)]).files == [str(path)]
    assert find_files(["-"], [b"\xff.wav\n"]).files == ["\udcff.wav"]
    assert find_files(["-"], [b"a\r\0 \0"]).files == ["a\r", " "]


def test_a_file_that_fails_on_read_is_reported_and_the_others_labelled(model, rng, wav_factory, monkeypatch):
    good, bad = wav_factory("good.wav", sound(rng, 0.5)), wav_factory("bad.wav", sound(rng, 0.5))

    class FileIO(io.FileIO):
        def read(self, *size):
            if self.name.endswith(b"bad.wav"):
                raise OSError(errno.EIO, "Input/output error")
            return super().read(*size)

    monkeypatch.setattr(io, "FileIO", FileIO)
    answers = list(gafx.predict([good, bad, good.with_name("good.wav")], model))
    assert [answer.error for answer in answers] == [None, "cannot be read (Input/output error)"]


def test_long_windows_make_small_batches(model, monkeypatch, rng, wav_factory):
    from gafx.deploy import windows

    monkeypatch.setattr(windows, "_MAX_BATCH_BYTES", 3 * 4 * 11025)
    sizes = []

    def look(wave):
        sizes.append(len(wave))
        return wave.mean(axis=(1, 2))

    list(compute(look, [wav_factory("a.wav", sound(rng, 5))], layout_for(model), batch_size=16))
    assert max(sizes) == 3


# --- the command ------------------------------------------------------------------------------------------------------


def test_all_formats_agree(album, saved, capsys):
    python = {answer.file: answer for answer in gafx.predict(album, saved)}
    status, out, err = run(capsys, "predict", album, "--model", saved, "--json")
    assert status == 1
    assert "3 files could not be read" in err
    assert "skipped 1 file" in err
    assert "not calibrated" in err
    entries = json.loads(out)
    assert [entry["file"] for entry in entries] == list(python)
    _, lines, _ = run(capsys, "predict", album, "--model", saved, "--jsonl")
    assert [json.loads(line) for line in lines.splitlines()] == entries
    _, table, _ = run(capsys, "predict", album, "--model", saved, "--csv")
    rows = list(csv.DictReader(io.StringIO(table)))
    for entry, row in zip(entries, rows, strict=True):
        answer = python[entry["file"]]
        if answer.error:
            assert entry == {"file": answer.file, "error": answer.error}
            assert row["error"] == answer.error
            assert row["label"] == ""
            continue
        assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        for label, value in answer.top():
            assert entry["probabilities"][label] == pytest.approx(value, abs=1e-8)
            assert float(row[label]) == pytest.approx(value, abs=1e-8)
        assert row["label"] == answer.top(1)[0][0] == next(iter(entry["probabilities"]))


def test_over_time(album, saved, capsys):
    status, out, _ = run(capsys, "predict", album / "a.wav", "--model", saved, "--json", "--over-time")
    assert status == 0
    (entry,) = json.loads(out)
    assert [window["start"] for window in entry["over_time"]] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 1.8]
    _, out, _ = run(capsys, "predict", album / "a.wav", "--model", saved, "--csv", "--over-time")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["start"]) for row in rows] == [window["start"] for window in entry["over_time"]]
    _, out, _ = run(capsys, "predict", album / "a.wav", "--model", saved, "--over-time", "--top", 1)
    assert len(out.splitlines()) == 10
    assert re.search(r"^ +0:00\.00 to 0:00\.50 .*\n +0:00\.25 to 0:00\.75 ", out, re.MULTILINE)


def test_a_table_for_people(album, saved, capsys):
    status, out, err = run(capsys, "predict", album, "--model", saved, "--top", 2)
    assert status == 1
    lines = out.splitlines()
    assert len(lines) == 10
    assert sum("error: " in line for line in lines) == 3
    assert all(line.count("%") == 2 for line in lines if "error" not in line)
    assert "7 files labelled" in err


def test_output_is_written_atomically(album, saved, tmp_path, capsys):
    target = tmp_path / "new" / "labels.jsonl"
    status, out, _ = run(capsys, "predict", album, "--model", saved, "--jsonl", "--output", target)
    assert (status, out) == (1, "")
    assert len(target.read_text().splitlines()) == 10
    status, _, err = run(capsys, "predict", album, "--model", tmp_path / "none", "--output", target)
    assert status == 2
    assert "does not exist" in err
    assert len(target.read_text().splitlines()) == 10
    assert [path.name for path in target.parent.iterdir()] == ["labels.jsonl"]


def test_output_through_a_link_and_into_a_device(album, saved, tmp_path, capsys):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    run(capsys, "predict", album / "a.wav", "--model", saved, "--csv", "--output", tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("file,seconds")
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert run(capsys, "predict", album / "a.wav", "--model", saved, "--csv", "--output", tmp_path / "pipe")[0] == 0
    reader.join(10)
    assert received[0].startswith("file,seconds")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--plot", "real.csv"], "--plot real.csv is a file"), (["--output", "real.csv/y"], "is a file, not a folder"),
     (["--output", "."], "is a folder")],
)  # fmt: skip
def test_targets_are_checked_first(arguments, message, album, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.csv").write_text("old")
    status, out, err = run(capsys, "predict", album, "--model", tmp_path / "none", "--json", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert (tmp_path / "real.csv").read_text() == "old"


def test_csv_columns_of_labels_that_are_called_like_its_own():
    labels = ("file", "seconds", "label", "error", "start", "probability:file", "rock")
    answer = gafx.deploy.predict.Prediction(
        "a.wav", labels, 1.0, np.arange(7) / 21, np.array([[0.0, 1.0]]), np.arange(7)[None] / 21
    )
    for over_time, own in ((False, ["file", "seconds", "label"]), (True, ["file", "start", "end", "label"])):
        out = io.StringIO()
        with writers.Csv(out, labels, over_time=over_time) as writer:
            writer.write(answer)
        (row,) = csv.DictReader(io.StringIO(out.getvalue()))
        assert len(row) == len(own) + 7 + 4  # all names differ
        assert list(row)[: len(own)] == own
        assert (row["file"], row["label"], row["error"]) == ("a.wav", "rock", "")
        names = [f"probability:{label}" if label in (*own, "error", "probability:file") else label for label in labels]
        assert [float(row[name]) for name in names] == pytest.approx(np.arange(7) / 21, abs=1e-8)


def test_an_interrupted_array_is_not_closed():
    out = io.StringIO()
    writer = writers.Json(out, CLASSES)
    writer.__enter__()
    writer.write(gafx.deploy.predict.Prediction("a.wav", tuple(CLASSES), error="no sound"))
    writer.__exit__(RuntimeError, RuntimeError(), None)
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())


def test_json_in_an_encoding_that_lacks_characters():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1", errors="backslashreplace")
    with writers.JsonLines(out, CLASSES) as writer:
        writer.write(gafx.deploy.predict.Prediction("é 🎵.wav", tuple(CLASSES), error="no sound"))
    assert json.loads(raw.getvalue())["file"] == "é 🎵.wav"


def test_control_characters_in_names_are_escaped(rng, saved, wav_factory, tmp_path, capsys):
    names = ["\x1b[31mred.wav", "two\nlines.wav"]
    for name in names:
        wav_factory(f"odd/{name}", sound(rng, 0.2))
    (tmp_path / "odd/\x1bbroken.wav").touch()
    _, out, err = run(capsys, "predict", tmp_path / "odd", "--model", saved)
    assert "\x1b" not in out + err
    assert len(out.splitlines()) == 3
    assert "\\x1b[31mred.wav" in out
    _, out, _ = run(capsys, "predict", tmp_path / "odd", "--model", saved, "--json")
    assert {entry["file"].rpartition("/")[2] for entry in json.loads(out)} == {*names, "\x1bbroken.wav"}


def test_long_names(rng, saved, tmp_path, capsys):
    path = tmp_path / ("x" * 251 + ".wav")
    soundfile.write(path, sound(rng, 0.5), RATE)
    assert run(capsys, "predict", path, "--model", saved, "--plot", tmp_path / "plots")[0] == 0
    assert run(capsys, "features", path, "--model", saved, "--output", tmp_path / "features")[0] == 0
    assert len(list((tmp_path / "plots").iterdir())) == 1
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_an_interruption(saved, album, capsys, monkeypatch):
    from gafx.deploy import predict as room

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "predict_files", interrupted)
    status, _, err = run(capsys, "predict", album, "--model", saved)
    assert status == 130
    assert err.endswith("interrupted\n")
    assert "training" not in err


def test_a_list_on_standard_input(album, saved, capsys, monkeypatch):
    class Standard:
        buffer = io.BytesIO(f"{album / 'a.wav'}\n{album / 'sub'}\n".encode())

    monkeypatch.setattr(sys, "stdin", Standard)
    status, out, _ = run(capsys, "predict", "-", "--model", saved, "--jsonl")
    assert status == 0
    assert len(out.splitlines()) == 2
    Standard.buffer = io.BytesIO(b"\n")
    status, _, err = run(capsys, "predict", "-", "--model", saved)
    assert status == 2
    assert "list on standard input is empty" in err


def test_a_folder_without_audio(saved, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    status, out, _ = run(capsys, "predict", tmp_path / "bare", "--model", saved)
    assert status == 1
    assert "is a folder without audio files" in out


def test_plots(album, saved, tmp_path, capsys):
    status, _, err = run(
        capsys, "predict", album / "a.wav", album / "sub", album / "broken.wav", "--model", saved, "--plot",
        tmp_path / "plots",
    )  # fmt: skip
    assert status == 1
    (picture,) = (tmp_path / "plots").iterdir()
    assert picture.name == "a.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "is not plotted" in err  # of a file of a thousandth of a second
    assert "g.wav is not plotted: it is too short" in err


def test_a_bar_only_on_a_terminal(album, saved, capsys):
    assert "labelling" not in run(capsys, "predict", album / "a.wav", "--model", saved)[2]


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.004, "0.4 %"), (0.0001, "0 %"), (0.3, "30 %"), (0.9961, "99.6 %")],
)
def test_percent(value, message):
    assert probability(value) == message


@pytest.mark.parametrize(("seconds", "message"), [(0, "0:00"), (65.4, "1:05"), (3725, "1:02:05"), (36000, "10:00:00")])
def test_clock(seconds, message):
    assert clock(seconds) == message


def test_clock_tells_steps_apart():
    assert [clock(65.4321, step) for step in (2, 1, 0.5, 0.1, 0.03, 1e-9)] == [
        "1:05", "1:05", "1:05.4", "1:05.4", "1:05.43", "1:05.432"
    ]  # fmt: skip
    assert clock(59.996, 0.01) == "1:00.00"


def test_a_file_that_is_damaged_in_the_middle_is_labelled_up_to_there(rng, model, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(rng, 20.0), RATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    (answer,) = gafx.predict(path, model)
    assert answer.error is None
    assert 5 < answer.seconds < 10.5
    assert "damaged" in answer.note
    assert "of 20.00 s" in answer.note
    assert answer.to_dict()["note"] == answer.note


def test_the_snippets_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "predict.md"
    for code in blocks(page, "python"):
        run_python(code, page)
    message = capsys.readouterr().out
    assert "gone.wav does not exist" in message
    assert "song.flac 3.0" in message
