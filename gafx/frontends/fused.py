"""Fused front-end: the maps of several front-ends as channels of one map."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, Shape, match_channels
from gafx.registry import FRONTENDS
from gafx.saving.info import WeightSource

# Lengths in samples at which the grids of the parts are compared: around block borders, where rounding differs, and a
# whole clip.
_PROBES = (1, 199, 200, 201, 1023, 1024, 1025, 22_050, 160_001, 661_600)


@FRONTENDS.register
class Fused(FrontEnd):
    """Several front-ends on one grid, with their maps as channels of one map.

    In published work a waveform front-end with log-mel is better than either alone (PANNs: Wavegram-Logmel). The map of
    each part is normalised separately: as that part's `map_norm` says.

    `create_frontend("fused", parts={"mel": {"name": "mel"}, "wave": {"name": "gafx_r", "width": 16}})`. The parts must
    have equal sampling rate, frequency bins and frames: `mel`, `gafx_r`, `gafx_a` and `leaf` do by default, `gafx_u`
    with `sources=channels` and `mel` with `sample_rate=16000 hop_length=1024 win_length=2048` do. If any part is
    stereo, the fused front-end is: mono parts then read the mean of both channels.

    Args:
        parts: a name of your choice for each part -> its front-end's name and arguments, including `pretrained`. By
            default `mel` and `gafx_r`.
        pretrained: weights saved by gafx of a fused front-end with these parts, see `FrontEnd.load_pretrained`.
        across_rates: also accept `pretrained` weights that were trained at another sampling rate.
    """

    nested: ClassVar = ("parts",)
    default_parts: ClassVar = {name: {"name": name} for name in ("mel", "gafx_r")}

    def __init__(self, *, parts: dict | None = None, pretrained: bool | str = False, across_rates: bool = False):
        super().__init__()
        self.across_rates = across_rates
        self.parts = nn.ModuleDict()
        for key, arguments in (self.default_parts if parts is None else parts).items():
            # nn.ModuleDict raises a KeyError for names that are attributes of a module.
            if not str(key).isidentifier() or hasattr(self.parts, key):
                raise UsageError(f"frontend.parts: {key!r} cannot be a part's name; choose another, e.g. 'a'")
            arguments = dict(arguments)
            self.parts[key] = FRONTENDS.create(arguments.pop("name"), **arguments)
        fronts = self._fronts()
        self.channels = max(front.channels for front in fronts)
        self.sample_rate = fronts[0].sample_rate
        self.learned = any(front.learned for front in fronts)
        self.planes = fronts[0].planes
        self.fixed_length = next((front.fixed_length for front in fronts if front.fixed_length), None)
        self.not_exportable = next((front.not_exportable for front in fronts if front.not_exportable), None)
        self.fsdp_units = tuple({unit: None for front in fronts for unit in front.fsdp_units})
        self._check_grid()
        if pretrained is not False:
            self.load_pretrained(pretrained)

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        if arguments.get("pretrained", False) is not False:
            return super().source_of(arguments)
        parts = arguments.get("parts") or {}
        classes: dict[str, Any] = {key: FRONTENDS.get(part["name"]) for key, part in parts.items()}
        sources = {key: classes[key].source_of(part) for key, part in parts.items()}
        if all(source.is_plain for source in sources.values()):
            return WeightSource()
        return WeightSource("mixed", ", ".join(f"{key}: {source.describe()}" for key, source in sources.items()))

    def no_weight_decay(self) -> set[str]:
        parts = zip(self.parts, self._fronts(), strict=True)
        return {f"parts.{key}.{name}" for key, front in parts for name in front.no_weight_decay()}

    def groups(self) -> list[FrontEnd]:
        return [group for front in self._fronts() for group in front.groups()]

    def output_shape(self, samples: int) -> Shape:
        shapes = [front.output_shape(samples) for front in self._fronts()]
        return (sum(channels for channels, _, _ in shapes), *shapes[0][1:])

    def forward(self, wave: Tensor) -> Tensor:
        """`(batch, 1 or channels, samples)` -> the maps of the parts, concatenated along the channels."""
        if wave.ndim == 3 and wave.shape[1] == 1:
            wave = match_channels(wave, self.channels)
        self.check_wave(wave)
        return torch.cat([front(match_channels(wave, front.channels)).float() for front in self._fronts()], dim=1)

    def _fronts(self) -> list[FrontEnd]:
        return list(self.parts.values())  # type: ignore[arg-type]

    def _check_grid(self) -> None:
        fronts = self._fronts()
        for key, front in self.parts.items():
            assert isinstance(front, FrontEnd)
            for what, here, first in (
                ("sampling rate", front.sample_rate, fronts[0].sample_rate),
                ("number of planes in time", front.planes, fronts[0].planes),
                *((f"grid (frequency, time) of {n} samples", front.output_shape(n)[1:], fronts[0].output_shape(n)[1:])
                  for n in _PROBES),
            ):  # fmt: skip
                if here != first:
                    raise UsageError(
                        f"frontend.parts.{key} does not share the {what} of {next(iter(self.parts))!r}: {here} and "
                        f"{first}; give both the same sample_rate and hop (mel: sample_rate, hop_length, n_mels)"
                    )
