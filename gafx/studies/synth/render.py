"""Synthesize a score with numpy and scipy.fft: the notes of each part on a separate bus, then the mix."""

from __future__ import annotations

import numpy as np

from gafx.errors import UsageError
from gafx.studies.synth.chance import stream
from gafx.studies.synth.drums import drum
from gafx.studies.synth.instruments import DRIVE, tone
from gafx.studies.synth.mix import mix, rms, set_level, set_loudness
from gafx.studies.synth.score import Score

SAMPLE_RATES = (8000, 96000)
PARTS = ("drums", "bass", "chords", "melody")


def render(score: Score, sample_rate: int = 22050) -> np.ndarray:
    """Synthesize a score.

    Args:
        score: from `compose`.
        sample_rate: in Hz, 8000 to 96000.

    Returns:
        (samples,) float32 in [-1, 1], mono, `round(score.seconds * sample_rate)` samples, with an
        RMS of `score.loudness` dBFS. Deterministic for one machine and one set of library versions.

    Raises:
        UsageError: the sample rate is out of range.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise UsageError(f"sample_rate is {sample_rate!r}; it must be a whole number of Hz")
    if not SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]:
        raise UsageError(f"sample_rate is {sample_rate}; choose one from {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")
    rate = int(sample_rate)
    rng = stream(score.seed, score.genre, score.index, "render")
    buses = np.zeros((len(PARTS), round(score.seconds * rate)), dtype=np.float32)
    _play_drums(buses[PARTS.index("drums")], score, rate, rng)
    _play_notes(buses, score, rate, rng)
    for bus, part in zip(buses, PARTS, strict=True):
        drive = DRIVE.get(score.instruments.get(part, ""), 0.0)
        if drive:
            np.tanh(bus * (drive / (rms(bus) * 3.0 + 1e-9)), out=bus)
        set_level(bus, part, score.levels[part], rate)
    return set_loudness(mix(buses, PARTS, score, rate, rng), score.loudness)


def _play_drums(bus: np.ndarray, score: Score, rate: int, rng: np.random.Generator) -> None:
    # One tuning of the kit per track; two variants of each drum, used alternately.
    tuning = float(np.exp(rng.normal(0.0, 0.06)))
    takes: dict[tuple[str, int], np.ndarray] = {}
    for number, hit in enumerate(score.drums):
        key = (hit.drum, number % 2)
        if key not in takes:
            takes[key] = drum(hit.drum, score.instruments["kit"], tuning, rate, rng)
        add(bus, takes[key], hit.start, hit.velocity, rate)


def _play_notes(buses: np.ndarray, score: Score, rate: int, rng: np.random.Generator) -> None:
    # Lengths are rounded up to 20 ms, so that repeated notes with slightly different timing use one waveform.
    cache: dict[tuple[str, int, int], np.ndarray] = {}
    tuning = {part: float(rng.normal(0.0, 3.0)) for part in PARTS}
    for note in score.notes:
        instrument = score.instruments[note.part]
        length = int(np.ceil(note.duration * 50.0))
        key = (note.part, note.pitch, length)
        if key not in cache:
            frequency = 440.0 * 2.0 ** ((note.pitch - 69 + tuning[note.part] / 100.0) / 12.0)
            cache[key] = tone(instrument, frequency, length / 50.0, rate, rng)
        add(buses[PARTS.index(note.part)], cache[key], note.start, note.velocity, rate)


def add(bus: np.ndarray, wave: np.ndarray, start: float, gain: float, rate: int) -> None:
    """Add a note to a bus in place, `start` seconds after its beginning; what is beyond its end is left out."""
    first = round(start * rate)
    last = min(first + wave.size, bus.size)
    if first < last:
        bus[first:last] += gain * wave[: last - first]
