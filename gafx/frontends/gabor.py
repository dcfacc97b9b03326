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

# The taps are stored this many times larger. Adam moves every weight by about the learning rate, whatever its size:
# taps of unit energy, about 0.03, would be overwritten at rates that suit a classifier's kernels, about 0.3.
_STORED = 10.0
_SCALES: dict[str, MelScale] = {"mel": "htk", "erb": "erb", "linear": "linear"}


@FRONTENDS.register
class GaborFrontEnd(FrontEnd):
    """Complex filters with a stride, squared magnitude, mean over a frame, and a logarithm or PCEN.

    All taps of the filters are learned; `leaf`, in contrast, learns a centre, a width and a pooling width for each
    filter. They start as Gabor functions `exp(i w t) exp(-t^2 / (2 s^2))` with centres evenly spaced on a scale and the
    half-power bandwidth of the triangular filter at that frequency, as far as the window can resolve it, or at random.
    Every filter starts with unit energy (the sum of its squared taps), so white noise of variance v gives v in every
    band.

    High filters are short: with the stride of the low ones they would miss most of the sound, and their energies would
    be noisy. So each filter has the shortest of `resolutions` windows that covers three standard deviations of its
    envelope on both sides; each window is half as long as the next and moves by half as many samples, for the same
    cost.

    Frame k is centred on samples [k * hop_length, (k + 1) * hop_length), `ceil(samples / hop_length)` frames, the grid
    of `mel` with the same hop: the two can be fused. The defaults give 64 bands every 20 ms at 22.05 kHz.

    Args:
        sample_rate: in Hz.
        n_filters: number of filters, the height of the map.
        window_length: taps of the longest filters, 23 ms at 22.05 kHz by default.
        hop_length: samples per frame, a multiple of `pooling * 2^(resolutions - 1)`.
        pooling: energies of the longest filters that are averaged in a frame: they move by `hop_length / pooling`.
        resolutions: number of window lengths, each half the one before; 1 gives all filters the same.
        f_min: lower edge of the lowest filter in Hz.
        f_max: upper edge of the highest filter in Hz; by default half the sampling rate.
        scale: on which the centres are evenly spaced: `mel`, `erb` or `linear`.
        init: `gabor`, or `random`: normally distributed taps, also of unit energy, in the same windows.
        frozen: do not learn the filters: the map is then fixed, and normalised by training statistics.
        compression: `log` of energy + `floor`, or `pcen`, whose coefficients are learned unless `frozen`.
        floor: energy of silence, at least 1e-12; 1e-5 is white noise at -50 dB of full scale.
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
        hop_length: int = 448,
        pooling: int = 4,
        resolutions: int = 3,
        f_min: float = 40.0,
        f_max: float | None = None,
        scale: Literal["mel", "erb", "linear"] = "mel",
        init: Literal["gabor", "random"] = "gabor",
        frozen: bool = False,
        compression: Literal["log", "pcen"] = "log",
        floor: float = 1e-5,
        map_norm: Literal["clip", "scalar", "band"] = "band",
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        check_positive(
            sample_rate=sample_rate,
            n_filters=n_filters,
            hop_length=hop_length,
            pooling=pooling,
            resolutions=resolutions,
        )
        if resolutions > 8:
            raise UsageError(f"frontend.resolutions={resolutions} must be at most 8")
        shortest = 2 ** (resolutions - 1)
        if window_length < 4 * shortest or window_length % shortest:
            raise UsageError(
                f"frontend.window_length={window_length} must be a multiple of {shortest} (2^(resolutions - 1)) and at "
                f"least {4 * shortest}, e.g. 512"
            )
        if hop_length // pooling > window_length:
            raise UsageError(
                f"frontend.window_length={window_length} is shorter than the stride of the filters, hop_length / "
                f"pooling = {hop_length // pooling} samples, so that samples between them would not be read: raise "
                "window_length or pooling"
            )
        if hop_length % (pooling * shortest):
            raise UsageError(
                f"frontend.hop_length={hop_length} must be a multiple of {pooling * shortest} (pooling times "
                "2^(resolutions - 1)): the filters move by whole fractions of it"
            )
        if floor < 1e-12:
            raise UsageError(f"frontend.floor={floor} must be at least 1e-12, e.g. 1e-5")
        f_min, f_max = frequency_range(f_min, f_max, sample_rate)
        self.sample_rate, self.n_filters, self.hop_length, self.floor = sample_rate, n_filters, hop_length, floor
        self.pooling, self.window_length = pooling, window_length
        self.map_norm: Over = map_norm
        self.designed = init == "gabor"
        with torch.device("cpu"):  # how many filters each window has is read from them, also on the meta device
            centre, width = gabor_shapes(n_filters, window_length, sample_rate, f_min, f_max, _SCALES[scale])
        halvings = torch.log2(window_length / (6 * width)).floor().clamp(0, resolutions - 1).long()
        # Real and imaginary parts of the filters of each window, times 10: (2, filters, window), the longest first.
        self.taps = nn.ParameterList()
        self.halvings = halvings.unique().tolist()
        for halving in self.halvings:
            chosen, window = halvings == halving, window_length >> halving
            if init == "gabor":
                taps = gabor_taps(centre[chosen], width[chosen], window)
            else:
                taps = random_taps(int(chosen.sum()), window)
            self.taps.append(nn.Parameter(taps))
        self.pcen = PCEN(n_filters, floor) if compression == "pcen" else None
        if pretrained is not False:
            self.load_pretrained(pretrained)
        self.learned = not frozen
        self.requires_grad_(not frozen)

    def no_weight_decay(self) -> set[str]:
        """The filters: decay would shrink their energy."""
        return {f"taps.{number}" for number in range(len(self.taps))}

    def output_shape(self, samples: int) -> Shape:
        # No negative numerator: integer division in ONNX rounds towards zero, not down.
        return 1, self.n_filters, (samples + self.hop_length - 1) // self.hop_length

    def first_filters(self) -> Tensor:
        """Return the filters, complex `(n_filters, 1, window_length)`; shorter ones have zeros on both sides."""
        sides = [(self.window_length - taps.shape[-1]) // 2 for taps in self.taps]
        padded = [nn.functional.pad(taps.detach(), (side, side)) for taps, side in zip(self.taps, sides, strict=True)]
        return torch.complex(*torch.cat(padded, dim=1))[:, None] / _STORED

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_filters, ceil(samples / hop_length))`, float32."""
        self.check_wave(wave)
        # In float32: bfloat16 would hide bands that are 50 dB below the loudest one.
        with torch.autocast(wave.device.type, enabled=False):
            mono = wave[:, 0].to(torch.promote_types(self.taps[0].dtype, torch.float32))
            pairs = zip(self.taps, self.halvings, strict=True)
            energies = [self._energy(mono, t.to(mono.dtype) / _STORED, self.pooling << n) for t, n in pairs]
            energy = torch.cat(energies, dim=1)
            compressed = torch.log(add_small(energy, self.floor)) if self.pcen is None else self.pcen(energy)
        return compressed.unsqueeze(1)

    def _energy(self, wave: Tensor, taps: Tensor, pooling: int) -> Tensor:
        """Mean energy of each frame. `(batch, samples)`, `(2, filters, window)` -> `(batch, filters, frames)`."""
        window, stride = taps.shape[-1], self.hop_length // pooling
        frames = self.output_shape(wave.shape[-1])[2]
        # The windows of a frame span window + (pooling - 1) * stride samples, centred on its hop_length samples.
        before = (window - stride) // 2
        after = (frames * pooling - 1) * stride + window - before - wave.shape[-1]
        padded = nn.functional.pad(wave, (before, after))[:, None]
        real, imaginary = nn.functional.conv1d(padded, taps.flatten(0, 1)[:, None], stride=stride).chunk(2, dim=1)
        return (real.square() + imaginary.square()).unflatten(-1, (frames, pooling)).mean(dim=-1)


def gabor_shapes(
    n_filters: int, window_length: int, sample_rate: int, f_min: float, f_max: float, scale: MelScale
) -> Tensor:
    """Compute angular frequencies (radians a sample) and widths (samples) of the envelopes, float32 `(2, n_filters)`.

    Arguments and units are those of `GaborFrontEnd`. No envelope is wider than a sixth of the longest window: it has
    decayed to 1 % at its edges.
    """
    fwhm = math.sqrt(2 * math.log(2)) / math.pi  # of the magnitude response, times the width
    centre, log_width = spaced_filters(n_filters, sample_rate, f_min, f_max, (4 * fwhm, window_length / 6), scale)
    return torch.stack([centre, log_width.exp()])


@on_cpu
def gabor_taps(centre: Tensor, width: Tensor, window: int) -> Tensor:
    """Compute Gabor filters as they are stored, float32 `(2, filters, window)`: real and imaginary parts."""
    time = torch.arange(window) - (window - 1) / 2
    angle = centre[:, None] * time
    envelope = torch.exp(-0.5 * (time / width[:, None]).square())
    envelope[envelope < 1e-8] = 0.0  # subnormal numbers made the product 15 times slower
    return _stored(torch.stack([envelope * angle.cos(), envelope * angle.sin()]))


@on_cpu
def random_taps(filters: int, window: int) -> Tensor:
    """Draw normally distributed filters as they are stored, float32 `(2, filters, window)`."""
    return _stored(torch.randn(2, filters, window))


def _stored(taps: Tensor) -> Tensor:
    """Scale complex filters `(2, filters, window)` so that the squared taps of each sum to 1, times `_STORED`."""
    return _STORED * (taps / taps.square().sum(dim=(0, 2), keepdim=True).sqrt())
