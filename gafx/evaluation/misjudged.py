"""Misjudged test tracks and suspected label errors, for the report and label_errors.csv."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from gafx.audio.mp3 import mp3
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest
from gafx.errors import UnreadableAudio
from gafx.inference import Predictions, to_tracks
from gafx.io import atomic_write
from gafx.stats.label_errors import planted_recall, suspected
from gafx.stats.scores import Array

FILE = "label_errors.csv"
MOST_LISTED = 500  # tracks in the report
_SECONDS = 6.0  # of an excerpt


@dataclass(frozen=True)
class Excerpt:
    """Audio of a track: start in its file in seconds, and an MP3 file, mono, at the model's rate or the next of MP3."""

    start_seconds: float
    mp3: bytes

    @property
    def embedded_bytes(self) -> int:
        """Size in a page, as base64."""
        return 4 * -(-len(self.mp3) // 3)


@dataclass(frozen=True)
class MisjudgedTrack:
    """A track whose most probable label is not one of its own.

    Attributes:
        clip: its name relative to the data's root.
        label: its labels, joined by `; `.
        prediction: the most probable label.
        probability: of the prediction.
        file: path of the audio file; empty for a clip inside a shard.
        suspect: rank among the suspected label errors, from 1; 0 for a track that is none.
        excerpt: audio; None beyond the bound of the page, or where it cannot be read.
    """

    clip: str
    label: str
    prediction: str
    probability: float
    file: str = ""
    suspect: int = 0
    excerpt: Excerpt | None = None


@dataclass(frozen=True)
class LabelError:
    """A suspected label error: names, the labels' probabilities, and the margin of the most probable label."""

    clip: str
    label: str
    suggested: str
    margin: float
    label_probability: float
    suggested_probability: float


@dataclass(frozen=True)
class Misjudged:
    """The misjudged tracks of a model.

    Attributes:
        tracks: the most confidently misjudged ones, by falling probability.
        count: number of all.
        suspects: suspected label errors, the most suspicious first; None where labels were not checked (tagging).
        recall: fraction of random label errors that would be among the suspects, see
            `gafx.stats.label_errors.planted_recall`.
    """

    tracks: list[MisjudgedTrack] = field(default_factory=list)
    count: int = 0
    suspects: list[LabelError] | None = None
    recall: float | None = None


def excerpts(clips: ClipDataset, segments: Predictions, most_bytes: int) -> dict[int, Excerpt]:
    """Excerpts of the most confidently misjudged tracks, by row of the manifest.

    An excerpt begins with the segment that has the highest probability of the wrong label. Those that cannot be read
    are left out.

    Args:
        clips: segments of the tracks.
        segments: their predictions.
        most_bytes: of all excerpts in a page.
    """
    tracks, manifest, reader = to_tracks(segments), clips.manifest, clips.reader
    found: dict[int, Excerpt] = {}
    for track in _misjudged(tracks, manifest)[: MOST_LISTED if most_bytes else 0]:
        row = int(tracks.row[track])
        own = np.flatnonzero(segments.row == row)
        start = int(segments.start[own[segments.values[own, tracks.values[track].argmax()].argmax()]])
        try:
            wave = reader.read(row, start, round(_SECONDS * reader.sample_rate))
        except UnreadableAudio:
            continue
        seconds = float(manifest.start[row]) + start / reader.sample_rate
        excerpt = Excerpt(seconds, mp3(wave, reader.sample_rate))
        most_bytes -= excerpt.embedded_bytes
        if most_bytes < 0:
            break
        found[row] = excerpt
    return found


def misjudged(
    manifest: Manifest, tracks: Predictions, excerpts: Mapping[int, Excerpt], *, multi_label: bool
) -> Misjudged:
    """List the misjudged tracks and, for one label per clip, the suspected label errors.

    Args:
        manifest: of the tracks' rows.
        tracks: probabilities of tracks that the model was not trained on.
        excerpts: from `excerpts`.
        multi_label: several labels a clip, which are not checked for errors.
    """
    suspects, recall, ranks = None, None, {}
    if not multi_label:
        labels = manifest.first_label()[tracks.row]
        found, recall = suspected(tracks.values, labels), planted_recall(tracks.values, labels)
        ranks = {int(track): rank for rank, track in enumerate(found.clip, 1)}
        suspects = []
        for track, suggested, margin in zip(found.clip, found.suggested, found.margin, strict=True):
            row, values = int(tracks.row[track]), tracks.values[track]
            label = int(labels[track])
            suspects.append(LabelError(
                manifest.relative_path(row), manifest.classes[label], manifest.classes[suggested], float(margin),
                float(values[label]), float(values[suggested]),
            ))  # fmt: skip
    wrong = _misjudged(tracks, manifest)
    listed = []
    for track in wrong[:MOST_LISTED].tolist():
        row, values = int(tracks.row[track]), tracks.values[track]
        file = manifest.file(row)
        listed.append(MisjudgedTrack(
            manifest.relative_path(row), "; ".join(manifest.classes[label] for label in manifest.labels[row]),
            manifest.classes[int(values.argmax())], float(values.max()),
            os.fsdecode(file) if isinstance(file, bytes) else "", ranks.get(track, 0), excerpts.get(row),
        ))  # fmt: skip
    return Misjudged(listed, len(wrong), suspects, recall)


def within(models: Sequence[Misjudged], most_bytes: int) -> list[Misjudged]:
    """The models of one page with no more embedded audio than `most_bytes`: the most confident tracks keep theirs."""
    tracks = [track for model in models for track in model.tracks]
    kept = set()
    for track in sorted(tracks, key=lambda track: -track.probability):
        most_bytes -= track.excerpt.embedded_bytes if track.excerpt else 0
        if most_bytes >= 0:
            kept.add(id(track))
    return [
        replace(model, tracks=[track if id(track) in kept else replace(track, excerpt=None) for track in model.tracks])
        for model in models
    ]


def write_label_errors(path: Path, models: Sequence[tuple[str, Misjudged]]) -> None:
    """Write the suspected label errors of the models of one evaluation, a line each, as CSV."""
    with atomic_write(path, newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["model", *(field.name for field in fields(LabelError))])
        for name, model in models:
            for error in model.suspects or ():
                cells = (f"{cell:.6f}" if isinstance(cell, float) else cell for cell in astuple(error))
                writer.writerow([name, *cells])


def _misjudged(tracks: Predictions, manifest: Manifest) -> Array:
    """Positions of the tracks whose most probable label is not one of their own, by falling probability."""
    predicted = tracks.values.argmax(axis=1)
    wrong = np.flatnonzero(manifest.targets(tracks.row)[np.arange(len(tracks)), predicted] == 0)
    return wrong[np.argsort(-tracks.values[wrong].max(axis=1, initial=0), kind="stable")]
