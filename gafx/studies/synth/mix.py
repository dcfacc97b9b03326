"""Mix: levels of the parts, reverberation, spectral tilt and loudness.

Each part has its own bus; reverberation and filtering are applied to all buses at once in the frequency domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gafx.studies.synth.score import Score

# Gain of each bus into the reverberation, and its level in dB before the score's own levels.
_SENDS = {"drums": 0.6, "bass": 0.15, "chords": 1.0, "melody": 1.0}
_BALANCE = {"drums": 0.0, "bass": -1.0, "chords": 0.0, "melody": 1.0}


@dataclass(frozen=True)
class Room:
    """Room and filter of a mix without a score; the fields are those of `Score`."""

    room: float
    wet: float
    tilt: float
    cutoff: float


def set_level(bus: np.ndarray, part: str, level: float, rate: int) -> None:
    """Scale the bus of a part in place to `level` dB relative to the accompaniment; a silent one stays silent."""
    loud = _active_rms(bus, rate)
    if loud > 0.0:
        bus *= 10.0 ** ((level + _BALANCE[part]) / 20.0) / loud


def mix(
    buses: np.ndarray, parts: Sequence[str], score: Score | Room, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Sum the buses, add reverberation, tilt and band-limit the result: (parts, samples) -> (samples,)."""
    from scipy import fft  # here, so that composing alone imports no scipy

    samples = buses.shape[1]
    impulse = impulse_response(score.room, rate, rng)
    length = fft.next_fast_len(samples + impulse.size, real=True)
    sends = np.array([_SENDS[part] for part in parts], dtype=np.float32)
    both = np.stack([buses.sum(axis=0), sends @ buses, np.zeros(samples, dtype=np.float32)])
    both[2, : min(samples, impulse.size)] = impulse[:samples]
    dry, sent, echo = fft.rfft(both, n=length, axis=1)
    hertz = np.maximum(np.fft.rfftfreq(length, 1.0 / rate), 20.0).astype(np.float32)
    spectrum = dry + np.float32(10.0 ** (score.wet / 20.0)) * sent * echo
    octaves = np.clip(np.log2(hertz / np.float32(1000.0)), -4.0, 4.0)
    spectrum *= np.exp2(octaves * np.float32(score.tilt / 6.0206))
    spectrum /= np.sqrt((1.0 + (hertz / np.float32(score.cutoff)) ** 8) * (1.0 + (np.float32(30.0) / hertz) ** 4))
    return fft.irfft(spectrum, n=length)[:samples]


def impulse_response(room: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return the impulse response of a room of reverberation time `room` in s, without the direct sound; energy 1.

    Noise that decays faster at high frequencies, after a delay of 5 to 25 ms that increases with `room`.
    """
    delay = round((0.005 + 0.02 * min(room / 3.0, 1.0)) * rate)
    samples = round(min(room, 3.0) * rate)
    time = np.arange(samples, dtype=np.float32) / np.float32(rate)
    noise = rng.standard_normal((2, samples), dtype=np.float32)
    dark = noise[0]
    dark[2:] = (dark[2:] + dark[1:-1] + dark[:-2]) / np.float32(3.0**0.5)
    fall = np.float32(-6.9078 / room)  # 60 dB are a factor of exp(6.9078)
    decay = np.exp(fall * time)
    response = np.concatenate([np.zeros(delay, dtype=np.float32), dark * decay + 0.6 * noise[1] * decay * decay])
    return response / np.float32(np.sqrt(np.sum(response**2)) + 1e-9)


def set_loudness(wave: np.ndarray, loudness: float) -> np.ndarray:
    """Scale to an RMS of `loudness` dBFS, with soft clipping of peaks below full scale."""
    target = 10.0 ** (loudness / 20.0)
    gain = target / max(rms(wave), 1e-9)
    if gain * float(np.abs(wave).max()) > 0.5:
        # Clipping reduces the RMS: raise the gain until the clipped RMS fits, measured on a tenth of the samples; the
        # last factor below makes it exact.
        sparse = wave[::10]
        for _ in range(8):
            gain *= target / max(rms(_soft_clip(gain * sparse)), 1e-9)
        wave = _soft_clip(np.float32(gain) * wave)
        gain = target / max(rms(wave), 1e-9)
    return np.clip(np.float32(gain) * wave, -1.0, 1.0).astype(np.float32)


def _soft_clip(wave: np.ndarray) -> np.ndarray:
    """Clip softly: identity up to 0.5, above it a tanh of the same slope that approaches 0.98."""
    size = np.abs(wave)
    loud = size > 0.5
    bent = wave.copy()
    bent[loud] = np.sign(wave[loud]) * (0.5 + 0.48 * np.tanh((size[loud] - 0.5) / 0.48))
    return bent


def rms(wave: np.ndarray) -> float:
    """Return the root mean square; 0 for no samples."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if wave.size else 0.0


def _active_rms(bus: np.ndarray, rate: int) -> float:
    """Return the RMS over the blocks of 0.1 s that are not silent, so that rests do not raise a part's level."""
    block = max(1, rate // 10)
    whole = bus[: bus.size // block * block].reshape(-1, block)
    power = np.einsum("ij,ij->i", whole, whole) / block
    if not power.size or power.max() <= 0.0:
        return rms(bus)
    return float(np.sqrt(power[power > 1e-3 * power.max()].mean()))
