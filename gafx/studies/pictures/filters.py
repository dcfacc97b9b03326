"""Frequency responses of a front-end's first layer, ordered by centre frequency."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.frontends.base import FrontEnd
from gafx.nn.spectral import hz_to_mel, mel_to_hz

Array = npt.NDArray[Any]
LOWEST_DB = -40.0
_POINTS = 513  # from 0 to half the rate


@dataclass(frozen=True)
class Responses:
    """Of one front-end's first layer.

    Attributes:
        name: of the front-end.
        decibels: `(frequencies, filters)`, each filter relative to its own maximum, not below `LOWEST_DB`; filters in
            the order of their centres, frequencies from 0 to half the rate.
        centre: `(filters,)` Hz, ascending: where a filter's response is greatest.
        order: which filter stands at each place.
        mel: `(filters,)` Hz: as many places evenly spaced on the mel scale (HTK's) over the same range.
        rate: sampling rate in Hz.
        taps: length of the impulse responses in samples.
    """

    name: str
    decibels: Array
    centre: Array
    order: Array
    mel: Array
    rate: int
    taps: int


def responses(front_end: FrontEnd) -> list[Responses]:
    """The first layer of a front-end, or of each part of a fused one; parts that have no such filters are left out."""
    found = []
    for part in front_end.groups():
        filters = part.first_filters()
        if filters is not None:
            found.append(measure(type(part).__module__.rpartition(".")[2], filters, part.sample_rate))
    return found


def measure(name: str, filters: Tensor, rate: int) -> Responses:
    """Power responses of impulse responses `(filters, parts, taps)`, real or complex, parts added in power."""
    taps = filters.shape[2]
    size = max(2 * (_POINTS - 1), 1 << (taps - 1).bit_length())
    wide = filters.detach().cpu().to(torch.complex128)
    power = torch.fft.fft(wide, size).abs().square().sum(dim=1)[:, : size // 2 + 1].numpy()
    frequency = np.arange(power.shape[1]) * rate / size
    centre = frequency[power.argmax(axis=1)]
    order = np.argsort(centre, kind="stable")
    relative = power[order] / np.maximum(power[order].max(axis=1, keepdims=True), 1e-30)
    decibels = np.maximum(10 * np.log10(np.maximum(relative, 1e-30)), LOWEST_DB)
    ends = hz_to_mel(torch.tensor([0.0, rate / 2], dtype=torch.float64), "htk")
    places = torch.linspace(float(ends[0]), float(ends[1]), len(order) + 2, dtype=torch.float64)[1:-1]
    return Responses(name, decibels.T, centre[order], order, mel_to_hz(places, "htk").numpy(), rate, taps)
