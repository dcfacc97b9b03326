"""Normalisation of maps: per clip, by one mean and std, and per band, for fixed and for learned front-ends."""

import pytest
import torch
from torch.testing import assert_close

import gafx
from gafx.nn.maps import MapNorm

BANDS = torch.tensor([1.0, -3.0, 20.0])[:, None]


def maps(clips=6, seed=0):
    noise = torch.randn(clips, 2, 3, 50, generator=torch.Generator().manual_seed(seed))
    return BANDS + noise * torch.tensor([0.5, 1.0, 5.0])[:, None]


@pytest.mark.parametrize("learned", [True, False])
def test_per_clip(learned):
    normal = MapNorm(learned, "clip")(maps())
    assert_close(normal.mean(dim=(1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    assert_close(normal.square().mean(dim=(1, 2, 3)).sqrt(), torch.full((6,), 0.5))


@pytest.mark.parametrize("over", ["scalar", "band"])
def test_a_learned_map_uses_its_batch_in_training_and_running_statistics_afterwards(over):
    norm, axes = MapNorm(True, over, (2, 3)), (0, 3) if over == "band" else (0, 1, 2, 3)
    normal = norm(maps())
    assert_close(normal.mean(dim=axes), torch.zeros_like(normal.mean(dim=axes)), atol=1e-5, rtol=0)
    std = normal.square().mean(dim=axes).sqrt()
    assert_close(std, torch.full_like(std, 0.5), atol=0.015, rtol=0)  # 0.1^2 is added to the variance
    for seed in range(100):
        norm(maps(seed=seed))
    norm.eval()
    together = norm(maps(seed=7))
    assert_close(norm(maps(seed=7)[2:3])[0], together[2])  # no statistics of the batch any more
    assert_close(together.mean(dim=axes), torch.zeros_like(together.mean(dim=axes)), atol=0.15, rtol=0)


def test_a_fixed_map_uses_the_statistics_that_were_fitted():
    norm = MapNorm(False, "band", (2, 3))
    values = maps()
    assert torch.equal(norm(values), values / 2)  # before, mean 0 and std 1
    mean = values.mean(dim=(0, 3))[..., None]
    std = torch.tensor([0.0, 1.0, 5.0])[:, None].expand(2, 3, 1)  # a constant band: at least a quarter of the mean
    norm.fit(mean, std)
    assert_close(norm(values), (values - mean) / (2 * std.clamp(min=0.5)))
    norm.fit(0.0, 2.0)
    assert_close(norm(values), values / 4)


@pytest.mark.parametrize(("learned", "over"), [(True, None), (True, "band"), (False, "clip")])
def test_where_there_is_nothing_to_fit(learned, over):
    norm = MapNorm(learned, over, (2, 3))
    assert not norm.is_fitted_before
    with pytest.raises(ValueError, match="none to set"):
        norm.fit(0.0, 1.0)


def test_a_model_s_statistics_by_band_are_those_of_all_its_clips():
    torch.manual_seed(0)
    mel = {"name": "mel", "n_mels": 32, "map_norm": "band"}
    model = gafx.create_model(mel, "cnn", num_classes=2, segment_seconds=0.5)
    waves = torch.randn(5, 1, 11025) * torch.linspace(0.01, 1, 5)[:, None, None]
    model.fit_statistics([waves[:3], waves[3:]])
    values = model.frontend(waves)[:, 0].transpose(0, 1).flatten(1).double()
    assert_close(model.map_norm.mean.flatten(), values.mean(dim=1).float())
    assert_close(model.map_norm.std.flatten(), values.std(dim=1, correction=0).float())


def test_a_saved_model_keeps_them(tmp_path):
    torch.manual_seed(0)
    model = gafx.create_model({"name": "gabor", "n_filters": 16}, "cnn", num_classes=2, segment_seconds=0.5)
    wave = torch.randn(4, 1, 11025)
    for _ in range(3):
        model(wave)
    model.eval().save(tmp_path / "model")
    assert torch.equal(gafx.load(tmp_path / "model")(wave), model(wave))
