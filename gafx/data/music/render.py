"""Score -> samples: small synthesizers, a drum kit, a room and a loudness stage, in numpy and scipy.fft.

Sustained and decaying instruments share one synthesizer (`Voice`): the harmonics 1, 2-3, 4-7, 8-15, ... are kept as
separate wavetables, each with an envelope of its own, which is what a filter that moves during the note does to a
tone. Guitars are strings after Karplus and Strong (1983), electric piano and vibraphone are phase modulation after
Chowning (1973), drums are swept sines and shaped noise. Each part has its own bus; band shaping and the room are done
on all buses at once in the frequency domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gafx.data.music.score import Score, stream

SAMPLE_RATES = (8000, 96000)
_TABLE = 4096
_HARMONIC_LIMITS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)

Wave = np.ndarray  # (samples,) float32


@dataclass(frozen=True)
class Voice:
    """An instrument of harmonics.

    Attributes:
        amplitude: of harmonic k (1, 2, ...), an array to an array.
        attack: seconds to full level of the fundamental.
        brightening: factor by which each higher octave band's attack is longer (below 1: shorter).
        decay: time constant of the fundamental in seconds; infinite for a tone that is held.
        dulling: factor by which each higher octave band's decay is shorter.
        sustain: level on which the decay settles.
        release: seconds of the fade after the note's end.
        bands: number of octave bands with envelopes of their own; the last takes all that is above.
        detune: cents by which each of several voices differs; one entry a voice.
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
        attack=0.002,
        decay=1.1,
        dulling=0.62,
        release=0.15,
        bands=5,
        detune=(-0.8, 0.9),
        noise=0.02,
    ),
    "clavinet": Voice(
        lambda k: k**-0.7 * np.abs(np.sin(np.pi * k / 5.2)),
        attack=0.001,
        decay=0.5,
        dulling=0.75,
        release=0.03,
        bands=4,
    ),
    "organ": Voice(
        _drawbars(h1=1.0, h2=0.8, h3=0.6, h4=0.5, h6=0.25, h8=0.3), attack=0.008, release=0.04, vibrato=(9.0, 6.3)
    ),
    "strings": Voice(
        _formant(1.15, 6.0, 3.0, 0.6), attack=0.14, release=0.25, detune=(-8.0, 1.0, 9.0), vibrato=(7.0, 5.2)
    ),
    "fiddle": Voice(_formant(0.9, 5.0, 2.5, 0.9), attack=0.05, release=0.07, vibrato=(16.0, 5.8), noise=0.02),
    "flute": Voice(
        _drawbars(h1=1.0, h2=0.38, h3=0.16, h4=0.05, h5=0.02),
        attack=0.06,
        release=0.07,
        vibrato=(11.0, 5.1),
        noise=0.07,
    ),
    "clarinet": Voice(_odd(0.95, even=0.12), attack=0.03, release=0.05, vibrato=(3.0, 4.6), noise=0.012),
    "brass": Voice(
        _formant(0.85, 4.0, 3.0, 0.5),
        attack=0.025,
        brightening=1.5,
        decay=0.25,
        dulling=0.85,
        sustain=0.7,
        release=0.06,
        bands=4,
        detune=(-4.0, 5.0),
        vibrato=(4.0, 5.5),
    ),
    "saw": Voice(
        _power(1.0),
        attack=0.004,
        decay=0.35,
        dulling=0.75,
        sustain=0.4,
        release=0.06,
        bands=4,
        detune=(-9.0, 8.0),
        vibrato=(3.0, 5.5),
    ),
    "square": Voice(_odd(1.0), attack=0.004, decay=0.5, sustain=0.6, release=0.05, bands=2, vibrato=(6.0, 5.5)),
    "pluck": Voice(
        _power(0.9), attack=0.002, decay=0.28, dulling=0.6, release=0.08, bands=5, detune=(-5.0, 6.0)
    ),
    "pad": Voice(_power(1.9), attack=0.4, release=0.4, detune=(-7.0, 0.5, 8.0), vibrato=(4.0, 0.6)),
    "distorted_guitar": Voice(
        _formant(1.0, 3.0, 1.5, 0.4), attack=0.004, decay=2.5, dulling=0.8, release=0.05, bands=3, vibrato=(5.0, 5.0)
    ),
    "finger_bass": Voice(_power(1.5), attack=0.006, decay=0.7, dulling=0.55, release=0.06, bands=5, noise=0.02),
    "upright_bass": Voice(
        _formant(2.0, 2.0, 1.0, 0.8), attack=0.012, decay=0.4, dulling=0.55, release=0.08, bands=4, noise=0.05
    ),
    "synth_bass": Voice(
        _power(1.0), attack=0.003, decay=0.22, dulling=0.7, sustain=0.3, release=0.04, bands=5, detune=(-4.0, 4.0)
    ),
    "sub": Voice(_drawbars(h1=1.0, h2=0.12, h3=0.04), attack=0.012, decay=2.0, sustain=0.6, release=0.06),
}  # fmt: skip

# Karplus-Strong: (seconds to decay, pick position as a share of the string, slope of the pick's spectrum).
STRINGS: dict[str, tuple[float, float, float]] = {"nylon_guitar": (0.9, 0.32, 1.1), "steel_guitar": (1.4, 0.17, 0.45)}

# Phase modulation: (ratio of the modulator, index, its decay in s, decay of the tone in s, tremolo in Hz).
MODULATED: dict[str, tuple[float, float, float, float, float]] = {
    "epiano": (1.0, 1.5, 0.35, 1.3, 0.0),
    "vibraphone": (4.0, 0.7, 0.12, 1.4, 5.5),
}

DRIVE: dict[str, float] = {"distorted_guitar": 6.0, "organ": 1.2, "clavinet": 1.2}
"""Gain into the soft clipping of a part's whole bus, so that chords intermodulate as they do in an amplifier."""

INSTRUMENTS: tuple[str, ...] = tuple(sorted({*VOICES, *STRINGS, *MODULATED}))

# Kick: start and end of the sweep in Hz, decay in s, click. Snare: tone in Hz, share of tone, noise band in Hz, decay.
# Cymbals: lower band limit in Hz, decay of the closed hat in s. Everything: upper band limit in Hz.
KITS: dict[str, dict[str, float]] = {
    "acoustic": dict(kick=130, kick_end=58, kick_decay=0.16, click=0.5, snare=195, tone=0.5, low=900, high=9000,
                     snare_decay=0.13, hat=5500, hat_decay=0.045, limit=11000),
    "machine": dict(kick=190, kick_end=47, kick_decay=0.3, click=0.25, snare=180, tone=0.35, low=1500, high=10000,
                    snare_decay=0.1, hat=7200, hat_decay=0.03, limit=11000),
    "brush": dict(kick=90, kick_end=60, kick_decay=0.1, click=0.12, snare=210, tone=0.2, low=700, high=6500,
                  snare_decay=0.09, hat=4800, hat_decay=0.06, limit=9000),
    "lofi": dict(kick=110, kick_end=52, kick_decay=0.2, click=0.2, snare=170, tone=0.45, low=600, high=4500,
                 snare_decay=0.11, hat=3800, hat_decay=0.04, limit=5500),
}  # fmt: skip

DRUMS: tuple[str, ...] = (
    "kick", "snare", "clap", "rim", "brush", "hat", "open_hat", "ride", "crash", "shaker", "tom",
)  # fmt: skip

# Share of each bus that is sent to the room, and its level in dB before the score's own levels.
_SENDS = {"drums": 0.6, "bass": 0.15, "chords": 1.0, "melody": 1.0}
_BALANCE = {"drums": 0.0, "bass": -1.0, "chords": 0.0, "melody": 1.0}


def render(score: Score, sample_rate: int = 22050) -> np.ndarray:
    """Play a score.

    Args:
        score: from `compose`.
        sample_rate: in Hz, 8000 to 96000.

    Returns:
        (samples,) float32 in [-1, 1], mono, `round(score.seconds * sample_rate)` samples, whose RMS is
        `score.loudness` in dBFS. The same bytes for the same score on the same machine and library versions.

    Raises:
        ValueError: a sample rate out of range.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise ValueError(f"sample_rate is {sample_rate!r}; it must be a whole number of Hz.")
    if not SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]:
        raise ValueError(f"sample_rate is {sample_rate}; choose one from {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz.")
    rate = int(sample_rate)
    samples = round(score.seconds * rate)
    rng = stream(score.seed, score.genre, score.index, "render")
    parts = ("drums", "bass", "chords", "melody")
    buses = np.zeros((len(parts), samples), dtype=np.float32)
    _play_drums(buses[0], score, rate, rng)
    _play_notes(buses, parts, score, rate, rng)
    for bus, part in zip(buses, parts, strict=True):
        drive = DRIVE.get(score.instruments.get(part, ""), 0.0)
        if drive:
            np.tanh(bus * (drive / (_rms(bus) * 3.0 + 1e-9)), out=bus)
        level = _active_rms(bus, rate)
        if level > 0.0:
            bus *= 10.0 ** ((score.levels[part] + _BALANCE[part]) / 20.0) / level
    return _set_loudness(_mix(buses, parts, score, rate, rng), score.loudness)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if wave.size else 0.0


def _active_rms(bus: np.ndarray, rate: int) -> float:
    """RMS over the tenths of a second in which the part sounds, so a sparse part is not turned up for its rests."""
    block = max(1, rate // 10)
    whole = bus[: bus.size // block * block].reshape(-1, block)
    power = np.einsum("ij,ij->i", whole, whole) / block
    if not power.size or power.max() <= 0.0:
        return _rms(bus)
    return float(np.sqrt(power[power > 1e-3 * power.max()].mean()))


def _add(bus: np.ndarray, wave: np.ndarray, start: float, gain: float, rate: int) -> None:
    first = round(start * rate)
    last = min(first + wave.size, bus.size)
    if first < last:
        bus[first:last] += gain * wave[: last - first]


def _play_notes(buses: np.ndarray, parts: tuple[str, ...], score: Score, rate: int, rng: np.random.Generator) -> None:
    # Lengths are rounded up to a fiftieth of a second: repeated notes of a pattern, whose timing differs a little,
    # then share one waveform.
    cache: dict[tuple[str, int, int], np.ndarray] = {}
    tuning = {part: float(rng.normal(0.0, 3.0)) for part in parts}
    for note in score.notes:
        instrument = score.instruments[note.part]
        length = int(np.ceil(note.duration * 50.0))
        key = (note.part, note.pitch, length)
        if key not in cache:
            frequency = 440.0 * 2.0 ** ((note.pitch - 69 + tuning[note.part] / 100.0) / 12.0)
            cache[key] = _tone(instrument, frequency, length / 50.0, rate, rng)
        _add(buses[parts.index(note.part)], cache[key], note.start, note.velocity, rate)


def _tone(instrument: str, frequency: float, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    if instrument in VOICES:
        return _voice(instrument, frequency, seconds, rate, rng)
    if instrument in STRINGS:
        return _string(*STRINGS[instrument], frequency, seconds, rate, rng)
    return _modulated(*MODULATED[instrument], frequency, seconds, rate)


def _fade_out(wave: Wave, seconds: float, release: float, rate: int) -> Wave:
    """Let `wave` fall to nothing within `release` seconds after `seconds`."""
    held = min(round(seconds * rate), wave.size)
    tail = wave.size - held
    if tail:
        wave[held:] *= np.square(np.linspace(1.0, 0.0, tail, dtype=np.float32))
    return wave


@lru_cache(maxsize=256)
def _tables(instrument: str, harmonics: int) -> np.ndarray:
    """(bands, table) float32: one period of each octave band of the instrument, cut at `harmonics`."""
    voice = VOICES[instrument]
    k = np.arange(1, harmonics + 1)
    amplitude = voice.amplitude(k.astype(np.float64))
    band = np.minimum(np.floor(np.log2(k)).astype(int), voice.bands - 1)
    # Fixed scattered phases keep the crest factor of rich tones low; all-zero phases would make a pulse.
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
        # Vibrato sets in late, as players do. The phase is the integral of the bent frequency.
        excursion = frequency * (2.0 ** (depth / 1200.0) - 1.0) / (2.0 * np.pi * speed)
        onset = np.minimum(time / np.float32(0.35), 1.0)
        sway = (excursion * onset * np.sin(np.float32(2.0 * np.pi * speed) * time + rng.uniform(0.0, 6.28))).astype(
            np.float32
        )
    indices = []
    for cents in voice.detune:
        # The phase grows to thousands of periods; float32 would put audible jitter on it.
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
        tone = table.take(indices[0])
        for index in indices[1:]:
            tone += table.take(index)
        if np.isfinite(voice.decay):
            decay = np.exp(time / np.float32(-voice.decay * voice.dulling**band))
            tone *= voice.sustain + (1.0 - voice.sustain) * decay if voice.sustain else decay
        _fade_in(tone, voice.attack * voice.brightening**band, rate)
        wave += tone
    wave /= np.float32(len(indices) ** 0.5)
    if voice.noise:
        noise = rng.standard_normal(samples, dtype=np.float32)
        noise[1:] += noise[:-1]
        if np.isfinite(voice.decay):
            noise *= np.exp(time * np.float32(-60.0)) * 4.0  # a hammer or a finger, once; breath goes on
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
    """A plucked string: a period of shaped noise goes round and loses its upper harmonics at every turn."""
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
    # The loop is a whole number of samples long; reading it a little slower puts it in tune.
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
    # High notes get a lower index: their sidebands would fold back over half the sample rate.
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


def _play_drums(bus: np.ndarray, score: Score, rate: int, rng: np.random.Generator) -> None:
    kit = KITS[score.instruments["kit"]]
    # One tuning of the kit per track; two takes of each drum, since no two strokes on a cymbal are the same.
    tuning = float(np.exp(rng.normal(0.0, 0.06)))
    takes: dict[tuple[str, int], np.ndarray] = {}
    for number, hit in enumerate(score.drums):
        key = (hit.drum, number % 2)
        if key not in takes:
            takes[key] = _drum(hit.drum, kit, tuning, rate, rng)
        _add(bus, takes[key], hit.start, hit.velocity, rate)


def _noise(seconds: float, low: float, high: float, rate: int, rng: np.random.Generator) -> Wave:
    """White noise between two frequencies in Hz, with soft edges, at RMS 1."""
    samples = max(16, round(seconds * rate))
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    hertz = np.fft.rfftfreq(samples, 1.0 / rate) + 1e-6
    spectrum *= 1.0 / np.sqrt((1.0 + (low / hertz) ** 6) * (1.0 + (hertz / high) ** 6))
    wave = np.fft.irfft(spectrum, n=samples)
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-9)).astype(np.float32)


def _drum(drum: str, kit: dict[str, float], tuning: float, rate: int, rng: np.random.Generator) -> Wave:
    limit = min(kit["limit"], 0.47 * rate)

    def shape(seconds: float, decay: float) -> tuple[np.ndarray, np.ndarray]:
        time = np.arange(max(16, round(seconds * rate))) / rate
        return time, np.exp(-time / decay)

    def swept(start: float, end: float, fall: float, time: np.ndarray) -> np.ndarray:
        # Integral of end + (start - end) exp(-t / fall), the phase of a pitch that drops as a struck skin relaxes.
        return np.sin(2.0 * np.pi * (end * time + (start - end) * fall * (1.0 - np.exp(-time / fall))))

    def noise(seconds: float, low: float, high: float) -> np.ndarray:
        return _noise(seconds, low, min(high, limit), rate, rng)

    if drum == "kick":
        time, envelope = shape(3.5 * kit["kick_decay"], kit["kick_decay"])
        wave = 1.3 * swept(kit["kick"] * tuning, kit["kick_end"] * tuning, 0.035, time) * envelope
        click = noise(0.012, 800.0, 5000.0) * np.linspace(1.0, 0.0, max(16, round(0.012 * rate)))
        wave[: click.size] += 0.5 * kit["click"] * click
    elif drum == "tom":
        time, envelope = shape(0.5, 0.14)
        wave = swept(170.0 * tuning, 110.0 * tuning, 0.06, time) * envelope
        wave += 0.08 * noise(0.5, 300.0, 3000.0)[: wave.size] * envelope**3
    elif drum == "snare":
        time, envelope = shape(4.0 * kit["snare_decay"], kit["snare_decay"])
        hiss = noise(4.0 * kit["snare_decay"], kit["low"], kit["high"])[: time.size]
        skin = swept(1.35 * kit["snare"] * tuning, kit["snare"] * tuning, 0.02, time) * envelope**1.5
        wave = 0.55 * hiss * envelope + kit["tone"] * skin
    elif drum == "clap":
        time, envelope = shape(0.3, 0.07)
        bursts = sum(np.where(time >= d, np.exp(-(time - d) / 0.006), 0.0) for d in (0.0, 0.011, 0.022))
        wave = 0.5 * noise(0.3, 900.0, 4500.0)[: time.size] * (bursts + np.where(time > 0.03, 0.6 * envelope, 0.0))
    elif drum == "rim":
        time, envelope = shape(0.09, 0.016)
        wave = np.sin(2.0 * np.pi * 1650.0 * tuning * time) + 0.6 * np.sin(2.0 * np.pi * 520.0 * tuning * time)
        wave = 0.6 * wave * envelope + 0.15 * noise(0.09, 2000.0, 8000.0)[: time.size] * envelope
    elif drum == "brush":
        time, envelope = shape(0.3, 0.07)
        wave = 0.35 * noise(0.3, 900.0, 7000.0)[: time.size] * envelope * np.minimum(time / 0.015, 1.0)
    elif drum == "shaker":
        time, envelope = shape(0.12, 0.03)
        wave = 0.3 * noise(0.12, 4500.0, 10000.0)[: time.size] * envelope * np.minimum(time / 0.012, 1.0)
    else:
        # Cymbals: many partials without a common fundamental, over noise.
        decay = {"hat": kit["hat_decay"], "open_hat": 0.16, "ride": 0.35, "crash": 0.6}[drum]
        time, envelope = shape(4.0 * decay, decay)
        partials = 410.0 * tuning * np.array([5.1, 7.43, 9.77, 11.31, 13.97, 16.2]) * kit["hat"] / 5500.0
        ring = sum(np.sin(2.0 * np.pi * (f * time + rng.random())) for f in partials if f < limit)
        lowest = kit["hat"] * {"ride": 0.6, "crash": 0.4}.get(drum, 1.0)
        wave = 0.28 * noise(4.0 * decay, lowest, limit)[: time.size] + {"ride": 0.1}.get(drum, 0.05) * ring
        wave *= envelope
        if drum == "ride":  # the stick
            wave[: round(0.02 * rate)] *= 1.8
    return wave.astype(np.float32)


def _mix(buses: np.ndarray, parts: tuple[str, ...], score: Score, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Sum the buses, put them into the room, tilt and band-limit the result; (samples,) float32."""
    from scipy import fft  # here, so that composing alone imports no scipy

    samples = buses.shape[1]
    impulse = _impulse(score.room, rate, rng)
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


def _impulse(room: float, rate: int, rng: np.random.Generator) -> Wave:
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


def _set_loudness(wave: np.ndarray, loudness: float) -> np.ndarray:
    """Scale to an RMS of `loudness` dBFS, bending peaks softly below full scale, as mastering does."""
    target = 10.0 ** (loudness / 20.0)
    gain = target / max(_rms(wave), 1e-9)
    if gain * float(np.abs(wave).max()) > 0.5:
        # Clipping takes energy: raise the gain until the clipped RMS fits. A tenth of the samples decide well enough,
        # since the last factor below makes the figure exact.
        sparse = wave[::10]
        for _ in range(8):
            gain *= target / max(_rms(_bend(gain * sparse)), 1e-9)
        wave = _bend(np.float32(gain) * wave)
        gain = target / max(_rms(wave), 1e-9)
    return np.clip(np.float32(gain) * wave, -1.0, 1.0).astype(np.float32)


def _bend(wave: np.ndarray) -> np.ndarray:
    """Unchanged up to 0.5, then towards 0.98 along a tanh with the same slope."""
    size = np.abs(wave)
    loud = size > 0.5
    bent = wave.copy()
    bent[loud] = np.sign(wave[loud]) * (0.5 + 0.48 * np.tanh((size[loud] - 0.5) / 0.48))
    return bent
