"""Likelihood of tokens as an objective: the loss by hand, bounds, annealing, draws, measures of collapse, and runs."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from runs import kill_when, records, script, start, train, weights
from test_generators import SMALL, ids, vaes
from torch.testing import assert_close
from tunes import write_tunes

import gafx
from gafx.errors import UsageError
from gafx.midi.tokens import PAD
from gafx.registry import OBJECTIVES

NAMED = 5  # columns of `predict` before those of the latent dimensions


def objective_of(name, **arguments):
    torch.manual_seed(0)
    model = gafx.create_model("tokens", {"name": name, "dropout": 0.0, **SMALL[name]}, num_classes=30,
                              segment_seconds=20.0)  # fmt: skip
    with torch.no_grad():
        model.classifier.output.weight.mul_(5)
        if model.classifier.latent:
            model.classifier.moments.weight.mul_(5)
    return OBJECTIVES.create("likelihood", model, np.zeros(30, np.int64), **arguments).eval()


def wave_of(codes):
    return codes[:, None].float()


def loss_of(objective, codes, numbers=(5, 6, 7), weight=(1.0, 1.0, 1.0)):
    weight = torch.tensor(weight)
    return objective(
        wave_of(codes), torch.zeros(len(codes), 30), weight, torch.zeros(len(codes), 0, 2), 0,
        numbers=torch.tensor(numbers),
    )["loss"]  # fmt: skip


def padded():
    codes = ids()
    codes[1, 13:] = PAD
    return codes


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_loss_by_hand(name):
    objective, codes = objective_of(name, beta=0.7, free_bits=0.02), padded()
    model, total = objective.generator, 0.0
    noise = objective._noise([5, 6, 7], 1, codes.device)[:, 0]
    losses = model.token_losses(codes, noise=noise)
    for clip in range(2):  # the third has weight 0
        kl = 0.0 if losses.kl is None else np.maximum(losses.kl[clip].numpy(), 0.02).sum()
        count = 13 if clip == 1 else 20
        total += (losses.nll[clip, :count].sum().item() + 0.7 * kl) / count
    assert loss_of(objective, codes, weight=(1.0, 1.0, 0.0)).item() == pytest.approx(total, rel=1e-5)


@vaes
def test_the_divergence_is_annealed_by_the_step_alone(name):
    objective, codes = objective_of(name, beta=0.5, kl_steps=10), ids()
    losses = {}
    for step in (9, 0, 4, 100):
        objective.at_step(step)
        losses[step] = loss_of(objective, codes).item()
    kl = objective.generator.token_losses(codes).kl.sum().item() / 20
    assert losses[4] - losses[0] == pytest.approx(0.2 * kl, rel=1e-3)
    assert losses[9] - losses[0] == pytest.approx(0.45 * kl, rel=1e-3)
    assert losses[100] == losses[9]


@vaes
def test_free_bits_have_no_gradient(name):
    objective = objective_of(name, free_bits=1e3)
    objective.generator.output.weight.data.zero_()  # so that the latent vector is not read
    loss_of(objective, ids()).backward()
    assert not objective.generator.moments.weight.grad.any()


@torch.no_grad()
def test_word_dropout_by_the_number_of_a_clip():
    plain, hidden = (objective_of("decoder", word_dropout=rate) for rate in (0.0, 0.5))
    codes = ids()
    assert loss_of(hidden, codes) == loss_of(hidden, codes)
    assert loss_of(hidden, codes) != loss_of(hidden, codes, numbers=(5, 6, 8))
    assert loss_of(hidden, codes) != loss_of(plain, codes)
    # Whatever the batch, a clip has its own draws; and evaluation hides nothing.
    alone = sum(loss_of(hidden, codes[i : i + 1], (5 + i,), (1.0,)) for i in range(3))
    assert_close(alone, loss_of(hidden, codes))
    assert torch.equal(hidden.predict(wave_of(codes)), plain.predict(wave_of(codes)))


@torch.no_grad()
def test_the_likelihood_of_a_model_without_latent_vector():
    objective, codes = objective_of("decoder"), padded()
    values = objective.predict(wave_of(codes), torch.tensor([1, 2, 3]), wave_of(codes.flip(0)))
    nll = objective.generator.token_losses(codes).nll
    assert values.shape == (3, NAMED)
    assert_close(values[:, 0], (nll.double().sum(dim=1) / torch.tensor([20, 13, 20])))
    scores = objective.scores(values.numpy(), np.zeros((3, 0)), np.arange(3), resamples=20)
    assert scores.keys() == {"nll"}
    assert scores["nll"].value == pytest.approx(values[:, 0].mean().item())
    assert scores["nll"].low < scores["nll"].high


@vaes
@torch.no_grad()
def test_bounds_of_a_vae(name):
    """The ELBO is below the importance-weighted bound, and that below the likelihood, on the mean over many draws."""
    codes = padded()
    one, many = objective_of(name), objective_of(name, samples=64)
    count = torch.tensor([20, 13, 20])
    numbers = torch.tensor([11, 12, 13])
    values = one.predict(wave_of(codes), numbers)
    kl = one.generator.token_losses(codes).kl.double()
    assert_close(values[:, 4], kl.sum(dim=1))
    assert_close(values[:, 1], values[:, 2] + kl.sum(dim=1) / count)
    assert torch.equal(values[:, 0], values[:, 1])
    mean = one.generator.posterior(codes)[0].double()
    assert_close(values[:, NAMED:], torch.cat([mean, mean.square(), kl], dim=1))
    found = many.predict(wave_of(codes), numbers)
    assert (found[:, 0] < found[:, 1]).all()
    # By hand, from the distributions of torch.
    posterior = one.generator.posterior(codes)
    noise = many._noise([11, 12, 13], 65, codes.device)[:, :64]
    latent = posterior[0][:, None] + (0.5 * posterior[1]).exp()[:, None] * noise
    ratios = []
    for draw in range(64):
        nll = one.generator.token_losses(codes, latent=latent[:, draw]).nll.double().sum(dim=1)
        normal = torch.distributions.Normal(posterior[0].double(), (0.5 * posterior[1]).exp().double())
        prior = torch.distributions.Normal(torch.zeros(6).double(), torch.ones(6).double())
        z = latent[:, draw].double()
        ratios.append(-nll + (prior.log_prob(z) - normal.log_prob(z)).sum(dim=1))
    bound = -torch.stack(ratios).exp().mean(dim=0).log() / count
    assert_close(found[:, 0], bound, atol=1e-5, rtol=1e-5)


@vaes
@torch.no_grad()
def test_the_shuffled_latent_is_that_of_the_other_clip(name):
    objective, codes = objective_of(name), ids()
    numbers = torch.tensor([1, 2, 3])
    values = objective.predict(wave_of(codes), numbers, wave_of(codes.roll(1, 0)))
    mean, log_variance = objective.generator.posterior(codes.roll(1, 0))
    noise = objective._noise([1, 2, 3], 2, codes.device)[:, 1]
    nll = objective.generator.token_losses(codes, latent=mean + (0.5 * log_variance).exp() * noise).nll
    assert_close(values[:, 3], nll.double().mean(dim=1))
    others = [0, 1, 2, 4]
    again = objective.predict(wave_of(codes), numbers, wave_of(codes.roll(2, 0)))
    assert torch.equal(again[:, others], values[:, others])
    assert not torch.equal(again[:, 3], values[:, 3])
    alone = objective.predict(wave_of(codes[2:]), numbers[2:], wave_of(codes[1:2]))
    assert_close(alone[0], values[2], atol=1e-5, rtol=1e-5)


def test_active_units_are_counted_over_clips():
    rng = np.random.default_rng(0)
    std = np.array([1.0, 0.2, 0.05, 0.0])  # two of them with a variance above 0.01
    clips = rng.standard_normal((40, 10, 4)) * std + 3.0
    kl = np.tile([0.5, 0.1, 0.0, 0.0], (40, 1))
    # Means over the ten clips of each of 40 pieces, as `inference.to_tracks` makes them.
    values = np.concatenate([np.ones((40, NAMED)), clips.mean(axis=1), np.square(clips).mean(axis=1), kl], axis=1)
    scores = OBJECTIVES.get("likelihood").scores(values, np.zeros((40, 0)), np.arange(40), resamples=20)
    assert np.var(clips.mean(axis=1), axis=0)[1] < 0.01, "the means of pieces alone would hide one"
    assert scores["active_units"].value == 2
    assert scores["kl_largest"].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"beta": -1.0}, "beta=-1"), ({"kl_steps": -1}, "kl_steps"), ({"free_bits": float("inf")}, "free_bits"),
     ({"word_dropout": 1.5}, "word_dropout=1.5"), ({"samples": 0}, "samples=0")],
)  # fmt: skip
def test_settings_out_of_range(arguments, message):
    with pytest.raises(UsageError, match=message):
        objective_of("decoder", **arguments)


def test_a_classifier_of_labels_is_refused():
    model = gafx.create_model("mel", "cnn", num_classes=3, segment_seconds=0.5)
    with pytest.raises(UsageError, match="classifier=decoder, vae_lstm or vae_transformer"):
        OBJECTIVES.create("likelihood", model, np.zeros(3, np.int64))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    objective = objective_of(name).train()
    loss_of(objective, padded()).backward()
    without = {key for key, p in objective.named_parameters() if p.grad is None or not (p.grad != 0).any()}
    assert not without, "DDP waits for every gradient"


@vaes
def test_a_vae_learns_what_only_the_latent_vector_tells(name):
    """Each clip repeats one of 12 tokens that its decoder does not read: the posterior has to say which."""
    objective = objective_of(name, word_dropout=1.0, kl_steps=60).train()
    token = torch.arange(12) + 4
    codes = token[:, None].expand(-1, 20).contiguous()
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for step in range(150):
        objective.at_step(step)
        optimizer.zero_grad()
        loss_of(objective, codes, tuple(range(12 * step, 12 * step + 12)), (1.0,) * 12).backward()
        optimizer.step()
    objective.eval()
    hidden = codes.clone()
    nll = objective.generator.token_losses(hidden, dropped=torch.ones_like(hidden, dtype=torch.bool)).nll
    assert nll.mean() < 0.5 * np.log(12)
    values = objective.predict(wave_of(codes), None, wave_of(codes.roll(1, 0))).detach().numpy()
    scores = objective.scores(values, np.zeros((12, 0)), np.arange(12), resamples=0)
    assert scores["kl"].value > 1.0
    assert scores["active_units"].value >= 1


# -- runs --------------------------------------------------------------------------------------------------------------

# Everything that is random or changes with the step is on.
RECIPE = {
    "frontend": {"name": "tokens"}, "classifier": {"name": "vae_transformer", "depth": 1, "heads": 2, "width": 16},
    "objective": {"name": "likelihood", "kl_steps": 20, "free_bits": 0.01, "word_dropout": 0.2, "samples": 2},
    "data": {"name": "midi", "protocol": "paper_val", "val_fraction": 0.3, "segment_seconds": 24.0, "crop": "segments",
             "short_clips": "pad", "options": {"group_pattern": "^(.)_"}},
    "optim": {"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9}, "augment": {"transpose": 5},
    "batch_size": 4, "max_steps": 7, "checkpoint_steps": 3, "keep_checkpoints": 9, "workers": 0, "precision": "fp32",
    "device": "cpu", "tracking": {"log_steps": 1},
}  # fmt: skip


def losses_of(record):
    return {key: value for key, value in record.items() if key == "loss" or key.startswith("validation_")}


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """From the checkpoint of step 3, in the middle of the rise of the divergence's weight and of an epoch."""
    from accelerate.state import AcceleratorState

    from gafx.config import TrainConfig, build
    from gafx.training.trainer import Trainer

    config = build(TrainConfig, {
        **RECIPE, "output_dir": str(tmp_path), "data": {**RECIPE["data"], "root": str(write_tunes(tmp_path / "midi"))},
    })  # fmt: skip
    found = []
    for _ in range(2):
        AcceleratorState._reset_state(True)
        folder = Trainer(config).fit()
        found.append((weights(folder), [losses_of(record) for record in records(folder)]))
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        assert checkpoints[0].name == "step-00000003"
        for path in (folder / "model", *checkpoints[1:], folder / "checkpoints" / "best"):
            shutil.rmtree(path, ignore_errors=True)
    AcceleratorState._reset_state(True)
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[1][0][name], tensor) for name, tensor in found[0][0].items())
    scores = next(record for record in found[0][1] if "validation_nll" in record)
    assert scores.keys() >= {f"validation_{name}" for name in ("kl", "active_units", "reconstruction_shuffled")}
    assert scores["validation_nll"] <= scores["validation_nll_elbo"]


COMMAND = [
    "frontend=tokens", "classifier=vae_lstm", "classifier.width=16", "objective=likelihood", "objective.kl_steps=20",
    "objective.word_dropout=0.2", "data=midi", "data.val_fraction=0.3", "data.segment_seconds=24", "data.crop=segments",
    "data.options.group_pattern='^(.)_'", "augment.transpose=5", "optim.warmup_steps=2", "optim.lr=1e-3",
    "optim.ema_decay=0.9", "max_steps=12", "batch_size=6", "tracking.log_steps=1", "workers=0", "precision=fp32",
    "device=cpu", "name=run",
]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    recipe = [*COMMAND, f"data.root={write_tunes(tmp_path / 'midi')}", "checkpoint_steps=1"]
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    log = tmp_path / "killed" / whole.name / "metrics.jsonl"
    killed = start(*recipe, f"output_dir={tmp_path / 'killed'}")
    assert kill_when(killed, lambda: log.exists() and log.read_text().count("\n") >= 4)
    folder = train(*recipe, f"output_dir={tmp_path / 'killed'}")
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(whole).items())
    ours, theirs = ([losses_of(record) for record in records(run)] for run in (folder, whole))
    assert ours == theirs


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    recipe = [*COMMAND, f"data.root={write_tunes(tmp_path / 'midi')}", "classifier.dropout=0.0"]
    one = train(*recipe, f"output_dir={tmp_path / 'one'}")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
    done = script("train.py", *recipe, f"output_dir={tmp_path / 'two'}", launcher=launcher, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two" / one.name
    for ours, theirs in zip(records(one), records(two), strict=True):
        assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=1e-3, abs=1e-4)
    theirs = weights(two)
    for name, tensor in weights(one).items():
        assert (tensor - theirs[name]).abs().mean() <= 1e-4, name


@pytest.mark.slow
def test_an_evaluation_shows_the_measures_of_collapse(tmp_path):
    run = train(*COMMAND, f"data.root={write_tunes(tmp_path / 'midi')}", f"output_dir={tmp_path}")
    done = script("evaluate.py", run)
    assert done.returncode == 0, done.stderr
    assert "negative log-likelihood" in done.stdout.lower()
    result = json.loads((run / "result.json").read_text())["scores"]
    for level in ("track", "segment"):
        assert result[level].keys() >= {"nll", "kl", "active_units", "reconstruction", "reconstruction_shuffled"}
    text = (run / "report.html").read_text()
    assert "Active latent dimensions" in text
    assert "latent of another piece" in text
