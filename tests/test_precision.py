"""Device names: what they resolve to, and errors where a device is absent."""

import argparse
import re

import pytest
import torch

from gafx.commands.options import add_device
from gafx.config import EvaluateConfig, TrainConfig, build
from gafx.errors import UsageError
from gafx.nn.precision import pick_device, resolve_precision


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are two CUDA GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name, reason in (("cuda", "no CUDA GPU"), ("cuda:1", "no CUDA GPU"), ("mps", "no Apple GPU")):
        with pytest.raises(UsageError, match=f"device={name}: PyTorch finds {reason}.*device=auto"):
            pick_device(name)


def test_with_gpus(gpus):
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="device=cuda:2: there are 2 CUDA GPUs, cuda:0 to cuda:1"):
        pick_device("cuda:2")


def test_apple_s_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps").type == "mps"
    assert pick_device("auto").type == "cpu"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        resolve_precision("fp16", torch.device("mps"))


@pytest.mark.parametrize("wanted", ["fp64", "FP16", "", None])
def test_an_unknown_precision(wanted):
    with pytest.raises(UsageError, match="must be one of auto, fp32, bf16, fp16"):
        resolve_precision(wanted, torch.device("cpu"))


def test_configurations_and_commands_take_the_same_names(capsys):
    parser = argparse.ArgumentParser()
    add_device(parser)
    for name in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert build(TrainConfig, {"device": name}).device == name
        assert build(EvaluateConfig, {"device": name}).device == name
        assert parser.parse_args(["--device", name]).device == name
    for name in ("gpu", "cuda:", "cuda:x", "cpu:0", ""):
        with pytest.raises(UsageError, match="cuda:<index>"):
            build(TrainConfig, {"device": name})
        with pytest.raises(SystemExit):
            parser.parse_args(["--device", name])
    assert "must be auto, cpu, cuda, cuda:<index> or mps" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", None])
def test_other_names_are_refused_in_python_too(name):
    with pytest.raises(UsageError, match=re.escape(f"device={name!r} must be auto, cpu, cuda, cuda:<index> or mps")):
        pick_device(name)
    assert pick_device(torch.zeros(1).device) == torch.device("cpu")
