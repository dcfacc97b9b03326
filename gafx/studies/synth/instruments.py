"""Instruments: their parameters, and one note of each.

Sustained and decaying instruments use one synthesizer (`Voice`): the harmonics 1, 2-3, 4-7, 8-15, ... are separate
wavetables with separate envelopes, which approximates a time-varying filter. Guitars are plucked strings after Karplus
and Strong (1983), electric piano and vibraphone are phase modulation after Chowning (1973).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_TABLE = 4096
_HARMONIC_LIMITS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)

Wave = np.ndarray  # (samples,) float32


@dataclass(frozen=True)
class Voice:
    """An instrument of harmonics.

    Attributes:
        amplitude: function of the harmonic numbers k = 1, 2, ... (an array).
        attack: seconds to full level of the fundamental.
        brightening: ratio of the attack times of neighbouring octave bands, the higher to the lower.
        decay: time constant of the fundamental in seconds; infinite for sustained tones.
        dulling: ratio of the decay times of neighbouring octave bands, the higher to the lower.
        sustain: level after the decay.
        release: seconds of the fade after the note's end.
        bands: number of octave bands with separate envelopes; the last includes all higher harmonics.
        detune: detuning of each of several voices in cents.
        vibrato: depth in cents and rate in Hz.
        noise: level of breath, bow or hammer noise.
    """

    amplitude: Callable[[np.ndarray], np.ndarray]
    attack: float = 0.005
    brightening: float = 1.0
    decay: float = np.inf
    dulling: float = 0.7
    sustain: float = 0.0
    release: float = 0.08
    bands: int = 1
    detune: tuple[float, ...] = (0.0,)
    vibrato: tuple[float, float] = (0.0, 5.0)
    noise: float = 0.0


def _power(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda k: k**-exponent


def _odd(exponent: float, even: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda k: k**-exponent * np.where(k % 2 == 1, 1.0, even)


def _formant(exponent: float, centre: float, width: float, gain: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda k: k**-exponent * (1.0 + gain * np.exp(-0.5 * ((k - centre) / width) ** 2))


def _drawbars(**bars: float) -> Callable[[np.ndarray], np.ndarray]:
    levels = {int(name[1:]): level for name, level in bars.items()}
    return lambda k: np.array([levels.get(int(number), 0.0) for number in k])


VOICES: dict[str, Voice] = {
    "piano": Voice(
        lambda k: k**-1.35 * np.abs(np.sin(np.pi * k / 7.3)) ** 0.5,
        attack=0.002, decay=1.1, dulling=0.62, release=0.15, bands=5, detune=(-0.8, 0.9), noise=0.02,
    ),
    "clavinet": Voice(
        lambda k: k**-0.7 * np.abs(np.sin(np.pi * k / 5.2)),
        attack=0.001, decay=0.5, dulling=0.75, release=0.03, bands=4,
    ),
    "organ": Voice(
        _drawbars(h1=1.0, h2=0.8, h3=0.6, h4=0.5, h6=0.25, h8=0.3), attack=0.008, release=0.04, vibrato=(9.0, 6.3),
    ),
    "strings": Voice(
        _formant(1.15, 6.0, 3.0, 0.6), attack=0.14, release=0.25, detune=(-8.0, 1.0, 9.0), vibrato=(7.0, 5.2),
    ),
    "fiddle": Voice(_formant(0.9, 5.0, 2.5, 0.9), attack=0.05, release=0.07, vibrato=(16.0, 5.8), noise=0.02),
    "flute": Voice(
        _drawbars(h1=1.0, h2=0.38, h3=0.16, h4=0.05, h5=0.02),
        attack=0.06, release=0.07, vibrato=(11.0, 5.1), noise=0.07,
    ),
    "clarinet": Voice(_odd(0.95, even=0.12), attack=0.03, release=0.05, vibrato=(3.0, 4.6), noise=0.012),
    "brass": Voice(
        _formant(0.85, 4.0, 3.0, 0.5),
        attack=0.025, brightening=1.5, decay=0.25, dulling=0.85, sustain=0.7, release=0.06, bands=4,
        detune=(-4.0, 5.0), vibrato=(4.0, 5.5),
    ),
    "saw": Voice(
        _power(1.0),
        attack=0.004, decay=0.35, dulling=0.75, sustain=0.4, release=0.06, bands=4, detune=(-9.0, 8.0),
        vibrato=(3.0, 5.5),
    ),
    "square": Voice(_odd(1.0), attack=0.004, decay=0.5, sustain=0.6, release=0.05, bands=2, vibrato=(6.0, 5.5)),
    "pluck": Voice(_power(0.9), attack=0.002, decay=0.28, dulling=0.6, release=0.08, bands=5, detune=(-5.0, 6.0)),
    "pad": Voice(_power(1.9), attack=0.4, release=0.4, detune=(-7.0, 0.5, 8.0), vibrato=(4.0, 0.6)),
    "distorted_guitar": Voice(
        _formant(1.0, 3.0, 1.5, 0.4), attack=0.004, decay=2.5, dulling=0.8, release=0.05, bands=3, vibrato=(5.0, 5.0),
    ),
    "finger_bass": Voice(_power(1.5), attack=0.006, decay=0.7, dulling=0.55, release=0.06, bands=5, noise=0.02),
    "upright_bass": Voice(
        _formant(2.0, 2.0, 1.0, 0.8), attack=0.012, decay=0.4, dulling=0.55, release=0.08, bands=4, noise=0.05,
    ),
    "synth_bass": Voice(
        _power(1.0), attack=0.003, decay=0.22, dulling=0.7, sustain=0.3, release=0.04, bands=5, detune=(-4.0, 4.0),
    ),
    "sub": Voice(_drawbars(h1=1.0, h2=0.12, h3=0.04), attack=0.012, decay=2.0, sustain=0.6, release=0.06),
}  # fmt: skip

# Karplus-Strong: (decay in s, pick position as a fraction of the string, slope of the pick's spectrum).
STRINGS: dict[str, tuple[float, float, float]] = {"nylon_guitar": (0.9, 0.32, 1.1), "steel_guitar": (1.4, 0.17, 0.45)}

# Phase modulation: (ratio of the modulator, index, its decay in s, decay of the tone in s, tremolo in Hz).
MODULATED: dict[str, tuple[float, float, float, float, float]] = {
    "epiano": (1.0, 1.5, 0.35, 1.3, 0.0),
    "vibraphone": (4.0, 0.7, 0.12, 1.4, 5.5),
}

DRIVE: dict[str, float] = {"distorted_guitar": 6.0, "organ": 1.2, "clavinet": 1.2}
"""Gain before the soft clipping of a part's bus, which makes the notes of chords intermodulate."""

INSTRUMENTS: tuple[str, ...] = tuple(sorted({*VOICES, *STRINGS, *MODULATED}))


def tone(instrument: str, frequency: float, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """Return one note at full velocity, (samples,) float32.

    Args:
        instrument: of `INSTRUMENTS`.
        frequency: in Hz.
        seconds: to the start of the release, which follows.
        rate: sample rate in Hz.
        rng: for the phases and the noise.
    """
    if instrument in VOICES:
        return _voice(instrument, frequency, seconds, rate, rng)
    if instrument in STRINGS:
        return _string(*STRINGS[instrument], frequency, seconds, rate, rng)
    return _modulated(*MODULATED[instrument], frequency, seconds, rate)


def _fade_out(wave: Wave, seconds: float, release: float, rate: int) -> Wave:
    """Fade `wave` out after `seconds` seconds, in place."""
    held = min(round(seconds * rate), wave.size)
    tail = wave.size - held
    if tail:
        wave[held:] *= np.square(np.linspace(1.0, 0.0, tail, dtype=np.float32))
    return wave


@lru_cache(maxsize=256)
def _tables(instrument: str, harmonics: int) -> np.ndarray:
    """Return one period of each octave band of the instrument up to `harmonics`, (bands, table) float32."""
    voice = VOICES[instrument]
    k = np.arange(1, harmonics + 1)
    amplitude = voice.amplitude(k.astype(np.float64))
    band = np.minimum(np.floor(np.log2(k)).astype(int), voice.bands - 1)
    # Fixed scattered phases give a low crest factor; with zero phases the wave is a pulse.
    phase = np.exp(2j * np.pi * ((0.61803398875 * k * k) % 1.0))
    spectra = np.zeros((voice.bands, _TABLE // 2 + 1), dtype=np.complex128)
    spectra[band, k] = amplitude * phase
    tables = np.fft.irfft(spectra, axis=1) * _TABLE / np.sqrt(np.sum(amplitude**2))
    return tables.astype(np.float32)


def _voice(instrument: str, frequency: float, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    voice = VOICES[instrument]
    allowed = 0.45 * rate / frequency
    harmonics = max((limit for limit in _HARMONIC_LIMITS if limit <= allowed), default=1)
    tables = _tables(instrument, harmonics)
    samples = round((seconds + voice.release) * rate)
    time = np.arange(samples, dtype=np.float32) / np.float32(rate)
    depth, speed = voice.vibrato
    sway = None
    if depth and seconds > 0.2:
        # Vibrato starts after a delay. The phase is the integral of the modulated frequency.
        excursion = frequency * (2.0 ** (depth / 1200.0) - 1.0) / (2.0 * np.pi * speed)
        onset = np.minimum(time / np.float32(0.35), 1.0)
        sway = (excursion * onset * np.sin(np.float32(2.0 * np.pi * speed) * time + rng.uniform(0.0, 6.28))).astype(
            np.float32
        )
    indices = []
    for cents in voice.detune:
        # Over thousands of periods float32 phases have audible jitter.
        phase = np.arange(samples) * (frequency * 2.0 ** (cents / 1200.0) / rate) + rng.random()
        if sway is not None:
            phase += sway
        phase *= _TABLE
        phase += 1024 * _TABLE  # the index must not be negative where the sway precedes the start
        indices.append(phase.astype(np.int64) & (_TABLE - 1))
    wave = np.zeros(samples, dtype=np.float32)
    for band, table in enumerate(tables):
        if band and not table.any():
            continue
        sound = table.take(indices[0])
        for index in indices[1:]:
            sound += table.take(index)
        if np.isfinite(voice.decay):
            decay = np.exp(time / np.float32(-voice.decay * voice.dulling**band))
            sound *= voice.sustain + (1.0 - voice.sustain) * decay if voice.sustain else decay
        _fade_in(sound, voice.attack * voice.brightening**band, rate)
        wave += sound
    wave /= np.float32(len(indices) ** 0.5)
    if voice.noise:
        noise = rng.standard_normal(samples, dtype=np.float32)
        noise[1:] += noise[:-1]
        if np.isfinite(voice.decay):
            noise *= np.exp(time * np.float32(-60.0)) * 4.0  # of a hammer or finger: short; breath is sustained
        else:
            _fade_in(noise, voice.attack, rate)
        wave += np.float32(voice.noise) * noise
    return _fade_out(wave, seconds, voice.release, rate)


def _fade_in(wave: Wave, seconds: float, rate: int) -> None:
    count = min(max(2, round(seconds * rate)), wave.size)
    wave[:count] *= 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, count, dtype=np.float32))


def _string(
    decay: float, pick: float, slope: float, frequency: float, seconds: float, rate: int, rng: np.random.Generator
) -> Wave:
    """Synthesize a plucked string: one period of filtered noise, low-passed again in every period."""
    period = max(4, int(np.ceil(rate / frequency)))
    samples = round((seconds + 0.1) * rate)
    turns = int(np.ceil(samples * frequency / rate)) + 2
    k = np.arange(period // 2 + 1)
    pluck = np.fft.rfft(rng.uniform(-1.0, 1.0, period))
    pluck = pluck / (np.abs(pluck) + 0.15)  # keep the phases of the noise, and a part of its unevenness
    pluck *= np.maximum(k, 1) ** -slope * np.abs(np.sin(np.pi * k * pick))
    pluck[0] = 0.0
    # All turns at once: the loop's filter, a two-point average, is a power of a cosine after m turns. Low strings
    # turn less often in a second, so the loss is set per turn for the same decay.
    loss = np.log(np.maximum(np.cos(np.pi * k / period), 1e-3)) * 0.5 - 1.0 / (decay * frequency)
    turned = np.fft.irfft(pluck * np.exp(np.arange(turns)[:, None] * loss), n=period, axis=1).ravel()
    # The loop has an integer number of samples; reading it slower corrects the pitch.
    position = np.arange(samples) * (period * frequency / rate)
    whole = position.astype(np.int64)
    part = position - whole
    wave = (turned[whole] * (1.0 - part) + turned[whole + 1] * part).astype(np.float32)
    wave /= np.float32(np.sqrt(np.mean(np.square(turned[:period]))) + 1e-9)
    return _fade_out(wave, seconds, 0.1, rate)


def _modulated(
    ratio: float,
    index: float,
    index_decay: float,
    decay: float,
    tremolo: float,
    frequency: float,
    seconds: float,
    rate: int,
) -> Wave:
    samples = round((seconds + 0.12) * rate)
    time = np.arange(samples) / rate
    # High notes get a lower index, to avoid aliasing of their sidebands.
    index = min(index, max(0.0, 0.45 * rate / (ratio * frequency) - 1.0) * 0.5)
    angle = (2.0 * np.pi * ((frequency * time) % 1.0)).astype(np.float32)
    time = time.astype(np.float32)
    modulator = np.sin(np.float32(ratio) * angle) * (index * (0.25 + 0.75 * np.exp(time / np.float32(-index_decay))))
    wave = np.sin(angle + modulator) * np.exp(time / np.float32(-decay)) * np.float32(1.4)
    if tremolo:
        wave *= 0.8 + 0.2 * np.sin(np.float32(2.0 * np.pi * tremolo) * time)
    wave = wave.astype(np.float32)
    _fade_in(wave, 0.002, rate)
    return _fade_out(wave, seconds, 0.12, rate)
