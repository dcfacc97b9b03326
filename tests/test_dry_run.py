"""A dry run describes the run that follows, within seconds."""

import re

import pytest
import torch
from runs import MEL, SMALL, script
from test_parallel import TORCHRUN

from gafx.config import TrainConfig, build
from gafx.errors import UsageError
from gafx.model import create_model
from gafx.report.format import size

FRONT_ENDS = {
    "mel": {},
    "leaf": {},
    "gafx_r": {"width": 16},
    "gafx_a": {"width": 16},
    "gafx_u": {"width": 16},
    "fused": {"parts": {"a": {"name": "mel"}, "b": {"name": "gafx_r", "width": 16}}},
}


@pytest.fixture
def config(synthetic_root, tmp_path):
    """`config(batch_size=12, ...)` of a small run."""
    from accelerate.state import AcceleratorState

    def make(**changes):
        data = {"root": str(synthetic_root), "segment_seconds": 0.8, "options": {"tracks": 4, "seconds": 1.5}}
        data |= changes.pop("data", {})
        values = {
            "frontend": {"name": "mel"}, "classifier": {"name": "ast", "depth": 1}, "data": data,
            "batch_size": 12, "epochs": 3, "workers": 0, "precision": "fp32", "device": "cpu",
            "output_dir": str(tmp_path / "out"), "dry_run": True,
        }  # fmt: skip
        return build(TrainConfig, values | changes)

    AcceleratorState._reset_state(True)
    yield make
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_what_is_counted_is_what_is_built(config, tmp_path, name):
    from gafx.training.dry_run import describe_run

    front_end = {"name": name, **FRONT_ENDS[name]}
    text = describe_run(config(frontend=front_end, grad_accumulation=2, optim={"ema_decay": 0.9}))
    model = create_model(front_end, {"name": "ast", "depth": 1}, num_classes=10, segment_seconds=0.8)
    for part, module in (("frontend", model.frontend), ("classifier", model.classifier)):
        count = sum(p.numel() for p in module.parameters())
        assert f"{part} {count:,} ({'all trained' if count else 'none'})" in text
    assert "3 per epoch of 30 segments of 0.8 s, 9 in all" in text  # 30 of the 40 clips, 12 per step
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(p.nbytes for p in model.parameters())
    held = f"weights {size(weights)}, gradients {size(trained)}, optimiser {size(2 * trained)}, EMA {size(weights)}, "
    assert held in text
    assert f"{size(2 * weights + 2 * trained)} per checkpoint" in text
    shape = " x ".join(map(str, model.info.map_shape))
    assert f"{name} -> map {shape}" in text
    assert "12 clips per step = 1 process x 2 micro-batches x 6 clips" in text
    assert "30 training, 0 validation, 10 test tracks" in text
    assert re.search(r"time        about [\d.]+ m?s per step, ", text)
    assert re.search(r"activations [\d.]+ [kMG]B\n", text)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_estimate_is_that_of_full_size(config, precision):
    """Time and memory extrapolated from a shortened clip agree with those of the whole clip."""
    from gafx.objectives.classify import Classify
    from gafx.training import dry_run

    model = create_model({"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=6)
    objective = Classify(model, torch.ones(2, dtype=torch.int64).numpy())
    small = config(frontend={"name": "gafx_r", "width": 16})
    samples = round(6 * model.frontend.sample_rate)
    device = torch.device("cpu")
    enough, dry_run._ENOUGH_SECONDS = dry_run._ENOUGH_SECONDS, 0.02
    try:
        short = dry_run.measure(objective, small, 1, samples, device, precision)
    finally:
        dry_run._ENOUGH_SECONDS = enough
    assert "times" in short.measured
    dry_run._pass(objective, (1, samples), small, device, precision)
    seconds, kept = dry_run._pass(objective, (1, samples), small, device, precision)
    assert short.activations == pytest.approx(kept, rel=0.1)
    assert seconds / 20 < short.seconds < 20 * seconds  # other tests use the processor, too


def test_what_the_first_pass_imports_is_not_extrapolated(config, monkeypatch):
    from gafx.objectives.classify import Classify
    from gafx.training import dry_run

    passes = []

    def timed(objective, shape, *_):
        passes.append(shape)
        return (50.0 if len(passes) == 1 else 1e-6 * shape[0] * shape[1]), 1.0

    monkeypatch.setattr(dry_run, "_pass", timed)
    model = create_model({"name": "mel"}, {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=2)
    objective = Classify(model, torch.ones(2, dtype=torch.int64).numpy())
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = dry_run.measure(objective, config(), 12, 44100, torch.device("cpu"), "fp32")
    assert 1e-6 * 12 * 44100 <= found.seconds < 10
    assert passes[-1] == (12, 44100)


def test_nothing_is_packed_fetched_or_made(config, tmp_path, synthetic_root):
    from gafx.training.dry_run import describe_run

    text = describe_run(config(data={"cache": str(tmp_path / "cache")}))
    assert "which the run packs first" in text
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="does not exist, and dry_run=true makes and downloads nothing"):
        describe_run(config(data={"root": str(tmp_path / "none")}))
    assert not (tmp_path / "none").exists()


def test_the_command(synthetic_root, tmp_path):
    """Prints the plan once, whatever the number of processes; weights that are not here are not fetched."""
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "classifier.pretrained=true"]
    home = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    recipe += ["classifier=ast_tiny", "dry_run=true"]
    done = script("train.py", *recipe, launcher=TORCHRUN, ACCELERATE_USE_CPU="true", **home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters") == 1
    assert "8 clips per step = 2 processes x 1 micro-batch x 4 clips" in done.stdout
    assert "by DDP" in done.stdout
    assert "weights are not on this machine" in done.stdout
    assert not list(tmp_path.glob("mel-synthetic-*"))


def test_a_finished_run_and_one_under_way_say_so(config, tmp_path):
    from gafx.training.dry_run import describe_run

    made = config()
    (made.folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert "would resume at step 4" in describe_run(made)
    (made.folder / "model").mkdir()
    assert "finished already" in describe_run(made)
