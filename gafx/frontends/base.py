"""Base class of front-ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from einops import rearrange
from torch import Tensor

from gafx.errors import UsageError
from gafx.nn.maps import Over
from gafx.nn.part import Part
from gafx.nn.precision import Float32
from gafx.saving import weights
from gafx.saving.info import WeightSource

Shape = tuple[int, int, int]


class FrontEnd(Part, Float32):
    """Computes spectrogram-like maps from waves.

    A wave is `(batch, channels, samples)`, float32 in [-1, 1]; a map is `(batch, map channels, frequency, time)`,
    float. A subclass registers itself (`@FRONTENDS.register`) under the name of its module, takes its configuration as
    keyword-only arguments of simple types, sets the attributes below and implements `output_shape` and `forward`.

    Attributes:
        sample_rate: of the waves, in Hz; 1 for sequences of tokens, one a "second".
        unit: of the length of a clip, for people to read.
        channels: of the waves, 1 or 2.
        learned: whether the map changes during training; by default such maps are normalised clip by clip, others by
            statistics of the training split.
        map_norm: which values of the map share a mean and a std when it is normalised, see `gafx.nn.maps.MapNorm`;
            None for the default.
        across_rates: whether `pretrained` may be weights that were trained at another sampling rate.
        planes: maps concatenated along time, whose borders positions and masks must not cross; 1 for an ordinary map.
        num_codes: number of different codes, of a front-end that has `codes`; None for others.
        default_parts: front-ends that a front-end of front-ends consists of by default, by name.
        built: name and all arguments if `gafx.create_frontend` built it; a saved model is rebuilt from them.
    """

    sample_rate: int
    unit: Literal["s", "tokens"] = "s"
    channels: int = 1
    learned: bool = True
    map_norm: Over | None = None
    across_rates: bool = False
    planes: int = 1
    num_codes: int | None = None
    default_parts: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    built: dict[str, Any] | None = None

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        fixed = not cls.learned and "pretrained" not in arguments
        return WeightSource("fixed") if fixed else super().source_of(arguments)

    def output_shape(self, samples: int) -> Shape:
        """Return the shape (channels, frequency, time) of the map of a wave of `samples` samples."""
        raise UsageError(
            f"{type(self).__name__} lacks output_shape: a front-end defines output_shape(self, samples), the shape "
            "(channels, frequency, time) that forward returns for a wave of so many samples; a classifier is built "
            "for it"
        )

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> `(batch, *output_shape(samples))`."""
        raise UsageError(
            f"{type(self).__name__} lacks forward: a front-end defines forward(self, wave), from (batch, channels, "
            "samples) to (batch, *output_shape(samples))"
        )

    def codes(self, wave: Tensor) -> Tensor:
        """Compute the discrete codes of a wave, one per frame of the map, or one per frame and codebook.

        `(batch, channels, samples)` -> int64 `(batch, frames)`, or `(batch, quantizers, frames)` of several codebooks.

        Raises:
            UsageError: this front-end has no codes.
        """
        raise self.no_codes()

    def map_of(self, codes: Tensor) -> Tensor:
        """Compute the map of codes that `codes` returned: `forward(wave)` is `map_of(codes(wave))`.

        Raises:
            UsageError: this front-end has no codes.
        """
        raise self.no_codes()

    def decode(self, codes: Tensor) -> Tensor:
        """Compute the wave of codes that `codes` returned, `(batch, channels, samples)` of whole frames.

        Raises:
            UsageError: this front-end has no codes.
            ValueError: codes of another type or shape, or out of range.
        """
        raise self.no_codes()

    def no_codes(self) -> UsageError:
        """The error of a front-end without codes."""
        return UsageError(f"{type(self).__name__} has no discrete codes: use a front-end with a codec, e.g. vq")

    def resolve(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that this front-end, built with `arguments`, is rebuilt from without `pretrained`.

        A front-end that reads the sizes of its network from a file beside the weights adds them.
        """
        return dict(arguments)

    def groups(self) -> "Sequence[FrontEnd]":
        """Return the front-ends whose maps are normalised separately: itself, or the parts of a fused one."""
        return [self]

    def planes_to_channels(self, feature_map: Any) -> Any:
        """Stack the planes of a map (tensor or array) as channels, so that time has its own axis.

        `(..., channels, frequency, planes * time)` -> `(..., channels * planes, frequency, time)`.
        """
        return rearrange(feature_map, "... c f (p t) -> ... (c p) f t", p=self.planes)

    def first_filters(self) -> Tensor | None:
        """Return the filters of the first layer as impulse responses at `sample_rate`; None if it has none.

        Real or complex `(filters, parts, taps)`. The power response of a filter is the sum over its parts: kernel rows
        that read other frames (GAFX-R) or other channels (GAFX-U).
        """
        return None

    def load_pretrained(self, source: bool | str) -> None:
        """Load weights saved by gafx from a model's folder, a run's folder, a `.safetensors` file or a hub repository.

        From a whole model only the tensors of the front-end are used. A front-end with weights published by others
        overrides this method to read those as well.

        Raises:
            UsageError: no weights there, or those of a front-end built differently, or trained at another sampling rate
                without `across_rates`.
        """
        path = weights.find(source, key="frontend.pretrained")
        self.check_rate(path)
        state = weights.part(weights.read(path), "frontend")
        cure = (
            "build the front-end with the arguments it was saved with (config.json next to the weights), or load what "
            "fits with gafx.load_weights(front_end, source, partial=True)"
        )
        weights.fit(self, state, path, cure=cure)
        self.record_source(path, source)

    def check_rate(self, path: Path, rate: int | None = None) -> None:
        """Raise `UsageError` if these weights were trained at another sampling rate, unless `across_rates` is set.

        A filter that is used at another rate has other frequencies. Files of other projects do not record a rate.

        Args:
            path: of the weights.
            rate: of weights that do not record one, in Hz; None if it is unknown.
        """
        rate = weights.about(path).get("sample_rate", rate)
        if isinstance(rate, int) and rate != self.sample_rate and not self.across_rates:
            raise UsageError(
                f"{path} was trained at {rate} Hz, and this front-end reads {self.sample_rate} Hz: its filters would "
                f"be at {self.sample_rate / rate:.3g} times their frequencies. Set frontend.sample_rate={rate}, or "
                "load them unchanged with frontend.across_rates=true"
            )

    def check_wave(self, wave: Tensor) -> None:
        """Raise `ValueError` unless `wave` has this front-end's shape and holds floating-point numbers."""
        if not wave.is_floating_point():
            raise ValueError(
                f"a wave of {wave.dtype} does not fit {type(self).__name__}: it takes floating-point samples in "
                f"[-1, 1] at {self.sample_rate} Hz; divide int16 samples by 32768"
            )
        if wave.ndim != 3 or wave.shape[1] != self.channels or wave.shape[2] < 1:
            raise ValueError(
                f"a wave of shape {tuple(wave.shape)} does not fit {type(self).__name__}: it takes (batch, "
                f"{self.channels}, samples) at {self.sample_rate} Hz"
            )


def check_positive(**arguments: float) -> None:
    """Raise `UsageError` for an argument of a front-end that is below 1."""
    for name, value in arguments.items():
        if value < 1:
            raise UsageError(f"frontend.{name}={value} must be at least 1")


def frequency_range(f_min: float, f_max: float | None, sample_rate: int) -> tuple[float, float]:
    """Return (f_min, f_max) in Hz with the default for `f_max`, half the sampling rate.

    Raises:
        UsageError: unless 0 <= f_min < f_max <= sample_rate / 2.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise UsageError(
            f"f_min={f_min}, f_max={f_max} must satisfy 0 <= f_min < f_max <= {sample_rate / 2} (half the rate)"
        )
    return f_min, f_max


def match_channels(wave: Tensor, channels: int) -> Tensor:
    """Convert between mono and stereo: mono is duplicated, stereo is averaged.

    `(batch, 1 or 2, samples)` -> `(batch, channels, samples)`.
    """
    if wave.shape[1] == channels:
        return wave
    return wave.expand(-1, channels, -1) if wave.shape[1] == 1 else wave.mean(dim=1, keepdim=True)
