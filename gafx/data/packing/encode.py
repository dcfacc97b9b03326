"""One clip of a cache: decoded, scaled to 16 bit, written to its position in the file."""

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from gafx.audio.read import Samples, Span, rate_ratio, read_segment
from gafx.data.packing.cache import file_crc, file_status
from gafx.data.readers import check_complete
from gafx.errors import UnreadableAudio

# Samples of a clip that are held at a time; a longer clip is decoded twice, first for its peak.
_BLOCK = 1 << 22
_PCM = np.float32(1 / 32768)
_LEAST_SCALE = 1e-30


@dataclass(frozen=True)
class Job:
    """One clip to pack.

    Attributes:
        row: of the manifest.
        path: of the file, or its position in a shard.
        source_rate: of the file, in Hz.
        first, length: of the clip in samples at the rate it is packed at.
        byte: position in the cache's file.
    """

    row: int
    path: bytes | Span
    source_rate: int
    first: int
    length: int
    byte: int = 0


def pack_clips(jobs: list[Job], samples: str, sample_rate: int, channels: int) -> list[dict[str, Any]]:
    """Pack clips into the file `samples` and return their journal entries."""
    with open(samples, "r+b", buffering=0) as file:
        return [_pack_clip(job, file, sample_rate, channels) for job in jobs]


def _pack_clip(job: Job, file: BinaryIO, sample_rate: int, channels: int) -> dict[str, Any]:
    """Decode, scale and write one clip; return its journal entry, with a `reason` if it cannot be decoded."""
    size, mtime = file_status(job.path)
    entry: dict[str, Any] = {
        "row": job.row, "length": 0, "scale": 0.0, "crc": 0, "size": size, "mtime": mtime, "file_crc": 0,
    }  # fmt: skip
    try:
        clip = Clip(job, sample_rate, channels)
        length, scale = clip.measure()
        crc = clip.write(file, length, scale)
        entry |= {"length": length, "scale": scale, "crc": crc}
    except UnreadableAudio as error:
        entry["reason"] = str(error)
    with contextlib.suppress(OSError):  # missing or without permission, which the reason contains already
        entry["file_crc"] = file_crc(job.path, size, mtime)
    return entry


class Clip:
    """A clip in blocks: one block, decoded once, except for the longest clips."""

    def __init__(self, job: Job, sample_rate: int, channels: int):
        self.job, self.sample_rate, self.channels = job, sample_rate, channels
        up, _ = rate_ratio(job.source_rate, sample_rate)
        self.step = max(_BLOCK // up, 1) * up
        self.starts = range(0, job.length, self.step)
        self._only: Samples | None = None

    def blocks(self) -> Iterator[Samples]:
        """Yield the samples in order, float32 `(channels, samples)`."""
        if self._only is not None:
            yield self._only
            return
        for start in self.starts:
            wanted = min(self.step, self.job.length - start)
            begin = self.job.first + start
            block = read_segment(self.job.path, begin, wanted, sample_rate=self.sample_rate, channels=self.channels)
            check_complete(block.shape[1], wanted, begin, self.job.source_rate, self.sample_rate)
            if len(self.starts) == 1:
                self._only = block
            yield block

    def measure(self) -> tuple[int, float]:
        """Return samples per channel and the scale: 1/32768 if that is exact, else peak / 32767."""
        length, peak, exact = 0, 0.0, True
        for block in self.blocks():
            length += block.shape[1]
            peak = max(peak, float(np.abs(block).max()))
            if exact:
                scaled = block * np.float32(32768)
                exact = bool((scaled == np.rint(scaled)).all() and scaled.min() >= -32768 and scaled.max() < 32768)
        scale = _PCM if exact else np.float32(max(peak / 32767, _LEAST_SCALE))
        return length, float(scale)

    def write(self, file: BinaryIO, length: int, scale: float) -> int:
        """Write the samples as int16, channel after channel, and return their CRC-32 as read back from the file."""
        written = 0
        for block in self.blocks():
            values = np.rint(block / np.float32(scale)).clip(-32768, 32767).astype("<i2")
            for channel in range(self.channels):
                file.seek(self.job.byte + 2 * (channel * length + written))
                view = memoryview(values[channel].tobytes())
                while view:
                    view = view[file.write(view) :]
            written += block.shape[1]
        return checksum(file, self.job.byte, 2 * length * self.channels)


def checksum(file: BinaryIO, offset: int, count: int) -> int:
    """Return the CRC-32 of `count` bytes of a file from `offset` on, or of those that exist."""
    crc = 0
    file.seek(offset)
    while count > 0 and (block := file.read(min(_BLOCK, count))):
        crc, count = zlib.crc32(block, crc), count - len(block)
    return crc
