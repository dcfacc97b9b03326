"""Models saved by gafx 0.1.0 load with identical outputs: earlier names of keys and tensors, provenance as text.

`fixtures/old_format/<model>/` was written by that version; the weights follow a short repeating pattern, so that they
compress to a few kilobytes. `expected.json` contains the outputs that it computed.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import gafx.config
from gafx.errors import UsageError
from gafx.saving.info import Provenance, WeightSource

FIXTURES = Path(__file__).parent / "fixtures" / "old_format"


@pytest.fixture
def unpack(tmp_path):
    def copy(name):
        folder = tmp_path / name
        folder.mkdir()
        packed = (FIXTURES / name / "model.safetensors.xz").read_bytes()
        (folder / "model.safetensors").write_bytes(lzma.decompress(packed))
        shutil.copy(FIXTURES / name / "config.json", folder)
        return folder, json.loads((FIXTURES / name / "expected.json").read_text())

    return copy


@pytest.mark.parametrize("name", ["mel_ast", "gafx_a_ast", "fused_leaf_mel_ast_tag"])
@torch.no_grad()
def test_an_earlier_model_has_the_same_outputs(unpack, name):
    folder, expected = unpack(name)
    model = gafx.load(folder)
    wave = torch.sin(0.05 * torch.arange(16000, dtype=torch.float64)).float().expand(1, model.frontend.channels, -1)
    # A sine leaves most bands near silence, where the logarithm amplifies the rounding of another processor.
    assert_close(model(wave)[0], torch.tensor(expected["logits"]), atol=2e-2, rtol=0)
    for key, values in (("features", model.features(wave)), ("embedding", model.embed(wave))):
        assert list(values.shape) == expected[key]["shape"]
        assert float(values.double().abs().sum()) == pytest.approx(expected[key]["abs_sum"], rel=5e-3)
    assert len(model.state_dict()) == expected["tensors"]
    assert model.info.classes == expected["classes"]
    assert model.info.objective == expected["objective"]
    assert model.info.temperature == expected["temperature"]
    again = gafx.load(model.save(folder.parent / "again"))
    assert again.info == model.info
    assert torch.equal(again(wave), model(wave))


def test_records_of_an_earlier_model(unpack):
    info = gafx.load(unpack("mel_ast")[0]).info
    assert info.provenance == Provenance(WeightSource("fixed"), WeightSource("random"))
    assert info.training["data"] == "folder"
    assert 0 < info.scores["accuracy"]["value"] < 1
    assert info.calibration["part"] == "validation"


def test_earlier_tensor_names_in_a_state_dict():
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=0.5)
    state = {name.replace("map_norm.std", "map_norm.deviation"): t for name, t in model.state_dict().items()}
    state["map_norm.deviation"] = torch.tensor(3.0)
    model.load_state_dict(state)
    assert model.map_norm.std == 3
    assert "map_norm.deviation" in state  # the caller's mapping is not changed


def test_earlier_argument_names(unpack):
    frontend = gafx.load(unpack("gafx_a_ast")[0]).info.frontend
    assert frontend["pooling"] == "mean"
    assert "places" not in frontend
    with pytest.raises(UsageError, match=r"frontend\.places is now called frontend\.pooling"):
        gafx.config.build(gafx.config.TrainConfig, {"frontend": {"name": "gafx_a", "places": "mean"}})
