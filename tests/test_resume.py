"""A run that is killed, however often and wherever, ends with the bits of one that was not."""

import random
import resource
import shutil

import pytest
import torch
from runs import MEL, SLIM, SMALL, kill_when, records, script, start, train, weights

from gafx.config import TrainConfig, build
from gafx.model import create_model


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("front_end", "precision", "workers"),
    [
        (MEL, "fp32", 2),
        pytest.param(SLIM, "bf16", 0, marks=pytest.mark.slow),
        pytest.param(SLIM, "fp32", 0, marks=pytest.mark.slow),
        pytest.param(MEL, "bf16", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_with_the_same_bits(synthetic_root, tmp_path, front_end, precision, workers):
    # Everything random is on: augmentations, random crops, moving average, a part that is frozen at first.
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
        "augment.speed=1.2",
        "augment.roll=true",
        "augment.gain_db=6",
        "augment.noise_probability=0.5",
        "augment.avoid_silence=true",
        "optim.frontend.frozen_epochs=1",
    ]
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    recipe.append(f"output_dir={tmp_path / 'killed'}")
    folder = tmp_path / "killed" / whole.name
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    steps = random.Random(f"{precision}{workers}").sample(range(2, 10), 2)
    conditions = [
        lambda: log.exists() and log.read_text().count("\n") >= min(steps),  # at an arbitrary step
        lambda: checkpoints.exists() and any(checkpoints.glob(".step-*.part")),  # while a checkpoint is being written
        lambda: log.exists() and log.read_text().count("\n") >= max(steps) + 1,
    ]
    killed = [kill_when(start(*recipe), condition) for condition in conditions]
    assert killed[0]
    assert sum(killed) >= 2
    assert train(*recipe) == folder
    assert same(weights(whole), weights(folder))
    for ours, theirs in zip(records(folder), records(whole), strict=True):
        assert [ours[k] for k in ("step", "epoch", "loss", "lr")] == [
            theirs[k] for k in ("step", "epoch", "loss", "lr")
        ]


@pytest.mark.parametrize("protocol", [pytest.param("paper", marks=pytest.mark.slow), "paper_val"])
def test_no_room_for_a_checkpoint(synthetic_root, tmp_path, protocol):
    """With a limit of file sizes below the model's, a run ends with a message and an intact last checkpoint.

    Under `paper_val` it is the best model so far that cannot be written.
    """
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"data.protocol={protocol}", "data.val_fraction=0.4"]
    recipe.append("max_steps=8")
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    recipe.append(f"output_dir={tmp_path / 'full'}")
    folder = tmp_path / "full" / whole.name
    assert kill_when(start(*recipe), lambda: any(folder.glob("checkpoints/step-*")))

    def content():
        return {path: path.read_bytes() for path in sorted(folder.glob("checkpoints/**/*")) if path.is_file()}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    shutil.rmtree(next(folder.glob("checkpoints/.step-*.part"), tmp_path / "none"), ignore_errors=True)
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


def test_a_run_goes_on_without_what_it_started_from(synthetic_root, tmp_path):
    from accelerate.state import AcceleratorState

    from gafx.training.trainer import Trainer

    front_end, ast = {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}
    first = create_model(front_end, ast, num_classes=2, segment_seconds=0.4).save(tmp_path / "first")
    config = build(TrainConfig, {
        "frontend": {**front_end, "pretrained": str(first)}, "classifier": {**ast, "pretrained": str(first)},
        "data": {"root": str(synthetic_root), "segment_seconds": 0.4, "options": {"tracks": 4, "seconds": 1.5}},
        "batch_size": 8, "max_steps": 3, "checkpoint_steps": 2, "workers": 0, "precision": "fp32", "device": "cpu",
        "output_dir": str(tmp_path),
    })  # fmt: skip
    infos, states = [], []
    for _ in range(2):
        AcceleratorState._reset_state(True)
        trainer = Trainer(config)
        folder = trainer.fit()
        infos.append(trainer.info)
        states.append(weights(folder))
        shutil.rmtree(folder / "model")
        shutil.rmtree(folder / "checkpoints" / "step-00000003")
        shutil.rmtree(first, ignore_errors=True)
    AcceleratorState._reset_state(True)
    assert infos[0].provenance.describe() == "first, front-end from first"
    assert infos[0].provenance.classifier.digest
    assert infos[1] == infos[0]
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
