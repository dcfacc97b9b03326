"""A finished run that is continued with more epochs; and runs whose state changes before they hold their lock."""

import contextlib
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import MEL, SMALL, weights

from gafx.compose import compose_train
from gafx.config import read_config, run_id
from gafx.errors import UsageError
from gafx.io import read_json_lines
from gafx.training import build
from gafx.training.trainer import Trainer


@pytest.fixture(scope="module")
def recipe(synthetic_root, tmp_path_factory):
    return [
        *SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path_factory.mktemp('outputs')}", "device=cpu",
        "data.protocol=paper_val", "data.val_fraction=0.3", "data.leak_check=false", "optim.milestones=[1,2]",
        "optim.ema_decay=0.9", "augment.mixup_probability=0.5", "optim.frontend.frozen_epochs=1",
    ]  # fmt: skip


def fit(*overrides):
    AcceleratorState._reset_state(True)
    try:
        return Trainer(compose_train(overrides)).fit()
    finally:
        AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def short(recipe):
    return fit(*recipe, "epochs=1")


def same_checkpoints(a, b):
    """Whether the last checkpoints have the same weights, moving average, optimiser and random states."""
    last = [sorted(folder.glob("checkpoints/step-*"))[-1] for folder in (a, b)]
    assert last[0].name == last[1].name
    files = [[(path / name).read_bytes() for name in ("model.safetensors", "average.safetensors")] for path in last]
    states = [torch.load(path / "state.pt", weights_only=True) for path in last]
    moments = [[torch.cat([v.flatten() for v in s.values()]) for s in state["optimizer"].values()] for state in states]
    alike = all(torch.equal(x, y) for x, y in zip(*moments, strict=True))
    return (
        files[0] == files[1] and alike and torch.equal(states[0]["random"][0]["torch"], states[1]["random"][0]["torch"])
    )


@pytest.mark.parametrize("schedule", ["halving", pytest.param("constant", marks=pytest.mark.slow)])
def test_an_extended_run_is_one_long_run_to_the_same_bits(recipe, short, schedule):
    recipe = [*recipe, f"optim.schedule={schedule}"]
    begin = short if schedule == "halving" else fit(*recipe, "epochs=1")
    before = {path: path.read_bytes() for path in begin.rglob("*") if path.is_file()}
    whole = fit(*recipe, "epochs=3")
    longer = fit(f"extend={begin}", "epochs=3")
    assert len({begin, whole, longer}) == 3
    assert longer.parent == begin.parent
    assert same_checkpoints(longer, whole)
    kept, expected = weights(longer), weights(whole)
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())
    for ours, theirs in zip(*(read_json_lines(run / "metrics.jsonl") for run in (longer, whole)), strict=True):
        for key in ours.keys() & {"step", "epoch", "loss", "lr", "validation_accuracy"}:
            assert ours[key] == theirs[key]
    assert {path: path.read_bytes() for path in begin.rglob("*") if path.is_file()} == before
    record = json.loads((longer / "run.json").read_text())
    assert record["config"]["extend"] == str(begin)
    # In steps, in stages, and by the whole command of the first run: the same.
    twice = fit(f"extend={fit(f'extend={begin}', 'max_steps=4', 'epochs=2')}", "epochs=3", "max_steps=null")
    assert same_checkpoints(twice, whole)
    assert fit(*recipe, f"extend={begin}", "epochs=3") == longer


def test_a_cosine_goes_on_over_the_longer_run(recipe, caplog):
    recipe = [*recipe, "optim.schedule=cosine"]
    begin = fit(*recipe, "epochs=1")
    caplog.set_level("INFO")
    longer = fit(f"extend={begin}", "epochs=3")
    assert "schedule=cosine now ends at step 9, so the learning rate goes from" in caplog.text
    whole = [record["lr"] for record in read_json_lines(fit(*recipe, "epochs=3") / "metrics.jsonl") if "lr" in record]
    ours = [record["lr"] for record in read_json_lines(longer / "metrics.jsonl") if "lr" in record]
    assert ours[3:] == whole[3:]
    short = [record["lr"] for record in read_json_lines(begin / "metrics.jsonl") if "lr" in record]
    assert ours[:3] == short


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "the run has had its epochs=1: set more, e.g. epochs=2"),
        (["epochs=1", "workers=3"], "set more"),
        (["epochs=3", "seed=1", "optim.lr=1"], "seed was 0 and is 1; optim.lr was 0.001 and is 1.0: leave these out"),
        (["epochs=3", "frontend=gafx_r"], "frontend.name was mel and is gafx_r.*give the run's whole command"),
        (["epochs=3", "~optim.ema_decay"], "optim.ema_decay was 0.9 and is None"),
        (["epochs=3", "frontend.n_mels=64"], "frontend.n_mels was 128 and is 64"),
        (["epochs=3", "data.options.tracks=5"], "data.options.tracks was 4 and is 5"),
        (["epochs=3", "sed=1"], "unknown key sed"),
    ],
)
def test_what_differs_is_refused(short, overrides, message):
    with pytest.raises(UsageError, match=message):
        compose_train([f"extend={short}", *overrides])


def test_keys_that_change_no_result_may_differ(short, tmp_path):
    config = compose_train([f"extend={short}/", "epochs=2", "workers=3", f"output_dir={tmp_path}", "name=longer"])
    assert (config.workers, config.name, config.epochs, config.data.segment_seconds) == (3, "longer", 2, 0.8)
    assert config.folder.parent == tmp_path
    before = read_config(short / "config.yaml")
    assert len({run_id(before), run_id(config), run_id(compose_train([f"extend={short}", "epochs=3"]))}) == 3
    moved = shutil.copytree(short, tmp_path / short.name)
    assert run_id(compose_train([f"extend={moved}", "epochs=2"])) == run_id(config)


def test_what_cannot_be_extended(short, tmp_path):
    copy = shutil.copytree(short, tmp_path / short.name)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UsageError, match="there is no checkpoint"):
        fit(f"extend={copy}", "epochs=2")
    shutil.rmtree(copy / "model")
    for path, message in ((copy, "is not finished"), (tmp_path / "none", "is no run folder")):
        with pytest.raises(UsageError, match=message):
            compose_train([f"extend={path}", "epochs=2"])


def test_a_lost_best_model_is_noticed_before_training(short, tmp_path):
    copy = shutil.copytree(short, tmp_path / short.name)
    for step in (copy / "checkpoints").glob("step-*"):  # as if it had been killed before its end
        assert step.name == "step-00000003"
    shutil.rmtree(copy / "model")
    before = (copy / "metrics.jsonl").read_bytes()
    recipe = read_config(copy / "config.yaml")
    recipe.output_dir = str(tmp_path)
    for damage in ("all", "weights"):
        if damage == "weights":
            (copy / "checkpoints" / "best").mkdir()
            (copy / "checkpoints" / "best" / "config.json").write_text("{}")
        AcceleratorState._reset_state(True)
        with pytest.raises(UsageError, match="best is lost, the model of step 3"):
            Trainer(recipe).fit()
    AcceleratorState._reset_state(True)
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("meanwhile", ["finished", "trained on other data", "checkpoints deleted"])
def test_what_happens_before_the_lock_is_seen_under_it(short, tmp_path, monkeypatch, meanwhile):
    """Another process finishes or changes the run after this one has looked at it and before it has its lock."""
    copy = shutil.copytree(short, tmp_path / short.name)
    (copy / "model").rename(tmp_path / "model")
    config = read_config(copy / "config.yaml")
    config.output_dir = str(tmp_path)
    real = build.claim_folder

    @contextlib.contextmanager
    def claim(folder):
        with real(folder):
            if meanwhile == "finished":
                (tmp_path / "model").rename(copy / "model")
            elif meanwhile == "checkpoints deleted":
                shutil.rmtree(copy / "checkpoints")
            else:
                record = json.loads((copy / "run.json").read_text())
                record["data"]["fingerprint"] = "other"
                (copy / "run.json").write_text(json.dumps(record))
            yield

    monkeypatch.setattr(build, "claim_folder", claim)
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    AcceleratorState._reset_state(True)
    if meanwhile == "finished":
        assert Trainer(config).fit() == copy
        assert (copy / "model" / "model.safetensors").read_bytes() == content
    else:
        with pytest.raises(UsageError, match=r"other data|checkpoints in .* have gone"):
            Trainer(config).fit()
    AcceleratorState._reset_state(True)
