"""LEAF against its formulas in numpy, frame by frame and step by step; what it does at the edges of its ranges."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gafx.errors import UsageError
from gafx.frontends.leaf import LEAF
from gafx.nn import filterbank
from gafx.nn.clip import clip
from gafx.nn.filterbank import GaborFilterBank
from gafx.nn.pcen import PCEN, recurrence

SMALL = {"sample_rate": 8000, "n_filters": 12, "hop_length": 80, "window_length": 201}


def noise(*shape, scale=0.1, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bank(sample_rate=8000, n_filters=12, window_length=201, hop_length=80, f_min=60.0, f_max=4000.0):
    return GaborFilterBank(sample_rate, n_filters, window_length, hop_length, f_min, f_max)


# --- filters and pooling ----------------------------------------------------------------------------------------------


def energy_by_numpy(wave, centres, widths, pool_widths, window, hop):
    """Section 3.1 as it is written, in float64: the wave is zero outside, and the filters ring on into that silence."""
    reach = window // 2
    time = np.arange(-reach, reach + 1)
    frames = -(-len(wave) // hop)
    margin = 2 * reach
    padded = np.pad(wave, (margin + reach, margin + reach + hop))
    rows = []
    for centre, width, pool_width in zip(centres, widths, pool_widths, strict=True):
        gabor = np.exp(1j * centre * time - time**2 / (2 * width**2)) / (np.sqrt(2 * np.pi) * width)
        power = np.abs(np.convolve(padded, gabor, mode="valid")) ** 2  # power[margin + t] belongs to sample t
        pooling = np.exp(-(time**2) / (2 * pool_width**2)) / (np.sqrt(2 * np.pi) * pool_width)
        middles = margin + hop // 2 + hop * np.arange(frames)
        rows.append([(power[m - reach : m + reach + 1] * pooling).sum() for m in middles])
    return np.array(rows)


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (3000, {}),
        (2999, {}),
        (1, {}),
        (79, {}),
        (5000, {"sample_rate": 22050, "window_length": 551, "hop_length": 200, "f_max": 11025.0}),
        (2500, {"sample_rate": 16000, "window_length": 401, "hop_length": 160, "f_max": 7800.0}),
        (3000, {"window_length": 31, "hop_length": 100}),  # windows that do not meet
        (3000, {"window_length": 201, "hop_length": 33}),  # an odd hop
        (3000, {"window_length": 5, "hop_length": 1}),
    ],
)
@torch.no_grad()
def test_energies_equal_the_formulas(samples, options):
    filters = bank(**options)
    window, hop = options.get("window_length", 201), options.get("hop_length", 80)
    low, high = filters.pool_range
    filters.log_pool_width.copy_(torch.linspace(math.log(low), math.log(high), 12))
    waves = noise(2, samples)
    expected = [
        energy_by_numpy(
            wave,
            filters.centre.double().numpy(),
            filters.log_width.double().exp().numpy(),
            filters.log_pool_width.double().exp().numpy() * (window // 2),
            window,
            hop,
        )
        for wave in waves.double().numpy()
    ]
    result = filters(waves).numpy()
    assert result.shape == (2, 12, -(-samples // hop))
    np.testing.assert_allclose(result, np.stack(expected), rtol=1e-4, atol=1e-9)


def energy_by_autograd(filters, wave):
    """The same by plain convolutions that autograd follows."""
    window, hop = 2 * filters.reach + 1, filters.hop_length
    frames = filters.frames(wave.shape[-1])
    last = (frames - 1) * hop + hop // 2
    margin = 2 * filters.reach - hop // 2
    padded = torch.nn.functional.pad(wave, (margin, last + 2 * filters.reach + 1 - wave.shape[-1]))
    taps = filters.filters().flip(-1)[:, None]
    parts = [torch.nn.functional.conv1d(padded[:, None], part) for part in (taps.real, taps.imag)]
    power = parts[0].square() + parts[1].square()
    pooling = filters.pooling()[:, None]
    assert pooling.shape[-1] == window
    return torch.nn.functional.conv1d(power, pooling, stride=hop, groups=filters.n_filters)


@pytest.mark.parametrize("chunk", [1, 2**30])
def test_gradients_equal_those_of_plain_convolutions(chunk, monkeypatch):
    monkeypatch.setattr(filterbank, "_CPU_CHUNK", chunk)
    filters = bank().double()
    wave = noise(2, 6000).double().requires_grad_()
    weights = noise(2, 12, 75, seed=1).double()
    inputs = [wave, *filters.parameters()]
    energy = filters(wave)
    plain = energy_by_autograd(filters, wave)
    assert_close(energy, plain, rtol=1e-9, atol=1e-14)
    found = torch.autograd.grad((energy * weights).sum(), inputs)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-12)


@torch.no_grad()
def test_borders_of_blocks_and_chunks_leave_no_trace(monkeypatch):
    filters, wave = bank(), noise(2, 30_000)
    block = filters.blocks.frames * filters.hop_length
    assert wave.shape[-1] > 4 * block
    whole = filters(wave)
    monkeypatch.setattr(filterbank, "_CPU_CHUNK", 1)
    assert_close(filters(wave), whole, rtol=1e-6, atol=1e-10)
    monkeypatch.setattr(filters, "blocks", filters.blocks._replace(n_fft=2**15, runs=400, frames=398))  # a single one
    assert_close(filters(wave), whole, rtol=1e-4, atol=1e-9)


@torch.no_grad()
def test_a_click_lies_in_the_frame_of_its_block():
    wave = torch.zeros(1, 4000)
    wave[:, 7 * 80 + 40] = 1
    energy = bank()(wave)[0].sum(dim=0)
    assert energy.argmax() == 7
    assert_close(energy[6], energy[8])  # centred: its neighbours see it alike


@torch.no_grad()
def test_centres_lie_evenly_on_the_mel_scale():
    centres = LEAF().filterbank.centre.double().numpy() * 22050 / (2 * np.pi)
    mels = 2595 * np.log10(1 + centres / 700)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (60.0, 11025.0))
    np.testing.assert_allclose(mels, low + (high - low) * np.arange(1, 129) / 129, rtol=1e-6)


@torch.no_grad()
def test_half_power_bandwidths_are_those_of_mel_filters():
    filters = LEAF().filterbank
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (60.0, 11025.0)), 130) / 2595) - 1)
    triangles = (edges[2:] - edges[:-2]) / 2
    power = torch.fft.fft(filters.filters(), 2**16).abs().square().numpy()
    measured = (power >= 0.5 * power.max(axis=1, keepdims=True)).sum(axis=1) * 22050 / 2**16
    resolved = filters.log_width.exp().numpy() < 0.5 * filters.width_range[1]  # else the window's own width shows
    assert 60 < resolved.sum() < 128
    np.testing.assert_allclose(measured[resolved], triangles[resolved], rtol=0.03)
    assert (measured >= 0.99 * triangles).all()


@pytest.mark.parametrize("filter_", [2, 20, 45, 80, 110, 126])
@torch.no_grad()
def test_a_pure_tone_lights_the_nearest_filter(filter_):
    frontend = LEAF(pcen=False)
    centre = frontend.filterbank.centre[filter_]
    tone = torch.sin(centre * torch.arange(6000))
    feature_map = frontend(tone[None, None])[0, 0, :, 5:-5]
    assert (feature_map.argmax(dim=0) == filter_).all()
    if filter_ > 45:  # not cut by the window, and far from its mirror image
        assert_close(feature_map[filter_].exp(), torch.full((20,), 0.25), rtol=0.03, atol=0)


@torch.no_grad()
def test_values_outside_their_ranges_are_clipped():
    filters = bank()
    filters.centre.copy_(torch.linspace(-1, 5, 12))
    filters.log_width.copy_(torch.linspace(-9, 9, 12))
    filters.log_pool_width.copy_(torch.linspace(-9, 9, 12))
    taps = filters.filters()
    assert_close(taps[0].imag, torch.zeros(201))  # 0
    assert_close(taps[-1].angle().cos().abs(), torch.ones(201), atol=1e-4, rtol=0)  # pi
    # Magnitude responses of a quarter of the rate and of a bin of the window, at their half maximum.
    unit = math.sqrt(2 * math.log(2)) / math.pi
    peaks = taps.abs().max(dim=1).values
    assert_close(peaks[0], torch.tensor(1 / (math.sqrt(2 * math.pi) * 4 * unit)))
    assert_close(peaks[-1], torch.tensor(1 / (math.sqrt(2 * math.pi) * 201 * unit)))
    tops = filters.pooling().max(dim=1).values
    assert_close(tops[0], torch.tensor(201 / (math.sqrt(2 * math.pi) * 2 * 100)))
    assert_close(tops[-1], torch.tensor(2 / (math.sqrt(2 * math.pi) * 100)))


def test_a_clipped_value_can_come_back():
    for sign, expected in ((1, [0.0, 1.0, 1.0]), (-1, [-1.0, -1.0, 0.0])):
        value = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
        clipped = clip(value, 0.0, 1.0)
        assert clipped.tolist() == [0.0, 0.5, 1.0]
        (sign * clipped).sum().backward()
        assert value.grad.tolist() == expected


# --- PCEN -------------------------------------------------------------------------------------------------------------


def pcen_by_numpy(energy, smooth, alpha, delta, root, floor):
    energy = energy.astype(np.float64)
    mean, means = energy[..., 0], []
    for step in range(energy.shape[-1]):
        mean = (1 - smooth) * mean + smooth * energy[..., step]
        means.append(mean)
    means = np.stack(means, axis=-1)
    alpha, delta, root = alpha[:, None], delta[:, None], root[:, None]
    return means, (energy / (floor + means) ** alpha + delta) ** root - delta**root


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 129, 5000])
def test_pcen_equals_a_loop_over_frames(frames, rng):
    pcen = PCEN(6, floor=1e-8)
    smooth = np.array([1e-4, 0.01, 0.04, 0.3, 0.9, 0.99])
    alpha, delta = np.array([0.1, 0.5, 0.96, 0.98, 1.0, 0.01]), np.array([0.01, 0.1, 2.0, 3.0, 10.0, 100.0])
    root = np.array([0.1, 0.3, 0.5, 0.7, 1.0, 0.02])
    state = {"smooth": smooth, "alpha": alpha, "delta": delta, "root": root}
    pcen.load_state_dict({f"log_{name}": torch.from_numpy(np.log(value)).float() for name, value in state.items()})
    energy = rng.gamma(0.2, 1.0, (3, 6, frames)).astype(np.float32) * 10.0 ** rng.integers(-8, 1, (3, 6, 1))
    energy = torch.from_numpy(energy.astype(np.float32))
    means, expected = pcen_by_numpy(energy.numpy(), **state, floor=1e-8)
    with torch.no_grad():
        np.testing.assert_allclose(pcen.running_mean(energy).numpy(), means, rtol=1e-5)
        np.testing.assert_allclose(pcen(energy).numpy(), expected, rtol=3e-5, atol=1e-10)


def test_gradients_of_the_recurrence(rng):
    inputs = torch.from_numpy(rng.standard_normal((2, 3, 150))).requires_grad_()
    log_decay = torch.tensor([-1e-3, -0.1, -5.0], dtype=torch.float64, requires_grad=True)

    def loop(inputs, log_decay):
        state, states = torch.zeros(2, 3, dtype=torch.float64), []
        for step in range(150):
            state = log_decay.exp() * state + inputs[..., step]
            states.append(state)
        return torch.stack(states, dim=-1)

    weights = torch.from_numpy(rng.standard_normal((2, 3, 150)))
    found = torch.autograd.grad((recurrence(inputs, log_decay) * weights).sum(), (inputs, log_decay))
    expected = torch.autograd.grad((loop(inputs, log_decay) * weights).sum(), (inputs, log_decay))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_a_steady_sound_of_ten_minutes_keeps_its_mean():
    pcen = PCEN(2, floor=1e-8)
    with torch.no_grad():
        pcen.log_smooth.copy_(torch.tensor([-20.0, -3.0]))  # the first is clipped to 1e-5
        means = pcen.running_mean(torch.full((1, 2, 66_150), 0.1))
    assert_close(means, torch.full_like(means, 0.1), rtol=1e-5, atol=0)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_shapes_of_the_specification():
    frontend = LEAF()
    for seconds, frames in ((5, 552), (10, 1103), (29.7, 3275), (30, 3308)):
        assert frontend.output_shape(round(seconds * 22050)) == (1, 128, frames)
    with torch.no_grad():
        assert frontend(torch.zeros(1, 1, 110_250)).shape == (1, 1, 128, 552)
    assert sum(parameter.numel() for parameter in frontend.parameters()) == 7 * 128  # seven a filter, as in the paper
    assert frontend.learned


@torch.no_grad()
def test_compression_without_pcen_is_the_logarithm():
    frontend, wave = LEAF(**SMALL, pcen=False, floor=1e-6), noise(1, 1, 4000)
    assert_close(frontend(wave)[:, 0], torch.log(frontend.filterbank(wave[:, 0]) + 1e-6))
    assert sum(parameter.numel() for parameter in frontend.parameters()) == 3 * 12
    silence = frontend(torch.zeros(1, 1, 4000))
    assert_close(silence, torch.full_like(silence, math.log(1e-6)))


EXTREMES = {
    "as built": {},
    "low": dict.fromkeys(("log_width", "log_pool_width", "log_alpha", "log_delta", "log_root", "log_smooth"), -60.0),
    "high": dict.fromkeys(("log_width", "log_pool_width", "log_alpha", "log_delta", "log_root", "log_smooth"), 60.0),
    "slow, strong gain": {"log_smooth": -60.0, "log_alpha": 60.0, "log_delta": -60.0},
    "fast, steep": {"log_smooth": 60.0, "log_delta": -60.0, "log_root": -60.0, "centre": 9.0},
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("pcen", [True, False])
def test_always_finite(extreme, pcen):
    frontend = LEAF(**SMALL, pcen=pcen)
    with torch.no_grad():
        for name, parameter in frontend.named_parameters():
            if name.split(".")[-1] in EXTREMES[extreme]:
                parameter.fill_(EXTREMES[extreme][name.split(".")[-1]])
    samples = 16_000
    square = torch.sign(torch.sin(torch.arange(samples) * 0.05) + 1e-6)
    late = torch.cat([torch.zeros(samples // 2), square[: samples // 2]])  # silence, then as loud as can be
    waves = torch.stack([torch.zeros(samples), torch.ones(samples), square, late, late.flip(0), 1e-20 * square])
    for precision in (torch.float32, torch.bfloat16):
        frontend.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            feature_map = frontend(waves[:, None])
            assert feature_map.dtype == torch.float32
            assert feature_map.isfinite().all()
            feature_map.square().mean().backward()  # inside autocast, too
        for name, parameter in frontend.named_parameters():
            assert parameter.grad.isfinite().all(), name


def test_a_minute_with_gradients_and_ten_without():
    frontend = LEAF(**SMALL)
    feature_map = frontend(noise(1, 1, 60 * 8000))
    feature_map.square().mean().backward()
    for name, parameter in frontend.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name
    with torch.no_grad():
        assert frontend(noise(1, 1, 600 * 8000)).isfinite().all()


def test_autocast_changes_nothing():
    frontend, wave = LEAF(**SMALL), noise(2, 1, 4000)
    with torch.no_grad():
        expected = frontend(wave)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(frontend(wave), expected)


def test_training_moves_the_filters():
    torch.manual_seed(0)
    frontend = LEAF(**SMALL)
    before = {name: parameter.detach().clone() for name, parameter in frontend.named_parameters()}
    filters = frontend.filterbank.filters().detach()
    optimizer = torch.optim.Adam(frontend.parameters(), lr=1e-3)
    wave, target = noise(2, 1, 8000), noise(2, 1, 12, 100, scale=1.0, seed=1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (frontend(wave) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (frontend.filterbank.filters() - filters).abs().max() > 1e-5
    for name, parameter in frontend.named_parameters():
        assert (parameter != before[name]).all(), name


@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate": 0},
        {"n_filters": 0},
        {"hop_length": 0},
        {"window_length": 550},
        {"window_length": 3},
        {"f_min": -1.0},
        {"f_min": 9000.0, "f_max": 8000.0},
        {"f_max": 12000.0},
        {"floor": 0.0},
    ],
)
def test_what_cannot_be_is_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        LEAF(**options)
