"""Log-mel spectrogram, the baseline for learned front-ends (GAFX section 4.2.1, Table 3)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, check_positive, frequency_range
from gafx.nn.maps import Over
from gafx.nn.spectral import KaldiFbank, LibrosaLogMel, LogMel
from gafx.registry import FRONTENDS


@FRONTENDS.register
class MelFrontEnd(FrontEnd):
    """Log-mel map of a mono wave.

    `form="grid"` (default): 128 mel bins and one frame per 200 samples at 22.05 kHz, the frame grid of GAFX-R: 30 s
    give 128 x 3308. The paper states only this size; the window (1024 samples in an FFT of 2048, so that no low filter
    is empty) and the scale (Slaney's, filters of unit area) are choices of gafx.

    `form="kaldi"`: the filter bank of the Audio Spectrogram Transformer (Gong et al., 2021): with `sample_rate=16000,
    win_length=400, hop_length=160` 10.24 s give 128 x 1022 (AST pads to 1024).

    `form="librosa"`: `log(librosa.feature.melspectrogram(...) + floor)`, with frames centred on multiples of the hop:
    `1 + samples // hop_length` frames. Many published networks read such a map.

    Args:
        form: `grid`, `kaldi` or `librosa`.
        sample_rate: in Hz.
        n_mels: mel bins.
        hop_length: samples per frame.
        win_length: samples of the Hann window.
        n_fft: samples of the transform (`grid`, `librosa`); `kaldi` uses the next power of two above `win_length`.
        f_min: lowest frequency in Hz.
        f_max: highest frequency in Hz; by default half the sampling rate.
        floor: lower bound of the mel powers before the logarithm (`grid`), or what is added to them (`librosa`).
        padding: of both ends of the wave with half a transform (`librosa`): `reflect`, librosa's default before version
            0.9, or `constant`, zeros.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `scalar`.
    """

    learned = False
    hash_if_changed: ClassVar = ("map_norm", "padding")

    def __init__(
        self,
        *,
        form: Literal["grid", "kaldi", "librosa"] = "grid",
        sample_rate: int = 22050,
        n_mels: int = 128,
        hop_length: int = 200,
        win_length: int = 1024,
        n_fft: int = 2048,
        f_min: float = 20.0,
        f_max: float | None = None,
        floor: float = 1e-8,
        map_norm: Literal["clip", "scalar", "band"] | None = None,
        padding: Literal["reflect", "constant"] = "reflect",
    ):
        super().__init__()
        check_positive(sample_rate=sample_rate, n_mels=n_mels, hop_length=hop_length, win_length=win_length)
        f_min, f_max = frequency_range(f_min, f_max, sample_rate)
        if form != "kaldi" and not 0 < hop_length <= win_length <= n_fft:
            raise UsageError(f"hop_length={hop_length} <= win_length={win_length} <= n_fft={n_fft} must hold")
        self.sample_rate, self.n_mels = sample_rate, n_mels
        self.map_norm: Over | None = map_norm
        self.spectrogram: LogMel | KaldiFbank | LibrosaLogMel
        if form == "grid":
            self.spectrogram = LogMel(sample_rate, n_fft, win_length, hop_length, n_mels, f_min, f_max, floor)
        elif form == "librosa":
            self.spectrogram = LibrosaLogMel(
                sample_rate, n_fft, win_length, hop_length, n_mels, f_min, f_max, floor, padding
            )
        else:
            self.spectrogram = KaldiFbank(sample_rate, win_length, hop_length, n_mels, f_min, f_max)

    def output_shape(self, samples: int) -> Shape:
        return 1, self.n_mels, self.spectrogram.frames(samples)

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, n_mels, frames)`, natural logarithm of power, always float32."""
        self.check_wave(wave)
        with torch.autocast(wave.device.type, enabled=False):
            return self.spectrogram(wave[:, 0].float()).unsqueeze(1)
