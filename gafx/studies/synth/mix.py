"""The mix: levels of the parts, the room, the tilt and the loudness of the whole.

Each part has its own bus; the room and the shaping of the bands are done on all buses at once in the frequency domain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gafx.studies.synth.score import Score

# Share of each bus that is sent to the room, and its level in dB before the score's own levels.
_SENDS = {"drums": 0.6, "bass": 0.15, "chords": 1.0, "melody": 1.0}
_BALANCE = {"drums": 0.0, "bass": -1.0, "chords": 0.0, "melody": 1.0}


def set_level(bus: np.ndarray, part: str, level: float, rate: int) -> None:
    """Scale the bus of a part in place to `level` dB against the accompaniment; a silent one stays silent."""
    loud = _active_rms(bus, rate)
    if loud > 0.0:
        bus *= 10.0 ** ((level + _BALANCE[part]) / 20.0) / loud


def mix(buses: np.ndarray, parts: Sequence[str], score: Score, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Sum the buses, put them into the room, tilt and band-limit the result: (parts, samples) -> (samples,)."""
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
    """Impulse response of a room of reverberation time `room` in s: decaying noise, the treble dying first; energy 1.

    Without the direct sound, and after a delay of 5 to 25 ms that grows with the room.
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
    """Scale to an RMS of `loudness` dBFS, bending peaks softly below full scale, as mastering does."""
    target = 10.0 ** (loudness / 20.0)
    gain = target / max(rms(wave), 1e-9)
    if gain * float(np.abs(wave).max()) > 0.5:
        # Clipping takes energy: raise the gain until the clipped RMS fits. A tenth of the samples decide well enough,
        # since the last factor below makes the figure exact.
        sparse = wave[::10]
        for _ in range(8):
            gain *= target / max(rms(_bend(gain * sparse)), 1e-9)
        wave = _bend(np.float32(gain) * wave)
        gain = target / max(rms(wave), 1e-9)
    return np.clip(np.float32(gain) * wave, -1.0, 1.0).astype(np.float32)


def _bend(wave: np.ndarray) -> np.ndarray:
    """Unchanged up to 0.5, then towards 0.98 along a tanh with the same slope."""
    size = np.abs(wave)
    loud = size > 0.5
    bent = wave.copy()
    bent[loud] = np.sign(wave[loud]) * (0.5 + 0.48 * np.tanh((size[loud] - 0.5) / 0.48))
    return bent


def rms(wave: np.ndarray) -> float:
    """Root of the mean square; 0 for no samples."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if wave.size else 0.0


def _active_rms(bus: np.ndarray, rate: int) -> float:
    """RMS over the tenths of a second in which the part sounds, so a sparse part is not turned up for its rests."""
    block = max(1, rate // 10)
    whole = bus[: bus.size // block * block].reshape(-1, block)
    power = np.einsum("ij,ij->i", whole, whole) / block
    if not power.size or power.max() <= 0.0:
        return rms(bus)
    return float(np.sqrt(power[power > 1e-3 * power.max()].mean()))
