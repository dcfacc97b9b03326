"""The front-end gabor: its filters, its grid, and the values of its map against a direct convolution."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import gafx
from gafx.errors import UsageError
from gafx.frontends.gabor import GaborFrontEnd

SMALL = {"sample_rate": 8000, "n_filters": 16, "window_length": 256, "hop_length": 80, "pooling": 2}


def front(**arguments):
    torch.manual_seed(0)
    return GaborFrontEnd(**{**SMALL, **arguments}).eval()


def tone(hertz, seconds=0.5, rate=8000):
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)[None, None]


@torch.no_grad()
@pytest.mark.parametrize("resolutions", [1, 3])
def test_the_map_is_the_mean_energy_of_convolutions(resolutions):
    """Computed sample by sample with numpy's convolution, then read at the strides of each frame."""
    frontend = front(resolutions=resolutions)
    wave = torch.randn(1, 1, 1003, generator=torch.Generator().manual_seed(1))
    feature_map = frontend(wave)[0, 0].numpy()
    assert feature_map.shape == (16, 13)
    padded, band = np.pad(wave[0, 0].numpy(), (400, 400)), 0
    assert [taps.shape[-1] for taps in frontend.taps] == [256, 128, 64][:resolutions]
    for number, taps in enumerate(frontend.taps):
        window, stride = taps.shape[-1], 40 >> number
        filters = torch.complex(*taps).numpy() / 10
        for each in filters:
            # np.correlate conjugates its second argument, which does not change the energy of a real wave.
            energy = np.abs(np.correlate(padded.astype(np.complex64), each, mode="valid")) ** 2
            for frame in (0, 3, 12):
                starts = 400 + frame * 80 + np.arange(80 // stride) * stride - (window - stride) // 2
                assert np.isclose(feature_map[band, frame], np.log(energy[starts].mean() + 1e-5), atol=1e-3)
            band += 1
    assert band == 16


@torch.no_grad()
def test_high_filters_are_read_all_the_time():
    """Where a frame has a click anywhere, the highest band has its energy; one window for all would miss it."""
    clicks = torch.zeros(40, 1, 1600)
    clicks[torch.arange(40), 0, 800 + 2 * torch.arange(40)] = 1.0
    level = [front(resolutions=n, n_filters=32)(clicks)[:, 0, -1, 10] for n in (1, 3)]
    assert level[1].min() > -8
    assert level[0].min() < level[1].min() - 3


@torch.no_grad()
@pytest.mark.parametrize("scale", ["mel", "erb", "linear"])
def test_a_tone_is_loudest_in_the_filter_at_its_frequency(scale):
    frontend = front(scale=scale)
    response = torch.fft.rfft(torch.view_as_real(frontend.first_filters()[:, 0])[..., 0], 4096).abs()
    centres = response.argmax(dim=1) * 8000 / 4096
    assert (centres.diff() > 0).all()
    gaps = centres.diff()
    assert (gaps.std() < 5) == (scale == "linear")  # evenly spaced in Hz
    for band in (2, 6, 10):
        assert frontend(tone(float(centres[band]))).mean(dim=-1).argmax() == band


@torch.no_grad()
@pytest.mark.parametrize("init", ["gabor", "random"])
def test_white_noise_has_its_variance_in_every_band(init):
    frontend = front(init=init)
    assert_close(frontend.first_filters().abs().square().sum(dim=(1, 2)), torch.ones(16))
    noise = 0.1 * torch.randn(8, 1, 40_000, generator=torch.Generator().manual_seed(0))
    energy = frontend(noise).exp().mean(dim=(0, 1, 3)) - 1e-5
    assert_close(energy, torch.full((16,), 0.01), rtol=0.1, atol=0.0)
    assert frontend.designed == (init == "gabor")


@torch.no_grad()
def test_an_impulse_is_in_the_frame_that_holds_it():
    frontend = front()
    for sample in (1000, 1720, 2399):
        wave = torch.zeros(1, 1, 4000)
        wave[..., sample] = 1.0
        assert frontend(wave)[0, 0, 6].argmax() == sample // 80


def test_no_tap_is_subnormal():
    for taps in GaborFrontEnd(sample_rate=44100, window_length=1024, hop_length=880).taps:
        assert taps[taps != 0].abs().min() > 1e-12


def test_frozen_filters_are_a_fixed_map_normalised_band_by_band():
    torch.manual_seed(0)
    model = gafx.create_model({"name": "gabor", **SMALL, "frozen": True}, "cnn", num_classes=2, segment_seconds=1.0)
    assert not model.frontend.learned
    assert not any(parameter.requires_grad for parameter in model.frontend.parameters())
    waves = torch.randn(16, 1, 8000) * torch.linspace(0.01, 1, 16)[:, None, None]
    model.fit_statistics([waves[:8], waves[8:]])
    normal = model.features(waves)
    assert_close(normal.mean(dim=(0, 1, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    assert_close(normal.std(dim=(0, 1, 3)), torch.full((16,), 0.5), atol=1e-3, rtol=0)


def test_learned_filters_get_gradients_and_no_weight_decay():
    model = gafx.create_model({"name": "gabor", **SMALL}, "cnn", num_classes=2, segment_seconds=1.0)
    model(torch.randn(4, 1, 8000)).sum().backward()
    assert all(taps.grad.abs().amax(dim=(0, 2)).min() > 0 for taps in model.frontend.taps)
    assert model.no_weight_decay() == {f"frontend.taps.{number}" for number in range(len(model.frontend.taps))}


@torch.no_grad()
@pytest.mark.parametrize("frozen", [True, False])
def test_bands_that_training_never_had_are_not_amplified(frozen):
    """Recordings without high frequencies, and then one that has them."""
    torch.manual_seed(0)
    model = gafx.create_model({"name": "gabor", **SMALL, "frozen": frozen}, "cnn", num_classes=2, segment_seconds=1.0)
    noise = torch.fft.rfft(torch.randn(8, 1, 8000))
    noise[..., 2000:] = 0  # nothing above 2 kHz
    low = 0.02 * torch.fft.irfft(noise)
    if frozen:
        model.fit_statistics(low)
    for _ in range(0 if frozen else 50):
        model.features(low)
    model.eval()
    assert model.features(0.3 * torch.randn(2, 1, 8000)).abs().max() < 70


@torch.no_grad()
def test_double_precision():
    model = gafx.create_model({"name": "gabor", **SMALL}, "cnn", num_classes=2, segment_seconds=1.0).eval()
    wave = torch.randn(1, 1, 8000)
    assert_close(model.double()(wave.double()).float(), model.float()(wave), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pcen_and_the_grid_of_mel():
    assert front(compression="pcen")(tone(440)).min() >= 0
    mel = {"name": "mel", "sample_rate": 8000, "n_mels": 16, "hop_length": 80, "win_length": 128, "n_fft": 128}
    fused = gafx.create_frontend("fused", parts={"mel": mel, "wave": {"name": "gabor", **SMALL}})
    assert fused(tone(440)).shape == (1, 2, 16, 50)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"hop_length": 84}, "must be a multiple of 8"),
        ({"window_length": 8}, "at least 16"),
        ({"window_length": 257}, "must be a multiple of 4"),
        ({"hop_length": 800, "pooling": 1, "resolutions": 1}, "shorter than the stride"),
        ({"resolutions": 9}, "at most 8"),
        ({"floor": 0.0}, "at least 1e-12"),
        ({"n_filters": 0}, "frontend.n_filters=0"),
        ({"f_max": 5000.0}, "half the rate"),
    ],
)
def test_wrong_arguments_are_named(wrong, text):
    with pytest.raises(UsageError, match=text):
        front(**wrong)
