"""objective=codec trains the VQ-VAE of the front-end vq: loss, scores, runs, resume, hand-over."""

import json

import numpy as np
import pytest
import scipy.signal
import torch
from runs import SMALL, kill_when, records, script, start, train, weights
from torch.testing import assert_close

import gafx
from gafx.errors import UsageError
from gafx.objectives.codec import RESOLUTIONS, CodecTraining
from gafx.registry import OBJECTIVES

CODEC = [
    "frontend=vq", "frontend.codec_width=8", "frontend.codec_depth=1", "frontend.num_codes=32",
    "frontend.sample_rate=8000", "classifier=cnn", "epochs=1",
]  # fmt: skip
RUN = [entry for entry in SMALL if not entry.startswith("classifier")] + [*CODEC, "objective=codec"]


def objective(frontend=None, **arguments):
    torch.manual_seed(0)
    frontend = {"name": "vq", "codec_width": 8, "codec_depth": 1, "num_codes": 32, **(frontend or {})}
    model = gafx.create_model(frontend, "cnn", num_classes=2, segment_seconds=0.1)
    return OBJECTIVES.create("codec", model, np.zeros(2, np.int64), **arguments)


def sound(samples=4410, batch=2):
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(samples) / 44100
    tones = torch.sin(2 * torch.pi * 300 * torch.arange(1, batch + 1)[:, None, None] * time)
    return 0.3 * tones + 0.03 * torch.randn((batch, 1, samples), generator=generator)


def forward(trained, wave, weight=None):
    weight = torch.ones(len(wave)) if weight is None else weight
    return trained(wave, torch.zeros(len(wave), 2), weight, torch.zeros(len(wave), 0, 2), 0)


def magnitudes(wave, n_fft, hop, length):
    """Of white noise of rms 1 they have rms 1; the floor is noise of rms 1e-4, added in power."""
    window = np.pad(scipy.signal.get_window("hann", length), (n_fft - length) // 2)
    padded = np.pad(wave, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    spectrum = np.fft.rfft(frames * window / np.sqrt(np.sum(window**2)))
    return np.sqrt(np.abs(spectrum) ** 2 + 1e-8)


@torch.no_grad()
def test_the_loss_and_the_scores_by_hand():
    weights = {"waveform_weight": 0.7, "spectral_weight": 0.3, "commitment_weight": 0.5}
    trained = objective(**weights).eval()
    trained.codec.decoder[-1].weight *= 10
    wave = sound()
    codec = trained.codec
    encoded = codec.encode(wave)
    codes = codec.codes(wave)
    decoded = codec.decode(codes)[:, 0].double().numpy()
    heard = np.pad(wave[:, 0].double().numpy(), ((0, 0), (0, 4480 - 4410)))
    losses, distances, convergences = [], [], []
    for here, there in zip(heard, decoded, strict=True):
        spectral = []
        for resolution in RESOLUTIONS:
            a, b = magnitudes(here, *resolution), magnitudes(there, *resolution)
            relative = np.sqrt((np.mean((a - b) ** 2) + 1e-8) / (np.mean(a**2) + 1e-4))
            spectral.append(relative + np.mean(np.abs(np.log(b / a))))
            distances.append(np.mean(np.sqrt(np.mean((20 * np.log10(b / a)) ** 2, axis=1))))
            convergences.append(relative)
        waveform = np.mean((here - there) ** 2) / (np.mean(here**2) + 1e-4)
        losses.append(0.7 * waveform + 0.3 * np.mean(spectral))
    losses += 0.5 * (encoded - codec.vectors(codes)).square().mean(dim=(1, 2)).numpy()
    found = forward(trained, wave, torch.tensor([1.0, 0.0]))
    assert float(found["loss"]) == pytest.approx(losses[0], rel=1e-4)  # the second clip does not count
    values = trained.predict(wave).double().numpy()
    assert_close(values[:, 0], np.reshape(distances, (2, -1)).mean(axis=1), atol=1e-3, rtol=1e-4)
    assert_close(values[:, 1], np.reshape(convergences, (2, -1)).mean(axis=1), atol=1e-4, rtol=1e-4)
    assert_close(values[:, 2], np.mean((heard - decoded) ** 2, axis=1), atol=1e-6, rtol=1e-4)
    counts = [np.bincount(row, minlength=32) / 35 for row in codes[:, 0].numpy()]
    assert_close(values[:, 4:], np.array(counts), atol=1e-6, rtol=0)


def test_scores_of_all_clips_together():
    values = np.zeros((3, 4 + 8))
    values[:, 0], values[:, 2], values[:, 3] = [3.0, 6.0, 9.0], [0.1, 0.2, 0.3], [2.0, 2.0, 2.0]
    values[0, 4], values[1, 5], values[2, 4:6] = 1.0, 1.0, 0.5
    scores = CodecTraining.scores(values, np.zeros((3, 0)), np.arange(3), resamples=100)
    assert scores["spectral_error_db"].value == 6
    assert scores["spectral_error_db"].low < 6 < scores["spectral_error_db"].high
    assert scores["signal_to_noise_db"].value == pytest.approx(10)
    assert scores["signal_to_noise_db"].low < 10 < scores["signal_to_noise_db"].high
    assert scores["codes_used"].value == 2
    assert scores["perplexity"].value == pytest.approx(2)  # both codes equally often
    assert scores["perplexity"].low is None


def test_a_codec_that_returns_its_input_has_no_error():
    trained = objective().eval()
    wave = sound(128 * 30)
    trained.codec.decode = lambda codes: wave
    scores = CodecTraining.scores(trained.predict(wave).double().numpy(), np.zeros((2, 0)), np.arange(2), resamples=0)
    assert scores["spectral_error_db"].value == 0
    assert scores["spectral_convergence"].value < 1e-3
    assert scores["signal_to_noise_db"].value == np.inf


def test_it_learns_and_trains_nothing_but_the_codec():
    trained = objective({"num_codes": 64, "restart_below": 0.01}).train()
    wave = sound(1280)
    before = trained.eval().predict(wave)
    assert {name.split(".")[2] for name, p in trained.named_parameters() if p.requires_grad} == {"codec"}
    optimizer = torch.optim.Adam(trained.codec.parameters(), 3e-3)
    trained.train()
    for _ in range(40):
        optimizer.zero_grad()
        forward(trained, wave)["loss"].backward()
        assert all(p.grad.isfinite().all() for p in trained.codec.parameters())
        optimizer.step()
    after = trained.eval().predict(wave)
    assert after[:, 0].mean() < 0.8 * before[:, 0].mean()
    assert all((p.grad != 0).any() for p in trained.codec.parameters())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_silence_and_full_scale_are_finite(precision):
    trained = objective().train()
    square = torch.sign(torch.sin(torch.arange(1000) * 0.05) + 1e-6)
    wave = torch.stack([torch.zeros(1000), torch.ones(1000), square])[:, None]
    for shown in (wave, wave[:1], wave[..., :1]):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = forward(trained, shown)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in trained.codec.parameters())
        assert trained.codec.codebook.isfinite().all()
        trained.eval()
        assert trained.predict(shown).isfinite().all()
        trained.train()


def test_what_cannot_be_trained_is_refused():
    mel = gafx.create_model("mel", "cnn", num_classes=2, segment_seconds=0.5)
    with pytest.raises(UsageError, match="set frontend=vq"):
        OBJECTIVES.create("codec", mel, np.zeros(2, np.int64))
    with pytest.raises(UsageError, match=r"objective\.spectral_weight=-1"):
        objective(spectral_weight=-1.0)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(synthetic_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    return train(
        *RUN, f"data.root={synthetic_root}", f"output_dir={folder}", "data.protocol=paper_val", "data.val_fraction=0.3",
        "optim.ema_decay=0.9", "name=codec",
    )  # fmt: skip


def test_a_run_is_evaluated(trained):
    assert "validation_spectral_error_db" in records(trained)[-1]
    done = script("evaluate.py", trained)
    assert done.returncode == 0, done.stderr
    assert "spectral error" in done.stdout.lower()
    result = json.loads((trained / "result.json").read_text())
    scores = result["scores"]["track"]
    assert 0 < scores["spectral_error_db"]["low"] < scores["spectral_error_db"]["high"]
    assert 1 <= scores["perplexity"]["value"] <= scores["codes_used"]["value"] <= 32
    assert result["cost"]["flops_per_clip"] > 1e6
    header, line, *_ = (trained / "predictions.csv").read_text().splitlines()
    assert header == "clip,track,fold,label,spectral_error_db,spectral_convergence,squared_error,power,run"
    assert line.count(",") == header.count(",")
    fractions = np.load(trained / "predictions.npz")["values"][:, 4:]
    assert fractions.shape[1] == 32
    np.testing.assert_allclose(fractions.sum(axis=1), 1, atol=1e-5)
    page = (trained / "report.html").read_text()
    assert "Codes in use" in page
    assert "mel spectrogram of the decoded codes" in page


@pytest.mark.slow
def test_other_objectives_leave_the_codec_as_it_is(trained, synthetic_root, tmp_path):
    recipe = [entry for entry in RUN if not entry.startswith("objective")]
    after = train(
        *recipe, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=2",
        f"frontend.pretrained={trained}", "frontend.output=embedding", "frontend.width=16",
    )  # fmt: skip
    before, now = weights(trained), weights(after)
    for name, tensor in before.items():
        if name.startswith("frontend."):
            assert torch.equal(tensor, now[name]), name
    assert "frontend.embedding.weight" in now
    assert gafx.load(after).info.provenance.frontend.name == trained.name


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(synthetic_root, tmp_path):
    recipe = [
        *RUN, f"data.root={synthetic_root}", "name=run", "checkpoint_steps=1", "epochs=3", "optim.ema_decay=0.9"
    ]  # fmt: skip
    whole = train(*recipe, f"output_dir={tmp_path / 'whole'}")
    recipe.append(f"output_dir={tmp_path / 'killed'}")
    log = tmp_path / "killed" / whole.name / "metrics.jsonl"
    assert kill_when(start(*recipe), lambda: log.exists() and log.read_text().count("\n") >= 4)
    again = train(*recipe)
    first, second = weights(whole), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [record["loss"] for record in records(whole)] == [record["loss"] for record in records(again)]
