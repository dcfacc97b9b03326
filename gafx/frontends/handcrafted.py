"""Handcrafted features of music recognition, computed by librosa, as a map of one column per window."""

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.audio.segments import segment_starts
from gafx.errors import UsageError, require
from gafx.frontends.base import FrontEnd, Shape, check_positive
from gafx.io import digest
from gafx.nn.maps import Over
from gafx.registry import FRONTENDS

Array = npt.NDArray[Any]
# Numbers that are kept of windows whose features were computed: 64 MB.
_KEPT = 2**24
_MEDIAN = 31  # frames or bins of the median filters that separate harmonic and percussive, librosa's default
_LOWEST, _OCTAVES = 200, 6  # Hz, and bands above it, of spectral contrast, librosa's defaults
_MELS = 128  # librosa's default


@FRONTENDS.register
class HandcraftedFrontEnd(FrontEnd):
    """Handcrafted features of windows of a mono wave, one column per window.

    The features are those that librosa computes of the window alone, called with `sample_rate`, `n_fft` and
    `hop_length` and otherwise its defaults: `chroma_stft` (its tuning estimated of each window), `rms`,
    `spectral_centroid`, `spectral_bandwidth`, `spectral_rolloff`, `spectral_flatness`, `spectral_contrast`,
    `zero_crossing_rate`, `mfcc`; flux is `onset_strength`, the half-wave rectified difference of successive frames of
    the mel spectrogram in dB; harmonic and percussive are the waves of `effects.hpss`; tempo is `feature.tempo` in
    beats per minute. All of a window's come from one STFT. `feature_names()` lists the rows.

    `features="thesis"`: mean and variance over all values of each of these, with all coefficients but MFCC's in one:
    63 rows. `features="full"`: mean, std and median of each bin of chroma, each band of contrast, each MFCC and its
    first and second delta, and of the other curves; mean and std of the harmonic and the percussive wave; tempo: 263
    rows.

    Windows lie side by side, the last is moved back to end with the wave, a remainder under a tenth is dropped. A wave
    shorter than a window is one window of its length. One that is shorter than 12 hops or the transform is repeated up
    to that length, since deltas span nine frames. What librosa leaves undefined (of silence) is 0, and a window with a
    sample that is not finite gives NaN.

    It computes in the calling process, on the CPU, without gradients. Rows of the latest windows are kept in memory (64
    MB), so that another epoch of the same windows costs nothing. An exported model cannot contain it. It needs librosa:
    pip install 'gafx[classical]'.

    Args:
        sample_rate: in Hz.
        window_seconds: of a column, e.g. 3 or 30.
        features: `thesis` or `full`.
        n_mfcc: coefficients, from the first, which is the loudness.
        n_fft: samples of the transform and of its Hann window.
        hop_length: samples per frame.
        map_norm: which values of the map share a mean and a std, see `gafx.nn.maps.MapNorm`; null for `feature`.

    Raises:
        UsageError: librosa is not installed, or a number is out of its range.
    """

    learned = False
    not_exportable = "librosa computes the features, outside PyTorch"

    def __init__(
        self,
        *,
        sample_rate: int = 22050,
        window_seconds: float = 3.0,
        features: Literal["thesis", "full"] = "thesis",
        n_mfcc: int = 20,
        n_fft: int = 2048,
        hop_length: int = 512,
        map_norm: Literal["clip", "scalar", "band", "feature"] | None = None,
    ):
        super().__init__()
        check_positive(n_mfcc=n_mfcc, hop_length=hop_length, n_fft=n_fft)
        if sample_rate <= 4 * _LOWEST:
            raise UsageError(
                f"frontend.sample_rate={sample_rate} must be above {4 * _LOWEST}, for the two lowest bands of contrast"
            )
        if n_mfcc > _MELS:
            raise UsageError(f"frontend.n_mfcc={n_mfcc} must be at most {_MELS}, the number of mel bands")
        if not max(hop_length, sample_rate / _LOWEST) <= n_fft:
            raise UsageError(
                f"frontend.n_fft={n_fft} must be at least hop_length={hop_length} and {sample_rate // _LOWEST + 1}, "
                f"which resolve {_LOWEST} Hz, e.g. 2048"
            )
        if not window_seconds * sample_rate >= 1:
            raise UsageError(f"frontend.window_seconds={window_seconds} must be above 0, e.g. 3.0")
        require("librosa", "frontend=handcrafted")
        self.sample_rate, self.features, self.n_mfcc = sample_rate, features, n_mfcc
        self.n_fft, self.hop_length = n_fft, hop_length
        self.window = round(window_seconds * sample_rate)
        self.shortest = max(12 * hop_length, n_fft)
        self.map_norm: Over | None = map_norm or "feature"
        # 6 from 12.8 kHz on; at lower rates as many as begin below half of it.
        self.octaves = min(_OCTAVES, math.ceil(math.log2(sample_rate / (2 * _LOWEST))))
        self.layout = _layout(features, n_mfcc, self.octaves + 1)
        self.names = [
            _numbered(name, number if rows > 1 else None) + (f"_{of}" if of != "value" else "")
            for name, (rows, statistics) in self.layout.items()
            for number in range(1, rows + 1)
            for of in statistics
        ]
        self.kept: OrderedDict[str, Array] = OrderedDict()

    def feature_names(self) -> list[str]:
        """Names of the map's rows, such as `centroid_mean` and `mfcc1_var`."""
        return list(self.names)

    def output_shape(self, samples: int) -> Shape:
        return 1, len(self.names), len(segment_starts(samples, self.window))

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1, samples)` -> `(batch, 1, features, windows)`, in librosa's units, always float32."""
        self.check_wave(wave)
        # As a decorator, `disable` would import torch._dynamo, which takes over a second.
        compute = torch.compiler.disable(self._compute) if torch.compiler.is_compiling() else self._compute
        return compute(wave)

    def _compute(self, wave: Tensor) -> Tensor:
        waves = wave.detach()[:, 0].float().cpu().numpy()
        starts = segment_starts(waves.shape[1], self.window)
        rows = [[self._row(wave[start : start + self.window]) for start in starts] for wave in waves]
        return torch.from_numpy(np.array(rows).swapaxes(1, 2)[:, None]).to(wave.device)

    def _row(self, wave: Array) -> Array:
        """Features of a window, `(features,)` float32, from memory where they were computed before."""
        wave = np.ascontiguousarray(wave)
        key = digest(wave, size=16)
        row = self.kept.pop(key, None)
        if row is None:
            row = self._describe(wave)
        self.kept[key] = row
        while len(self.kept) * len(row) > _KEPT:
            self.kept.popitem(last=False)
        return row

    def _describe(self, wave: Array) -> Array:
        """Compute the features of a window, `(samples,)` -> `(features,)` float32."""
        if not np.isfinite(wave).all():
            return np.full(len(self.names), np.nan, np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of silence: it has no frequency to estimate the tuning from
            curves = self._curves(np.resize(wave, max(len(wave), self.shortest)))
        found = []
        for name, (rows, statistics) in self.layout.items():
            values = curves[name].reshape(rows, -1)
            found.append(np.stack([_STATISTICS[of](values) for of in statistics], axis=1).ravel())
        return np.nan_to_num(np.concatenate(found).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)

    def _curves(self, wave: Array) -> dict[str, Array]:
        """Compute what the features are statistics of, `(rows, frames)` each; waves `(samples,)`, tempo `(1,)`."""
        import librosa
        from librosa import feature

        rate, hop = self.sample_rate, self.hop_length
        spectrum = librosa.stft(wave, n_fft=self.n_fft, hop_length=hop)
        magnitude = np.abs(spectrum)
        power = magnitude**2
        mel = librosa.power_to_db(feature.melspectrogram(S=power, sr=rate, n_fft=self.n_fft, n_mels=_MELS))
        flux = librosa.onset.onset_strength(S=mel, sr=rate, n_fft=self.n_fft, hop_length=hop)
        mfcc = feature.mfcc(S=mel, n_mfcc=self.n_mfcc)
        centroid = feature.spectral_centroid(S=magnitude, sr=rate)
        mask = librosa.util.softmask(_medians(magnitude, 1), _medians(magnitude, 0), power=2.0, split_zeros=True)
        harmonic = librosa.istft(spectrum * mask, hop_length=hop, length=len(wave))
        return {
            "chroma": feature.chroma_stft(S=power, sr=rate),
            "rms": feature.rms(y=wave, frame_length=self.n_fft, hop_length=hop),
            "centroid": centroid,
            "bandwidth": feature.spectral_bandwidth(S=magnitude, sr=rate, centroid=centroid),
            "rolloff": feature.spectral_rolloff(S=magnitude, sr=rate),
            "flatness": feature.spectral_flatness(S=magnitude),
            "contrast": feature.spectral_contrast(S=magnitude, sr=rate, n_bands=self.octaves),
            "flux": flux,
            "zero_crossings": feature.zero_crossing_rate(wave, frame_length=self.n_fft, hop_length=hop),
            "harmonic": harmonic,
            "percussive": wave - harmonic,  # the two masks add to 1, and the inverse STFT is linear
            "tempo": feature.tempo(onset_envelope=flux, sr=rate, hop_length=hop),
            "mfcc": mfcc,
        } | (
            {"mfcc_delta": feature.delta(mfcc), "mfcc_delta2": feature.delta(mfcc, order=2)}
            if self.features == "full"
            else {}
        )


_STATISTICS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda values: values.mean(axis=1, dtype=float),
    "var": lambda values: values.var(axis=1, dtype=float),
    "std": lambda values: values.std(axis=1, dtype=float),
    "median": lambda values: np.median(values, axis=1),
    "value": lambda values: values[:, 0],
}


def _layout(features: str, n_mfcc: int, contrast: int) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Number of rows and statistics of each curve; one that has more rows is pooled into one."""
    full = features == "full"
    wave: tuple[str, ...] = ("mean", "std") if full else ("mean", "var")
    curve = (*wave, "median") if full else wave
    layout: dict[str, tuple[int, tuple[str, ...]]] = {
        "chroma": (12 if full else 1, curve),
        **dict.fromkeys(("rms", "centroid", "bandwidth", "rolloff", "flatness"), (1, curve)),
        "contrast": (contrast if full else 1, curve),
        **dict.fromkeys(("flux", "zero_crossings"), (1, curve)),
        **dict.fromkeys(("harmonic", "percussive"), (1, wave)),
        "tempo": (1, ("value",)),
        "mfcc": (n_mfcc, curve),
    }
    return layout | (dict.fromkeys(("mfcc_delta", "mfcc_delta2"), (n_mfcc, curve)) if full else {})


def _numbered(name: str, number: int | None) -> str:
    """`mfcc` and 2 -> `mfcc2`; `mfcc_delta2` and 1 -> `mfcc_delta2_1`, which is not the 21st of `mfcc_delta`."""
    return name if number is None else f"{name}{'_' if name[-1].isdigit() else ''}{number}"


def _medians(magnitude: Array, axis: int) -> Array:
    """Running median along an axis as in `librosa.decompose.hpss`.

    All rows are filtered as one: scipy's filter for one dimension takes a tenth of the time of that for two.
    """
    from scipy.ndimage import median_filter

    margin = _MEDIAN // 2
    rows = np.pad(np.moveaxis(magnitude, axis, 1), ((0, 0), (margin, margin)), mode="symmetric")
    filtered = median_filter(rows.ravel(), _MEDIAN).reshape(rows.shape)[:, margin:-margin]
    return np.moveaxis(filtered, 1, axis)
