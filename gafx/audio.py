"""Read a piece of an audio file: seek, decode, resample, fix the channels.

A piece equals the slice of the whole file resampled at once: starts lie on whole steps of the rate ratio, and a piece
is read with a margin on both sides that is trimmed after resampling. Decoding is soundfile's (libsndfile), whose seeks
are exact on wav, flac, ogg and au; in an mp3 they land on the right sample, but the decoder needs a run-up (see
`_RUN_UP`). Resampling is soxr's HQ recipe.
"""

import os
import re
from dataclasses import dataclass
from functools import cache
from math import gcd

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from gafx.errors import UnreadableAudio

FORMATS = (".wav", ".flac", ".ogg", ".mp3", ".au")
Samples = npt.NDArray[np.float32]
AnyPath = str | bytes | os.PathLike[str]

# Source samples read on each side of a piece. From 256 on soxr HQ's output differs from the whole file's by float
# rounding.
_MARGIN = 1024
# Samples decoded and dropped before a piece of an mp3: a frame may borrow bits from many frames before it, and until
# the decoder has read those its output is wrong by up to full scale. Over 2,250 random seeks at 8 to 320 kbit/s nothing
# was wrong any more after 30,000 samples.
_RUN_UP = 32768
# Lossy decoders and hot float mixes overshoot full scale by some decibels; integers saved as floats by thousands.
_LOUDEST = 8.0


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: samples per channel, sampling rate in Hz, channels."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: AnyPath) -> AudioInfo:
    """Read a file's header.

    Raises:
        UnreadableAudio: no audio that libsndfile can decode, or not a single sample. The message is the reason.
    """
    with _open(path) as file:
        if file.frames <= 0:
            raise UnreadableAudio("holds no samples")
        promised = re.search(r"data\s*:\s*(\d+)\s*\(should be (\d+)\)", file.extra_info)
        # Streamed files promise about 2**31 or 2**32 bytes because nobody knew the length: those are whole.
        if promised and int(promised[2]) < int(promised[1]) < 2**31 - 2**16:
            raise UnreadableAudio(f"is truncated: its header promises {promised[1]} bytes, it holds {promised[2]}")
        if not file.seekable():
            raise UnreadableAudio("cannot be sought in")
        return AudioInfo(file.frames, file.samplerate, file.channels)


@cache
def rate_ratio(source_rate: int, sample_rate: int) -> tuple[int, int]:
    """(up, down) without a common divisor: `down` samples at `source_rate` last as long as `up` at `sample_rate`."""
    divisor = gcd(source_rate, sample_rate)
    return sample_rate // divisor, source_rate // divisor


def resampled_length(frames: int, source_rate: int, sample_rate: int) -> int:
    """How many samples `frames` samples become at another rate (rounded half up, as soxr does)."""
    up, down = rate_ratio(source_rate, sample_rate)
    return (2 * frames * up + down) // (2 * down)


def snap(start: int, source_rate: int, sample_rate: int) -> int:
    """The last sample index at `sample_rate`, not after `start`, that falls on a sample of the source."""
    up, _ = rate_ratio(source_rate, sample_rate)
    return start // up * up


def resample(samples: Samples, source_rate: int, sample_rate: int) -> Samples:
    """Resample `(samples, channels)` with soxr HQ. Peaks may overshoot the source's by some percent."""
    if source_rate == sample_rate:
        return samples
    return soxr.resample(samples, source_rate, sample_rate, quality="HQ")


def mix_channels(samples: Samples, channels: int) -> Samples:
    """`(samples, any)` -> `(samples, channels)`: as it is if it fits, else the mean of all channels, repeated."""
    if samples.shape[1] == channels:
        return samples
    return np.repeat(samples.mean(axis=1, dtype=np.float32)[:, None], channels, axis=1)


def read_piece(path: AnyPath, start: int, length: int, *, sample_rate: int, channels: int = 1) -> Samples:
    """Read samples `start` to `start + length` of a file, as if the whole file had been resampled first.

    Args:
        path: audio file.
        start: first sample, counted at `sample_rate`; it is snapped down to a whole step of the rate ratio (see
            `snap`).
        length: samples wanted; fewer come back where the file ends before.
        sample_rate: of the samples returned, in Hz.
        channels: of the samples returned.

    Returns:
        float32 `(channels, samples)`, contiguous, in [-1, 1] but for what resampling overshoots.

    Raises:
        UnreadableAudio: the file cannot be decoded there, ends before `start`, or holds NaN or infinity.
    """
    with _open(path) as file:
        up, down = rate_ratio(file.samplerate, sample_rate)
        first = start // up * down
        margin = 0 if up == down else -(-_MARGIN // down) * down
        lead = min(margin, first)
        wanted = -(-length * down // up) + lead + margin
        samples = _decode(file, first - lead, wanted)
        source_rate = file.samplerate
    if len(samples) <= lead:
        raise UnreadableAudio(f"ends before {start / sample_rate:.2f} s")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("holds NaN or infinite samples")
    if (peak := float(np.abs(samples).max())) > _LOUDEST:
        raise UnreadableAudio(f"peaks at {peak:g} where full scale is 1: scale its samples to [-1, 1]")
    samples = resample(mix_channels(samples, channels), source_rate, sample_rate)
    if samples.shape[0] == 0:
        raise UnreadableAudio(f"is too short: not one sample at {sample_rate} Hz")
    skip = lead // down * up
    return np.ascontiguousarray(samples[skip : skip + length].T)


def fit_length(samples: Samples, length: int) -> Samples:
    """Cut `(channels, samples)` to `length`, or repeat it from its start until it is that long.

    Repeating rather than padding: in evaluation a short clip runs at its own length, so training must not teach the
    model that short clips end in silence.
    """
    have = samples.shape[1]
    if have < length:
        samples = np.tile(samples, (1, -(-length // have)))
    return samples[:, :length]


def _open(path: AnyPath) -> soundfile.SoundFile:
    path = os.fsencode(path)  # soundfile refuses text that is no valid UTF-8, and file names need not be
    if os.path.isdir(path):
        raise UnreadableAudio("is a folder")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        if not os.path.exists(path):
            raise UnreadableAudio("does not exist") from error
        if os.path.getsize(path) == 0:
            raise UnreadableAudio("is empty (0 bytes)") from error
        raise UnreadableAudio(_reason(error)) from error


def _decode(file: soundfile.SoundFile, start: int, frames: int) -> Samples:
    try:
        start = min(start, file.frames)
        run_up = min(start, _RUN_UP) if file.format == "MP3" else 0
        file.seek(start - run_up)
        # 16-bit PCM read as integers is about five times faster than libsndfile's own conversion to float.
        if file.subtype == "PCM_16":
            return file.read(frames, dtype="int16", always_2d=True).astype(np.float32) / np.float32(32768)
        # One read for run-up and piece: soundfile seeks again after every read, which would undo the run-up.
        return file.read(run_up + frames, dtype="float32", always_2d=True)[run_up:]
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise UnreadableAudio(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return f"cannot be decoded ({str(text).strip().rstrip('.')})"
