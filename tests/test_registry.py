"""Another package adds a front-end through an entry point; names list without importing it."""

import os
import subprocess
import sys

import pytest
import torch

import gafx
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.registry import FRONTENDS, OBJECTIVES, SOURCES, check_type, is_multi_label, is_published, reads_labels

PLUGIN = """
from gafx.frontends.base import FrontEnd
from gafx.registry import FRONTENDS


@FRONTENDS.register
class Mean(FrontEnd):
    learned = False
    sample_rate = 8000

    def __init__(self, *, frame: int = 100):
        super().__init__()
        self.frame = frame

    def output_shape(self, samples):
        return 1, 16, samples // self.frame

    def forward(self, wave):
        frames = wave[..., : wave.shape[-1] // self.frame * self.frame].unflatten(-1, (-1, self.frame)).mean(-1)
        return frames[:, :, None].expand(-1, -1, 16, -1)
"""

USE = """
import sys
import gafx
assert "plain_mean" in gafx.list_frontends()
assert "torch" not in sys.modules
import torch
ast = {"name": "ast", "depth": 1}
model = gafx.create_model({"name": "plain_mean", "frame": 50}, ast, num_classes=3, segment_seconds=1.0)
assert model.classifier.map_shape == (1, 16, 160)
assert model(torch.zeros(2, 1, 8000)).shape == (2, 3)
from gafx.errors import UsageError
try:
    gafx.create_frontend("plain_mean", frme=3)
except UsageError as error:
    assert "did you mean 'frame'" in str(error)
"""


def test_a_front_end_of_another_package(tmp_path):
    (tmp_path / "plain_mean.py").write_text(PLUGIN)
    info = tmp_path / "plain_mean-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-mean\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gafx.frontends]\nplain_mean = plain_mean:Mean\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_path_passes_for_text(tmp_path):
    assert check_type(tmp_path, bool | str, "frontend.pretrained") == str(tmp_path)
    with pytest.raises(UsageError, match="expected int"):
        check_type(tmp_path, int, "frontend.width")


def test_facts_of_objectives_by_name(monkeypatch):
    class Own:
        multi_label, reads_labels = True, False

    monkeypatch.setitem(OBJECTIVES._parts, "own", Own)
    facts = {name: (is_multi_label(name), reads_labels(name)) for name in ("classify", "tag", "mel_regression", "own")}
    assert facts == {
        "classify": (False, True), "tag": (True, True), "mel_regression": (True, False), "own": (True, False),
    }  # fmt: skip
    assert (is_multi_label("elsewhere"), reads_labels("elsewhere")) == (False, True)  # of a package not installed here
    assert reads_labels(None)


def test_published_data_sets():
    published = {name for name in SOURCES.names() if is_published(name)}
    assert published == {"audioset", "esc", "fma", "gtzan", "spoken_digits", "urbansound8k"}
    assert not is_published("not_installed_here")
    assert not is_published("")


NOTEBOOK = """
import sys, warnings, torch, gafx
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd
from gafx.registry import FRONTENDS

@FRONTENDS.register
class PowerMap(FrontEnd):
    sample_rate = 8000
    learned = False

    def __init__(self, *, bins: int = 16):
        super().__init__()
        self.bins = bins

    def output_shape(self, samples):
        return 1, self.bins, samples // 100

    def forward(self, wave):
        frames = wave[..., : wave.shape[-1] // 100 * 100].unflatten(-1, (-1, 100))
        return frames.square().mean(-1)[:, :, None].expand(-1, -1, self.bins, -1)

model = gafx.create_model({"name": "power_map", "bins": 32}, {"name": "cnn"}, num_classes=2, segment_seconds=1.0).eval()
model.map_norm.fit(0.5, 2.0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.save(sys.argv[1])
print(*(each.message for each in caught))
wave = torch.rand(1, 1, 8000)
print(torch.equal(gafx.load(sys.argv[1])(wave), model(wave)))

class Mel(FrontEnd):
    pass

try:
    FRONTENDS.register(Mel)
except UsageError as error:
    print(error)
"""


def test_a_front_end_of_a_notebook(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    done = subprocess.run([sys.executable, script, tmp_path / "model"], capture_output=True, text=True, check=True)
    warned, same, refused = done.stdout.splitlines()
    assert "front-end power_map is defined in a notebook or script" in warned
    assert same == "True"
    assert refused == "there is a front-end 'mel' already: give the class Mel another name"
    with pytest.raises(UsageError, match="unknown front-end 'power_map'"):
        gafx.load(tmp_path / "model")


class NoFrontEnd(torch.nn.Module):
    pass


class Positional(FrontEnd):
    def __init__(self, hop):
        super().__init__()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (NoFrontEnd, "NoFrontEnd is no front-end: derive it from FrontEnd, `from gafx.frontends.base import FrontEnd`"),
        (Positional, r"Positional: the argument 'hop' must be keyword-only.*: write a \* before hop"),
    ],
)
def test_what_is_no_front_end(part, message):
    names = gafx.list_frontends()
    with pytest.raises(UsageError, match=message):
        FRONTENDS.register(part)
    assert gafx.list_frontends() == names


def test_a_front_end_without_its_methods_says_what_to_write():
    class Half(FrontEnd):
        sample_rate = 8000

    with pytest.raises(
        UsageError, match="Half lacks output_shape: a front-end defines output_shape\\(self, samples\\)"
    ):
        gafx.create_model(Half(), num_classes=2)
    with pytest.raises(UsageError, match="Half lacks forward"):
        Half()(torch.zeros(1, 1, 8000))
