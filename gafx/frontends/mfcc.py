"""Mel-frequency cepstral coefficients as librosa computes them: the input of the MFCC networks."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive, frequency_range
from gafx.nn.maps import Over
from gafx.nn.spectral import LibrosaLogMel
from gafx.nn.tables import on_cpu
from gafx.registry import FRONTENDS

_LOWEST_POWER = 1e-10  # `amin` of librosa.power_to_db


@on_cpu
def dct_vectors(n_in: int, n_out: int) -> Tensor:
    """Return the first `n_out` basis vectors of the orthonormal DCT-II as columns, `(n_in, n_out)`."""
    places, orders = torch.arange(n_in, dtype=torch.float64)[:, None], torch.arange(n_out, dtype=torch.float64)
    vectors = torch.cos(math.pi / n_in * (places + 0.5) * orders) * math.sqrt(2 / n_in)
    vectors[:, 0] /= math.sqrt(2)
    return vectors.float()


@FRONTENDS.register
class MfccFrontEnd(FrontEnd):
    """Mel-frequency cepstral coefficients of a mono wave, equal to `librosa.feature.mfcc` within 1e-4.

    Mel powers (Hann windows of `n_fft` samples, zeros beyond both ends, Slaney's filters) in dB, at most `top_db`
    below the loudest value of the clip and at least -100 dB, then the orthonormal DCT-II along frequency. Frame k is
    centred on sample `k * hop_length`: `1 + samples // hop_length` frames; 3 s give 13 x 130. The defaults are those of
    "Music Information Retrieval and Classification using Deep Learning" (Jain et al., 2021, section 7.2), the rest
    librosa's (version 0.10 and later).

    Args:
        sample_rate: in Hz.
        n_mfcc: number of coefficients, the first of which is the mean level.
        n_fft: samples of the transform and of its window.
        hop_length: samples per frame.
        n_mels: mel bands before the DCT.
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz; by default half the sampling rate.
        top_db: range below the clip's maximum in dB; lower values are raised. null: no limit.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`. By default each
            coefficient has its own: the first is some ten times larger than the others.

    Raises:
        UsageError: a size below 1, `hop_length` above `n_fft`, more coefficients than bands, frequencies outside
            0 to half the rate, or `top_db` not above 0.
    """

    learned = False
    dct: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 22050,
        n_mfcc: int = 13,
        n_fft: int = 2048,
        hop_length: int = 512,
        n_mels: int = 128,
        f_min: float = 0.0,
        f_max: float | None = None,
        top_db: float | None = 80.0,
        map_norm: Literal["clip", "scalar", "band"] | None = "band",
    ):
        super().__init__()
        check_positive(sample_rate=sample_rate, n_mfcc=n_mfcc, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels)
        f_min, f_max = frequency_range(f_min, f_max, sample_rate)
        if hop_length > n_fft:
            raise UsageError(f"frontend.hop_length={hop_length} must be at most frontend.n_fft={n_fft}")
        if n_mfcc > n_mels:
            raise UsageError(f"frontend.n_mfcc={n_mfcc} must be at most frontend.n_mels={n_mels}")
        if top_db is not None and top_db <= 0:
            raise UsageError(f"frontend.top_db={top_db} must be above 0, or null for no limit")
        self.sample_rate, self.n_mfcc, self.top_db = sample_rate, n_mfcc, top_db
        self.map_norm: Over | None = map_norm
        self.spectrogram = LibrosaLogMel(
            sample_rate, n_fft, n_fft, hop_length, n_mels, f_min, f_max, floor=0.0, padding="constant"
        )
        self.register_buffer("dct", dct_vectors(n_mels, n_mfcc), persistent=False)

    def output_shape(self, samples: int) -> Shape:
        return 1, self.n_mfcc, self.spectrogram.frames(samples)

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_mfcc, frames)`, always float32."""
        self.check_wave(wave)
        with torch.autocast(wave.device.type, enabled=False):
            powers = self.spectrogram.powers(wave[:, 0].float())
            decibels = 10 * powers.clamp(min=_LOWEST_POWER).log10()
            if self.top_db is not None:
                decibels = torch.maximum(decibels, decibels.amax(dim=(1, 2), keepdim=True) - self.top_db)
            # The mean is in the first coefficient alone, and would cost the others a digit in float32. The product has
            # the form `.T @`, since torch.export writes the other for one batch size only.
            level = decibels.mean(dim=1, keepdim=True)
            first = nn.functional.pad(math.sqrt(decibels.shape[1]) * level, (0, 0, 0, self.n_mfcc - 1))
            return (self.dct.T @ (decibels - level) + first).unsqueeze(1)
