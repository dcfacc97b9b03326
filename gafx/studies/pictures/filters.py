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
_POINTS = 513  # from 0 to half the sampling rate


@dataclass(frozen=True)
class Responses:
    """Responses of one front-end's first layer.

    Attributes:
        name: of the front-end.
        decibels: `(frequencies, filters)`, each filter relative to its own maximum, at least `LOWEST_DB`; filters are
            ordered by centre frequency, frequencies range from 0 to half the sampling rate.
        centre: `(filters,)` Hz, ascending: frequency of the greatest response.
        order: `(filters,)` index of each filter in the layer.
        mel: `(filters,)` Hz: as many points spaced evenly on the mel scale (HTK's) over the same range.
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
    """Measure the first layer of a front-end, or of each part of a fused one that has filters."""
    return [
        measure(type(part).__module__.rpartition(".")[2], filters, part.sample_rate)
        for part in front_end.groups()
        if (filters := part.first_filters()) is not None
    ]


def measure(name: str, filters: Tensor, rate: int) -> Responses:
    """Compute the power responses of impulse responses `(filters, parts, taps)`, summed over the parts."""
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
    points = torch.linspace(float(ends[0]), float(ends[1]), len(order) + 2, dtype=torch.float64)[1:-1]
    return Responses(name, decibels.T, centre[order], order, mel_to_hz(points, "htk").numpy(), rate, taps)
