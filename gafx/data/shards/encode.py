"""One clip of a shard: decoded, rounded to 16 or 24 bit, encoded as FLAC or Opus."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

from gafx.audio.read import Samples, probe
from gafx.data.packing.encode import Clip, Job
from gafx.errors import UnreadableAudio

Codec = Literal["flac", "opus"]
CODECS: tuple[Codec, ...] = ("flac", "opus")
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
# Most channels of a file, and samples given to an encoder at a time: libsndfile copies them to its stack.
_MOST_CHANNELS = {"flac": 8, "opus": 8}
_BLOCK = 1 << 14
_MIRROR = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True)
class EncodedClip:
    """A clip's encoded file.

    Attributes:
        row: of the manifest.
        content: the file's bytes; `None` for a clip that could not be decoded.
        reason: why not.
        gain: factor applied to the samples; below 1 for clips that exceed full scale.
        exact: whether the samples keep their values.
    """

    row: int
    content: bytes | None
    reason: str = ""
    gain: float = 1.0
    exact: bool = True


def opus_rate(sample_rate: int) -> int:
    """Return the lowest rate of Opus that is at least `sample_rate`, 48 kHz at most."""
    return next((rate for rate in OPUS_RATES if rate >= sample_rate), OPUS_RATES[-1])


def encode_clips(jobs: list[tuple[Job, int]], codec: Codec, channels: int | None) -> list[EncodedClip]:
    """Encode clips.

    Args:
        jobs: the clips, each with its sampling rate in Hz; `first` and `length` are samples at that rate.
        codec: `flac` or `opus`.
        channels: of the result; `None` for the clip's own.
    """
    clips = []
    for job, sample_rate in jobs:
        try:
            clips.append(_encode(job, sample_rate, codec, channels))
        except UnreadableAudio as error:
            clips.append(EncodedClip(job.row, None, str(error)))
    return clips


def _encode(job: Job, sample_rate: int, codec: Codec, channels: int | None) -> EncodedClip:
    info = probe(job.path)
    channels = channels or info.channels
    if channels > _MOST_CHANNELS[codec]:
        raise UnreadableAudio(f"has {channels} channels, and {codec} holds at most {_MOST_CHANNELS[codec]}: mix them")
    clip = Clip(job, sample_rate, channels)
    if codec == "opus":
        return EncodedClip(job.row, _write(clip, sample_rate, channels, 0, 1.0), exact=False)
    # Lossy formats have no information below 16 bits, whatever the precision of the decoded samples.
    bits = 16 if info.bits <= 16 else 24
    full = 1 << (bits - 1)
    low, high, exact = 0.0, 0.0, True
    for block in clip.blocks():
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if exact:
            scaled = block.astype(np.float64) * full
            exact = bool((scaled == np.rint(scaled)).all())
    fits = round(high * full) < full and round(low * full) >= -full
    gain = 1.0 if fits else (full - 1) / (full * max(high, -low))
    return EncodedClip(job.row, _write(clip, sample_rate, channels, bits, gain), gain=gain, exact=exact and fits)


def _write(clip: Clip, sample_rate: int, channels: int, bits: int, gain: float) -> bytes:
    """Return the file's bytes; `bits` is 16 or 24, 0 for Opus."""
    buffer = io.BytesIO()
    kind = {0: ("OGG", "OPUS"), 16: ("FLAC", "PCM_16"), 24: ("FLAC", "PCM_24")}[bits]
    with soundfile.SoundFile(buffer, "w", sample_rate, channels, format=kind[0], subtype=kind[1]) as file:
        for samples in clip.blocks():
            for begin in range(0, samples.shape[1], _BLOCK):
                block = samples[:, begin : begin + _BLOCK].T
                file.write(np.ascontiguousarray(_integers(block, bits, gain) if bits else block))
    return buffer.getvalue() if bits else _fixed_serial(buffer.getvalue())


def _integers(samples: Samples, bits: int, gain: float) -> npt.NDArray[np.generic]:
    values = np.rint(samples.astype(np.float64) * (gain * (1 << (bits - 1))))
    return values.astype(np.int16) if bits == 16 else values.astype(np.int32) << 8


def _fixed_serial(ogg: bytes) -> bytes:
    """Set the serial number of an Ogg file's pages, which libsndfile draws at random, to 0, and their checksums."""
    pages, at = [], 0
    while at + 27 <= len(ogg):
        end = at + 27 + ogg[at + 26]
        end += sum(ogg[at + 27 : end])
        page = bytearray(ogg[at:end])
        page[14:18] = page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


def _ogg_checksum(page: bytes) -> int:
    """Return Ogg's CRC-32: zlib's with the bit order of every byte, and of the result, reversed."""
    mirrored = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRROR), "big")
