"""A strided bank of complex filters, learned tap by tap from Gabor functions: a spectrogram with learned filters."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive, frequency_range
from gafx.nn.exported import add_small
from gafx.nn.filterbank import spaced_filters
from gafx.nn.maps import Over
from gafx.nn.pcen import PCEN
from gafx.nn.spectral import MelScale
from gafx.nn.tables import on_cpu
from gafx.registry import FRONTENDS

_SCALES: dict[str, MelScale] = {"mel": "htk", "erb": "erb", "linear": "linear"}


@FRONTENDS.register
class GaborFrontEnd(FrontEnd):
    """Complex filters with a stride, squared magnitude, mean over `pooling` strides, and a logarithm or PCEN.

    A filter is `window_length` complex taps, all of them learned; `leaf`, in contrast, learns a centre, a width and a
    pooling width for each filter. They start as Gabor functions `exp(i w t) exp(-t^2 / (2 s^2))` with centres evenly
    spaced on a scale and the half-power bandwidth of the triangular filter at that frequency, as far as the window can
    resolve it, or at random. Every filter starts with unit energy (the sum of its squared taps), so white noise
    of variance v gives v in every band.

    Frame k is centred on samples [k * hop_length, (k + 1) * hop_length), `ceil(samples / hop_length)` frames, the grid
    of `mel` with the same hop: the two can be fused. The defaults give 64 bands every 20 ms at 22.05 kHz.

    Args:
        sample_rate: in Hz.
        n_filters: number of filters, the height of the map.
        window_length: taps of a filter; 512 are 23 ms at 22.05 kHz.
        hop_length: samples per frame, a multiple of `pooling`.
        pooling: energies averaged in a frame; the stride of the filters is `hop_length / pooling` samples.
        f_min: lower edge of the lowest filter in Hz.
        f_max: upper edge of the highest filter in Hz; by default half the sampling rate.
        scale: on which the centres are evenly spaced: `mel`, `erb` or `linear`.
        init: `gabor`, or `random`: normally distributed taps, also of unit energy.
        frozen: do not learn the filters: the map is then fixed, and normalised by training statistics.
        compression: `log` of energy + `floor`, or `pcen`, whose coefficients are learned unless `frozen`.
        floor: energy of silence, at least 1e-12.
        map_norm: which values share a mean and a std, see `gafx.nn.maps.MapNorm`.
        pretrained: weights saved by gafx, see `FrontEnd.load_pretrained`.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 22050,
        n_filters: int = 64,
        window_length: int = 512,
        hop_length: int = 440,
        pooling: int = 4,
        f_min: float = 40.0,
        f_max: float | None = None,
        scale: Literal["mel", "erb", "linear"] = "mel",
        init: Literal["gabor", "random"] = "gabor",
        frozen: bool = False,
        compression: Literal["log", "pcen"] = "log",
        floor: float = 1e-7,
        map_norm: Literal["clip", "scalar", "band"] = "band",
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        check_positive(sample_rate=sample_rate, n_filters=n_filters, hop_length=hop_length, pooling=pooling)
        if window_length < 4:
            raise UsageError(f"frontend.window_length={window_length} must be at least 4 taps, e.g. 512")
        if hop_length % pooling:
            raise UsageError(
                f"frontend.hop_length={hop_length} must be a multiple of frontend.pooling={pooling}: the filters move "
                "by hop_length / pooling samples"
            )
        if floor < 1e-12:
            raise UsageError(f"frontend.floor={floor} must be at least 1e-12, e.g. 1e-7")
        f_min, f_max = frequency_range(f_min, f_max, sample_rate)
        self.sample_rate, self.n_filters, self.floor = sample_rate, n_filters, floor
        self.hop_length, self.pooling, self.stride = hop_length, pooling, hop_length // pooling
        self.map_norm: Over = map_norm
        self.designed = init == "gabor"
        if init == "gabor":
            taps = gabor_taps(n_filters, window_length, sample_rate, f_min, f_max, _SCALES[scale])
        else:
            taps = unit_energy(torch.randn(2, n_filters, window_length))
        self.taps = nn.Parameter(taps)  # real and imaginary parts
        self.pcen = PCEN(n_filters, floor) if compression == "pcen" else None
        if pretrained is not False:
            self.load_pretrained(pretrained)
        self.learned = not frozen
        self.requires_grad_(not frozen)

    def no_weight_decay(self) -> set[str]:
        """The filters: decay would shrink their energy."""
        return {"taps"}

    def output_shape(self, samples: int) -> Shape:
        # No negative numerator: integer division in ONNX rounds towards zero, not down.
        return 1, self.n_filters, (samples + self.hop_length - 1) // self.hop_length

    def first_filters(self) -> Tensor:
        """Return the filters, complex `(n_filters, 1, window_length)`."""
        return torch.complex(*self.taps.detach())[:, None]

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_filters, ceil(samples / hop_length))`, always float32."""
        self.check_wave(wave)
        window = self.taps.shape[-1]
        frames = self.output_shape(wave.shape[-1])[2]
        # The windows of a frame span window + (pooling - 1) * stride samples, centred on its hop_length samples.
        before = (window - self.stride) // 2
        after = (frames * self.pooling - 1) * self.stride + window - before - wave.shape[-1]
        with torch.autocast(wave.device.type, enabled=False):
            # One product of all windows with all filters: on CPUs two to three times faster than a strided conv1d.
            # In float32: bfloat16 would hide bands that are 50 dB below the loudest one.
            windows = nn.functional.pad(wave[:, 0].float(), (before, after)).unfold(-1, window, self.stride)
            products = windows @ self.taps.flatten(0, 1).T  # (batch, frames * pooling, 2 * n_filters)
            real, imaginary = products.split(self.n_filters, dim=-1)
            squares = real.square() + imaginary.square()
            energy = squares.unflatten(1, (frames, self.pooling)).mean(dim=2).transpose(1, 2)
            compressed = torch.log(add_small(energy, self.floor)) if self.pcen is None else self.pcen(energy)
        return compressed.unsqueeze(1)


@on_cpu
def gabor_taps(n_filters: int, window: int, sample_rate: int, f_min: float, f_max: float, scale: MelScale) -> Tensor:
    """Compute Gabor filters of unit energy, float32 `(2, n_filters, window)`: real and imaginary parts.

    Arguments and units are those of `GaborFrontEnd`. The full width at half maximum of a magnitude response is at least
    one cycle a window, so that the Gaussian envelope has decayed at the window's edges.
    """
    fwhm = math.sqrt(2 * math.log(2)) / math.pi  # of the magnitude response, times the width
    centre, log_width = spaced_filters(n_filters, sample_rate, f_min, f_max, (4 * fwhm, window * fwhm), scale).unbind()
    time = torch.arange(window) - (window - 1) / 2
    angle = centre[:, None] * time
    envelope = torch.exp(-0.5 * (time / log_width.exp()[:, None]).square())
    envelope[envelope < 1e-8] = 0.0  # subnormal numbers made the product 15 times slower
    return unit_energy(torch.stack([envelope * angle.cos(), envelope * angle.sin()]))


def unit_energy(taps: Tensor) -> Tensor:
    """Scale complex filters `(2, n_filters, window)` so that the squared taps of each sum to 1."""
    return taps / taps.square().sum(dim=(0, 2), keepdim=True).sqrt()
