"""The seam between waves and maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gafx.errors import UsageError
from gafx.nn.part import Part
from gafx.saving import weights
from gafx.saving.info import WeightSource

Shape = tuple[int, int, int]


class FrontEnd(Part):
    """Turns waves into spectrogram-like maps.

    A wave is `(batch, channels, samples)`, float32 in [-1, 1]; a map is `(batch, map channels, frequency, time)`,
    float. A subclass registers itself (`@FRONTENDS.register`) under its module's name, takes its configuration as
    keyword-only arguments of simple types, sets the attributes below and implements `output_shape` and `forward`.

    Attributes:
        sample_rate: of the waves, in Hz.
        channels: of the waves, 1 or 2.
        learned: whether its map moves in training; then maps are normalised clip by clip, else by training statistics.
        across_rates: whether `pretrained` may be weights that were made at another sampling rate.
        planes: maps laid one after another along time that positions and masks must not cross; 1 for an ordinary map.
        one_length: why an exported model reads waves of one length only; None where any length goes through the same
            operations.
        built: its name and all its arguments where `gafx.create_frontend` built it; a saved model is rebuilt from them.
    """

    sample_rate: int
    channels: int = 1
    learned: bool = True
    across_rates: bool = False
    planes: int = 1
    one_length: str | None = None
    built: dict[str, Any] | None = None

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        fixed = not cls.learned and "pretrained" not in arguments
        return WeightSource("fixed") if fixed else super().source_of(arguments)

    def output_shape(self, samples: int) -> Shape:
        """(channels, frequency, time) of the map of a wave of so many samples."""
        raise NotImplementedError

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> `(batch, *output_shape(samples))`."""
        raise NotImplementedError

    def groups(self) -> "Sequence[FrontEnd]":
        """The front-ends whose maps are normalised apart from each other: itself, or the parts of a fused one."""
        return [self]

    def first_filters(self) -> Tensor | None:
        """What the first layer does to the wave: impulse responses `(filters, parts, taps)` at `sample_rate`, real or
        complex; None where it is no set of filters over samples.

        Parts of a filter read places or channels apart from each other (GAFX-R's rows of 7 lie a frame apart); a
        filter's power response is their sum.
        """
        return None

    def load_pretrained(self, source: bool | str) -> None:
        """Load weights that gafx saved: of a model's folder, a run's, a `.safetensors` file, or a hub repository.

        Of a whole model the front-end's tensors are taken, whatever its classifier. A front-end for which others have
        published weights overrides this and reads theirs as well.

        Raises:
            UsageError: nothing there, or weights of a front-end built differently, or made at another sampling rate
                without `across_rates`.
        """
        path = weights.find(source, key="frontend.pretrained")
        self.check_rate(path)
        state = weights.part(weights.read(path), "frontend")
        cure = (
            "build the front-end with the arguments it was saved with (config.json beside the weights), or take what "
            "fits with gafx.load_weights(front_end, source, partial=True)"
        )
        weights.fit(self, state, path, cure=cure)
        self.record_source(path, source)

    def check_rate(self, path: Path) -> None:
        """Raise `UsageError` if gafx saved these weights at another sampling rate, unless `across_rates` is set.

        A filter learned at one rate lies at other frequencies at another. Files of others do not say their rate.
        """
        rate = weights.about(path).get("sample_rate")
        if isinstance(rate, int) and rate != self.sample_rate and not self.across_rates:
            raise UsageError(
                f"{path} was made at {rate} Hz, and this front-end reads {self.sample_rate} Hz: its filters would lie "
                f"at {self.sample_rate / rate:.3g} times their frequencies. Set frontend.sample_rate={rate}, or take "
                "them as they are with frontend.across_rates=true"
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


def match_channels(wave: Tensor, channels: int) -> Tensor:
    """`(batch, 1 or 2, samples)` -> `(batch, channels, samples)`: mono is duplicated, stereo averaged."""
    if wave.shape[1] == channels:
        return wave
    return wave.expand(-1, channels, -1) if wave.shape[1] == 1 else wave.mean(dim=1, keepdim=True)
