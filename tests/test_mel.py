"""Mel front-ends against numpy, librosa and torchaudio; normalisation and masks of maps."""

import numpy as np
import pytest
import torch
import torchaudio
from torch.testing import assert_close

from gafx.errors import UsageError
from gafx.frontends.mel import MelFrontEnd
from gafx.nn.maps import MapNorm, mask_map
from gafx.nn.spectral import hz_to_mel, mel_filters, mel_to_hz

KALDI = {"form": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160}


def noise(*shape, scale=0.1, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- grid -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "frames"), [(661_600, 3308), (661_500, 3308), (220_500, 1103), (1, 1), (201, 2)])
def test_grid_of_the_specification(samples, frames):
    frontend = MelFrontEnd()
    assert frontend.output_shape(samples) == (1, 128, frames)
    assert frontend(torch.zeros(1, 1, samples)).shape == (1, 1, 128, frames)


def log_mel_by_numpy(wave, filters, hop, win_length, n_fft, floor):
    """Frame by frame in float64: the window's centre is the centre of its block of `hop` samples."""
    frames = -(-len(wave) // hop)
    window = np.zeros(n_fft)
    begin = (n_fft - win_length) // 2
    window[begin : begin + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    columns = []
    for frame in range(frames):
        centre = frame * hop + hop // 2
        places = np.arange(centre - n_fft // 2, centre + n_fft // 2)
        inside = (places >= 0) & (places < len(wave))
        segment = np.where(inside, wave[np.clip(places, 0, len(wave) - 1)], 0.0)
        power = np.abs(np.fft.rfft(segment * window)) ** 2
        columns.append(np.log(np.maximum(filters @ power, floor)))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (4000, {}),
        (3999, {}),
        (150, {}),
        (5000, {"sample_rate": 16000, "n_mels": 64, "hop_length": 160, "win_length": 400, "n_fft": 512, "f_min": 0.0}),
        (5000, {"f_max": 8000.0, "floor": 1e-3}),
    ],
)
def test_grid_equals_numpy_with_librosas_filters(samples, options):
    librosa = pytest.importorskip("librosa")
    o = {"sample_rate": 22050, "n_mels": 128, "hop_length": 200, "win_length": 1024, "n_fft": 2048, "f_min": 20.0}
    o = {**o, "f_max": None, "floor": 1e-8, **options}
    filters = librosa.filters.mel(
        sr=o["sample_rate"],
        n_fft=o["n_fft"],
        n_mels=o["n_mels"],
        fmin=o["f_min"],
        fmax=o["f_max"],
        htk=False,
        norm="slaney",
    ).astype(np.float64)
    waves = noise(2, 1, samples)
    expected = [
        log_mel_by_numpy(wave, filters, o["hop_length"], o["win_length"], o["n_fft"], o["floor"])
        for wave in waves[:, 0].double().numpy()
    ]
    result = MelFrontEnd(**options)(waves)[:, 0].numpy()
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-4, rtol=0)


def test_no_filter_of_the_default_is_empty():
    weights = MelFrontEnd().spectrogram.filters
    assert weights.shape == (1025, 128)
    assert (weights > 0).any(dim=0).all()
    assert weights.min() >= 0


@pytest.mark.parametrize("bin_", [3, 20, 60, 100, 126])
def test_a_pure_tone_lights_its_bin(bin_):
    limits = [librosa_mel(20.0), librosa_mel(11025.0)]
    centre = inverse_librosa_mel(limits[0] + (limits[1] - limits[0]) * (bin_ + 1) / 129)
    tone = torch.sin(2 * torch.pi * centre * torch.arange(8000) / 22050)
    feature_map = MelFrontEnd()(0.5 * tone[None, None])[0, 0]
    assert (feature_map[:, 5:-5].argmax(dim=0) == bin_).all()


def librosa_mel(hertz):
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def inverse_librosa_mel(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def test_a_click_lies_in_the_frame_of_its_block():
    wave = torch.zeros(1, 1, 4000)
    wave[..., 7 * 200 + 100] = 1
    energy = MelFrontEnd(win_length=256, n_fft=2048)(wave)[0, 0].exp().sum(dim=0)
    assert energy.argmax() == 7
    assert_close(energy[6], energy[8], rtol=1e-2, atol=1e-6)  # centred: its neighbours see it alike


@pytest.mark.parametrize(
    "options",
    [
        {"f_min": -1.0},
        {"f_min": 9000.0, "f_max": 8000.0},
        {"f_max": 12000.0},
        {"hop_length": 0},
        {"win_length": 100},
        {"n_fft": 512},
    ],
)
def test_what_cannot_be_is_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        MelFrontEnd(**options)


# --- kaldi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [400, 559, 560, 16000])
def test_kaldi_equals_torchaudio(samples):
    waves = noise(3, 1, samples) + 0.05  # with an offset, which must be taken out
    expected = [
        torchaudio.compliance.kaldi.fbank(
            wave,
            htk_compat=True,
            sample_frequency=16000,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        ).T
        for wave in waves
    ]
    frontend = MelFrontEnd(**KALDI)
    result = frontend(waves)
    assert result.shape == (3, *frontend.output_shape(samples))
    assert_close(result[:, 0], torch.stack(expected), atol=1e-3, rtol=0)


def test_kaldi_of_ast_has_1022_frames():
    assert MelFrontEnd(**KALDI).output_shape(163_840) == (1, 128, 1022)


def test_kaldi_pads_what_is_shorter_than_a_window():
    frontend, wave = MelFrontEnd(**KALDI), noise(2, 1, 150)
    whole = torch.cat([wave, torch.zeros(2, 1, 250)], dim=-1)
    assert frontend.output_shape(150) == (1, 128, 1)
    assert torch.equal(frontend(wave), frontend(whole))


# --- filters ----------------------------------------------------------------------------------------------------------


def test_htk_filters_equal_torchaudio():
    expected = torchaudio.functional.melscale_fbanks(513, 30.0, 7000.0, 40, 16000, norm=None, mel_scale="htk")
    assert_close(mel_filters(40, 1024, 16000, 30.0, 7000.0, "htk"), expected, atol=1e-5, rtol=0)


def test_slaney_filters_equal_torchaudio():
    expected = torchaudio.functional.melscale_fbanks(1025, 20.0, 11025.0, 128, 22050, norm="slaney", mel_scale="slaney")
    assert_close(mel_filters(128, 2048, 22050, 20.0, 11025.0, "slaney"), expected, atol=1e-6, rtol=0)


def test_kaldi_filters_equal_torchaudio():
    expected, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 512, 16000.0, 20.0, 8000.0, 100.0, -500.0, 1.0)
    filters = mel_filters(128, 512, 16000, 20.0, 8000.0, "kaldi")
    assert_close(filters[:-1].T, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("scale", "hertz", "mel"),
    [
        ("slaney", 500.0, 7.5),
        ("slaney", 1000.0, 15.0),
        ("slaney", 6400.0, 42.0),
        ("htk", 700.0, 2595 * np.log10(2)),
        ("kaldi", 700.0, 1127 * np.log(2)),
    ],
)
def test_mel_scales_by_hand_and_back(scale, hertz, mel):
    hertz, mel = torch.tensor([hertz], dtype=torch.float64), torch.tensor([mel], dtype=torch.float64)
    assert_close(hz_to_mel(hertz, scale), mel)
    assert_close(mel_to_hz(mel, scale), hertz)


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_statistics_of_the_training_split():
    norm = MapNorm(learned=False)
    norm.fit(-4.0, 2.5)
    assert norm(torch.tensor([[[[-4.0, 1.0]]]])).tolist() == [[[[0.0, 1.0]]]]  # (1 + 4) / (2 * 2.5)
    assert sorted(norm.state_dict()) == ["mean", "std"]
    feature_map = 3 * noise(4, 1, 32, 100, scale=1.0) + 7
    norm.fit(feature_map.mean().item(), feature_map.std().item())
    assert norm(feature_map).mean().abs() < 1e-4
    assert norm(feature_map).std().item() == pytest.approx(0.5, abs=1e-4)


def test_statistics_of_a_constant_split_stay_finite():
    norm = MapNorm(learned=False)
    norm.fit(2.0, 0.0)
    assert norm(torch.full((1, 1, 2, 2), 2.0)).abs().max() == 0
    assert norm(torch.full((1, 1, 2, 2), 3.0)).isfinite().all()


def test_per_clip():
    norm = MapNorm(learned=True)
    assert not norm.state_dict()
    maps = noise(3, 2, 16, 50, scale=1.0) * torch.tensor([0.1, 1.0, 30.0])[:, None, None, None] + 5
    normal = norm(maps)
    for clip in normal:
        assert clip.mean().abs() < 1e-4
        assert clip.std(correction=0).item() == pytest.approx(0.5, abs=1e-3)
    assert_close(norm(maps[1:2]), normal[1:2])
    with pytest.raises(ValueError, match="none to set"):
        norm.fit(0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_silent_clip_gives_zeros_and_finite_gradients(value):
    maps = torch.stack([torch.full((1, 8, 8), value), noise(1, 8, 8)]).requires_grad_()
    normal = MapNorm(learned=True)(maps)
    assert (normal[0] == 0).all()
    (normal * noise(2, 1, 8, 8, seed=4)).sum().backward()
    assert maps.grad.isfinite().all()
    assert maps.grad[1].abs().max() > 0


def test_normalisation_is_float32_under_autocast():
    maps = (100 + noise(2, 1, 8, 8)).bfloat16()
    for norm in (MapNorm(True), MapNorm(False)):
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(maps).dtype == torch.float32


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_by_loop(feature_map, masks, time_masks):
    result = feature_map.clone()
    _, _, frequencies, frames = feature_map.shape
    for clip in range(len(result)):
        for number, (start, width) in enumerate(masks[clip].tolist()):
            size = frames if number < time_masks else frequencies
            begin = round(np.float32(start) * np.float32(size))
            for place in range(begin, min(size, begin + round(np.float32(width) * np.float32(size)))):
                if number < time_masks:
                    result[clip, :, :, place] = 0
                else:
                    result[clip, :, place, :] = 0
    return result


@pytest.mark.parametrize(("masks", "time_masks"), [(3, 3), (3, 0), (4, 2), (1, 1), (0, 0)])
def test_masks_equal_a_loop(masks, time_masks):
    feature_map = 1 + noise(5, 2, 24, 37)
    drawn = torch.rand(5, masks, 2, generator=torch.Generator().manual_seed(masks)) * torch.tensor([0.7, 0.3])
    result = mask_map(feature_map, drawn, time_masks)
    assert torch.equal(result, mask_by_loop(feature_map, drawn, time_masks))
    assert (result == 0).any() == (masks > 0)


def test_masks_by_hand():
    feature_map = torch.ones(2, 1, 4, 10)
    masks = torch.tensor([[[0.2, 0.3], [0.5, 0.25]], [[0.0, 0.0], [0.0, 1.0]]])
    result = mask_map(feature_map, masks, 1)
    rows = [[1, 1, 0, 0, 0, 1, 1, 1, 1, 1]] * 4
    rows[2] = [0] * 10
    assert result[0, 0].tolist() == rows
    assert (result[1] == 0).all()


def test_time_masks_hide_the_same_moment_in_every_plane():
    feature_map = torch.ones(2, 1, 8, 4 * 10)
    masks = torch.tensor([[[0.2, 0.3], [0.5, 0.25]], [[0.0, 0.1], [0.0, 0.0]]])  # one in time, one in frequency
    result = mask_map(feature_map, masks, 1, planes=4)
    alone = mask_map(feature_map[..., :10], masks, 1)
    for plane in result.split(10, dim=3):
        assert torch.equal(plane, alone)
    assert (alone[0, 0, 0] == 0).nonzero().flatten().tolist() == [2, 3, 4]
    assert (alone[0, 0, :, 0] == 0).nonzero().flatten().tolist() == [4, 5]
