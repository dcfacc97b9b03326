"""Drums: four kits, and one stroke of each drum from swept sines and filtered noise."""

from __future__ import annotations

import numpy as np

# Kick: start and end of the sweep in Hz, decay in s, click. Snare: tone in Hz and its level, noise band in Hz, decay.
# Cymbals: lower band limit in Hz, decay of the closed hat in s. All: upper band limit in Hz.
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


def drum(name: str, kit: str, tuning: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return one stroke at full velocity, (samples,) float32.

    Args:
        name: of `DRUMS`.
        kit: of `KITS`.
        tuning: factor of the pitches.
        rate: sample rate in Hz.
        rng: for the noise and the phases of the cymbals.
    """
    sound = KITS[kit]
    limit = min(sound["limit"], 0.47 * rate)

    def shape(seconds: float, decay: float) -> tuple[np.ndarray, np.ndarray]:
        time = np.arange(max(16, round(seconds * rate))) / rate
        return time, np.exp(-time / decay)

    def swept(start: float, end: float, fall: float, time: np.ndarray) -> np.ndarray:
        # Phase of the frequency end + (start - end) exp(-t / fall): the pitch of a membrane falls after the stroke.
        return np.sin(2.0 * np.pi * (end * time + (start - end) * fall * (1.0 - np.exp(-time / fall))))

    def noise(seconds: float, low: float, high: float) -> np.ndarray:
        return _noise(seconds, low, min(high, limit), rate, rng)

    if name == "kick":
        time, envelope = shape(3.5 * sound["kick_decay"], sound["kick_decay"])
        wave = 1.3 * swept(sound["kick"] * tuning, sound["kick_end"] * tuning, 0.035, time) * envelope
        click = noise(0.012, 800.0, 5000.0) * np.linspace(1.0, 0.0, max(16, round(0.012 * rate)))
        wave[: click.size] += 0.5 * sound["click"] * click
    elif name == "tom":
        time, envelope = shape(0.5, 0.14)
        wave = swept(170.0 * tuning, 110.0 * tuning, 0.06, time) * envelope
        wave += 0.08 * noise(0.5, 300.0, 3000.0)[: wave.size] * envelope**3
    elif name == "snare":
        time, envelope = shape(4.0 * sound["snare_decay"], sound["snare_decay"])
        hiss = noise(4.0 * sound["snare_decay"], sound["low"], sound["high"])[: time.size]
        skin = swept(1.35 * sound["snare"] * tuning, sound["snare"] * tuning, 0.02, time) * envelope**1.5
        wave = 0.55 * hiss * envelope + sound["tone"] * skin
    elif name == "clap":
        time, envelope = shape(0.3, 0.07)
        bursts = sum(np.where(time >= d, np.exp(-(time - d) / 0.006), 0.0) for d in (0.0, 0.011, 0.022))
        wave = 0.5 * noise(0.3, 900.0, 4500.0)[: time.size] * (bursts + np.where(time > 0.03, 0.6 * envelope, 0.0))
    elif name == "rim":
        time, envelope = shape(0.09, 0.016)
        wave = np.sin(2.0 * np.pi * 1650.0 * tuning * time) + 0.6 * np.sin(2.0 * np.pi * 520.0 * tuning * time)
        wave = 0.6 * wave * envelope + 0.15 * noise(0.09, 2000.0, 8000.0)[: time.size] * envelope
    elif name == "brush":
        time, envelope = shape(0.3, 0.07)
        wave = 0.35 * noise(0.3, 900.0, 7000.0)[: time.size] * envelope * np.minimum(time / 0.015, 1.0)
    elif name == "shaker":
        time, envelope = shape(0.12, 0.03)
        wave = 0.3 * noise(0.12, 4500.0, 10000.0)[: time.size] * envelope * np.minimum(time / 0.012, 1.0)
    else:
        # Cymbals: inharmonic partials and noise.
        decay = {"hat": sound["hat_decay"], "open_hat": 0.16, "ride": 0.35, "crash": 0.6}[name]
        time, envelope = shape(4.0 * decay, decay)
        partials = 410.0 * tuning * np.array([5.1, 7.43, 9.77, 11.31, 13.97, 16.2]) * sound["hat"] / 5500.0
        ring = sum(np.sin(2.0 * np.pi * (f * time + rng.random())) for f in partials if f < limit)
        lowest = sound["hat"] * {"ride": 0.6, "crash": 0.4}.get(name, 1.0)
        wave = 0.28 * noise(4.0 * decay, lowest, limit)[: time.size] + {"ride": 0.1}.get(name, 0.05) * ring
        wave *= envelope
        if name == "ride":  # the stick
            wave[: round(0.02 * rate)] *= 1.8
    return wave.astype(np.float32)


def _noise(seconds: float, low: float, high: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return band-limited white noise between two frequencies in Hz, with RMS 1."""
    samples = max(16, round(seconds * rate))
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    hertz = np.fft.rfftfreq(samples, 1.0 / rate) + 1e-6
    spectrum *= 1.0 / np.sqrt((1.0 + (low / hertz) ** 6) * (1.0 + (hertz / high) ** 6))
    wave = np.fft.irfft(spectrum, n=samples)
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-9)).astype(np.float32)
