"""One clip of a cache: decoded, scaled to 16 bit, written to its place."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gafx.audio.read import Samples, Span, rate_ratio, read_segment
from gafx.data.packing.cache import file_crc, file_status
from gafx.data.readers import check_whole
from gafx.errors import UnreadableAudio

# Samples of a clip that are held at once; a longer clip is read twice, first for its peak.
_BLOCK = 1 << 22
_PCM = np.float32(1 / 32768)
_LEAST_SCALE = 1e-30


@dataclass(frozen=True)
class Job:
    """One clip to be packed: where it is read (at the cache's rate) and at which byte it is written."""

    row: int
    path: bytes | Span
    source_rate: int
    first: int
    length: int
    byte: int


def pack_clips(jobs: list[Job], samples: str, sample_rate: int, channels: int) -> list[dict[str, Any]]:
    """Pack clips into the file `samples`; their journal entries."""
    descriptor = os.open(samples, os.O_RDWR)
    try:
        return [_pack_clip(job, descriptor, sample_rate, channels) for job in jobs]
    finally:
        os.close(descriptor)


def _pack_clip(job: Job, descriptor: int, sample_rate: int, channels: int) -> dict[str, Any]:
    """Decode, scale and write one clip; its journal entry, with a `reason` if it cannot be read."""
    size, mtime = file_status(job.path)
    entry: dict[str, Any] = {
        "row": job.row,
        "length": 0,
        "scale": 0.0,
        "crc": 0,
        "size": size,
        "mtime": mtime,
        "file_crc": 0,
    }
    try:
        clip = Clip(job, sample_rate, channels)
        length, scale = clip.measure()
        crc = clip.write(descriptor, length, scale)
        entry |= {"length": length, "scale": scale, "crc": crc}
    except UnreadableAudio as error:
        entry["reason"] = str(error)
    with contextlib.suppress(OSError):  # it is gone or closed to us, which the reason says already
        entry["file_crc"] = file_crc(job.path, size, mtime)
    return entry


class Clip:
    """A clip in blocks: one for all but the longest, which is then decoded once."""

    def __init__(self, job: Job, sample_rate: int, channels: int):
        self.job, self.sample_rate, self.channels = job, sample_rate, channels
        up, _ = rate_ratio(job.source_rate, sample_rate)
        step = max(_BLOCK // up, 1) * up
        self.starts = range(0, job.length, step)
        self.step = step
        self._only: Samples | None = None

    def blocks(self) -> Iterator[Samples]:
        """`(channels, samples)` float32, in order."""
        if self._only is not None:
            yield self._only
            return
        for start in self.starts:
            wanted = min(self.step, self.job.length - start)
            begin = self.job.first + start
            block = read_segment(self.job.path, begin, wanted, sample_rate=self.sample_rate, channels=self.channels)
            check_whole(block.shape[1], wanted, begin, self.job.source_rate, self.sample_rate)
            if len(self.starts) == 1:
                self._only = block
            yield block

    def measure(self) -> tuple[int, float]:
        """Samples a channel, and the scale: 1/32768 where that is exact, else what brings the peak to full scale."""
        length, peak, exact = 0, 0.0, True
        for block in self.blocks():
            length += block.shape[1]
            peak = max(peak, float(np.abs(block).max()))
            if exact:
                whole = block * np.float32(32768)
                exact = bool((whole == np.rint(whole)).all() and whole.max() < 32768)
        scale = _PCM if exact else np.float32(max(peak / 32767, _LEAST_SCALE))
        return length, float(scale)

    def write(self, descriptor: int, length: int, scale: float) -> int:
        """Write the samples and return their checksum."""
        written = 0
        for block in self.blocks():
            values = np.rint(block / np.float32(scale)).clip(-32768, 32767).astype("<i2")
            for channel in range(self.channels):
                _write(descriptor, values[channel].tobytes(), self.job.byte + 2 * (channel * length + written))
            written += block.shape[1]
        return checksum(descriptor, self.job.byte, 2 * length * self.channels)


def checksum(descriptor: int, place: int, count: int) -> int:
    """CRC-32 of `count` bytes of a file from `place` on."""
    crc = 0
    for begin in range(place, place + count, _BLOCK):
        crc = zlib.crc32(os.pread(descriptor, min(_BLOCK, place + count - begin), begin), crc)
    return crc


def _write(descriptor: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, place)
        view, place = view[count:], place + count
