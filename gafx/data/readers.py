"""Lengths of clips, and the readers that return segments of them.

`FileReader` decodes the files; `gafx.data.packing.cache.CacheReader` reads the packed cache. Both return the same
samples except for rounding to 16 bit; a clip that can be decoded only in part is missing from a cache as a whole.
Nothing here imports torch.
"""

from dataclasses import InitVar, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gafx.audio.read import Samples, rate_ratio, read_segment, resampled_length, snap
from gafx.data.manifest import Manifest
from gafx.errors import UnreadableAudio

Rows = npt.NDArray[np.int64]


class Reader(Protocol):
    """Reads segments of clips at one sampling rate and channel count."""

    sample_rate: int
    channels: int

    def read(self, row: int, start: int, length: int) -> Samples:
        """Return samples of a clip as float32 `(channels, samples)`.

        Args:
            row: of the manifest.
            start: first sample, at `sample_rate` from the beginning of the clip; it is moved back to the nearest sample
                that coincides with one of the file (see `gafx.audio.read.snap`).
            length: samples wanted; fewer are returned at the end of the clip.

        Raises:
            UnreadableAudio: the clip cannot be decoded there, or is shorter than in its header.
        """


def clip_lengths(manifest: Manifest, rows: Rows, sample_rate: int) -> Rows:
    """Return the length of each clip in samples at `sample_rate`."""
    source = manifest.sample_rate[rows]
    frames = np.rint(manifest.duration[rows] * source).astype(np.int64)
    lengths = np.empty(len(rows), np.int64)
    for rate in np.unique(source).tolist():  # a data set has a handful of rates, and millions of clips
        of_rate = source == rate
        lengths[of_rate] = resampled_length(frames[of_rate], rate, sample_rate)
    return lengths


def clip_span(manifest: Manifest, row: int, sample_rate: int) -> tuple[int, int]:
    """Return the first sample of a clip in its file and the sample after its last one, at `sample_rate`."""
    offset = round(float(manifest.start[row]) * sample_rate)
    source = int(manifest.sample_rate[row])
    return offset, offset + resampled_length(round(float(manifest.duration[row]) * source), source, sample_rate)


def check_complete(got: int, wanted: int, start: int, source_rate: int, sample_rate: int) -> None:
    """Raise `UnreadableAudio` if a read from sample `start` returned fewer samples than the header promised.

    One step of the rate ratio is tolerated, for rounding.
    """
    up, _ = rate_ratio(source_rate, sample_rate)
    if got < wanted - up:
        ends, promised = (start + got) / sample_rate, (start + wanted) / sample_rate
        raise UnreadableAudio(f"is truncated: ends at {ends:.2f} s, its header promises at least {promised:.2f} s")


@dataclass(eq=False)
class FileReader:
    """Reads segments from the audio files: seeks, decodes only what is needed, resamples.

    Args:
        manifest: the data set.
        sample_rate: of the samples returned, in Hz.
        channels: of the samples returned.
        keep_bytes: if all clips of the data set together, decoded, are no larger than this, each is decoded once and
            kept in memory (of each process that reads); otherwise the files are read every time.
    """

    manifest: Manifest
    sample_rate: int
    channels: int
    keep_bytes: InitVar[int] = 0

    def __post_init__(self, keep_bytes: int) -> None:
        self.manifest.require_audio("a front-end of waves")
        seconds = float(self.manifest.duration.sum())
        self._keeps = 4 * self.channels * seconds * self.sample_rate <= keep_bytes
        self._kept: dict[int, Samples | None] = {}

    def read(self, row: int, start: int, length: int) -> Samples:
        if self._keeps:
            offset, end = clip_span(self.manifest, row, self.sample_rate)
            if row not in self._kept:
                try:
                    self._kept[row] = self._decode(row, 0, end - offset)
                except UnreadableAudio:
                    self._kept[row] = None  # some of its segments may still be readable
            if (clip := self._kept[row]) is not None:
                # A clip that begins inside a longer file starts up to one step of the rate ratio before its offset.
                begin = snap(start + offset, int(self.manifest.sample_rate[row]), self.sample_rate)
                begin -= snap(offset, int(self.manifest.sample_rate[row]), self.sample_rate)
                return clip[:, begin : begin + length].copy()
        return self._decode(row, start, length)

    def _decode(self, row: int, start: int, length: int) -> Samples:
        manifest, rate = self.manifest, self.sample_rate
        source_rate = int(manifest.sample_rate[row])
        offset, end = clip_span(manifest, row, rate)
        start = snap(start + offset, source_rate, rate)
        # A clip inside a longer file must not be read past its own end.
        wanted = min(length, max(end - start, 1))
        wave = read_segment(manifest.file(row), start, wanted, sample_rate=rate, channels=self.channels)
        check_complete(wave.shape[1], wanted, start, source_rate, rate)
        return wave
