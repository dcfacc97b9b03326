"""Level of a wave in dB relative to full scale, and the level below which a window counts as silent."""

import math
from numbers import Real
from typing import TYPE_CHECKING

from gafx.errors import UsageError

if TYPE_CHECKING:
    from gafx.audio.decode import Samples

# dBFS of the loudest 50 ms. Digital silence and dither are below it. Music scaled down to it and rounded to 16 bits is
# no longer recognised by a tagger (4 of 70 excerpts kept their label; docs/predict.md has the measurement).
SILENCE = -70.0
_BLOCK_SECONDS = 0.05
# Where a recording with a constant offset begins and ends, the resampler rings for 10 ms at rates from 8 kHz on. In 50
# ms, that has up to 4 % of the offset (from 44.1 to 22.05 kHz 0.9 %).
_EDGE_SECONDS, _RINGING = 0.01, 0.05


def check_silence(level: float | None) -> float | None:
    """Return the level of silence; None for none.

    Raises:
        UsageError: it is above 0 dBFS, or no number.
    """
    if level is not None and (not isinstance(level, Real) or not level <= 0):
        raise UsageError(f"silence={level!r} must be a level of at most 0 dBFS, e.g. {SILENCE:g}, or None for none")
    return level


def level(wave: "Samples", sample_rate: int) -> float:
    """Level of the loudest 50 ms of any channel in dBFS: 0 is the RMS of a square wave at full scale, -3 of a sine.

    The mean of each 50 ms is subtracted first, so a constant offset is no sound. A short sound in a silent window has
    the level of that sound, not of the window. Of a wave whose level is more than 26 dB below its offset, the first and
    last 10 ms do not count: the resampler makes a sound of the offset there.

    Args:
        wave: `(channels, samples)` in [-1, 1].
        sample_rate: of the wave, in Hz.

    Returns:
        level; `-inf` for a constant.
    """
    loudest, edge = _loudest(wave, sample_rate), round(_EDGE_SECONDS * sample_rate)
    if loudest < _RINGING * float(abs(wave.mean(axis=1)).max()) and wave.shape[1] > 3 * edge:
        loudest = _loudest(wave[:, edge : wave.shape[1] - edge], sample_rate)
    # Rounding of the mean may leave a constant a std below 1e-7 (-140 dB).
    return 20 * math.log10(loudest) if loudest > 1e-7 else -math.inf


def _loudest(wave: "Samples", sample_rate: int) -> float:
    """Largest std of 50 ms."""
    samples = wave.shape[1]
    block = min(samples, max(1, round(_BLOCK_SECONDS * sample_rate)))
    whole = samples // block * block
    # The last block ends with the wave and overlaps the one before.
    parts = [wave[:, :whole].reshape(len(wave), -1, block), wave[:, None, samples - block :]]
    return max(float(part.std(axis=2).max()) for part in parts)
