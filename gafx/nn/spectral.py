"""Mel filter banks and log-mel spectrograms, batched and differentiable."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.nn import exported
from gafx.nn.cpu import product
from gafx.nn.precision import float64
from gafx.nn.tables import on_cpu

MelScale = Literal["slaney", "htk", "kaldi", "erb", "linear"]


def hz_to_mel(hertz: Tensor, scale: MelScale) -> Tensor:
    """Convert Hz to a frequency scale.

    The mel scale as `slaney` (linear below 1 kHz, Slaney 1998), `htk` (O'Shaughnessy 1987) or `kaldi`; `erb`, the
    number of equivalent rectangular bandwidths (Glasberg and Moore, 1990); or `linear`, Hz.
    """
    if scale == "linear":
        return hertz
    if scale == "erb":
        return 21.4 * torch.log10(1.0 + 0.00437 * hertz)
    if scale == "kaldi":
        return 1127.0 * torch.log1p(hertz / 700.0)
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hertz / 700.0)
    linear, step = hertz * 3 / 200, math.log(6.4) / 27
    return torch.where(hertz < 1000, linear, 15 + torch.log(hertz.clamp(min=1000) / 1000) / step)


def mel_to_hz(mel: Tensor, scale: MelScale) -> Tensor:
    """Convert to Hz, the inverse of `hz_to_mel`."""
    if scale == "linear":
        return mel
    if scale == "erb":
        return (10 ** (mel / 21.4) - 1.0) / 0.00437
    if scale == "kaldi":
        return 700.0 * torch.expm1(mel / 1127.0)
    if scale == "htk":
        return 700.0 * (10 ** (mel / 2595.0) - 1.0)
    step = math.log(6.4) / 27
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * step))


def _edges_in_mel(n_mels: int, f_min: float, f_max: float, scale: MelScale) -> Tensor:
    limits = hz_to_mel(torch.tensor([f_min, f_max], dtype=torch.float64), scale)
    return torch.linspace(float(limits[0]), float(limits[1]), n_mels + 2, dtype=torch.float64)


@on_cpu
def mel_edges(n_mels: int, f_min: float, f_max: float, scale: MelScale) -> Tensor:
    """Return the `n_mels + 2` edges in Hz of triangular filters evenly spaced on a scale, float64 `(n_mels + 2,)`."""
    return mel_to_hz(_edges_in_mel(n_mels, f_min, f_max, scale), scale)


@on_cpu
def mel_filters(
    n_mels: int, n_fft: int, sample_rate: int, f_min: float, f_max: float, scale: MelScale = "slaney"
) -> Tensor:
    """Compute triangular filters, float32 `(n_fft // 2 + 1, n_mels)`.

    `slaney`: triangles over Hz, each of unit area (librosa's default). `htk`: triangles over Hz with unit peak.
    `kaldi`: triangles over mel with unit peak, as Kaldi's and torchaudio's `fbank`.
    """
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    edges = _edges_in_mel(n_mels, f_min, f_max, scale)
    if scale == "kaldi":
        bins = hz_to_mel(bins, scale)
    else:
        edges = mel_to_hz(edges, scale)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    if scale == "slaney":
        filters = filters * (2.0 / (right - left))
    return filters.float()


@on_cpu
def hann_window(
    length: int, *, periodic: bool = True, n_fft: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hann window of `length` samples, `(length,)`, or `(n_fft,)` with zeros on both sides."""
    window = torch.hann_window(length, periodic=periodic, dtype=dtype)
    if n_fft is None:
        return window
    padded = torch.zeros(n_fft, dtype=dtype)
    begin = (n_fft - length) // 2
    padded[begin : begin + length] = window
    return padded


def power_spectrum(wave: Tensor, window: Tensor, win_length: int, hop_length: int) -> Tensor:
    """Squared magnitudes of the windowed Fourier transforms of a wave, without padding.

    `(batch, samples)` and a window of `hann_window`, `(n_fft,)` -> `(batch, n_fft // 2 + 1, frames)`.
    """
    n_fft = len(window)
    if exported.is_for_onnx():
        begin = (n_fft - win_length) // 2
        end = n_fft - win_length - begin
        frames = exported.cut(wave[..., begin : wave.shape[-1] - end], win_length, hop_length)
        return exported.power(frames * window[begin : begin + win_length], n_fft).transpose(1, 2)
    spectrum = torch.stft(wave, n_fft, hop_length, window=window, center=False, return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()


class LogMel(nn.Module):
    """Log-mel spectrogram on a grid of whole hops: frame k is centred on samples [k * hop, (k + 1) * hop).

    `ceil(samples / hop)` frames, aligned with front-ends that cut the wave into blocks of `hop` samples. The edges are
    padded with zeros. Power spectrum, natural logarithm of max(mel, `floor`).
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        floor: float,
    ):
        super().__init__()
        self.n_fft, self.win_length, self.hop_length, self.floor = n_fft, win_length, hop_length, floor
        self.register_buffer("window", hann_window(win_length, n_fft=n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(n_mels, n_fft, sample_rate, f_min, f_max), persistent=False)

    def frames(self, samples: int) -> int:
        # No negative numerator: integer division in ONNX rounds towards zero, not down.
        """Return the number of frames of a wave of `samples` samples."""
        return (samples + self.hop_length - 1) // self.hop_length

    def forward(self, wave: Tensor) -> Tensor:
        """Compute the map. `(batch, samples)` -> `(batch, n_mels, frames)`."""
        missing = self.frames(wave.shape[-1]) * self.hop_length - wave.shape[-1]
        around = self.n_fft - self.hop_length
        wave = nn.functional.pad(wave, (around // 2, around - around // 2 + missing))
        power = power_spectrum(wave, self.window, self.win_length, self.hop_length)
        mel = product(power.transpose(-1, -2), self.filters.T)
        return mel.clamp(min=self.floor).log().transpose(-1, -2)


class LibrosaLogMel(nn.Module):
    """Log-mel spectrogram on librosa's grid: frame k is centred on sample k * hop, `1 + samples // hop` frames.

    Equal to `log(librosa.feature.melspectrogram(center=True, pad_mode=padding) + floor)`: both ends are padded with
    half a transform. `padding="reflect"` mirrors the wave, as librosa does before version 0.9; `"constant"` pads zeros.

    The transform is computed in float64, as in librosa (on the CPU where Apple's GPU, which lacks it, is used): with a
    floor such as 2e-16 the rounding errors of float32 are what a band without sound would show.
    """

    window: Tensor
    window_rest: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        floor: float,
        padding: Literal["reflect", "constant"] = "reflect",
    ):
        super().__init__()
        self.n_fft, self.win_length, self.hop_length, self.padding = n_fft, win_length, hop_length, padding
        window = hann_window(win_length, n_fft=n_fft, dtype=torch.float64)
        # The sum of the two is the window in double precision on devices without float64 buffers, too.
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("window_rest", (window - window.float()).float(), persistent=False)
        # A last row adds the floor: ONNX's optimiser drops the addition of a number as small as 1e-8.
        filters = mel_filters(n_mels, n_fft, sample_rate, f_min, f_max)
        self.register_buffer("filters", nn.functional.pad(filters, (0, 0, 0, 1), value=floor), persistent=False)

    def frames(self, samples: int) -> int:
        """Return the number of frames of a wave of `samples` samples."""
        return 1 + samples // self.hop_length

    def forward(self, wave: Tensor) -> Tensor:
        """Compute the map. `(batch, samples)` -> `(batch, n_mels, frames)`; waves of any length are accepted."""
        return self.powers(wave).log()

    def powers(self, wave: Tensor) -> Tensor:
        """Compute the mel powers plus `floor`. `(batch, samples)` -> `(batch, n_mels, frames)`."""
        samples, around = wave.shape[-1], self.n_fft // 2
        # Mirrored by index as numpy does: several times if the wave is shorter than the padding, which torch refuses.
        if self.padding == "reflect":
            period = max(2 * (samples - 1), 1)
            index = torch.arange(-around, samples + around, device=wave.device).remainder(period)
            wave = wave[..., torch.minimum(index, period - index)]
        else:
            wave = nn.functional.pad(wave, (around, around))
        window = float64(self.window) + float64(self.window_rest)
        power = power_spectrum(float64(wave), window, self.win_length, self.hop_length)
        power = power.to(self.filters.dtype).to(wave.device)
        power = nn.functional.pad(power.transpose(-1, -2), (0, 1), value=1.0)
        return product(power, self.filters.T).transpose(-1, -2)


class KaldiFbank(nn.Module):
    """Kaldi's log-mel filter bank as AST uses it: 25 ms Hann windows, DC removed and pre-emphasised frame by frame.

    Equal to `torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning", dither=0)`,
    but batched and on any device. Only complete frames: `1 + (samples - window) // hop`.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, win_length: int, hop_length: int, n_mels: int, f_min: float, f_max: float):
        super().__init__()
        self.win_length, self.hop_length = win_length, hop_length
        self.n_fft = 1 << (win_length - 1).bit_length()
        filters = mel_filters(n_mels, self.n_fft, sample_rate, f_min, f_max, scale="kaldi")
        filters[-1] = 0  # Kaldi omits the Nyquist bin
        self.register_buffer("window", hann_window(win_length, periodic=False), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def frames(self, samples: int) -> int:
        """Return the number of frames of a wave of `samples` samples."""
        return 1 + max(0, samples - self.win_length) // self.hop_length

    def forward(self, wave: Tensor) -> Tensor:
        """Compute the map. `(batch, samples)` -> `(batch, n_mels, frames)`; waves shorter than a window are padded."""
        wave = nn.functional.pad(wave, (0, max(0, self.win_length - wave.shape[-1])))
        if exported.is_for_onnx():
            frames = exported.cut(wave, self.win_length, self.hop_length)
        else:
            frames = wave.unfold(-1, self.win_length, self.hop_length)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = nn.functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - 0.97 * before) * self.window
        if exported.is_for_onnx():
            power = exported.power(frames, self.n_fft)
        else:
            power = torch.fft.rfft(frames, self.n_fft).abs().square()
        mel = product(power, self.filters.T)
        return mel.clamp(min=torch.finfo(torch.float32).eps).log().transpose(-1, -2)
