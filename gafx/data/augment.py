"""Augmentation of training clips: random draws, and what is done with them to a wave.

Every draw is a pure function of (seed, epoch, index), independent of batch, worker and rank. Waves are float32
`(channels, samples)`; none is clipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from gafx.audio.read import Samples
from gafx.config import AugmentConfig
from gafx.errors import UsageError

# One random stream per purpose keeps the draws independent of each other: adding a mask must not move a crop.
# Numbers are never reused: new purposes are appended.
ORDER, CROP, MIXUP, MASKS, BETWEEN_CLASS, SPEED, ROLL, GAIN, NOISE, OBJECTIVE, OTHER, TRANSPOSE = range(12)

# Largest magnitude of digital silence: half a step of 16 bit.
SILENCE = 2.0**-16
# Draws of a partner with other labels. With two classes of 95 % and 5 % of the clips, 0.6 % of the clips find none.
_PARTNER_DRAWS = 100


def stream(purpose: int, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """Return the random generator of one purpose for one clip of one epoch."""
    return np.random.Generator(
        np.random.Philox(key=np.random.SeedSequence([purpose, seed, epoch, index]).generate_state(2, np.uint64))
    )


@dataclass(frozen=True)
class Mixup:
    """Index of a clip's partner among the training clips, and the weight of the clip's own label, in [0, 1]."""

    partner: int
    weight: float


def draw_mixup(config: AugmentConfig, clips: int, seed: int, epoch: int, index: int) -> Mixup | None:
    """Draw a clip's mixup (Zhang et al., 2018; on waveforms as in AST and PaSST), `None` where it is not mixed."""
    if config.mixup_probability <= 0 or clips < 2:
        return None
    rng = stream(MIXUP, seed, epoch, index)
    if rng.random() >= config.mixup_probability:
        return None
    return Mixup(int(rng.integers(clips)), float(rng.beta(config.mixup_alpha, config.mixup_alpha)))


def draw_masks(config: AugmentConfig, seed: int, epoch: int, index: int) -> npt.NDArray[np.float32]:
    """Draw the masks of one map as `(time_masks + frequency_masks, 2)` of (start, width) in fractions of the axis.

    In fractions rather than bins, since the loader does not know the map's size. A width is uniform in
    [0, largest fraction], a start uniform over the positions where the mask fits (SpecAugment, Park et al., 2019).
    """
    rng = stream(MASKS, seed, epoch, index)
    widths = [config.time_mask_fraction] * config.time_masks + [config.frequency_mask_fraction] * config.frequency_masks
    width = rng.random(len(widths)) * np.asarray(widths)
    start = rng.random(len(widths)) * (1 - width)
    return np.stack([start, width], axis=1).astype(np.float32) if widths else np.zeros((0, 2), np.float32)


def draw_number(seed: int, epoch: int, index: int) -> int:
    """Draw the random number of one clip that an objective derives its own draws from, in [0, 2**63)."""
    return int(stream(OBJECTIVE, seed, epoch, index).integers(2**63))


def draw_spans(number: int, frames: int, fractions: Sequence[float], span: int) -> npt.NDArray[np.bool_]:
    """Draw which frames of a clip are masked: spans of a fixed length that do not overlap.

    One of `fractions` is drawn, then the number of spans, then their places: every arrangement is equally likely, and
    spans may touch. The share of a clip is within one span of the fraction; the number of spans is rounded up or down
    at random, so that the expected share equals the fraction, unless that is less than a span: at least one is masked.

    Spans are whole. Frames less than a span from an end are therefore masked less often than the others: whole spans
    and equal probabilities of all frames would need spans on a fixed grid.

    Args:
        number: of the clip, from `draw_number`; all draws are a function of it.
        frames: of the clip.
        fractions: of the frames, in (0, 1).
        span: frames of a span; of clips shorter than two spans, half of their frames.

    Returns:
        `(frames,)`, true for masked frames.
    """
    rng = np.random.Generator(np.random.Philox(key=[number, 0]))
    fraction = fractions[int(rng.integers(len(fractions)))]
    span = min(span, max(1, frames // 2))
    count = min(max(1, int(fraction * frames / span + rng.random())), frames // span)
    # The places of `count` single frames among those that are left when each span is shrunk to one frame.
    starts = np.sort(rng.choice(frames - count * (span - 1), count, replace=False)) + np.arange(count) * (span - 1)
    masked = np.zeros(frames, np.bool_)
    masked[(starts[:, None] + np.arange(span)).ravel()] = True
    return masked


def draw_between_class(
    config: AugmentConfig, clips: int, differs: Callable[[int], bool], seed: int, epoch: int, index: int
) -> Mixup | None:
    """Draw a clip's between-class mix (Tokozume et al., 2018), `None` where it is not mixed.

    The partner is uniform over the clips of other labels: clips are drawn until the labels differ, which needs no table
    of a large data set's classes. A clip that finds none in 100 draws is not mixed.

    Args:
        config: of the augmentation.
        clips: number of training clips.
        differs: whether the labels of a clip are other ones than those of clip `index`.
        seed: of the run.
        epoch: counted from 0.
        index: of the clip.
    """
    if config.between_class_probability <= 0:
        return None
    rng = stream(BETWEEN_CLASS, seed, epoch, index)
    if rng.random() >= config.between_class_probability:
        return None
    weight = rng.random()
    candidates = (int(rng.integers(clips)) for _ in range(_PARTNER_DRAWS))
    partner = next((candidate for candidate in candidates if differs(candidate)), None)
    return None if partner is None else Mixup(partner, weight)


_MOST_DB = 40.0  # difference of levels that is compensated


def mix_between_classes(first: Samples, second: Samples, weight: float, sample_rate: int) -> Samples:
    """Mix two waves so that they are perceived as `weight` to `1 - weight` (Tokozume et al., 2018).

    The louder one is attenuated, and the mix keeps the power of its parts. One that is silent, or more than 40 dB below
    the other, has no level to compensate: the waves are then mixed as if they were equally loud. Otherwise the louder
    one would have to become as quiet.
    """
    difference = sound_level(first, sample_rate) - sound_level(second, sample_rate)
    ratio = 10 ** (difference / 20) if abs(difference) <= _MOST_DB else 1.0  # also of nan, for two silent waves
    p = weight / (weight + ratio * (1 - weight))  # the paper's 1 / (1 + ratio (1 - r) / r), defined at r = 0 too
    norm = float(np.hypot(p, 1 - p))
    return p / norm * first + (1 - p) / norm * second


def sound_level(wave: Samples, sample_rate: int) -> float:
    """Return the A-weighted level of the loudest window in dB, 0 for a mean square of 1; -inf for digital silence.

    Windows are Hann windows of about 0.1 s (the power of two nearest to it) that overlap by half. The power is the mean
    over the channels.
    """
    size = min(2 ** round(np.log2(0.1 * sample_rate)), wave.shape[1])
    window, weights = _a_weighting(sample_rate, size)
    # torch's FFT takes a seventh of the time of numpy's. No matrix product: its rounding would depend on the number of
    # threads, and a sample must not.
    spectrum = torch.fft.rfft(torch.from_numpy(wave).unfold(1, size, max(size // 2, 1)) * window).numpy()
    power = ((np.square(spectrum.real) + np.square(spectrum.imag)) * weights).sum(axis=-1)
    loudest = float(power.mean(axis=0).max())
    return 10 * float(np.log10(loudest)) if loudest > SILENCE**2 else -float("inf")


@cache
def _a_weighting(sample_rate: int, size: int) -> tuple[torch.Tensor, npt.NDArray[np.float32]]:
    """Return a Hann window of `size` samples, and the factors of the power of its FFT's bins, A-weighted.

    The sum of the products is the mean square of the weighted signal (IEC 61672-1: 0 dB at 1 kHz).
    """
    window = torch.hann_window(size)
    f = np.square(np.fft.rfftfreq(size, 1 / sample_rate))
    gain = 12194**2 * f**2 / ((f + 20.6**2) * np.sqrt((f + 107.7**2) * (f + 737.9**2)) * (f + 12194**2))
    # Parseval: the bins of a real signal count twice, except for the first, of weight 0, and the last.
    parseval = 2 / (size * float(np.square(window.numpy()).sum()))
    return window, (np.square(gain) * 10**0.2 * parseval).astype(np.float32)  # 10**0.2: the standard's + 2.0 dB


def draw_speed(config: AugmentConfig, seed: int, epoch: int, index: int) -> float:
    """Draw the playback speed of a clip, log-uniform in [1/speed, speed] (Ko et al., 2015, with three fixed speeds)."""
    return 1.0 if config.speed == 1 else config.speed ** stream(SPEED, seed, epoch, index).uniform(-1, 1)


def draw_roll(config: AugmentConfig, length: int, seed: int, epoch: int, index: int) -> int:
    """Draw the circular shift of a segment of `length` samples, in [0, length)."""
    return int(stream(ROLL, seed, epoch, index).integers(length)) if config.roll else 0


def draw_gain(config: AugmentConfig, seed: int, epoch: int, index: int) -> float:
    """Draw the factor of a wave, its dB uniform in [-gain_db, gain_db]."""
    if config.gain_db == 0:
        return 1.0
    return 10 ** (stream(GAIN, seed, epoch, index).uniform(-config.gain_db, config.gain_db) / 20)


def add_noise(config: AugmentConfig, wave: Samples, seed: int, epoch: int, index: int) -> Samples:
    """Add white Gaussian noise, independent in each channel, at a random ratio to the RMS of the whole wave.

    A wave of zeros stays one.
    """
    if config.noise_probability <= 0:
        return wave
    rng = stream(NOISE, seed, epoch, index)
    if rng.random() >= config.noise_probability:
        return wave
    low, high = config.noise_snr_db
    snr_db = rng.uniform(low, high)
    rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    return wave + rms * 10 ** (-snr_db / 20) * rng.standard_normal(wave.shape, np.float32)


def draw_semitones(config: AugmentConfig, seed: int, epoch: int, index: int) -> list[int]:
    """Draw the order in which transpositions of a piece of MIDI are tried; the first that fits is taken."""
    semitones = np.arange(-config.transpose, config.transpose + 1)
    return stream(TRANSPOSE, seed, epoch, index).permutation(semitones).tolist()


# Augmentations of audio: key of the configuration, and the value at which it does nothing.
_OF_AUDIO = {
    "mixup_probability": 0, "time_masks": 0, "frequency_masks": 0, "between_class_probability": 0, "speed": 1,
    "roll": False, "gain_db": 0, "noise_probability": 0, "avoid_silence": False,
}  # fmt: skip


def check_augment(config: AugmentConfig, *, midi: bool) -> None:
    """Raise `UsageError` for augmentations of audio on MIDI, or of MIDI on audio."""
    off = _OF_AUDIO if midi else {"transpose": 0}
    if wrong := [key for key, value in off.items() if getattr(config, key) != value]:
        asked = ", ".join(f"augment.{key}={getattr(config, key)}" for key in wrong)
        zeros = " ".join(f"augment.{key}={str(off[key]).lower()}" for key in wrong)
        kind = "audio, and the data are MIDI" if midi else "MIDI, and the data are audio"
        raise UsageError(f"{asked} is for {kind}: set {zeros}")
