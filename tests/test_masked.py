"""Masked pretraining: which frames are masked, what the classifier reads, the loss, resuming and the hand-over."""

import json
import shutil
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch
from runs import SMALL, kill_when, records, script, start, train, weights
from safetensors.torch import load_file
from torch.testing import assert_close

import gafx
from gafx.config import TrainConfig, build
from gafx.data.augment import draw_number, draw_spans
from gafx.errors import UsageError
from gafx.evaluation.runs import objective_around, open_run
from gafx.inference import Probabilities
from gafx.registry import OBJECTIVES
from gafx.saving.info import Provenance

BERT = {"name": "bert", "width": 16, "heads": 2, "depth": 1, "dropout": 0.0}
VQ = {"name": "vq", "sample_rate": 8000, "num_codes": 32, "codec_width": 8, "codec_depth": 1}
FRACTIONS, SPAN = (0.15, 0.3, 0.45), 10


def objective_of(frontend="mel", classifier=BERT, seconds=0.5, **arguments):
    torch.manual_seed(0)
    model = gafx.create_model(frontend, classifier, num_classes=3, segment_seconds=seconds)
    objective = OBJECTIVES.create("masked", model, np.zeros(3, np.int64), **{"span": 4, **arguments})
    for norm in model.map_norm.parts():
        if norm.is_fitted_before:
            norm.fit(-8.0, 3.0)
    return objective.eval()


def wave_of(objective, seconds=0.5, batch=3):
    torch.manual_seed(1)
    return 0.2 * torch.randn(batch, 1, round(seconds * objective.model.frontend.sample_rate))


def run_forward(objective, wave, numbers, weight=None):
    weight = torch.ones(len(wave)) if weight is None else weight
    return objective(
        wave, torch.zeros(len(wave), 3), weight, torch.zeros(len(wave), 0, 2), 0, numbers=torch.tensor(numbers)
    )


# -- which frames ------------------------------------------------------------------------------------------------------


def test_shares_and_lengths_over_a_thousand_draws():
    frames = 517
    drawn = np.stack([draw_spans(draw_number(0, 0, index), frames, FRACTIONS, SPAN) for index in range(1000)])
    shares = drawn.mean(axis=1)
    near = np.abs(shares[:, None] - FRACTIONS)
    assert (near.min(axis=1) < SPAN / frames).all(), "a clip's share is within one span of the one asked for"
    found = Counter(near.argmin(axis=1).tolist())
    assert all(abs(found[i] - 1000 / 3) < 60 for i in range(3)), "each share as often (4 standard deviations)"
    for i, fraction in enumerate(FRACTIONS):
        assert shares[near.argmin(axis=1) == i].mean() == pytest.approx(fraction, abs=2e-3)
    for mask in drawn:
        lengths = [len(list(run)) for masked, run in groupby(mask) if masked]
        assert all(length % SPAN == 0 for length in lengths), "whole spans, which may touch"
    assert (drawn.mean(axis=0) > 0.03).all(), "every frame is masked at times, the first and the last too"
    inner = drawn[:, SPAN:-SPAN].mean(axis=0)
    assert inner.std() < 0.03, "no place is preferred"


def test_spans_of_one_share_and_of_short_clips():
    counts = Counter(int(draw_spans(number, 100, (0.25,), 10).sum()) for number in range(1000))
    assert set(counts) == {20, 30}
    assert counts[20] == pytest.approx(500, abs=65)
    assert draw_spans(0, 1, (0.3,), 10).tolist() == [True]
    for frames in (2, 3, 10, 15, 19):
        assert draw_spans(5, frames, (0.05,), 10).sum() == frames // 2
    full = [draw_spans(number, 40, (0.99,), 10) for number in range(50)]
    assert all(mask.sum() in (30, 40) for mask in full)


def test_draws_are_functions_of_seed_epoch_and_index():
    drawn = {key: draw_number(*key) for key in [(s, e, i) for s in range(3) for e in range(3) for i in range(30)]}
    assert len(set(drawn.values())) == len(drawn)
    assert all(draw_number(*key) == number for key, number in drawn.items())
    assert not np.array_equal(draw_spans(1, 400, FRACTIONS, SPAN), draw_spans(2, 400, FRACTIONS, SPAN))
    assert np.array_equal(draw_spans(1, 400, FRACTIONS, SPAN), draw_spans(1, 400, FRACTIONS, SPAN))


# -- what is read and restored -----------------------------------------------------------------------------------------


def read_by_the_classifier(objective, wave, numbers):
    """Input of the classifier's first layer, `(batch, frames, channels * bins)`."""
    found = []
    handle = objective.model.classifier.project.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    run_forward(objective, wave, numbers)
    handle.remove()
    return found[0]


def masks_of(objective, numbers, frames):
    return torch.stack(
        [torch.from_numpy(draw_spans(n, frames, objective.fractions, objective.span)) for n in numbers]
    )  # fmt: skip


def target_frames(objective, wave):
    return objective.model.frontend.output_shape(wave.shape[-1])[2]


def of_clips(objective, restored, numbers, frames):
    """Divide what was restored, masked frames of all clips, by clip."""
    counts = masks_of(objective, numbers, frames).sum(dim=1).tolist()
    assert sum(counts) == len(restored)
    return [restored[end - count : end] for count, end in zip(counts, np.cumsum(counts), strict=True)]


@pytest.mark.parametrize("output", ["mel", "codebook", "embedding"])
@torch.no_grad()
def test_other_frames_are_unchanged(output):
    objective = objective_of("mel" if output == "mel" else VQ | {"output": output})
    wave, numbers = wave_of(objective), [3, 4, 5]
    plain = objective.model.features(wave).flatten(1, 2).transpose(1, 2)
    read, masked = read_by_the_classifier(objective, wave, numbers), masks_of(objective, numbers, plain.shape[1])
    assert torch.equal(read[~masked], plain[~masked])
    assert (objective.mask_vector is not None) == (output == "embedding")
    fill = torch.zeros(plain.shape[2]) if objective.mask_vector is None else objective.mask_vector.flatten()
    assert (read[masked] == fill).all()
    assert not (plain[masked] == fill).all()


@torch.no_grad()
def test_huber_loss_of_masked_frames_by_hand():
    objective = objective_of(delta=0.3)
    wave, numbers = wave_of(objective), [7, 8, 9]
    output = run_forward(objective, wave, numbers, torch.tensor([1.0, 1.0, 0.0]))
    restored = of_clips(objective, output["logits"].numpy().astype(float), numbers, target_frames(objective, wave))
    target = objective.model.features(wave).flatten(1, 2).transpose(1, 2).numpy().astype(float)
    total, rows = 0.0, []
    for clip, mask in enumerate(masks_of(objective, numbers, target.shape[1]).numpy()):
        error = np.abs(restored[clip] - target[clip, mask])
        huber = np.where(error < 0.3, 0.5 * error**2, 0.3 * (error - 0.15)).mean()
        centred = target[clip, mask] - target[clip].mean(axis=0)
        rows.append([huber, 0.0, np.square(error).mean(), np.square(centred).mean()])
        total += huber * (clip < 2)  # the last clip has weight 0
    assert float(output["loss"]) == pytest.approx(total, rel=1e-5)
    values = objective.predict(wave, torch.tensor(numbers)).numpy()
    assert values == pytest.approx(np.array(rows), rel=1e-4)
    scores = objective.scores(values.astype(float), np.zeros((3, 0)), np.arange(3), resamples=20)
    assert scores.keys() == {"masked_loss", "explained_variance"}
    errors = np.array(rows).sum(axis=0)
    assert scores["explained_variance"].value == pytest.approx(1 - errors[2] / errors[3], rel=1e-4)


@pytest.mark.parametrize("output", ["codebook", "embedding"])
def test_cross_entropy_of_masked_codes_by_hand(output):
    objective = objective_of(VQ | {"output": output})
    wave, numbers = wave_of(objective), [7, 8, 9]
    result = run_forward(objective, wave, numbers)
    codes = objective.model.frontend.codes(wave)
    assert result["logits"].shape[1:] == (1, 32)
    logits = of_clips(objective, result["logits"][:, 0].detach().double(), numbers, codes.shape[1])
    losses, correct = [], []
    for clip, mask in enumerate(masks_of(objective, numbers, codes.shape[1])):
        chosen = logits[clip][range(int(mask.sum())), codes[clip, mask]]
        losses.append(float((logits[clip].exp().sum(dim=1).log() - chosen).mean()))
        correct.append(float((logits[clip].argmax(dim=1) == codes[clip, mask]).double().mean()))
    assert result["loss"].item() == pytest.approx(sum(losses), rel=1e-5)
    values = objective.predict(wave, torch.tensor(numbers)).detach().numpy()
    assert values == pytest.approx(np.array([[a, b, 0, 0] for a, b in zip(losses, correct, strict=True)]), rel=1e-4)
    scores = objective.scores(values.astype(float), np.zeros((3, 0)), np.arange(3), resamples=20)
    assert scores["masked_accuracy"].value == pytest.approx(np.mean(correct))
    result["loss"].backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert {"head.weight", "head.bias", "model.classifier.project.weight"} <= trained
    assert ("mask_vector" in trained) == (output == "embedding")
    assert not any(name.startswith(("model.classifier.output", "model.frontend.codec")) for name in trained)
    assert trained == {name for name, p in objective.named_parameters() if p.requires_grad}, "none is unused (DDP)"


@pytest.mark.parametrize("output", ["codebook", "embedding"])
def test_codes_are_computed_once_and_give_the_map(output, monkeypatch):
    objective = objective_of(VQ | {"output": output})
    wave, codec, calls = wave_of(objective), objective.model.frontend.codec, []
    expected, encode = objective.model.features(wave), codec.codes
    monkeypatch.setattr(codec, "codes", lambda wave: calls.append(1) or encode(wave))
    feature_map, target = objective.read(wave)
    assert len(calls) == 1
    assert torch.equal(feature_map, expected)
    assert torch.equal(target[..., 0], encode(wave)[:, 0])


@pytest.mark.parametrize("patch", [1, 5])
@pytest.mark.parametrize("kind", ["mel", "codes"])
def test_loss_and_gradients_equal_those_of_a_head_on_all_frames(kind, patch):
    """The linear layer is applied to masked frames alone; here to all, and the others are dropped from the loss."""
    frontend = "mel" if kind == "mel" else VQ | {"output": "embedding"}
    objective = objective_of(frontend, BERT | {"patch": patch}, delta=0.3)
    wave, numbers, weight = wave_of(objective), [1, 2, 3], torch.tensor([1.0, 0.5, 0.0])
    output = run_forward(objective, wave, numbers, weight)
    output["loss"].backward()
    ours = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()

    feature_map, target = objective.read(wave)
    frames = feature_map.shape[-1]
    assert patch == 1 or frames % patch, "the last token is not full"
    masked = masks_of(objective, numbers, frames)
    tokens = objective.head(objective.model.classifier.frames(objective.mask(feature_map, masked)))
    everything = tokens.reshape(3, tokens.shape[1] * patch, -1)[:, :frames]
    if kind == "mel":
        losses = torch.nn.functional.huber_loss(everything, target, reduction="none", delta=0.3).mean(dim=2)
    else:
        losses = torch.nn.functional.cross_entropy(everything.transpose(1, 2), target[..., 0], reduction="none")
    expected = sum(w * of_clip[mask].mean() for w, of_clip, mask in zip(weight, losses, masked, strict=True))
    assert_close(output["loss"], expected)
    assert_close(output["logits"].flatten(1), everything[masked])
    expected.backward()
    theirs = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, msg=name, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch():
    objective = objective_of()
    wave, numbers = wave_of(objective), torch.tensor([11, 12, 13])
    together = objective.predict(wave, numbers)
    for clip in (2, 0):
        assert_close(objective.predict(wave[clip : clip + 1], numbers[clip : clip + 1])[0], together[clip])


@pytest.mark.parametrize(
    ("frontend", "classifier", "arguments", "message"),
    [("leaf", BERT, {}, "restores the map of a fixed front-end"), ("mel", {"name": "cnn"}, {}, "classifier=bert"),
     ("mel", BERT, {"fractions": (0.2, 1.0)}, "fractions"), ("mel", BERT, {"fractions": ()}, "fractions"),
     ("mel", BERT, {"span": 0}, "span=0"), ("mel", BERT, {"delta": 0.0}, "delta")],
)  # fmt: skip
def test_what_cannot_be_restored_is_refused(frontend, classifier, arguments, message):
    with pytest.raises(UsageError, match=message):
        objective_of(frontend, classifier, **arguments)


def test_it_learns():
    objective = objective_of(fractions=(0.3,))
    wave = torch.sin(2 * torch.pi * 440 * torch.arange(11025) / 22050).expand(2, 1, -1) * 0.3
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-2)
    found = []
    for step in range(30):
        optimizer.zero_grad()
        loss = run_forward(objective, wave, [step, 100 + step])["loss"]
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert np.mean(found[-5:]) < 0.3 * np.mean(found[:5])


# -- runs --------------------------------------------------------------------------------------------------------------

SIZES = [f"classifier.{key}={BERT[key]}" for key in ("width", "heads", "depth", "dropout")]
SMALL_BERT = [*SMALL[:3], *SMALL[5:], "classifier=bert", *SIZES]
MASKED = [*SMALL_BERT, "frontend=mel", "objective=masked", "classifier.dropout=0.1"]


@pytest.fixture(scope="module")
def pretrained(synthetic_root, tmp_path_factory):
    return train(
        *MASKED, f"data.root={synthetic_root}", f"output_dir={tmp_path_factory.mktemp('pretrained')}",
        "data.protocol=paper_val", "data.val_fraction=0.3", "optim.ema_decay=0.9", "name=masked", "workers=2",
        "checkpoint_steps=1",
    )  # fmt: skip


def test_a_killed_run_ends_with_the_same_bits(pretrained, synthetic_root, tmp_path):
    """Masks, the objective's own weights and their moving average included."""
    recipe = [
        *MASKED, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "data.protocol=paper_val", "workers=0",
        "data.val_fraction=0.3", "optim.ema_decay=0.9", "name=masked", "checkpoint_steps=1",
    ]  # fmt: skip
    log = tmp_path / pretrained.name / "metrics.jsonl"
    assert kill_when(start(*recipe), lambda: log.exists() and log.read_text().count("\n") >= 3)
    folder = train(*recipe)
    for name in ("model.safetensors", "objective.safetensors"):
        ours, theirs = load_file(folder / "model" / name), load_file(pretrained / "model" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    for ours, theirs in zip(records(folder), records(pretrained), strict=True):
        keys = [key for key in theirs if key in ("step", "loss", "lr") or key.startswith("validation_")]
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]


def test_a_run_validates_and_evaluates_its_own_weights(pretrained):
    scores = [record["validation_masked_loss"] for record in records(pretrained) if "validation_masked_loss" in record]
    record = json.loads((pretrained / "run.json").read_text())
    assert record["best"]["score"] == -min(scores)
    assert {path.name for path in (pretrained / "model").iterdir()} >= {"model.safetensors", "objective.safetensors"}
    assert not any("mask" in name or name.startswith("head") for name in weights(pretrained))
    done = script("evaluate.py", pretrained)
    assert done.returncode == 0, done.stderr
    assert "loss on masked frames" in done.stdout.lower()
    result = json.loads((pretrained / "result.json").read_text())["scores"]["track"]
    assert result.keys() >= {"masked_loss", "explained_variance"}
    header = (pretrained / "predictions.csv").read_text().splitlines()[0].split(",")
    assert header[4:8] == ["masked_loss", "masked_accuracy", "squared_error", "target_variance"]


def test_an_evaluation_needs_the_weights_of_the_objective(pretrained, tmp_path):
    copy = shutil.copytree(pretrained, tmp_path / pretrained.name)
    run, model, path = open_run(copy), gafx.load(copy), copy / "model" / "objective.safetensors"
    own = objective_around(run, model).own_tensors()
    assert own.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(own[name], tensor) for name, tensor in load_file(path).items())
    path.unlink()
    with pytest.raises(UsageError, match=r"objective\.safetensors"):
        objective_around(run, model)
    with pytest.raises(UsageError, match="pretrained=<run>"):
        Probabilities(model)


def test_one_argument_hands_over_to_fine_tuning(pretrained, synthetic_root, tmp_path):
    run = train(
        *SMALL_BERT, "frontend=mel", f"data.root={synthetic_root}", f"output_dir={tmp_path}", "optim.lr=1e-12",
        "max_steps=1", f"pretrained={pretrained}", "data.segment_seconds=0.5",
    )  # fmt: skip
    before, now = weights(pretrained), weights(run)
    for name, tensor in before.items():
        if name.startswith("classifier.") and not name.startswith("classifier.output"):
            assert torch.allclose(tensor, now[name], atol=1e-6), name
    torch.manual_seed(0)
    fresh = gafx.create_model("mel", BERT, num_classes=10, segment_seconds=0.5)
    assert torch.allclose(now["classifier.output.weight"], fresh.classifier.output.weight, atol=1e-6)
    source = gafx.load(run).info.provenance
    assert (source.classifier.kind, source.classifier.name) == ("saved", pretrained.name)
    assert source.frontend.kind == "fixed"
    assert Provenance.from_dict(json.loads((run / "run.json").read_text())) == source
    # A fine-tuned run hands its output layer over where the labels are the same.
    for classes, kept in ((gafx.load(run).info.classes, True), ([str(n) for n in range(10)], False)):
        other = gafx.create_model("mel", BERT, classes=classes, segment_seconds=0.5)
        other.load_pretrained(run)
        assert torch.equal(other.classifier.output.weight, now["classifier.output.weight"]) == kept
        assert torch.equal(other.classifier.project.weight, now["classifier.project.weight"])


@pytest.mark.parametrize(
    ("frontend", "classifier", "message"),
    [({"name": "mel", "hop_length": 100}, BERT, "hop_length is 200 there, 100 here"),
     ("mel", BERT | {"width": 32}, "does not fit"), ("mel", {"name": "cnn"}, "does not fit")],
)  # fmt: skip
def test_another_model_is_refused(pretrained, frontend, classifier, message):
    model = gafx.create_model(frontend, classifier, num_classes=10, segment_seconds=0.8)
    with pytest.raises(UsageError, match=message):
        model.load_pretrained(pretrained)


def test_a_run_is_identified_by_the_run_that_it_starts_from():
    def config(**values):
        return build(TrainConfig, {"data": {"name": "synthetic"}, **values})

    plain = gafx.config.run_id(config())
    assert gafx.config.run_id(config(pretrained=None)) == plain
    here, there = (gafx.config.run_id(config(pretrained=f"{at}/masked-0123abcd")) for at in ("outputs", "/elsewhere"))
    assert here == there != plain
    with pytest.raises(UsageError, match="pretrained is empty"):
        config(pretrained="")


def test_what_has_no_trained_classifier_is_refused(tmp_path):
    model = gafx.create_model({"name": "gafx_r", "width": 16}, BERT, num_classes=2, segment_seconds=0.3)
    model.info.objective = "mel_regression"
    folder = model.save(tmp_path / "model")
    with pytest.raises(UsageError, match="is a file: name the folder"):
        model.load_pretrained(folder / "model.safetensors")
    with pytest.raises(UsageError, match="does not train the classifier"):
        model.load_pretrained(folder)
