"""Figures of a run: frequency responses of filters, gradients over maps, projections of embeddings."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import gafx
from gafx.cli import main
from gafx.config import TrainConfig, build, to_dict
from gafx.data.sources.base import load_manifest
from gafx.registry import FRONTENDS
from gafx.studies.pictures import embedding, figures
from gafx.studies.pictures.filters import LOWEST_DB, measure, responses
from gafx.studies.pictures.saliency import map_gradient


def test_gabor_filters_are_ordered_by_centre_frequency():
    front_end = gafx.create_frontend("leaf", n_filters=24)
    bank = front_end.filterbank
    hertz = torch.linspace(300, 9000, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        bank.centre.copy_(2 * torch.pi * hertz / 22050)
        bank.log_width.fill_(float(np.log(80.0)))
    (found,) = responses(front_end)
    assert found.name == "leaf"
    np.testing.assert_allclose(found.centre, hertz.sort().values, atol=22)  # half a step of the frequency axis
    np.testing.assert_array_equal(found.order, hertz.argsort())
    assert found.decibels.max(axis=0) == pytest.approx(np.zeros(24))
    assert found.decibels.min() == LOWEST_DB


@pytest.mark.parametrize("name", ["gafx_r", "gafx_a"])
def test_kernels_that_are_sinusoids_are_found_at_their_frequencies(name):
    front_end = gafx.create_frontend(name, width=16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    hertz = torch.linspace(3500, 7500, 16)[order]
    time = (torch.arange(7) - 3) / 22050
    with torch.no_grad():
        kernels = torch.cos(2 * torch.pi * hertz[:, None] * time) * torch.hann_window(9)[1:-1]
        front_end.resnet.conv1.weight.copy_(kernels[:, None, None].expand(-1, 1, 7, -1))
    (found,) = responses(front_end)
    assert found.taps == 7
    # Seven samples resolve 3 kHz: the mirror image of a real filter shifts its maximum slightly.
    np.testing.assert_allclose(found.centre, hertz.sort().values, atol=250)
    np.testing.assert_array_equal(found.order, hertz.argsort())


def test_the_response_is_the_gain_of_a_sinusoid(rng):
    # The gain of the filter for a sinusoid equals the response at its frequency.
    taps = torch.from_numpy(rng.normal(size=(3, 1, 9)))
    found = measure("x", taps, 8000)
    frequency = 1500.0
    wave = np.exp(2j * np.pi * frequency * np.arange(400) / 8000)
    place = round(frequency / 4000 * (len(found.decibels) - 1))
    for column, number in enumerate(found.order):
        passed = np.convolve(wave, taps[number, 0].numpy(), "valid")
        strongest = np.abs(np.fft.fft(taps[number, 0].numpy(), 1024)).max()
        expected = 20 * np.log10(np.abs(passed).mean() / strongest)
        assert found.decibels[place, column] == pytest.approx(max(expected, LOWEST_DB), abs=0.01)


def test_parts_add_in_power_and_front_ends_without_filters_have_none():
    half = torch.zeros(1, 2, 4)
    half[0, 0, 0], half[0, 1, 3] = 1.0, -1.0
    np.testing.assert_allclose(measure("x", half, 8000).decibels, 0.0, atol=1e-9)  # no beating between the parts
    assert gafx.create_frontend("mel").first_filters() is None
    parts = {"a": {"name": "mel"}, "b": {"name": "leaf"}, "c": {"name": "gafx_r", "width": 16}}
    assert [found.name for found in responses(gafx.create_frontend("fused", parts=parts))] == ["leaf", "gafx_r"]
    assert responses(gafx.create_frontend("gafx_u", width=16))[0].taps == 8
    for name in FRONTENDS.names():
        width = {"width": 16} if "width" in FRONTENDS.keywords(name) else {}
        filters = gafx.create_frontend(name, **width).first_filters()
        assert filters is None or (filters.ndim == 3 and not filters.requires_grad)


def test_the_gradient_is_on_the_bins_that_are_used():
    model = gafx.create_model("mel", {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=0.5).eval()

    class Reads(nn.Module):
        """Class 1 if bins 40 to 43 are strong in the first half."""

        def forward(self, feature_map):
            strong = feature_map[:, 0, 40:44, :20].mean(dim=(1, 2))
            return torch.stack([torch.zeros_like(strong) - 9, strong], dim=1)

    model.classifier = Reads()
    gradient, label = map_gradient(model, torch.rand(1, 11025) - 0.5)
    assert label == 1
    assert gradient.shape == (1, 128, 56)
    assert (gradient[0, 40:44, :20] > 0).all()
    gradient[0, 40:44, :20] = 0
    assert not gradient.any()
    assert not map_gradient(model, torch.rand(1, 11025) - 0.5, label=0)[0].any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_correlated_columns_are_neighbours(rng):
    source = rng.normal(size=(200, 3))
    groups = np.tile([0, 1, 2], 4)
    values = source[:, groups] * rng.choice([-1, 1], 12) + 0.2 * rng.normal(size=(200, 12))
    order = embedding.clustered(embedding.correlation(values))
    assert (np.diff(groups[order]) != 0).sum() == 2
    assert embedding.effective_dimensions(values) == pytest.approx(3, abs=0.4)
    values[:, 0] = 1.0
    assert not embedding.correlation(values)[0].any()


def test_projections_separate_classes(rng):
    centres = 12 * rng.normal(size=(3, 20))
    labels = np.repeat([0, 1, 2], 15)
    values = centres[labels] + rng.normal(size=(45, 20))
    for layout in (embedding.pca(values), embedding.tsne(values)):
        assert layout.positions.shape == (45, 2)
        distance = np.linalg.norm(layout.positions[:, None] - layout.positions, axis=2) + 1e9 * np.eye(45)
        assert (labels[distance.argmin(axis=1)] == labels).all()
    assert "perplexity 14.7" in embedding.tsne(values).description


@pytest.mark.slow
def test_umap_separates_classes(rng):
    pytest.importorskip("umap")
    labels = np.repeat([0, 1], 15)
    values = (20 * rng.normal(size=(2, 8)))[labels] + rng.normal(size=(30, 8))
    layout = embedding.umap(values)
    distance = np.linalg.norm(layout.positions[:, None] - layout.positions, axis=2) + 1e9 * np.eye(30)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.9
    assert "15 neighbours" in layout.description


def test_without_umap_the_page_says_so(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "umap", None)
    layout = embedding.umap(rng.normal(size=(20, 4)))
    assert layout.positions is None
    assert "not installed" in layout.description
    assert figures.scatter(layout, np.zeros(20, int), ["a"], ["x"] * 20) == ""


def test_page_of_a_run(synthetic_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "umap", None)  # slow, and tested by itself
    manifest = load_manifest("synthetic", synthetic_root, tracks=4, seconds=1.5)
    config = build(TrainConfig, {
        "frontend": {"name": "leaf", "n_filters": 32}, "classifier": {"name": "ast", "depth": 1},
        "data": {"root": str(synthetic_root), "options": {"tracks": 4, "seconds": 1.5}, "segment_seconds": 0.8},
    })  # fmt: skip
    run = tmp_path / "leaf-synthetic-00000000"
    model = gafx.create_model(config.frontend, config.classifier, classes=list(manifest.classes), segment_seconds=0.8)
    model.save(run / "model")
    (run / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    record = {"data": {"fingerprint": manifest.fingerprint()}, "run_id": "0", "environment": {}, "skipped": []}
    (run / "run.json").write_text(json.dumps(record))
    main(["pictures", str(run), "--clips", "2", "--device", "cpu"])
    assert capsys.readouterr().out.strip() == str(run / "pictures.html")
    page = (run / "pictures.html").read_text()
    assert "test part: 10 tracks, 10 classes" in page
    assert page.count("gradient of the predicted class<") == 2
    assert "leaf: 32 filters of 551 samples at 22050 Hz" in page
    assert "umap-learn is not installed" in page
    assert page.count("<polygon") + page.count('r="3.6"') == 2 * 10 + 10  # two layouts of ten tracks, and the legend
    assert "192 embedding dimensions" in page
    assert "<script" not in page

    with pytest.raises(SystemExit):
        main(["pictures", str(run), "--device", "cuda:99"])
    assert "device=cuda:99: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pictures", str(tmp_path / "nothing")])
    assert "is no run folder" in capsys.readouterr().err
