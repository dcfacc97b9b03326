"""Handcrafted features: equal to librosa's called directly on each window, finite, kept in memory, not exported."""

import librosa
import numpy as np
import pytest
import torch

import gafx
from gafx.deploy.export import export, synthetic_signal
from gafx.errors import UsageError

RATE = 22050
MUSIC = librosa.feature


def direct(y, rate=RATE, n_fft=2048, hop=512, bands=6):
    """Each curve as librosa computes it from the wave."""
    both = {"y": y, "sr": rate, "n_fft": n_fft, "hop_length": hop}
    plain = {"y": y, "n_fft": n_fft, "hop_length": hop}
    framed = {"y": y, "frame_length": n_fft, "hop_length": hop}
    harmonic, percussive = librosa.effects.hpss(y, n_fft=n_fft, hop_length=hop)
    mfcc, flux = MUSIC.mfcc(**both, n_mfcc=20), librosa.onset.onset_strength(**both)
    return {
        "chroma": MUSIC.chroma_stft(**both),
        "rms": MUSIC.rms(**framed),
        "centroid": MUSIC.spectral_centroid(**both),
        "bandwidth": MUSIC.spectral_bandwidth(**both),
        "rolloff": MUSIC.spectral_rolloff(**both),
        "flatness": MUSIC.spectral_flatness(**plain),
        "contrast": MUSIC.spectral_contrast(**both, n_bands=bands),
        "flux": flux[None],
        "zero_crossings": MUSIC.zero_crossing_rate(**framed),
        "harmonic": harmonic[None],
        "percussive": percussive[None],
        "tempo": MUSIC.tempo(onset_envelope=flux, sr=rate, hop_length=hop),
        "mfcc": mfcc,
        "mfcc_delta": MUSIC.delta(mfcc),
        "mfcc_delta2": MUSIC.delta(mfcc, order=2),
    }


def thesis(curves):
    names = [name for name in curves if not name.startswith(("mfcc", "tempo"))]
    found = {f"{name}_{of}": getattr(np, of)(curves[name]) for name in names for of in ("mean", "var")}
    found["tempo"] = curves["tempo"][0]
    for number, row in enumerate(curves["mfcc"], 1):
        found |= {f"mfcc{number}_mean": row.mean(), f"mfcc{number}_var": row.var()}
    return found


def full(curves):
    found = {}
    for name, rows in curves.items():
        for number, row in enumerate(rows if name != "tempo" else [], 1):
            key = f"{name}{'_' if name == 'mfcc_delta2' else ''}{number}" if len(rows) > 1 else name
            found |= {f"{key}_mean": row.mean(), f"{key}_std": row.std()}
            if name not in ("harmonic", "percussive"):
                found[f"{key}_median"] = np.median(row)
        if name == "tempo":
            found["tempo"] = rows[0]
    return found


def music(seconds, rate=RATE, seed=0):
    """A chord that moves, with a beat of noise at 150 per minute."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    root = 220 * 2 ** (np.floor(time / 1.6) % 3 / 6)
    chord = sum(np.sin(2 * np.pi * np.cumsum(root * ratio) / rate) for ratio in (1, 1.26, 1.5))
    beat = rng.standard_normal(len(time)) * np.exp(-20 * (time % 0.4))
    return (0.15 * chord + 0.2 * beat).astype(np.float32)


def assert_equal_by_name(front_end, column, expected):
    assert front_end.feature_names() == list(expected)
    scale = np.maximum(np.abs(list(expected.values())), 1e-2)  # means of waves are some 1e-5
    worst = np.abs(column.numpy() - list(expected.values())) / scale
    assert worst.max() < 1e-4, front_end.feature_names()[worst.argmax()]


@pytest.mark.parametrize(
    ("features", "reference", "options"),
    [
        ("thesis", thesis, {}),
        ("full", full, {}),
        ("thesis", thesis, {"sample_rate": 8000, "n_fft": 1024, "hop_length": 200}),
    ],
)
def test_every_feature_equals_librosas(features, reference, options):
    front_end = gafx.create_frontend("handcrafted", features=features, **options)
    rate = front_end.sample_rate
    wave = music(7.5, rate)  # two windows, and one moved back
    feature_map = front_end(torch.from_numpy(wave)[None, None])
    assert feature_map.shape == (1, 1, {"thesis": 63, "full": 263}[features], 3)
    length = 3 * rate
    for number, start in enumerate((0, length, len(wave) - length)):
        curves = direct(wave[start : start + length], rate, front_end.n_fft, front_end.hop_length, front_end.octaves)
        assert_equal_by_name(front_end, feature_map[0, 0, :, number], reference(curves))


def test_what_the_features_say():
    front_end = gafx.create_frontend("handcrafted", window_seconds=6.0)
    names = front_end.feature_names()
    found = front_end(torch.from_numpy(np.stack([music(6), 0.5 * music(6)]))[:, None])[:, 0, :, 0].numpy()
    loud, soft = (dict(zip(names, row, strict=True)) for row in found)
    assert loud["tempo"] == pytest.approx(150, rel=0.03)
    assert loud["rms_mean"] == pytest.approx(2 * soft["rms_mean"], rel=1e-3)
    assert loud["centroid_mean"] == pytest.approx(soft["centroid_mean"], rel=1e-3)
    assert loud["percussive_var"] > 1e-4


def test_windows():
    front_end = gafx.create_frontend("handcrafted")
    counts = [front_end.output_shape(round(seconds * RATE))[2] for seconds in (0.01, 3, 3.2, 3.4, 29.9, 30.02, 33)]
    assert counts == [1, 1, 1, 2, 10, 10, 11]
    assert gafx.create_frontend("handcrafted", window_seconds=30.0).output_shape(31 * RATE)[2] == 1


@pytest.mark.parametrize("features", ["thesis", "full"])
def test_silent_short_and_constant_waves_are_finite(features):
    front_end = gafx.create_frontend("handcrafted", features=features)
    for wave in (torch.zeros(66150), torch.zeros(1), torch.ones(3000), torch.full((66150,), 1e-12), torch.rand(100)):
        assert front_end(wave[None, None]).isfinite().all()
    short = torch.from_numpy(music(0.1))
    repeated = torch.from_numpy(np.resize(short.numpy(), front_end.shortest))
    torch.testing.assert_close(front_end(short[None, None]), front_end(repeated[None, None]), rtol=0, atol=0)
    assert front_end(torch.full((1, 1, 4000), float("nan"))).isnan().all()


def test_features_of_a_window_are_computed_once(monkeypatch):
    front_end = gafx.create_frontend("handcrafted", window_seconds=0.5)
    batch = torch.from_numpy(np.stack([music(1.0), music(1.0, seed=1)]))[:, None]
    first = front_end(batch)
    monkeypatch.setattr(front_end, "_curves", None)  # a computation would raise
    assert torch.equal(front_end(batch), first)
    assert torch.equal(front_end(batch[1:, :, 11025:]), first[1:, :, :, 1:])
    monkeypatch.undo()
    monkeypatch.setattr("gafx.frontends.handcrafted._KEPT", 2 * 63)
    front_end(torch.from_numpy(music(0.5, seed=2))[None, None])
    assert len(front_end.kept) == 2


def test_each_feature_is_normalised_by_its_own_std():
    front_end = gafx.create_frontend("handcrafted", window_seconds=0.5)
    model = gafx.create_model(front_end, {"name": "cnn", "widths": [8]}, num_classes=2, segment_seconds=2.0)
    waves = torch.from_numpy(np.stack([music(4.0, seed=seed) for seed in range(3)]))[:, None]
    model.fit_statistics(waves)
    found = model.features(waves)[:, 0].transpose(0, 1).flatten(1)
    raw = front_end(waves)[:, 0].transpose(0, 1).flatten(1)
    moves = raw.std(dim=1) > 1e-5 * raw.abs().mean(dim=1)
    assert moves.sum() > 60
    assert (found[moves].std(dim=1, correction=0) - 0.5).abs().max() < 5e-3
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(63), rtol=0, atol=1e-3)


def test_it_cannot_be_exported(tmp_path):
    front_end = gafx.create_frontend("handcrafted", window_seconds=0.5)
    model = gafx.create_model(front_end, {"name": "cnn", "widths": [8]}, num_classes=2, segment_seconds=2.0).eval()
    model.fit_statistics(torch.from_numpy(synthetic_signal(1, 1, 44100, RATE)))
    with pytest.raises(UsageError, match="a model with handcrafted cannot be exported, since librosa computes"):
        export(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 800}, "above 800"),
        ({"n_mfcc": 129}, "at most 128"),
        ({"n_fft": 100}, "at least hop_length=512 and 111"),
        ({"window_seconds": 0.0}, "above 0"),
        ({"hop_length": 0}, "hop_length=0"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        gafx.create_frontend("handcrafted", **options)
