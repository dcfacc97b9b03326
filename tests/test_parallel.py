"""Two processes do what one does; processes that do not know of each other are refused."""

import json
import sys

import pytest
import torch
from runs import MEL, SLIM, SMALL, records, script, train, weights

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")


@pytest.mark.parametrize("front_end", [MEL, [*SLIM, "frontend.norm=group"]], ids=["mel", "gafx_r"])
def test_two_processes_equal_one(synthetic_root, tmp_path, front_end):
    # 32 clips in batches of 12: the last step of an epoch has 8, and 20 steps end in the middle of an epoch.
    recipe = [
        *SMALL, *front_end, f"data.root={synthetic_root}", "name=run", "batch_size=12", "epochs=9", "max_steps=20", "optim.rate=5e-5",
        "augment.mixup_probability=0.5", "augment.time_masks=1", "objective.class_weights=balanced",
    ]  # fmt: skip
    one = train(*recipe, f"output_dir={tmp_path / 'one'}")
    done = script("train.py", *recipe, f"output_dir={tmp_path / 'two'}", launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run-") == 1  # only one rank speaks
    two = tmp_path / "two" / one.name
    assert json.loads((two / "run.json").read_text())["environment"]["processes"] == 2
    assert json.loads((one / "run.json").read_text())["environment"]["processes"] == 1
    assert len(records(one)) == len(records(two)) == 20
    for ours, theirs in zip(records(one), records(two), strict=True):
        # Float tolerance: sums over 6 + 6 clips instead of 12, and what 20 steps of Adam make of their rounding.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["rate"] == theirs["rate"]
    theirs = weights(two)
    for name, tensor in weights(one).items():
        # Adam turns rounding of a gradient that is zero into steps of the whole rate: 20 steps of 5e-5 bound that.
        assert torch.allclose(tensor.float(), theirs[name].float(), atol=1e-4, rtol=1e-3), name


def test_processes_that_do_not_know_of_each_other_are_refused(synthetic_root, tmp_path):
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=1"]
    done = script("train.py", *recipe, "device=auto", WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "WORLD_SIZE=2, but Accelerate reports 1" in done.stderr
    assert "torchrun" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
