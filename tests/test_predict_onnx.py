"""Labelling with a model that `gafx export` wrote as ONNX: the answers of the model itself, without PyTorch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import soundfile
import torch

import gafx
from gafx.deploy.export import export, read_description
from gafx.deploy.exported import ExportedModel
from gafx.deploy.predict import probabilities
from gafx.deploy.stream import stream
from gafx.errors import UsageError
from gafx.inference import Probabilities

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).resolve().parents[1]
RATE, CLASSES = 8000, ["blues", "jazz", "rock"]
# A process without torch and the packages that docs/export.md does not list.
MISSING = ["torch", "einops", "safetensors", "huggingface_hub", "filelock", "psutil", "yaml", "scipy"]
WITHOUT_TORCH = f"import sys; sys.modules |= dict.fromkeys({MISSING}); from gafx.cli import main; main(sys.argv[1:])"


def build(objective="classify"):
    torch.manual_seed(0)
    frontend = {"name": "mel", "sample_rate": RATE, "n_mels": 16, "win_length": 256, "hop_length": 128}
    model = gafx.create_model(frontend, {"name": "cnn", "widths": [8, 16]}, classes=CLASSES, segment_seconds=0.5).eval()
    model.fit_statistics(torch.rand(4, 1, RATE // 2) - 0.5)
    with torch.no_grad():  # else all labels are equally likely, whatever comes in
        model.classifier.output.weight.mul_(20)
    model.info.objective = objective
    model.info.calibration = {"temperature": 2.0, "part": "validation", "recordings": 3}
    return model


@pytest.fixture(scope="module")
def model():
    return Probabilities(build())


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    found = export(model, tmp_path_factory.mktemp("export") / "model.onnx")
    assert found.fixed is None
    found.description.unlink()  # what is inside the file suffices
    return found


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Files of other rates, lengths and channels; a silent one, one that is half silent, and one that is no audio."""
    folder, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    loudness = np.geomspace(0.5, 0.01, 3 * 22050)
    soundfile.write(folder / "long.wav", rng.normal(0, 0.3, 3 * 22050) * loudness, 22050)
    soundfile.write(folder / "stereo.flac", np.cumsum(rng.normal(0, 0.02, (2 * 44100, 2)), 0).clip(-1, 1), 44100)
    soundfile.write(folder / "short.wav", 0.3 * np.sin(np.arange(2400)), RATE)
    soundfile.write(folder / "tiny.wav", 0.3 * np.sin(np.arange(40)), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    half = np.concatenate([rng.normal(0, 0.1, 2 * RATE), np.zeros(2 * RATE)])
    soundfile.write(folder / "half.wav", half, RATE)
    (folder / "broken.wav").write_bytes(b"nothing")
    return folder


def close(found, expected):
    """Assert that two mappings as of JSON are equal, numbers to 1e-4."""
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected)
        for key, value in expected.items():
            close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"over_time": True, "overlap": 0.75, "batch_size": 3},
        {"views": 3, "silence": None, "window_seconds": 0.4},
        {"labels": ["rock", "jazz"], "threshold": 0.3, "over_time": True},
    ],
    ids=["plain", "over-time", "views", "labels"],
)
def test_the_answers_are_those_of_the_model(options, model, exported, album):
    answers = list(gafx.predict(album, exported.path, **options))
    expected = list(gafx.predict(album, model, **options))
    assert len(answers) == 7
    if "window_seconds" not in options:
        heard = [answer.probabilities for answer in expected if answer.probabilities is not None]
        assert np.std(heard, axis=0).max() > 0.01, "all files have the same probabilities"
    for found, known in zip(answers, expected, strict=True):
        if Path(found.file).stem == "tiny":  # see the next test
            continue
        close(found.to_dict(), known.to_dict())
        assert found.window_count == known.window_count


def test_a_sound_below_the_shortest_wave_of_the_file_is_repeated_up_to_it(model, exported, album):
    (found,) = gafx.predict(album / "tiny.wav", exported.path)
    tiny, _ = soundfile.read(album / "tiny.wav", dtype="float32")
    assert len(tiny) < exported.least_samples
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.resize(tiny, exported.least_samples))[None, None])[0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)


def test_the_command_needs_no_torch(model, exported, album, tmp_path):
    """Every kind of output, in a process in which torch and others cannot be imported."""

    def predict(*arguments):
        command = [sys.executable, "-c", WITHOUT_TORCH, "predict", *map(str, arguments), "--model", str(exported.path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    done = predict(album, "--json")
    assert done.returncode == 1, done.stderr
    assert "1 file could not be read" in done.stderr
    assert "1 of them silent" in done.stderr
    assert "not calibrated" not in done.stderr
    expected = {Path(answer.file).name: answer for answer in gafx.predict(album, model)}
    for entry in json.loads(done.stdout):
        name = Path(entry["file"]).name
        if name != "tiny.wav":
            close(entry, expected[name].to_dict())
    done = predict(album, "--model", tmp_path)
    assert done.returncode == 2
    assert "cannot be one of several" in done.stderr
    folder = tmp_path / "cut"
    done = predict(album / "half.wav", "--merge", "--raven", "--output", tmp_path / "half.txt", "--segments", folder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "half.txt").read_text().startswith("Selection")
    assert list(folder.rglob("half*"))


def test_a_stream_is_labelled_as_a_file(exported, album):
    samples, rate = soundfile.read(album / "half.wav", dtype="float32")
    windows = list(stream(exported.path, [samples], rate))
    (whole,) = gafx.predict(album / "half.wav", exported.path, over_time=True, batch_size=1)
    heard = [
        None if silent else row for silent, row in zip(whole.window_silent, whole.window_probabilities, strict=True)
    ]
    assert [window.silent for window in windows] == whole.window_silent.tolist()
    for window, row in zip(windows, heard, strict=True):
        np.testing.assert_array_equal(window.probabilities, row)


def test_the_description(model, exported):
    found = ExportedModel(exported.path)
    assert found.classes == model.classes
    assert found.sums_to_one
    for name in ("sample_rate", "channels", "segment_seconds", "objective", "calibration", "temperature"):
        assert getattr(found.info, name) == getattr(model.info, name)
    assert probabilities([found]) is found


def rewritten(source, target, description):
    """Copy an exported file with another description; None for none."""
    content = onnx.load(source)
    del content.metadata_props[:]
    if description is not None:
        entry = content.metadata_props.add()
        entry.key, entry.value = "gafx", description
    onnx.save(content, target)
    return target


def test_files_of_others_and_damaged_ones(exported, album, tmp_path):
    described = read_description(exported.path)
    lacking = {key: value for key, value in described.items() if key != "classes"}
    for number, (description, message) in enumerate(
        [
            (None, "was not written by gafx"),
            ("nothing", "was not written by gafx"),
            ("[1]", "is damaged"),
            (json.dumps(lacking), r"is damaged \(KeyError\('classes'\)\)"),
            (json.dumps({**described, "sample_rate": "high"}), "is damaged"),
            (json.dumps({**described, "sample_rate": 0}), "does not fit"),
            (json.dumps({**described, "classes": ["a", "b"]}), "does not fit"),
        ]
    ):
        path = rewritten(exported.path, tmp_path / f"{number}.onnx", description)
        with pytest.raises(UsageError, match=message):
            gafx.predict(album, path)
    (tmp_path / "damaged.onnx").write_bytes(exported.path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be opened as an ONNX model"):
        gafx.predict(album, tmp_path / "damaged.onnx")
    with pytest.raises(UsageError, match="there is no file"):
        gafx.predict(album, tmp_path / "missing.onnx")


def test_files_of_earlier_versions_have_a_temperature_alone(exported, album, tmp_path):
    described = read_description(exported.path)
    del described["calibration"]
    path = rewritten(exported.path, tmp_path / "model.onnx", json.dumps(described))
    assert ExportedModel(path).info.temperature == 2.0
    path = rewritten(exported.path, tmp_path / "model.onnx", json.dumps({**described, "temperature": 1.0}))
    done = runs.command("predict", album / "half.wav", "--model", path)
    assert "not calibrated: the model has no temperature. Calibrate its run" in done.stderr


def test_what_an_exported_model_does_not_do(model, exported, album, tmp_path, monkeypatch):
    for options, message in [
        ({"device": "cuda"}, "run on the CPU"),
        ({"precision": "bf16"}, "computes in fp32"),
        ({"window_seconds": 0.6}, "choose 0.208 to 0.5 s"),
        ({"window_seconds": 0.001}, "choose 0.208 to 0.5 s"),
        ({"views": 0}, "at least 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            gafx.predict(album, exported.path, **options)
    with pytest.raises(UsageError, match=r"model\.onnx cannot be one of several"):
        gafx.predict(album, [exported.path, model])
    with pytest.raises(UsageError, match="gafx predict"):
        gafx.load(exported.path)
    done = runs.command("predict", album, "--model", exported.path, "--plot", tmp_path / "plots")
    assert done.returncode == 2
    assert "--plot shows the map" in done.stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnxruntime: pip install 'gafx\[export\]'"):
        gafx.predict(album, exported.path)


def test_a_name_in_capitals(exported, album, tmp_path):
    shutil.copy(exported.path, tmp_path / "MODEL.ONNX")
    assert next(gafx.predict(album / "half.wav", tmp_path / "MODEL.ONNX")).label in CLASSES


def test_the_folder_of_an_export_is_that_model(exported, tmp_path):
    shutil.copy(exported.path, tmp_path / "model.onnx")
    assert ExportedModel(tmp_path).path == tmp_path / "model.onnx"
    assert next(iter(gafx.predict(np.zeros(RATE), tmp_path, sample_rate=RATE))).error is None
