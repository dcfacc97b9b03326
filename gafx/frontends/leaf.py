"""LEAF: a spectrogram with learned filters, pooling and compression (Zeghidour et al., ICLR 2021)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive, frequency_range
from gafx.nn.exported import add_small
from gafx.nn.filterbank import GaborFilterBank
from gafx.nn.maps import Over
from gafx.nn.pcen import PCEN
from gafx.registry import FRONTENDS


@FRONTENDS.register
class LEAF(FrontEnd):
    """LEAF: Gabor filters, squared modulus, Gaussian pooling and PCEN, with seven learned parameters per filter.

    Its initial values are close to a mel spectrogram with PCEN. 128 filters and one frame per 200 samples at 22.05 kHz,
    the grid of `mel` and `gafx_r`: 30 s give 128 x 3308, which AST cuts into whole patches of 16 x 16. The paper has 40
    filters of 25 ms every 10 ms at 16 kHz from 60 to 7800 Hz: `n_filters=40, sample_rate=16000, window_length=401,
    hop_length=160, f_max=7800`. See `GaborFilterBank` and `PCEN` for the parameters and their ranges. docs/frontends.md
    lists the differences from the authors' code: initial widths, area of the pooling windows, floor, frame centres.

    Args:
        sample_rate: in Hz.
        n_filters: number of filters, the height of the map.
        hop_length: samples per frame.
        window_length: samples of the filters and of the pooling windows, odd; 551 are 25 ms at 22.05 kHz. No filter
            becomes narrower than `sample_rate / window_length` Hz.
        f_min: initial lower edge of the lowest filter in Hz.
        f_max: initial upper edge of the highest filter in Hz; by default half the sampling rate.
        pcen: compress by PCEN; `false` uses the logarithm of energy + `floor`.
        floor: energy of silence, at least 1e-12; a sine of amplitude 1 has the energy 1/4.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `clip`.
        pretrained: weights saved by gafx, see `FrontEnd.load_pretrained`; `false` starts on the mel scale.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    designed = True
    hash_if_changed: ClassVar = ("map_norm",)

    def __init__(
        self,
        *,
        sample_rate: int = 22050,
        n_filters: int = 128,
        hop_length: int = 200,
        window_length: int = 551,
        f_min: float = 60.0,
        f_max: float | None = None,
        pcen: bool = True,
        floor: float = 1e-8,
        map_norm: Literal["clip", "scalar", "band"] | None = None,
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        self.map_norm: Over | None = map_norm
        check_positive(sample_rate=sample_rate, n_filters=n_filters, hop_length=hop_length)
        if window_length < 5 or window_length % 2 == 0:
            raise UsageError(
                f"frontend.window_length={window_length} must be odd and at least 5, so that a filter has a centre; "
                f"25 ms are {round(sample_rate * 0.0125) * 2 + 1}"
            )
        f_min, f_max = frequency_range(f_min, f_max, sample_rate)
        if floor < 1e-12:
            raise UsageError(f"frontend.floor={floor} must be at least 1e-12, e.g. 1e-8")
        self.sample_rate, self.n_filters, self.floor = sample_rate, n_filters, floor
        self.filterbank = GaborFilterBank(sample_rate, n_filters, window_length, hop_length, f_min, f_max)
        self.pcen = PCEN(n_filters, floor) if pcen else None
        if pretrained is not False:
            self.load_pretrained(pretrained)

    def output_shape(self, samples: int) -> Shape:
        return 1, self.n_filters, self.filterbank.frames(samples)

    def first_filters(self) -> Tensor:
        """Return the Gabor filters, complex `(n_filters, 1, window_length)`."""
        return self.filterbank.filters().detach()[:, None]

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_filters, ceil(samples / hop_length))`, always float32."""
        self.check_wave(wave)
        with torch.autocast(wave.device.type, enabled=False):
            energy = self.filterbank(wave[:, 0].float())
            compressed = torch.log(add_small(energy, self.floor)) if self.pcen is None else self.pcen(energy)
        return compressed.unsqueeze(1)
