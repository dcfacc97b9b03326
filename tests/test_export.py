"""Exported models: every front-end in both formats, run without gafx, and errors."""

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from onnx.reference import ReferenceEvaluator
from torch.testing import assert_close

import gafx
from gafx.classifiers.ast import AST
from gafx.cli import main
from gafx.commands.export import default_folder
from gafx.deploy import export as room
from gafx.deploy import onnx_graph
from gafx.deploy.export import FORMATS, export, read_description, synthetic_signal
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.inference import Probabilities
from gafx.nn import exported as arithmetic
from gafx.nn.filterbank import GaborFilterBank
from gafx.nn.pcen import recurrence
from gafx.nn.positions import Patches, fit_positions, lead_positions
from gafx.registry import FRONTENDS

DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"
CLASSES = ["blues", "jazz", "rock"]
TINY = {
    "gafx_r": {"width": 16},
    "gafx_a": {"width": 16, "depth": 1},
    "gafx_u": {"width": 16},
    "mfcc": {"n_mfcc": 20},  # a patch of AST has 16 rows
    "fused": {"parts": {"a": {"name": "mel"}, "b": {"name": "gafx_r", "width": 16}}},
}
# Writing a graph takes seconds to a minute; mel's as ONNX alone is quick enough for every run of the tests.
BOTH = ["onnx", pytest.param("torch_export", marks=pytest.mark.slow)]
EVERY = [
    pytest.param(name, format, marks=() if (name, format) == ("mel", "onnx") else pytest.mark.slow)
    for name in gafx.list_frontends()
    if FRONTENDS.get(name).not_exportable is None
    for format in FORMATS
]


def build(frontend, classifier=None, objective="classify"):
    torch.manual_seed(0)
    model = gafx.create_model(
        frontend, classifier or {"name": "ast", "depth": 1}, classes=CLASSES, segment_seconds=1.0
    ).eval()
    rate = model.frontend.sample_rate
    model.fit_statistics(torch.from_numpy(synthetic_signal(2, model.frontend.channels, rate, rate)))
    with torch.no_grad():
        model.classifier.output.weight.mul_(20)  # else all labels are equally likely, whatever comes in
    model.info.objective = objective
    model.info.calibration = {"temperature": 2.0, "part": "validation", "tracks": 3}
    return model


def run(path, wave):
    """An exported file's answer, without gafx."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(torch.from_numpy(wave)).detach().numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"wave": wave})[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name, format)`: a tiny model's probabilities and its export, each made once."""
    kept = {}

    def make(name, format):
        if (name, format) not in kept:
            model = Probabilities(build({"name": name, **TINY.get(name, {})}))
            path = tmp_path_factory.mktemp(name) / f"model{FORMATS[format]}"
            kept[name, format] = model, export(model, path, format=format)
        return kept[name, format]

    return make


@pytest.fixture
def exporting(monkeypatch):
    """Result of a computation that is exported, computed eagerly."""
    return lambda: monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


# --- exported files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format"), EVERY)
def test_every_front_end_equals_the_model(name, format, made):
    model, found = made(name, format)
    frontend, window = model.model.frontend, found.window_samples
    assert (found.fixed is None) == (frontend.fixed_length is None)
    assert found.difference == max(found.checks.values()) < 1e-4
    lengths = [window] if found.fixed else [window, window - 1, found.least_samples, found.least_samples + 777]
    answers = []
    for number, samples in enumerate(lengths):
        for batch in (1, 3):
            wave = synthetic_signal(batch, frontend.channels, samples, frontend.sample_rate)
            with torch.inference_mode():
                expected = model(torch.from_numpy(wave)).numpy()
            answer = run(found.path, wave)
            assert (answer.shape, answer.dtype) == ((batch, 3), np.float32), number
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
            np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
            answers.extend(answer)
    assert np.ptp(answers, axis=0).max() > 1e-2  # the answers differ, so that equal ones say something


def test_description_beside_and_inside_the_file(made):
    model, found = made("mel", "onnx")
    text = json.loads(found.description.read_text())
    assert found.description.name == "model.json"
    assert text["classes"] == CLASSES
    assert (text["sample_rate"], text["channels"], text["temperature"]) == (22050, 1, 2.0)
    assert (text["objective"], text["sums_to_one"], text["length"]) == ("classify", True, "dynamic")
    assert (text["window_seconds"], text["window_samples"], text["most_samples"]) == (1.0, 22050, 22050)
    assert model.model.frontend.output_shape(text["least_samples"])[2] == 32
    assert model.model.frontend.output_shape(text["least_samples"] - 1)[2] == 31
    assert text["length_fixed_because"] is None
    assert text["gafx_version"] == gafx.__version__
    assert text == read_description(found.path) == read_description(made("mel", "torch_export")[1].path)
    assert sorted(file.name for file in found.path.parent.iterdir()) == ["model.json", "model.onnx"]
    graph = onnx.load(found.path).graph
    (wave,), (answer,) = graph.input, graph.output
    assert (wave.name, answer.name) == ("wave", "probabilities")
    assert [d.dim_param or d.dim_value for d in wave.type.tensor_type.shape.dim] == ["batch", 1, "samples"]
    assert [d.dim_param or d.dim_value for d in answer.type.tensor_type.shape.dim] == ["batch", 3]
    assert not onnx.checker.check_model(str(found.path))


@pytest.mark.parametrize("format", BOTH)
def test_a_wave_longer_than_the_window_is_an_error(format, made):
    found = made("mel", format)[1]
    with pytest.raises(Exception, match="samples|bounds|indices|Guard|<="):
        run(found.path, synthetic_signal(1, 1, found.window_samples + 6000, 22050))


def test_a_tagging_model(tmp_path):
    model = Probabilities(build("mel", {"name": "ast", "depth": 1, "stride": 10}, objective="tag"))
    training = model.train()
    found = export(training.model, tmp_path / "deep" / "tags.pt2", format="torch_export")
    assert training.model.training  # the model given is left as it was
    wave = synthetic_signal(3, 1, 17_000, 22050)
    answer = run(found.path, wave)
    with torch.inference_mode():
        expected = torch.sigmoid(model.eval().model(torch.from_numpy(wave)) / 2).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    text = json.loads(found.description.read_text())
    assert (text["objective"], text["sums_to_one"]) == ("tag", False)


def test_the_cnn_accepts_several_lengths(tmp_path):
    found = export(build("gabor", {"name": "cnn"}), tmp_path / "model.onnx")
    assert found.least_samples < found.window_samples
    assert found.difference < 1e-4
    model = build("gabor", {"name": "cnn"})
    for samples in (found.least_samples, 15_011, found.window_samples):
        wave = synthetic_signal(2, 1, samples, 22050)
        with torch.inference_mode():
            expected = torch.softmax(model(torch.from_numpy(wave)) / 2, dim=-1).numpy()
        np.testing.assert_allclose(run(found.path, wave), expected, atol=1e-4)
    assert onnx_graph.quantize(found.path) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "frontend",
    [
        {"name": "mel", "form": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160},
        {"name": "gafx_u", "width": 16, "sources": "channels"},
        {"name": "leaf", "pcen": False},
        {"name": "gafx_a", "width": 16, "norm": "post", "pooling": "project", "depth": 1},
        {"name": "gafx_r", "width": 16, "norm": "group"},
        {"name": "gafx_r", "width": 16, "conv": "separable", "time_stride": 2},
    ],
)
def test_other_forms_of_front_ends(frontend, tmp_path):
    classifier = {"name": "ast", "depth": 1, "size": "small", "stride": 10}
    assert export(build(frontend, classifier), tmp_path / "model.onnx").difference < 1e-4


# --- the graph of an ONNX file ----------------------------------------------------------------------------------------


def operations(model):
    return Counter((node.domain, node.op_type) for node in model.graph.node)


def test_onnxruntime_runs_its_fused_operations(made, tmp_path):
    found = made("mel", "onnx")[1]
    written = operations(onnx.load(found.path))
    assert written["com.microsoft", "MultiHeadAttention"] == 1
    assert not {("", name) for name in ("STFT", "DFT", "Attention")} & set(written)
    assert written["", "Softmax"] == 1  # the output's; attention would have its own
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(found.path), options, providers=["CPUExecutionProvider"])
    run = operations(onnx.load(tmp_path / "optimised.onnx"))
    assert run["com.microsoft", "MultiHeadAttention"] == 1  # and not the definition inside the file
    assert run["com.microsoft", "BiasGelu"] == 1
    assert run["", "Softmax"] == 1


def test_a_runtime_without_fused_attention_runs_the_definition_in_the_file(made):
    model, found = made("mel", "onnx")
    content = onnx.load(found.path)
    onnx.checker.check_model(content, full_check=True)
    (definition,) = content.functions
    assert {node.domain for node in definition.node} == {""}
    wave = synthetic_signal(2, 1, found.least_samples, 22050)
    with torch.inference_mode():
        expected = model(torch.from_numpy(wave)).numpy()
    (answer,) = ReferenceEvaluator(content).run(None, {"wave": wave})
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_int8(made, tmp_path):
    waves = [synthetic_signal(1, 1, 30_000, 22050)[0], synthetic_signal(2, 1, 22_050, 22050)[1]]
    model, exact = made("mel", "onnx")
    found = export(model, tmp_path / "model_int8.onnx", audio=waves, quantize="int8")
    assert (exact.quantization, found.quantization) == (None, "int8")
    assert found.path.stat().st_size < 0.55 * exact.path.stat().st_size
    assert exact.difference < found.difference < 0.1
    written = operations(onnx.load(found.path))
    assert written["", "MatMulInteger"] == 4  # qkv, proj, fc1 and fc2; patches are a convolution, the output is a Gemm
    text = read_description(found.path)
    assert text == json.loads(found.description.read_text())
    assert read_description(exact.path)["quantization"] is None
    assert text["quantization"] == {
        "type": "int8", "products": 4, "largest_difference": found.difference, "measured_on": "2 files",
    }  # fmt: skip
    assert run(found.path, synthetic_signal(3, 1, found.least_samples, 22050)).shape == (3, 3)
    (labelled,) = gafx.predict({"array": waves[0][0], "sampling_rate": 22050}, found.path.parent)
    (known,) = gafx.predict({"array": waves[0][0], "sampling_rate": 22050}, model)
    np.testing.assert_allclose(labelled.probabilities, known.probabilities, atol=0.1)


def test_what_cannot_be_quantized(made, tmp_path, monkeypatch):
    model, found = made("mel", "onnx")
    for options, message in [
        ({"format": "torch_export"}, "only with format=onnx"),
        ({"quantize": "int4"}, "only int8"),
    ]:
        with pytest.raises(UsageError, match=message):
            export(model, tmp_path / "model.onnx", **{"quantize": "int8", **options})
    monkeypatch.setattr(room, "_capture", lambda *_: (None, None))
    monkeypatch.setattr(room, "_write_onnx", lambda _, aside, *__: shutil.copy(found.path, aside))
    monkeypatch.setattr(onnx_graph, "quantize", lambda _: 0)  # as of the CNN, above
    with pytest.raises(UsageError, match="ast has no matrix products to quantize"):
        export(model, tmp_path / "model.onnx", quantize="int8")
    assert not any(tmp_path.iterdir())


# --- operations that exported models replace --------------------------------------------------------------------------


def test_logarithms_and_powers_keep_small_values(exporting):
    x = torch.tensor([0.0, 1e-12, 1e-7, 1e-3, 0.5, 40.0])
    exact = torch.log1p(x), torch.expm1(x), x + 1e-9
    exporting()
    assert_close(
        (arithmetic.log1p(x), arithmetic.expm1(x), arithmetic.add_small(x, 1e-9)), exact, rtol=2e-7, atol=1e-15
    )


@pytest.mark.parametrize(("samples", "size"), [(1, 2), (7, 7), (8, 8), (400, 512), (551, 1024)])
def test_fourier_transforms(samples, size):
    frames = torch.rand(2, 3, samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    assert_close(arithmetic.power(frames, size), torch.fft.rfft(frames, size).abs().square(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("length", "hop"), [(400, 160), (7, 7), (8, 3), (5, 1)])
def test_frames(length, hop):
    wave = torch.rand(2, 1003)
    assert torch.equal(arithmetic.cut(wave, length, hop), wave.unfold(-1, length, hop))


@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 1000])
def test_the_recurrence(steps, exporting):
    generator = torch.Generator().manual_seed(steps)
    inputs, log_decay = torch.rand(2, 4, steps, generator=generator), torch.tensor([-1e-5, -0.04, -1.0, -6.9])
    expected = recurrence(inputs, log_decay)
    exporting()
    assert_close(recurrence(inputs, log_decay), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("window", "hop"), [(551, 200), (31, 200), (551, 7), (5, 1)])
def test_the_filter_bank(window, hop, exporting):
    bank = GaborFilterBank(22050, 8, window, hop, 60.0, 11025.0)
    wave = torch.from_numpy(synthetic_signal(2, 1, 3001, 22050)[:, 0])
    with torch.no_grad():
        expected = bank(wave)
        exporting()
        assert_close(bank(wave), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("frames", [16, 47, 48, 99, 100])
def test_leading_positions(frames):
    built = Patches(48, 100, 10)
    positions = torch.randn(1, 2 + built.grid[0] * built.grid[1], 4, generator=torch.Generator().manual_seed(1))
    expected = fit_positions(positions, built, Patches(48, frames, 10), "ast")
    assert torch.equal(lead_positions(positions, built, frames), expected)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_invalid_arguments(tmp_path, monkeypatch):
    model = build("mel")
    with pytest.raises(UsageError, match="onnx, torch_export"):
        export(model, tmp_path / "model.onnx", format="tflite")
    with pytest.raises(UsageError, match=r"must end in \.pt2"):
        export(model, tmp_path / "model.onnx", format="torch_export")
    with pytest.raises(UsageError, match="uses no labels"):
        export(build("mel", objective="mel_regression"), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"needs onnxscript: pip install 'gafx\[export\]'"):
        export(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda right: right + np.float32(2e-4), "differ by up to 0.0002"),
        (lambda right: right * np.float32("nan"), "differ by up to nan"),
        (lambda right: right[:, :2], "instead of"),
        (lambda right: 1 / 0, "fails on 1 x 22050 samples"),
    ],
)
def test_a_file_that_differs_from_the_model_is_not_kept(answer, message, made, tmp_path, monkeypatch):
    model, found = made("mel", "torch_export")
    path = tmp_path / "model.pt2"
    path.write_bytes(b"an earlier one")
    monkeypatch.setattr(room, "_capture", lambda *_: (None, None))
    monkeypatch.setattr(room, "_write_program", lambda _, aside, *__: shutil.copy(found.path, aside))
    opened = room._open_program(found.path)
    monkeypatch.setattr(room, "_open_program", lambda _: lambda wave: answer(opened(wave)))
    with pytest.raises(UsageError, match=message):
        export(model, path, format="torch_export")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_bytes() == b"an earlier one"


def test_a_model_too_large_for_one_onnx_file(made, monkeypatch, tmp_path):
    model, found = made("mel", "torch_export")
    monkeypatch.setattr(room, "_capture", lambda *_: (torch.export.load(found.path), None))
    monkeypatch.setattr(room, "_MAX_ONNX_BYTES", 10_000)
    with pytest.raises(UsageError, match="use --format torch_export"):
        export(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


class Foreign(FrontEnd):
    """A front-end from elsewhere."""

    sample_rate, learned = 1000, True

    def __init__(self, forward):
        super().__init__()
        self.of = forward

    def output_shape(self, samples):
        return 1, 16, samples // 16

    def forward(self, wave):
        return self.of(wave[..., : wave.shape[-1] // 16 * 16].unflatten(-1, (16, -1)))


def foreign(forward):
    model = build(Foreign(forward))
    assert isinstance(model.classifier, AST)
    return model


def test_parts_from_elsewhere(tmp_path):
    found = export(foreign(lambda x: x / int(x.shape[-1])), tmp_path / "model.pt2", format="torch_export")
    assert "cannot be written for several" in found.fixed
    assert found.least_samples == found.window_samples == 1000
    text = json.loads(found.description.read_text())
    assert (text["length"], text["length_fixed_because"]) == ("fixed", found.fixed)
    with pytest.raises(UsageError, match="cannot be exported: torch.export reports"):
        export(foreign(lambda x: x if x.sum() > 0 else -x), tmp_path / "other.pt2", format="torch_export")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pt2"]


# --- the command and the page -----------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys, wav_factory):
    folder = tmp_path / "run" / "model"
    folder.parent.mkdir()
    model = build("mel")
    model.info.calibration = {}  # would be that of other weights
    model.save(folder)
    short = wav_factory("short.wav", synthetic_signal(1, 1, 8000, 16000)[0].T, 16000)
    main(["export", str(folder.parent), "--format", "torch_export", "--audio", str(short)])
    out, text = capsys.readouterr()
    path = tmp_path / "run" / "export" / "model.pt2"
    assert out == f"{path}\n"
    assert "length: 6201 to 22050 samples (0.28 to 1.00 s)" in text
    assert "batch: any" in text
    assert re.search(r"checked with the loaded program on 1 file \(1 x 22050, .*\): largest difference \d", text)
    wave = synthetic_signal(2, 1, 22050, 22050)
    expected = Probabilities(gafx.load(folder.parent))(torch.from_numpy(wave)).detach().numpy()
    np.testing.assert_allclose(run(path, wave), expected, atol=1e-4)
    for wrong in ([str(folder), "--audio", str(tmp_path / "none.wav")], [str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(["export", *wrong])
        assert "error: " in capsys.readouterr().err


def test_default_folder(tmp_path, monkeypatch):
    for folder in ("run/model", "saved"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert default_folder("run") == default_folder("run/model") == tmp_path / "run" / "export"
    assert default_folder("saved") == tmp_path / "saved-export"
    assert default_folder("owner/name") == Path("name-export")


def test_the_snippets_of_the_page(made, tmp_path, monkeypatch, capsys):
    model, found = made("mel", "onnx")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(found.path.parent, tmp_path / "export")
    song = synthetic_signal(1, 2, round(4.7 * 22050), 22050)[0]
    soundfile.write("song.wav", song.T, 22050, subtype="FLOAT")
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        assert "gafx" not in block
        exec(block, names)
    with torch.inference_mode():
        first = model(torch.from_numpy(song.mean(0)[None, None, :22050])).numpy()[0]
    (labelled,) = gafx.predict("song.wav", model)
    np.testing.assert_allclose(names["probabilities"], first, atol=1e-4)
    np.testing.assert_allclose(names["mean"], labelled.probabilities, atol=1e-4)
    assert len(names["windows"]) == 9
    assert CLASSES[int(first.argmax())] in capsys.readouterr().out
