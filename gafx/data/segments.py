"""Segments of tracks taken for recordings: the mistake that many published numbers contain, to measure what it is worth.

Nothing but that measurement has a use for this (see docs/protocols.md): a segment of a track in training tells a model
what the track's other segments sound like, and what is then measured is how well tracks are known again.
"""

from dataclasses import replace

import numpy as np

from gafx.data.manifest import Manifest

NOTE = "each segment of a track is a recording of its own: accuracy is inflated; not comparable with anything"


def by_segment(manifest: Manifest, segment_seconds: float) -> Manifest:
    """Each segment of a clip as a clip and a recording of its own, so that a split may put segments of one on both sides.

    The segments are those that `data.crop=segments` trains on: whole ones, side by side. What is left at a track's end is
    dropped; moved back, as in evaluation, it would hold sound that another segment holds too. Segments begin and end on
    samples of the file, at its own rate.

    Args:
        manifest: of whole clips.
        segment_seconds: length of a segment; a shorter clip is one segment.
    """
    from gafx.data.dataset import training_segments  # it imports torch

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
    # Samples of the file, counted from its begin, so that what is rounded to samples again is what it was.
    begin = np.rint(cut.start * cut.sample_rate) + start
    frames = np.rint(cut.duration * cut.sample_rate)  # of the whole clip, which may be shorter than a segment
    return replace(
        cut,
        group=np.arange(len(row)),
        start=begin / cut.sample_rate,
        duration=np.minimum(length, frames) / cut.sample_rate,
        notes=(*cut.notes, NOTE),
    )
