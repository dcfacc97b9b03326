"""FSDP2: two CPU processes (tests/fsdp_on_cpu.py) or a GPU train as one process does, and leave whole weights."""

import copy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT, SLIM, SMALL, records, script, train, weights
from test_parallel import TORCHRUN

import gafx
from gafx.compose import compose_train

TIMED = {"clips_per_second", "data_wait", "seconds_per_step", "peak_memory_gb"}


@pytest.fixture
def recipe(synthetic_root):
    """All that FSDP could disturb: passes, clipping, averaged weights, a part that is frozen at first, validation."""
    return [
        *SMALL,
        *SLIM,
        f"data.root={synthetic_root}",
        "name=run",
        "frontend.norm=group",
        "data.segment_seconds=0.2",
        "batch_size=12",
        "grad_accumulation=2",
        "epochs=2",
        "checkpoint_steps=1",
        "keep_checkpoints=9",
        "optim.lr=5e-5",
        "optim.ema_decay=0.9",
        "optim.clip_norm=1.0",
        "optim.frontend.frozen_epochs=1",
        "augment.mixup_probability=0.5",
        "augment.time_masks=1",
        "data.protocol=paper_val",
        "data.val_fraction=0.3",
    ]


def alone(*arguments):
    """Train in this process."""
    from accelerate.state import AcceleratorState

    from gafx.training.trainer import Trainer

    AcceleratorState._reset_state(True)
    folder = Trainer(compose_train([*arguments, "device=cpu"], ROOT / "configs")).fit()
    AcceleratorState._reset_state(True)
    return folder


def sharded(*arguments):
    done = script("tests/fsdp_on_cpu.py", "parallel=fsdp", *arguments, launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "2 processes by FSDP2" in done.stderr
    return Path(done.stdout.strip()), done.stderr


def back_to(folder, copy, step):
    """A copy of a run as it was after `step`."""
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(copy / "checkpoints" / "best", ignore_errors=True)
    # The best model so far: that of the end, or one that a later epoch replaces again.
    (copy / "model").rename(copy / "checkpoints" / "best")
    return copy.parent


def close(one, two):
    for name, tensor in weights(one).items():
        # As in tests/test_parallel.py: Adam makes steps of the rate out of what is rounding alone.
        assert (tensor.float() - weights(two)[name].float()).abs().max() <= 5e-4, name
    for ours, theirs in zip(records(one), records(two), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def outputs(folder):
    model = gafx.load(folder)
    wave = torch.randn(3, 1, 4410, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(wave)


@pytest.mark.slow
def test_two_sharded_processes_equal_one(recipe, tmp_path, caplog):
    one = alone(*recipe, f"output_dir={tmp_path / 'one'}")
    two, _ = sharded(*recipe, f"output_dir={tmp_path / 'two'}")
    close(one, two)
    # Whole weights: one process reads them, and they say what those of one process say.
    assert torch.allclose(outputs(one), outputs(two), atol=2e-3)
    assert [path.name for path in sorted((two / "checkpoints").glob("step-*"))] == [
        f"step-{n:08d}" for n in range(1, 5)
    ]

    # Sharded again, a run resumes to the same bits; step 3 is after the front-end has begun to learn.
    again, log = sharded(*recipe, f"output_dir={back_to(two, tmp_path / 'again' / two.name, 3)}")
    assert "under other conditions" not in log
    assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(again).items())
    for ours, theirs in zip(records(again), records(two), strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMED} == {k: v for k, v in theirs.items() if k not in TIMED}

    # One process resumes from the checkpoint of two, and the other way round.
    caplog.clear()
    back = alone(*recipe, f"output_dir={back_to(two, tmp_path / 'to one' / two.name, 3)}")
    assert "parallel FSDP2 -> one process" in caplog.text
    close(one, back)
    shared, log = sharded(*recipe, f"output_dir={back_to(one, tmp_path / 'to two' / one.name, 1)}")
    assert "parallel one process -> FSDP2" in log
    close(one, shared)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(recipe, tmp_path):
    one = train(*recipe, f"output_dir={tmp_path / 'one'}")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1")
    done = script("train.py", *recipe, "parallel=fsdp", f"output_dir={tmp_path / 'two'}", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "by FSDP2" in done.stderr
    two = Path(done.stdout.strip())
    close(one, two)
    assert torch.allclose(outputs(one), outputs(two), atol=2e-3)
    # Resumed from the checkpoint of step 3; a GPU's sums need not have the same order again.
    again = back_to(two, tmp_path / "again" / two.name, 3)
    done = script("train.py", *recipe, "parallel=fsdp", f"output_dir={again}", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 3" in done.stderr
    close(two, Path(done.stdout.strip()))


def test_moments_take_the_strides_of_their_parameter():
    """A fused optimiser runs through both side by side; a checkpoint from FSDP holds them row after row."""
    from gafx.training.optim import load_named_state, named_state

    def learn(channels_last):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3)
        if channels_last:
            layer = layer.to(memory_format=torch.channels_last)
        return layer, torch.optim.Adam(layer.parameters(), fused=True)

    def step(layer, optimizer):
        layer(torch.ones(1, 3, 5, 5).cumsum(2).cumsum(3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, moved = learn(False), learn(True)
    step(*plain)
    load_named_state(*moved, copy.deepcopy(named_state(*plain)))
    moved[0].load_state_dict(plain[0].state_dict())
    step(*plain)
    step(*moved)
    assert moved[1].state[moved[0].weight]["exp_avg"].stride() == moved[0].weight.stride()
    assert torch.allclose(plain[0].weight, moved[0].weight, atol=1e-6)
