"""A run that is killed, however often and wherever, ends with the bits of one that was not."""

import random

import pytest
import torch
from runs import MEL, SLIM, SMALL, kill_when, records, start, train, weights


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


def test_a_finished_run_is_named_and_left_alone(synthetic_root, tmp_path):
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=2"]
    folder = train(*recipe)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(*recipe) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
