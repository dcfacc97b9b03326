"""LEAF: a spectrogram whose filters, pooling and compression are learned (Zeghidour et al., ICLR 2021)."""

import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape
from gafx.nn.exported import add_small
from gafx.nn.filterbank import GaborFilterBank
from gafx.nn.pcen import PCEN
from gafx.registry import FRONTENDS


@FRONTENDS.register
class LEAF(FrontEnd):
    """LEAF: Gabor filters, squared modulus, Gaussian pooling and PCEN, seven learned numbers a filter.

    At the start it is close to a mel spectrogram with PCEN. 128 filters, a frame for every 200 samples at 22.05 kHz:
    the grid of `mel` and `gafx_r`, 30 s give 128 x 3308, and AST cuts it into whole patches of 16 x 16. Only there we
    leave the paper, which has 40 filters of 25 ms every 10 ms at 16 kHz from 60 to 7800 Hz: `n_filters=40,
    sample_rate=16000, window_length=401, hop_length=160, f_max=7800`. See `GaborFilterBank` and `PCEN` for what is
    learned and to which ranges it is clipped.

    Args:
        sample_rate: in Hz.
        n_filters: number of filters, the height of the map.
        hop_length: samples a frame.
        window_length: samples of the filters and of the pooling windows, odd; 551 are 25 ms at 22.05 kHz. No filter
            becomes narrower than `sample_rate / window_length` Hz.
        f_min: where the lowest filter begins at the start, in Hz.
        f_max: where the highest filter ends at the start, in Hz; `None` is half the sampling rate.
        pcen: compress by PCEN; `false` takes the logarithm of energy + `floor`.
        floor: energy that counts as silence, at least 1e-12; a sine of amplitude 1 has the energy 1/4.
        pretrained: weights that gafx saved, see `FrontEnd.load_pretrained`; `false` starts on the mel scale.
        across_rates: take `pretrained` weights that gafx saved at another sampling rate, too.
    """

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
        pretrained: bool | str = False,
        across_rates: bool = False,
    ):
        super().__init__()
        self.across_rates = across_rates
        for name, value in (("sample_rate", sample_rate), ("n_filters", n_filters), ("hop_length", hop_length)):
            if value < 1:
                raise UsageError(f"frontend.{name}={value} must be at least 1")
        if window_length < 5 or window_length % 2 == 0:
            raise UsageError(
                f"frontend.window_length={window_length} must be odd and at least 5, so that a filter has a middle; "
                f"25 ms are {round(sample_rate * 0.0125) * 2 + 1}"
            )
        f_max = sample_rate / 2 if f_max is None else f_max
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise UsageError(
                f"f_min={f_min}, f_max={f_max} must satisfy 0 <= f_min < f_max <= {sample_rate / 2} (half the rate)"
            )
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
        """The Gabor filters, complex `(n_filters, 1, window_length)`."""
        return self.filterbank.filters().detach()[:, None]

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_filters, ceil(samples / hop_length))`, always in float32."""
        self.check_wave(wave)
        with torch.autocast(wave.device.type, enabled=False):
            energy = self.filterbank(wave[:, 0].float())
            compressed = torch.log(add_small(energy, self.floor)) if self.pcen is None else self.pcen(energy)
        return compressed.unsqueeze(1)
