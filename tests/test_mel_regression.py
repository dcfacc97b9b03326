"""The front-end learns the log-mel: target, loss, score, hand-over."""

import json
import math
import re

import numpy as np
import pytest
import torch
from runs import SLIM, SMALL, script, train, weights

import gafx
from gafx.errors import UsageError
from gafx.registry import OBJECTIVES


def _objective(frontend="gafx_r", seconds=0.5, **arguments):
    loss = {key: arguments.pop(key) for key in ("loss", "delta") if key in arguments}
    part = {"name": frontend, **arguments}
    if frontend == "gafx_r":
        part.setdefault("width", 16)
    model = gafx.create_model(part, {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=seconds)
    return OBJECTIVES.create("mel_regression", model, np.zeros(2, np.int64), **loss)


def _wave(objective, seconds=0.5, batch=2):
    front_end = objective.model.frontend
    torch.manual_seed(0)
    return 0.3 * torch.randn(batch, front_end.channels, round(seconds * front_end.sample_rate))


def _forward(objective, wave, weight=None):
    weight = torch.ones(len(wave)) if weight is None else weight
    return objective(wave, torch.zeros(len(wave), 2), weight, torch.zeros(len(wave), 0, 2), 0)


def test_the_target_is_128_x_1024_and_the_mel_front_ends():
    objective = _objective(seconds=1.0)
    wave = 0.1 * torch.randn(1, 1, 204_800)
    wanted = objective.target_map(wave)
    assert wanted.shape == (1, 128, 1024)
    log_mel = gafx.create_frontend("mel")(wave)[:, 0]
    decibels = 10 / math.log(10) * log_mel
    assert torch.allclose(wanted, (decibels + 80) / 120, atol=1e-5)


def test_sixteen_kilohertz_give_asts_shape():
    objective = _objective(seconds=1.0, sample_rate=16000, hop_length=160)
    wave = 0.1 * torch.randn(1, 1, 163_840)  # 10.24 s
    assert objective.target_map(wave).shape == objective.feature_map(wave).shape == (1, 128, 1024)


def test_silence_and_full_scale_stay_within_the_range():
    objective = _objective()
    t = torch.arange(22050) / 22050
    loud = torch.sign(torch.sin(2 * torch.pi * 220 * t))[None, None]
    assert 0.9 < float(objective.target_map(loud).max()) < 1.0  # below the ceiling: nothing is cut off
    assert float(objective.target_map(torch.zeros(1, 1, 22050)).abs().max()) == 0.0


@pytest.mark.parametrize(
    ("frontend", "arguments"),
    [("gafx_r", {}), ("gafx_r", {"time_stride": 3}), ("gafx_a", {"width": 16, "depth": 1}), ("gafx_u", {"width": 16}),
     ("leaf", {}), ("gafx_u", {"width": 16, "sources": "channels"})],
)  # fmt: skip
def test_every_learned_front_end_can_be_taught(frontend, arguments):
    objective = _objective(frontend, seconds=1.0, **arguments)
    for seconds in (0.3, 1.0):
        wave = _wave(objective, seconds)
        assert objective.feature_map(wave).shape == objective.target_map(wave).shape
    _forward(objective, _wave(objective)).get("loss").backward()
    # Batch norm makes shifts before it vain, HDemucs' local attention has a bias for its only key: a few have none.
    moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in objective.model.frontend.parameters()]
    assert np.mean(moved) > 0.8
    assert not any(p.requires_grad for p in objective.model.classifier.parameters())


@pytest.mark.parametrize("loss", ["l1", "huber", "bce"])
def test_losses_by_hand(loss):
    objective = _objective(loss=loss).eval()
    wave, weight = _wave(objective), torch.tensor([1.0, 0.0])
    with torch.no_grad():
        losses = _forward(objective, wave, weight)
        emitted, wanted = objective.feature_map(wave)[0].double(), objective.target_map(wave)[0].double()
    if loss == "l1":
        by_hand = (emitted - wanted).abs()
    elif loss == "huber":
        error = (emitted - wanted).abs()
        by_hand = torch.where(error < 0.05, 0.5 * error**2, 0.05 * (error - 0.025))
    else:
        logits = 8 * (emitted - 0.5)  # -log p = log(1 + exp(-logits))
        by_hand = wanted * torch.logaddexp(-logits, torch.zeros(())) + (1 - wanted) * torch.logaddexp(
            logits, torch.zeros(())
        )
    assert float(losses["loss"]) == pytest.approx(float(by_hand.mean()), rel=1e-5)  # the second clip does not count


def test_scores_by_hand(rng):
    objective = OBJECTIVES.get("mel_regression")
    values = np.array([[0.1, 0.02, 0.10], [0.2, 0.05, 0.10], [0.3, 0.11, 0.16]])
    scores = objective.scores(values, np.zeros((3, 0)), np.arange(3), resamples=50)
    assert scores["mean_absolute_error_db"].value == pytest.approx(120 * 0.2)
    assert scores["explained_variance"].value == pytest.approx(1 - 0.18 / 0.36)
    assert scores["explained_variance"].low < 0.5 < scores["explained_variance"].high
    assert objective.higher_is_better is False


def test_a_perfect_map_has_no_error():
    objective = _objective()
    objective.feature_map = objective.target_map
    wave = _wave(objective)
    values = objective.predict(wave).numpy()
    scores = objective.scores(values.astype(float), np.zeros((2, 0)), np.arange(2), resamples=5)
    assert scores["mean_absolute_error_db"].value == 0.0
    assert scores["explained_variance"].value == 1.0


def test_what_cannot_be_taught_is_refused():
    with pytest.raises(UsageError, match="this one is fixed"):
        _objective("mel")
    with pytest.raises(UsageError, match="fused with a fixed"):
        _objective("fused")
    with pytest.raises(UsageError, match="delta"):
        _objective(delta=0.0)


def test_it_learns(tmp_path):
    """A few dozen steps on one clip bring the map closer to its mel than its own mean level is."""
    objective = _objective()
    wave = _wave(objective)
    wave[..., 4000:7000] = 0
    optimizer = torch.optim.Adam(objective.model.frontend.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = _forward(objective, wave)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.fixture(scope="module")
def pretrained(synthetic_root, tmp_path_factory):
    """Two short runs under both objectives."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipe = [*SMALL, *SLIM, f"data.root={synthetic_root}", f"output_dir={folder}", "epochs=1"]
    return {
        name: train(*recipe, f"objective={name}", f"name={name}", "data.protocol=paper_val", "data.val_fraction=0.3")
        for name in ("mel_regression", "tag")
    }


def test_a_run_validates_by_the_error_and_evaluates(pretrained):
    run = pretrained["mel_regression"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_mean_absolute_error_db" in record for record in records)
    done = script("evaluate.py", run)
    assert done.returncode == 0, done.stderr
    assert "mean absolute error" in done.stdout.lower()
    assert " dB" in done.stdout
    assert "labels not read" in done.stdout
    result = json.loads((run / "result.json").read_text())
    assert result["confusion"] is None
    assert result["scores"]["track"]["mean_absolute_error_db"]["low"] is not None
    header = (run / "predictions.csv").read_text().splitlines()[0].split(",")
    assert header[:7] == ["clip", "track", "fold", "label", "absolute_error", "squared_error", "target_variance"]
    page = (run / "report.html").read_text()
    assert "Mean absolute error" in page
    assert re.search(r"\d\.\d\d dB", page)
    assert "mean absolute error" in page
    assert gafx.load(run).info.scores["explained_variance"]["value"] == pytest.approx(
        result["scores"]["track"]["explained_variance"]["value"]
    )


def test_one_argument_hands_the_front_end_over(pretrained, synthetic_root, tmp_path):
    run = pretrained["mel_regression"]
    after = train(
        *SMALL, *SLIM, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "optim.lr=1e-12", "max_steps=1",
        f"frontend.pretrained={run}",
    )  # fmt: skip
    before, now = weights(run), weights(after)
    assert_same_front_end(before, now)
    assert not torch.equal(before["classifier.patches.weight"], now["classifier.patches.weight"])
    assert gafx.load(after).info.provenance.frontend.name == run.name


def assert_same_front_end(before, now):
    for key, tensor in before.items():
        if key.startswith("frontend.") and tensor.is_floating_point() and "running" not in key:
            assert torch.allclose(tensor, now[key], atol=1e-6), key


@pytest.mark.slow
def test_the_classifier_is_handed_over_when_asked_for(pretrained, synthetic_root, tmp_path):
    recipe = [*SMALL, *SLIM, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "optim.lr=1e-12", "max_steps=1"]
    run = pretrained["tag"]
    after = train(*recipe, f"frontend.pretrained={run}", f"classifier.pretrained={run}")
    before, now = weights(run), weights(after)
    assert_same_front_end(before, now)
    assert torch.allclose(before["classifier.blocks.0.attn.qkv.weight"], now["classifier.blocks.0.attn.qkv.weight"])
    done = script("train.py", *recipe, f"classifier.pretrained={pretrained['mel_regression']}")
    assert done.returncode == 2
    assert "its weights are random" in done.stderr
    assert "Traceback" not in done.stderr


def test_masks_make_no_sense_here(synthetic_root, tmp_path):
    done = script(
        "train.py", *SMALL, *SLIM, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "augment.time_masks=1",
        "objective=mel_regression",
    )  # fmt: skip
    assert done.returncode == 2
    assert "mask" in done.stderr


def test_an_unfinished_run_hands_nothing_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="is not finished"):
        gafx.create_frontend("gafx_r", pretrained=str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["gafx_r", "gafx_a", "gafx_u", "leaf"])
def test_a_hand_over_across_rates_is_refused_unless_asked_for(tmp_path, name):
    width = {} if name == "leaf" else {"width": 16}
    model = gafx.create_model({"name": name, **width}, {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=1.0)
    path = model.save(tmp_path / "model")
    rate = 2 * model.frontend.sample_rate
    other = {**width, "sample_rate": rate, **({"window_length": 551, "f_max": 8000.0} if name == "leaf" else {})}
    with pytest.raises(UsageError, match="frontend.across_rates=true") as raised:
        gafx.create_frontend(name, pretrained=path, **other)
    assert f"frontend.sample_rate={model.frontend.sample_rate}" in str(raised.value)
    alone = path / "model.safetensors"  # without config.json, as after a download
    (tmp_path / "alone.safetensors").write_bytes(alone.read_bytes())
    with pytest.raises(UsageError, match="was trained at"):
        gafx.load_weights(gafx.create_frontend(name, **other), tmp_path / "alone.safetensors")
    taken = gafx.create_frontend(name, pretrained=path, across_rates=True, **other)
    for ours, theirs in zip(taken.parameters(), model.frontend.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert gafx.load_weights(gafx.create_frontend(name, **other), alone, across_rates=True) == []
    gafx.create_frontend(name, pretrained=path, **width)  # the same rate needs no leave
