"""Segments of tracks: which a track has in training and in evaluation, and segments treated as recordings.

Nothing here imports torch.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gafx.audio.segments import keeps_remainder
from gafx.data.manifest import Manifest
from gafx.data.readers import Rows, clip_lengths

# Note of `by_segment`, for the record, table, report and model card of a run.
NOTE = "each segment of a track counts as a recording: accuracy is inflated; not comparable with anything"
OVERLAP = 0.5  # of consecutive windows in `gafx predict` by default, as a fraction of a window


@dataclass(frozen=True)
class Segments:
    """Segments of tracks: row in the manifest, first sample and length at the model's rate, `(segments,)` each."""

    row: Rows
    start: Rows
    length: Rows

    def __len__(self) -> int:
        return len(self.row)


def training_segments(manifest: Manifest, rows: Rows, sample_rate: int, segment_length: int) -> Segments:
    """Return as many whole segments of each track as fit, at least one (GAFX section 4.2.4: three of 10 s from 30 s).

    Args:
        manifest: the data set.
        rows: of the tracks.
        sample_rate: at which segments are counted, in Hz.
        segment_length: in samples.
    """
    lengths = clip_lengths(manifest, rows, sample_rate)
    # A track that is short of a whole number of segments by at most 2.5 % of one (GTZAN's 29.93 s for ten of 3 s) still
    # gives its last one, moved back.
    counts = np.maximum(1, (lengths + segment_length // 40) // segment_length)
    row, number = _numbered(counts)
    start = np.maximum(0, np.minimum(number * segment_length, lengths[row] - segment_length))
    return Segments(rows[row], start, np.full(len(row), segment_length, np.int64))


def evaluation_segments(
    manifest: Manifest, rows: Rows, sample_rate: int, segment_length: int, least: int = 1, *, overlap: float = 0.0
) -> Segments:
    """Return segments that cover each track.

    The last is moved back to end with the track, a remainder under a tenth of a segment is dropped. A track shorter
    than a segment is one segment of the track's length: nothing is padded inside a track.

    Args:
        manifest: the data set.
        rows: of the tracks.
        sample_rate: at which segments are counted, in Hz.
        segment_length: in samples.
        least: samples that the model needs; a shorter track gives a segment of this length, which the reader fills by
            repetition.
        overlap: of consecutive segments, as a fraction of a segment in [0, 1); `OVERLAP` gives the windows of
            `gafx predict`.
    """
    lengths = clip_lengths(manifest, rows, sample_rate)
    hop = max(1, round(segment_length * (1 - overlap)))
    last = np.maximum(lengths - segment_length, 0)
    whole = last // hop + 1
    counts = whole + keeps_remainder(lengths - segment_length - (whole - 1) * hop, segment_length)
    row, number = _numbered(counts)
    length = np.where(lengths <= segment_length, np.maximum(lengths, least), segment_length)
    return Segments(rows[row], np.minimum(number * hop, last[row]), length[row])


def by_segment(manifest: Manifest, segment_seconds: float) -> Manifest:
    """Return each segment of a clip as a separate clip and group, so that a split may separate them.

    Only for measuring how much such a split inflates accuracy (docs/protocols.md): a segment of a track in training
    shows the model how the track's other segments sound.

    The segments are those of `data.crop=segments`: whole ones, side by side. The remainder at a track's end is dropped;
    moved back, as in evaluation, it would overlap another segment. Segments begin and end on samples of the file, at
    its own rate.

    Args:
        manifest: of whole clips.
        segment_seconds: length of a segment; a shorter clip is one segment.
    """
    if not len(manifest):
        return manifest
    parts = []
    for rate in np.unique(manifest.sample_rate).tolist():
        rows = np.flatnonzero(manifest.sample_rate == rate)
        parts.append(training_segments(manifest, rows, rate, round(segment_seconds * rate)))
    row = np.concatenate([part.row for part in parts])
    start = np.concatenate([part.start for part in parts])
    length = np.concatenate([part.length for part in parts])
    order = np.lexsort((start, row))
    row, start, length = row[order], start[order], length[order]
    cut = manifest.take(row)
    # In samples of the file from its beginning, so that rounding to samples again gives the same numbers.
    begin = np.rint(cut.start * cut.sample_rate) + start
    frames = np.rint(cut.duration * cut.sample_rate)  # of the whole clip, which may be shorter than a segment
    return replace(
        cut,
        group=np.arange(len(row)),
        start=begin / cut.sample_rate,
        duration=np.minimum(length, frames) / cut.sample_rate,
        notes=(*cut.notes, NOTE),
    )


def _numbered(counts: npt.NDArray[np.int64]) -> tuple[Rows, Rows]:
    """For `counts[i]` segments of each track i, return the track of each segment and its number within the track."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
