"""The classifier crnn and its map: librosa's spectrogram, and the published network written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from crnn_weights import MEL, published_like
from torch.nn import functional
from torch.testing import assert_close

import gafx
from gafx.classifiers.crnn import CRNN
from gafx.errors import UsageError
from gafx.frontends.mel import MelFrontEnd
from gafx.nn.maps import MapNorm
from gafx.nn.recurrent import unrolled_gru
from gafx.objectives.tag import Tag

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "audioset_crnn" / "teacher2.pth"
needs_weights = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason="the published weights are not next to the checkout (../shared/data/weights)"
)


def librosa_map(wave):
    """The published code's input, `(samples,)` -> `(time, 64)`: librosa 0.7 mirrors the ends of the wave."""
    librosa = pytest.importorskip("librosa")
    options = {"sr": 22050, "n_fft": 2048, "win_length": 882, "hop_length": 441, "n_mels": 64, "pad_mode": "reflect"}
    power = librosa.feature.melspectrogram(y=wave, **options)
    return np.log(power + np.spacing(np.float64(1)).astype(power.dtype))


def reference(state, feature_map):
    """(clip, frames) of the published network, on `(time, 64)`."""
    x = feature_map[None, None]
    for number in (0, 2, 3, 5, 6):
        norm = [
            state[f"features.{number}.block.0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        ]
        x = functional.batch_norm(x, *norm)
        x = functional.leaky_relu(functional.conv2d(x, state[f"features.{number}.block.1.weight"], padding=1), 0.1)
        if number in (0, 3, 6):
            x = functional.lp_pool2d(x, 4, (1, 4) if number == 6 else (2, 4))
    x = x[0, :, :, 0].T
    both = []
    for suffix in ("l0", "l0_reverse"):
        steps, hidden, outputs = x if suffix == "l0" else x.flip(0), torch.zeros(128), []
        for step in steps:
            given = state[f"gru.weight_ih_{suffix}"] @ step + state[f"gru.bias_ih_{suffix}"]
            own = state[f"gru.weight_hh_{suffix}"] @ hidden + state[f"gru.bias_hh_{suffix}"]
            reset, update = ((given + own)[part : part + 128].sigmoid() for part in (0, 128))
            new = (given[256:] + reset * own[256:]).tanh()
            hidden = (1 - update) * new + update * hidden
            outputs.append(hidden)
        both.append(torch.stack(outputs if suffix == "l0" else outputs[::-1]))
    logits = torch.cat(both, dim=1) @ state["outputlayer.weight"].T + state["outputlayer.bias"]
    frames = logits.sigmoid().clamp(1e-7, 1)
    frames = functional.interpolate(frames.T[None], len(feature_map), mode="linear", align_corners=False)[0]
    return (frames**2).sum(dim=1) / frames.sum(dim=1), frames


def sound(samples):
    """Noise bursts and a sweep with a silent upper half of the spectrum, then digital silence."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 22050
    wave = 0.3 * np.sin(2 * np.pi * (200 + 400 * time) * time) + 0.1 * rng.standard_normal(samples) * (time % 1 < 0.2)
    wave[int(0.9 * samples) :] = 0
    return wave.astype(np.float32)


@pytest.mark.filterwarnings("ignore:n_fft=2048 is too large")
@pytest.mark.parametrize("samples", [44100, 44101, 2000, 1500, 300])
def test_the_map_is_librosas(samples):
    wave = sound(samples)
    frontend = MelFrontEnd(**{key: value for key, value in MEL.items() if key != "name"})
    expected = librosa_map(wave)
    assert frontend.output_shape(samples) == (1, *expected.shape)
    np.testing.assert_allclose(frontend(torch.from_numpy(wave)[None, None])[0, 0].numpy(), expected, atol=1e-4, rtol=0)


def test_the_map_with_zeros_at_its_ends():
    librosa = pytest.importorskip("librosa")
    wave = sound(3000)
    expected = librosa.feature.melspectrogram(
        y=wave, sr=16000, n_fft=512, win_length=400, hop_length=160, n_mels=40, fmin=50, fmax=7000, pad_mode="constant"
    )
    frontend = MelFrontEnd(
        form="librosa", sample_rate=16000, n_fft=512, win_length=400, hop_length=160, n_mels=40, f_min=50.0,
        f_max=7000.0, floor=1e-6, padding="constant",
    )  # fmt: skip
    found = frontend(torch.from_numpy(wave)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, np.log(expected + 1e-6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", ["random", pytest.param("published", marks=needs_weights)])
@torch.no_grad()
def test_it_is_the_published_network(source, tmp_path):
    path = PUBLISHED
    if source == "random":
        path = tmp_path / "teacher2.pth"
        torch.save(published_like(), path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    classes = len(state["outputlayer.bias"])
    model = gafx.create_model(MEL, {"name": "crnn", "pretrained": str(path)}, num_classes=classes, segment_seconds=2.0)
    model.eval()
    for samples in (44100, 30000):
        wave = sound(samples)
        clip, frames = reference(state, torch.from_numpy(librosa_map(wave)).T)
        batch = torch.from_numpy(wave)[None, None]
        found = model.classifier.frame_probabilities(model.features(batch))[0]
        assert_close(found, frames, atol=1e-5, rtol=0)
        assert_close(Tag.probabilities(model(batch))[0], clip, atol=1e-5, rtol=0)
    assert clip.max() > 1e-3
    # Saved and loaded, the input scale included.
    loaded = gafx.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded(batch), model(batch))
    again = CRNN((1, 64, 101), classes, pretrained=str(tmp_path / "model")).eval()
    assert again.input_scale is None
    assert torch.equal(again(model.features(batch)), model(batch))


@torch.no_grad()
def test_other_labels_keep_all_but_the_output_layer(tmp_path):
    state = published_like()
    torch.save(state, tmp_path / "weights.pth")
    model = CRNN((1, 64, 100), 3, pretrained=str(tmp_path / "weights.pth"))
    own = model.state_dict()
    assert own["outputlayer.weight"].shape == (3, 256)
    same = {name for name in own if own[name].shape == state[name].shape and torch.equal(own[name], state[name])}
    first = "features.0.block.0.running_"
    assert own.keys() - same == {f"{first}mean", f"{first}var", "outputlayer.weight", "outputlayer.bias"}
    mean, std = model.input_scale
    norm = MapNorm(learned=False)
    norm.fit(mean, std)
    x = torch.linspace(-36, 5, 50)[None, None, None]
    before = functional.batch_norm(x, state[f"{first}mean"], state[f"{first}var"])
    assert_close(functional.batch_norm(norm(x), own[f"{first}mean"], own[f"{first}var"]), before, atol=1e-6, rtol=1e-6)


def test_logits_stay_finite_and_learn_at_the_limits():
    model = CRNN((1, 64, 40), 2, dropout=0.0)
    with torch.no_grad():
        model.outputlayer.bias.copy_(torch.tensor([-60.0, 60.0]))
    logits = model(torch.zeros(2, 1, 64, 40))
    assert_close(logits.sigmoid()[0], torch.tensor([1e-7, 1.0]), atol=1e-8, rtol=1e-6)
    assert logits.abs().max() < 16.2
    with torch.no_grad():
        model.outputlayer.bias.zero_()
    model(torch.zeros(2, 1, 64, 40)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_the_layer_of_exported_models():
    model = CRNN((1, 64, 40), 2)
    x = torch.randn(3, 11, 128)
    assert_close(unrolled_gru(model.gru, x), model.gru(x)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_embedding_is_the_mean_over_frames():
    model = CRNN((1, 128, 40), 2).eval()  # 128 bins make two rows of 128 channels
    feature_map = torch.randn(2, 1, 128, 40)
    frames = model.frames(feature_map)
    assert frames.shape == (2, 10, 256)
    assert_close(model.embed(feature_map), frames.mean(dim=1))
    assert model.head(model.embed(feature_map)).shape == (2, 2)


def test_wrong_arguments_and_weights_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"63 x 101 .* needs 64 x 4"):
        gafx.create_model({**MEL, "n_mels": 63}, "crnn", num_classes=2, segment_seconds=2.0)
    with pytest.raises(UsageError, match=r"dropout=1\.0"):
        CRNN((1, 64, 100), 2, dropout=1.0)
    torch.save({"outputlayer.weight": torch.zeros(2, 256)}, tmp_path / "wrong.pth")
    with pytest.raises(UsageError, match="no crnn of Datadriven-GPVAD"):
        CRNN((1, 64, 100), 2, pretrained=str(tmp_path / "wrong.pth"))
    torch.save(published_like(), tmp_path / "right.pth")
    with pytest.raises(UsageError, match=r"does not fit CRNN.*frontend=mel_librosa"):
        CRNN((1, 128, 100), 2, pretrained=str(tmp_path / "right.pth"))
