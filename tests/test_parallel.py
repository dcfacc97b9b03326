"""Two processes do what one does; processes that do not know of each other are refused."""

import json
import sys

import pytest
from runs import MEL, SLIM, SMALL, records, script, train, weights

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")


@pytest.mark.parametrize("front_end", [MEL, [*SLIM, "frontend.norm=group"]], ids=["mel", "gafx_r"])
def test_two_processes_equal_one(synthetic_root, tmp_path, front_end):
    # 32 clips in batches of 12: the last step of an epoch has 8, and 20 steps end in the middle of an epoch.
    recipe = [
        *SMALL,
        *front_end,
        f"data.root={synthetic_root}",
        "name=run",
        "batch_size=12",
        "epochs=9",
        "max_steps=20",
        "optim.rate=5e-5",
        "augment.mixup_probability=0.5",
        "augment.time_masks=1",
        "objective.class_weights=balanced",
    ]
    one = train(*recipe, f"output_dir={tmp_path / 'one'}")
    done = script("train.py", *recipe, f"output_dir={tmp_path / 'two'}", launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run-") == 1  # only one rank speaks
    two = tmp_path / "two" / one.name
    assert json.loads((two / "run.json").read_text())["environment"]["processes"] == 2
    assert json.loads((one / "run.json").read_text())["environment"]["processes"] == 1
    assert len(records(one)) == len(records(two)) == 20
    pairs = list(zip(records(one), records(two), strict=True))
    # The first step is the same sum in another order; later ones carry what Adam makes of that order's rounding.
    assert pairs[0][0]["loss"] == pytest.approx(pairs[0][1]["loss"], rel=1e-5)
    assert pairs[0][0]["gradient_norm"] == pytest.approx(pairs[0][1]["gradient_norm"], rel=1e-4)
    for ours, theirs in pairs:
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["rate"] == theirs["rate"]
    theirs = weights(two)
    for name, tensor in weights(one).items():
        # Adam divides a gradient by its own size: where it is rounding alone, steps of the whole rate go either way, so
        # single weights may differ by what 20 steps of 5e-5 can move them. On the whole they must not.
        difference = (tensor.float() - theirs[name].float()).abs()
        assert difference.max() <= 1e-3, name
        assert difference.mean() <= 1e-4, name


def test_processes_that_do_not_know_of_each_other_are_refused(synthetic_root, tmp_path):
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=1"]
    done = script("train.py", *recipe, "device=auto", WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "WORLD_SIZE=2, but Accelerate reports 1" in done.stderr
    assert "torchrun" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_evaluation_over_two_processes_counts_every_clip_once(synthetic_root, tmp_path):
    """10 test tracks and 3 pieces each do not divide evenly into batches of 7 over two processes."""
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "epochs=1"]
    run = train(*recipe, "data.test_share=0.3")
    results = []
    for launcher, more in (((), {}), (TORCHRUN, {"ACCELERATE_USE_CPU": "true"})):
        done = script("evaluate.py", run, "batch_size=7", "workers=0", launcher=launcher, **more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report:") == 1  # only one rank speaks
        results.append((json.loads((run / "result.json").read_text()), (run / "pieces.csv").read_text()))
    (one, pieces_of_one), (two, pieces_of_two) = results
    assert (one["cost"]["processes"], two["cost"]["processes"]) == (1, 2)
    assert one["tracks"] == two["tracks"]
    assert one["pieces"] == two["pieces"] == len(pieces_of_one.splitlines()) - 1
    assert one["scores"] == two["scores"]
    assert pieces_of_one == pieces_of_two
