"""Tagging: the loss by hand, and the recipes that it goes with."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gafx
from gafx.compose import compose_train
from gafx.errors import UsageError
from gafx.registry import OBJECTIVES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def _objective(**arguments):
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, num_classes=3, segment_seconds=0.5)
    return OBJECTIVES.create("tag", model, np.array([5, 0, 2]), **arguments).eval()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_by_hand(smoothing):
    objective = _objective(label_smoothing=smoothing)
    wave, target = 0.1 * torch.randn(2, 1, 11025), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.3, 0.0]])
    with torch.no_grad():
        losses = objective(wave, target, torch.tensor([1.0, 0.0]), torch.zeros(2, 0, 2), 0)
        probability = objective.predict(wave)[0].double()
    wanted = target[0] * (1 - smoothing) + smoothing / 2
    by_hand = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean()
    assert float(losses["loss"]) == pytest.approx(float(by_hand), rel=1e-5)  # the second clip has no weight


def test_smoothing_out_of_range_is_refused():
    with pytest.raises(UsageError, match="label_smoothing=1"):
        _objective(label_smoothing=1.0)


def test_the_recipe_for_ones_own_audio_goes_with_several_labels():
    config = compose_train(["data=folder", "experiment=scratch", "objective=tag"], CONFIGS)
    assert config.objective == {"name": "tag", "label_smoothing": 0.1}


def test_the_papers_pretraining():
    """GAFX section 4.2.3: balanced AudioSet, Adam, batch 4, rate 5e-4; Table 4: batch 8, rate 5e-4."""
    tag = compose_train(["experiment=audioset_tag"], CONFIGS)
    assert (tag.data.name, tag.data.options["train"], tag.data.protocol) == ("audioset", "balanced", "official")
    assert (tag.optim.name, tag.optim.lr, tag.batch_size, tag.objective["name"]) == ("adam", 5e-4, 4, "tag")
    front_end = gafx.create_frontend("gafx_r", width=16)
    assert front_end.output_shape(round(tag.data.segment_seconds * front_end.sample_rate)) == (1, 128, 1024)
    mel = compose_train(["experiment=audioset_mel"], CONFIGS)
    assert (mel.optim, mel.batch_size, mel.data) == (tag.optim, tag.batch_size, tag.data)
    assert mel.objective["name"] == "mel_regression"
    scratch = compose_train(["experiment=table4_scratch"], CONFIGS)
    pretrained = compose_train(["experiment=table4_pretrained", "frontend.pretrained=run"], CONFIGS)
    assert (scratch.batch_size, scratch.optim.lr, scratch.epochs) == (8, 5e-4, 80)
    assert (scratch.frontend["name"], scratch.classifier["size"], scratch.classifier["pretrained"]) == (
        "gafx_r", "small", True,
    )  # fmt: skip
    assert pretrained.frontend == {**scratch.frontend, "pretrained": "run"}
    assert (pretrained.optim, pretrained.data, pretrained.classifier) == (
        scratch.optim, scratch.data, scratch.classifier,
    )  # fmt: skip
