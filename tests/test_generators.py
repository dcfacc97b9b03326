"""Models that write music: causality, one token at a time, padding, latent vectors, sampling."""

import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

import gafx
from gafx.classifiers._generator import divergence
from gafx.errors import UsageError
from gafx.midi.tokens import BEGIN, PAD, UNKNOWN
from gafx.nn.sampling import pick
from gafx.registry import CLASSIFIERS

WORDS = 30
SMALL = {
    "vae_lstm": {"latent": 6, "width": 16},
    "vae_transformer": {"latent": 6, "width": 16, "depth": 2, "heads": 2},
    "decoder": {"width": 16, "depth": 2, "heads": 2},
}
every = pytest.mark.parametrize("name", SMALL)
vaes = pytest.mark.parametrize("name", ["vae_lstm", "vae_transformer"])


def build(name, length=20, words=WORDS, **arguments):
    torch.manual_seed(0)
    model = CLASSIFIERS.create(name, (1, 1, length), words, **SMALL[name], **arguments).eval()
    with torch.no_grad():  # at the start all tokens are nearly equally likely, whatever comes before
        model.output.weight.mul_(5)
        if model.latent:
            model.moments.weight.mul_(5)
    return model


def ids(batch=3, length=20, seed=1):
    return torch.randint(UNKNOWN + 1, WORDS, (batch, length), generator=torch.Generator().manual_seed(seed))


def latent_of(model, batch=3):
    return torch.randn(batch, model.latent, generator=torch.Generator().manual_seed(2)) if model.latent else None


# -- models ------------------------------------------------------------------------------------------------------------


@every
@torch.no_grad()
def test_no_token_is_predicted_from_itself_or_later_ones(name):
    model, codes = build(name), ids()
    latent = latent_of(model)
    logits = model.logits(codes, latent)
    for place in (0, 7, 19):
        changed = codes.clone()
        changed[:, place:] = ids(seed=5)[:, place:]
        assert not torch.equal(changed[:, place], codes[:, place])
        found = model.logits(changed, latent)
        assert torch.equal(found[:, : place + 1], logits[:, : place + 1])
        assert place == 19 or (found[:, place + 1] - logits[:, place + 1]).abs().max() > 1e-3


@every
@pytest.mark.parametrize("length", [20, 50])
@torch.no_grad()
def test_step_by_step_equals_the_whole(name, length):
    """Also of sequences longer than those of the training, in which a transformer attends to the last 20 tokens."""
    model, codes = build(name), ids(length=length)
    latent = latent_of(model)
    whole = model.logits(codes, latent)
    state, token, found = model.start(3, latent), torch.full((3,), BEGIN), []
    for place in range(length):
        before = state
        logits, state = model.step(state, token)
        found.append(logits)
        token = codes[:, place]
    assert_close(torch.stack(found, dim=1), whole, atol=1e-5, rtol=1e-5)
    again, _ = model.step(before, codes[:, -2])  # a state is not changed by a step
    assert torch.equal(again, found[-1])


@every
@torch.no_grad()
def test_an_old_token_is_forgotten_beyond_the_context(name):
    model, codes = build(name), ids(length=60)
    changed = codes.clone()
    changed[:, 0] = (codes[:, 0] - UNKNOWN) % (WORDS - UNKNOWN - 1) + UNKNOWN + 1
    latent = latent_of(model)
    differ = (model.logits(changed, latent) - model.logits(codes, latent)).abs().amax(dim=(0, 2))
    # Two blocks: a token reaches twice 19 places through another one.
    if name != "vae_lstm":
        assert (differ[40:] == 0).all()
    assert (differ[1:20] > 0).all()


@every
@torch.no_grad()
def test_padding_counts_for_nothing(name):
    model, codes = build(name), ids(length=12)
    padded = torch.nn.functional.pad(codes, (0, 8), value=PAD)
    short, long = model.token_losses(codes), model.token_losses(padded)
    assert_close(long.nll[:, :12], short.nll, atol=1e-5, rtol=1e-5)
    assert not long.nll[:, 12:].any()
    if model.latent:
        for a, b in zip(model.posterior(codes), model.posterior(padded), strict=True):
            assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert_close(long.kl, short.kl)
    empty = model.token_losses(torch.full((2, 12), PAD))
    assert not empty.nll.any()
    assert empty.kl is None or empty.kl.isfinite().all()


@every
@torch.no_grad()
def test_losses_are_minus_the_logarithms_of_the_probabilities(name):
    model, codes = build(name), ids()
    latent = latent_of(model)
    logits = model.logits(codes, latent).double()
    losses = model.token_losses(codes, latent=latent)
    for clip in range(3):
        for place in range(20):
            chances = logits[clip, place].exp() / logits[clip, place].exp().sum()
            assert losses.nll[clip, place].item() == pytest.approx(-math.log(chances[codes[clip, place]]), rel=1e-4)
    assert losses.kl is None


@every
@torch.no_grad()
def test_hidden_words_are_hidden_from_the_decoder_alone(name):
    model, codes = build(name), ids()
    hidden = torch.zeros(3, 20, dtype=torch.bool)
    hidden[:, 5] = True
    read = codes.clone()
    read[:, 5] = UNKNOWN
    latent = model.posterior(codes)[0] if model.latent else None
    found = model.token_losses(codes, dropped=hidden).nll
    assert torch.equal(found[:, :6], model.token_losses(codes, latent=latent).nll[:, :6])
    assert torch.equal(found[:, 6:], model.token_losses(read, latent=latent).nll[:, 6:])


@vaes
@torch.no_grad()
def test_the_latent_vector_is_read_from_the_first_token_on_and_everywhere(name):
    model, codes = build(name), ids()
    differ = (model.logits(codes, torch.zeros(3, 6)) - model.logits(codes, torch.ones(3, 6))).abs().amax(dim=(0, 2))
    assert (differ > 1e-2).all()
    if name == "vae_transformer":  # each block reads it by itself
        for block in model.transformer.blocks:
            before = model.logits(codes, torch.ones(3, 6))
            weight = block.condition.weight.clone()
            block.condition.weight.zero_()
            assert (model.logits(codes, torch.ones(3, 6)) - before).abs().max() > 1e-3
            block.condition.weight.copy_(weight)


@vaes
@torch.no_grad()
def test_the_posterior_reads_the_whole_clip(name):
    model, codes = build(name), ids()
    mean, log_variance = model.posterior(codes)
    assert mean.shape == log_variance.shape == (3, 6)
    for place in (0, 10, 19):
        changed = codes.clone()
        changed[:, place] = codes[:, place].roll(1)
        assert (model.posterior(changed)[0] - mean).abs().max() > 1e-4
    losses = model.token_losses(codes)
    assert_close(losses.mean, mean)
    assert_close(losses.nll, model.token_losses(codes, latent=mean).nll)
    noise = torch.randn(3, 6)
    drawn = mean + noise * log_variance.exp().sqrt()
    assert_close(model.token_losses(codes, noise=noise).nll, model.token_losses(codes, latent=drawn).nll)


def test_divergence_equals_a_monte_carlo_estimate():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.tensor([0.0, 1.5, -0.3]), torch.tensor([0.0, -1.0, 0.7])
    posterior = torch.distributions.Normal(mean.double(), log_variance.double().exp().sqrt())
    drawn = posterior.mean + posterior.stddev * torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
    ratio = posterior.log_prob(drawn) - prior.log_prob(drawn)
    error = 5 * ratio.std(dim=0) / 200_000**0.5
    assert ((ratio.mean(dim=0) - divergence(mean, log_variance)).abs() <= error + 1e-7).all()


@every
@torch.no_grad()
def test_ids_outside_the_vocabulary_are_unknown(name):
    model, codes = build(name), ids()
    codes[:, 3] = UNKNOWN
    outside = codes.clone()
    outside[:, 3] = WORDS + 100
    assert torch.equal(model.logits(codes), model.logits(outside))
    outside[:, 3] = -1
    assert torch.equal(model.logits(codes), model.logits(outside))


@every
@torch.no_grad()
def test_as_a_part_of_a_model(name, tmp_path):
    torch.manual_seed(0)
    words = [f"word {number}" for number in range(WORDS)]
    model = gafx.create_model("tokens", {"name": name, **SMALL[name]}, classes=words, segment_seconds=20.0).eval()
    codes = ids(length=15)
    wave = codes[:, None].float()
    assert model.frontend.unit == "tokens"
    assert torch.equal(model.frontend.codes(wave), codes)
    assert torch.equal(model.features(wave)[:, 0, 0], wave[:, 0])
    assert not any(norm.is_fitted_before for norm in model.map_norm.parts())
    logits = model(wave)
    assert logits.shape == (3, WORDS)
    following = model.classifier.logits(
        torch.cat([codes, codes[:, :1]], dim=1),
        model.classifier.posterior(codes)[0] if model.classifier.latent else None,
    )
    assert_close(logits, following[:, -1])
    assert_close(model.classifier.head(model.embed(wave)), logits)
    for clip in range(3):
        assert_close(model(wave[clip : clip + 1])[0], logits[clip], atol=1e-5, rtol=1e-5)
    loaded = gafx.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded(wave), logits)
    assert loaded.info.classes == words
    head = {key for key in model.classifier.state_dict() if key.startswith(model.classifier.head_names())}
    other = CLASSIFIERS.create(name, (1, 1, 20), WORDS + 3, **SMALL[name]).state_dict()
    assert head == {key for key, tensor in model.classifier.state_dict().items() if tensor.shape != other[key].shape}


@every
@torch.no_grad()
def test_half_precision(name):
    """Ids above 256 are no numbers of bfloat16, and likelihoods are computed in float32 (probabilities sum to 1)."""
    torch.manual_seed(0)
    model = gafx.create_model("tokens", {"name": name, **SMALL[name]}, num_classes=700, segment_seconds=20.0).eval()
    codes = torch.randint(4, 700, (3, 20))
    exact = model.classifier.token_losses(codes).nll
    wave = codes[:, None].float()
    expected = model(wave)
    with torch.autocast("cpu", torch.bfloat16):
        losses, logits = model.classifier.token_losses(codes).nll, model.classifier.logits(codes)
    assert losses.dtype == logits.dtype == torch.float32
    assert_close(losses, exact, atol=0.03, rtol=0)
    model.bfloat16()
    assert torch.equal(model.features(wave)[:, 0, 0], wave[:, 0])
    assert_close(model(wave).float(), expected, atol=0.08, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [("decoder", (1, 64, 20), {}, r"\(1, 64, 20\).*frontend=tokens"), ("vae_lstm", (2, 1, 20), {}, "frontend=tokens"),
     ("decoder", (1, 1, 20), {"width": 20, "heads": 4}, "twice classifier.heads=4"),
     ("vae_transformer", (1, 1, 20), {"latent": 0}, "classifier.latent=0"),
     ("vae_lstm", (1, 1, 20), {"dropout": 1.0}, "classifier.dropout=1.0")],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(name, shape, arguments, message):
    with pytest.raises(UsageError, match=message):
        CLASSIFIERS.create(name, shape, WORDS, **arguments)


def test_a_vocabulary_without_words_and_a_model_without_latent_vector():
    with pytest.raises(UsageError, match="vocabulary of 3 tokens"):
        CLASSIFIERS.create("decoder", (1, 1, 20), 3)
    with pytest.raises(UsageError, match="decoder has no latent vector"):
        build("decoder").posterior(ids())
    with pytest.raises(ValueError, match=r"\(2, 5\) must be \(2, 6\)"):
        build("vae_lstm").start(2, torch.zeros(2, 5))


def test_sizes_of_the_thesis():
    """Two layers of 256, 64 latent dimensions, 787 tokens: what the class says of its parameters."""
    model = CLASSIFIERS.create("vae_lstm", (1, 1, 100), 787)
    layer = 4 * 256 * (256 + 256) + 2 * 4 * 256
    wider = 4 * 256 * (256 + 64 + 256) + 2 * 4 * 256
    linear = (256 * 128 + 128) + (64 * 1024 + 1024) + (256 * 787 + 787)
    count = sum(p.numel() for p in model.parameters())
    assert count == 787 * 256 + 3 * layer + wider + linear == 2_674_067
    assert f"{count:,}" in type(model).__doc__


# -- sampling ----------------------------------------------------------------------------------------------------------

CHANCES = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])


def frequencies(count=20_000, **settings):
    generator = torch.Generator().manual_seed(0)
    drawn = pick(CHANCES.log().expand(count, -1), generator=generator, **settings)
    found = Counter(drawn.tolist())
    return torch.tensor([found[token] / count for token in range(5)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_at_a_temperature(temperature):
    expected = CHANCES ** (1 / temperature)
    assert_close(frequencies(temperature=temperature), expected / expected.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.3, [1]), (0.4, [1]), (0.41, [1, 2]), (0.7, [1, 2, 3]), (0.9, [1, 2, 3, 4]), (1.0, range(5))],
)
def test_frequencies_in_the_nucleus(top_p, nucleus):
    expected = torch.zeros(5)
    expected[list(nucleus)] = CHANCES[list(nucleus)]
    found = frequencies(top_p=top_p)
    assert set(found.nonzero().flatten().tolist()) == set(nucleus)
    assert_close(found, expected / expected.sum(), atol=0.015, rtol=0)


def test_the_nucleus_is_that_of_the_temperature():
    assert set(frequencies(top_p=0.7, temperature=0.2).nonzero().flatten().tolist()) == {1}


def test_greedy_and_forbidden_tokens():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, -1.0, 0.0]])
    before = torch.get_rng_state()
    assert pick(logits, 0).tolist() == [1, 0]
    assert torch.equal(before, torch.get_rng_state())
    barred = torch.tensor([[-float("inf"), 0.0, -float("inf")]]).expand(100, -1)
    assert set(pick(barred, 5.0, 0.5).tolist()) == {1}
    assert pick(1e6 * logits, 1e-3).tolist()[1] == 0  # a low temperature overflows nothing


def test_the_same_generator_draws_the_same_tokens():
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(3))
    first, second = (pick(logits, 1.0, 0.9, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, pick(logits, 1.0, 0.9, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        pick(torch.zeros(1, 3), **settings)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_logits_that_are_no_numbers(bad):
    with pytest.raises(ValueError, match="finite"):
        pick(torch.tensor([[0.0, 0.0], [bad, -math.inf]]))
