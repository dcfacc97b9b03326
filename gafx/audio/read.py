"""Read a segment of an audio file, or all of it in blocks: decode, resample, mix channels.

A segment equals the slice of the whole file resampled at once: starts are snapped to whole steps of the rate ratio, and
a segment is read with a margin on both sides that is trimmed after resampling. Files are decoded by
`gafx.audio.decode` and resampled by soxr (HQ).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import soxr

from gafx.audio.decode import (
    AudioFile,
    AudioSource,
    Samples,
    Span,
    blocks,
    container_of,
    decode,
    decoder,
    mix_channels,
    open_audio,
    whole_length,
)
from gafx.errors import UnreadableAudio

__all__ = [
    "AudioFile", "AudioInfo", "AudioSource", "Samples", "Span", "fit_length", "header_seconds", "mix_channels",
    "probe", "rate_ratio", "read_segment", "resample", "resample_blocks", "resampled_length", "snap", "stream",
]  # fmt: skip

Frames = TypeVar("Frames", int, npt.NDArray[np.int64])

# Source samples read on each side of a segment. From 256 on soxr HQ's output differs from the whole file's by float
# rounding.
_MARGIN = 1024
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}


@dataclass(frozen=True)
class AudioInfo:
    """Header facts: samples per channel, sampling rate in Hz, channels, bits per sample (16 for lossy formats)."""

    frames: int
    sample_rate: int
    channels: int
    bits: int = 16

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: AudioFile, *, any_format: bool = False) -> AudioInfo:
    """Read a file's header and check that the file is complete.

    Args:
        path: audio file, span of a file, or bytes in memory.
        any_format: accept whatever libsndfile plays, not only `gafx.audio.formats.FORMATS`.

    Raises:
        UnreadableAudio: the file cannot be decoded, has no sample, or is truncated. The message is the reason.
    """
    with open_audio(path) as raw, decoder(raw, any_format=any_format) as file:
        return AudioInfo(whole_length(file, raw), file.samplerate, file.channels, _BITS.get(file.subtype, 16))


def header_seconds(path: AudioFile) -> float:
    """Return the duration in a file's header, 0 where it has none; fast, and right except for broken files."""
    try:
        with open_audio(path) as raw:
            if container := container_of(raw):
                from gafx.audio import ffmpeg

                return ffmpeg.header_seconds(raw, container)
            with decoder(raw, any_format=True) as file:
                return file.frames / file.samplerate
    except UnreadableAudio:
        return 0.0


@cache
def rate_ratio(source_rate: int, sample_rate: int) -> tuple[int, int]:
    """Return coprime (up, down): `down` samples at `source_rate` last as long as `up` samples at `sample_rate`."""
    divisor = gcd(source_rate, sample_rate)
    return sample_rate // divisor, source_rate // divisor


def resampled_length(frames: Frames, source_rate: int, sample_rate: int) -> Frames:
    """Return the number of samples (int or array) after resampling, rounded half up as soxr does."""
    up, down = rate_ratio(source_rate, sample_rate)
    return (2 * frames * up + down) // (2 * down)


def snap(start: int, source_rate: int, sample_rate: int) -> int:
    """Return the last sample index at `sample_rate`, at most `start`, that coincides with a sample of the source."""
    up, _ = rate_ratio(source_rate, sample_rate)
    return start // up * up


def resample(samples: Samples, source_rate: int, sample_rate: int) -> Samples:
    """Resample `(samples, channels)` with soxr HQ. Peaks may exceed the source's by some percent."""
    if source_rate == sample_rate:
        return samples
    return soxr.resample(samples, source_rate, sample_rate, quality="HQ")


def read_segment(path: AudioFile, start: int, length: int, *, sample_rate: int, channels: int = 1) -> Samples:
    """Read samples `start` to `start + length` of a file, as if the whole file had been resampled first.

    Args:
        path: audio file, span of a file, or bytes in memory.
        start: first sample, at `sample_rate`; it is moved back to a whole step of the rate ratio (see `snap`).
        length: samples wanted; fewer are returned where the file ends before.
        sample_rate: of the samples returned, in Hz.
        channels: of the samples returned.

    Returns:
        float32 `(channels, samples)`, contiguous, finite, at least one sample, in [-1, 1] except for overshoot of
        the resampler.

    Raises:
        UnreadableAudio: the file cannot be decoded there, ends before `start`, or holds NaN or infinity.
    """
    with open_audio(path) as raw, decoder(raw) as file:
        source_rate = file.samplerate
        up, down = rate_ratio(source_rate, sample_rate)
        first = start // up * down
        margin = 0 if up == down else -(-_MARGIN // down) * down
        lead = min(margin, first)
        samples = decode(file, raw, first - lead, -(-length * down // up) + lead + margin, channels)
    if len(samples) <= lead:
        raise UnreadableAudio(f"ends before {start / sample_rate:.2f} s")
    samples = resample(samples, source_rate, sample_rate)
    skip = lead // down * up
    if len(samples) <= skip:
        raise UnreadableAudio(f"is too short: not one sample at {sample_rate} Hz from {start / sample_rate:.2f} s on")
    return np.ascontiguousarray(samples[skip : skip + length].T)


def stream(
    path: AudioSource, *, sample_rate: int, channels: int = 1, block_seconds: float = 30.0, any_format: bool = False,
    note: Callable[[str], object] | None = None,
) -> Iterator[Samples]:  # fmt: skip
    """Read a file from beginning to end in blocks; concatenated they equal the whole file resampled at once.

    Memory does not depend on the length of the file.

    Args:
        path: audio file, span of a file, bytes or samples in memory.
        sample_rate: of the samples returned, in Hz.
        channels: of the samples returned.
        block_seconds: approximate length of a block.
        any_format: accept whatever libsndfile plays, not only `gafx.audio.formats.FORMATS`, and with PyAV whatever
            FFmpeg does (see `gafx.audio.ffmpeg`).
        note: where a file is damaged, incomplete or joined of several, read what can be read, and call this with what
            is doubtful, before the last block or after it; without it such a file is an error.

    Yields:
        float32 `(channels, samples)`, contiguous, finite, at least one sample each.

    Raises:
        UnreadableAudio: before the first block if header or end of the file are broken, later for errors of decoding.
    """
    found = False
    decoded = blocks(path, channels, block_seconds, any_format=any_format, note=note)
    for block in resample_blocks(decoded, sample_rate, channels):
        found = True
        yield block
    if not found:
        raise UnreadableAudio(f"is too short: not one sample at {sample_rate} Hz")


def resample_blocks(decoded: Iterable[tuple[int, Samples]], sample_rate: int, channels: int) -> Iterator[Samples]:
    """Resample a stream as if it were in one piece; the result does not depend on its division into blocks.

    Args:
        decoded: rate in Hz and `(samples, channels)` of each block; where the rate changes, another recording begins.
        sample_rate: of the samples returned, in Hz.
        channels: of the samples.

    Yields:
        float32 `(channels, samples)`, contiguous, at least one sample each.
    """

    def resampled() -> Iterator[Samples]:
        nothing = np.zeros((0, channels), np.float32)
        resampler, rate = None, 0
        for source_rate, block in decoded:
            if source_rate != rate:
                if resampler is not None:
                    yield resampler.resample_chunk(nothing, last=True)
                resampler, rate = None, source_rate
                if rate != sample_rate:
                    resampler = soxr.ResampleStream(rate, sample_rate, channels, quality="HQ")
            yield block if resampler is None else resampler.resample_chunk(block)
        if resampler is not None:
            yield resampler.resample_chunk(nothing, last=True)

    for block in filter(len, resampled()):
        yield np.ascontiguousarray(block.T)


def fit_length(samples: Samples, length: int) -> Samples:
    """Cut `(channels, samples)` to `length`, or repeat it from its start up to that length.

    It is repeated rather than padded: in evaluation a short clip keeps its own length, so training must not teach the
    model that short clips end in silence.
    """
    have = samples.shape[1]
    if have < length:
        samples = np.tile(samples, (1, -(-length // have)))
    return samples[:, :length]
