"""A run that is killed, however often and wherever, ends with the bits of one that was not."""

import random
import resource
import shutil

import pytest
import torch
from runs import MEL, SLIM, SMALL, kill_when, records, script, start, train, weights


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("front_end", "precision", "workers"),
    [
        (MEL, "fp32", 2),
        (SLIM, "bf16", 0),
        pytest.param(SLIM, "fp32", 0, marks=pytest.mark.slow),
        pytest.param(MEL, "bf16", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_with_the_same_bits(synthetic_root, tmp_path, front_end, precision, workers):
    # Everything random is on: masks, mixup, random crops, moving average, a part that is frozen at first.
    recipe = [
        *SMALL,
        *front_end,
        f"precision={precision}",
        f"workers={workers}",
        f"data.root={synthetic_root}",
        "name=run",
        "checkpoint_steps=1",
        "optim.ema_decay=0.9",
        "augment.mixup_probability=0.5",
        "augment.time_masks=1",
        "augment.frequency_masks=1",
        "optim.frontend.frozen_epochs=1",
    ]
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    recipe.append(f"output_dir={tmp_path / 'killed'}")
    folder = tmp_path / "killed" / whole.name
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    steps = random.Random(f"{precision}{workers}").sample(range(2, 10), 2)
    conditions = [
        lambda: log.exists() and log.read_text().count("\n") >= min(steps),  # at an arbitrary step
        lambda: checkpoints.exists() and any(checkpoints.glob(".writing-*")),  # while a checkpoint is being written
        lambda: log.exists() and log.read_text().count("\n") >= max(steps) + 1,
    ]
    killed = [kill_when(start(*recipe), condition) for condition in conditions]
    assert killed[0]
    assert sum(killed) >= 2
    assert train(*recipe) == folder
    assert same(weights(whole), weights(folder))
    for ours, theirs in zip(records(folder), records(whole), strict=True):
        assert [ours[k] for k in ("step", "epoch", "loss", "rate")] == [
            theirs[k] for k in ("step", "epoch", "loss", "rate")
        ]


@pytest.mark.parametrize("protocol", ["paper", "paper_val"])
def test_no_room_for_a_checkpoint(synthetic_root, tmp_path, protocol):
    """Where files may not grow to a model's size, a run ends with a sentence and its last checkpoint as it was.

    Under `paper_val` it is the best model so far that cannot be written.
    """
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"data.protocol={protocol}", "data.val_share=0.4"]
    recipe.append("max_steps=8")
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    recipe.append(f"output_dir={tmp_path / 'full'}")
    folder = tmp_path / "full" / whole.name
    assert kill_when(start(*recipe), lambda: any(folder.glob("checkpoints/step-*")))

    def content():
        return {path: path.read_bytes() for path in sorted(folder.glob("checkpoints/**/*")) if path.is_file()}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    shutil.rmtree(next(folder.glob("checkpoints/.writing-*"), tmp_path / "none"), ignore_errors=True)
    before = content()
    done = script("train.py", *recipe, preexec_fn=limit)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert content() == before
    assert train(*recipe) == folder
    assert same(weights(whole), weights(folder))


def test_a_finished_run_is_named_and_left_alone(synthetic_root, tmp_path):
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=2"]
    folder = train(*recipe)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(*recipe) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
