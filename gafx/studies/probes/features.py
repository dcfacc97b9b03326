"""Summaries of frozen maps for probes, computed alike for every front-end and cached.

The map is the front-end's output, before the normalisation in `GAFX.features`: that scales each clip's map of a learned
front-end to unit std and so removes the clip's loudness. Planes along time (GAFX-U's sources) become channels.

- statistics: mean and std over time of each bin.
- modulation: power of the bins at `MODULATIONS` modulation frequencies from 0.5 to 7 Hz (30 to 420 per minute), spaced
  geometrically. Each bin's time course is centred, scaled to unit std and tapered; its power is averaged over the bins
  of a band (a quarter of the map's height), and the logarithm taken. A beat gives peaks at its rate and the multiples
  of it, which mean and std do not show. The power is averaged, not the map, since neighbouring bins of a learned map
  may move in opposite directions. 7 Hz is below half the frame rate of front-ends with frames (GAFX-U has 15.6 per
  second); one with fewer columns per second, such as `handcrafted`, is not probed, see `resolves_beats`.
- segments: mean over the frames of each segment (chord) of each bin.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from gafx.data.manifest import Manifest, Skipped
from gafx.data.readers import FileReader, clip_lengths
from gafx.errors import UnreadableAudio
from gafx.fitting.features import cached
from gafx.frontends.base import FrontEnd
from gafx.io import digest
from gafx.studies.probes.subjects import Subject

Array = npt.NDArray[Any]
VERSION = 2  # of the computation; raise it when the numbers change, so that older caches are not used
MODULATIONS, BANDS = 64, 4
_KINDS = ("statistics", "modulation", "segments")
_SLOWEST, _FASTEST = 0.5, 7.0  # Hz


@dataclass(frozen=True)
class Features:
    """Features of the tracks that could be read.

    Attributes:
        row: `(tracks,)` manifest row of each track.
        statistics: `(tracks, 2 * channels * bins)`.
        modulation: `(tracks, channels * BANDS * MODULATIONS)`.
        segments: `(segments, channels * bins)`, track by track.
        skipped: unreadable files.
    """

    row: Array
    statistics: Array
    modulation: Array
    segments: Array
    skipped: tuple[Skipped, ...] = ()


def resolves_beats(front_end: FrontEnd) -> bool:
    """Return whether a front-end has enough frames per second for the modulation features."""
    frames = front_end.output_shape(10 * front_end.sample_rate)[2] / front_end.planes
    return frames / 10 > 2 * _FASTEST


def statistics(feature_map: Array) -> Array:
    """`(channels, bins, frames)` -> `(2 * channels * bins,)`: means, then stds."""
    return np.concatenate([feature_map.mean(axis=2).ravel(), feature_map.std(axis=2).ravel()])


def modulation(feature_map: Array, seconds: float) -> Array:
    """`(channels, bins, frames)` -> `(channels * BANDS * MODULATIONS,)`: logarithm of the modulation power."""
    channels, bins, frames = feature_map.shape
    moving = feature_map - feature_map.mean(axis=2, keepdims=True)
    std = moving.std(axis=2, keepdims=True)
    moving = np.where(std > 1e-9, moving / np.maximum(std, 1e-9), 0.0) * np.hanning(frames + 2)[1:-1]
    frequencies = np.geomspace(_SLOWEST, _FASTEST, MODULATIONS)
    times = (np.arange(frames) + 0.5) * seconds / frames
    power = np.abs(moving @ np.exp(-2j * np.pi * np.outer(times, frequencies))) ** 2 / frames
    edges = np.linspace(0, bins, BANDS + 1).round().astype(int)
    bands = [power[:, low : max(high, low + 1)].mean(axis=1) for low, high in itertools.pairwise(edges)]
    return np.log(np.stack(bands, axis=1) + 1e-4).reshape(channels * BANDS * MODULATIONS)


def segment_means(feature_map: Array, seconds: float, segments: Sequence[tuple[float, float]]) -> Array:
    """`(channels, bins, frames)` -> `(segments, channels * bins)`: the map's mean between two times.

    Frames count whose middle is inside; a segment shorter than a frame uses the frame that contains it.
    """
    frames = feature_map.shape[2]
    means = np.empty((len(segments), feature_map.shape[0] * feature_map.shape[1]))
    for number, (start, end) in enumerate(segments):
        first = int(np.clip(np.ceil(start / seconds * frames - 0.5), 0, frames - 1))
        last = int(np.clip(np.ceil(end / seconds * frames - 0.5), first + 1, frames))
        means[number] = feature_map[:, :, first:last].mean(axis=2).ravel()
    return means


def map_features(
    subject: Subject, manifest: Manifest, segments: Sequence[Sequence[tuple[float, float]]], folder: Path, data: str
) -> Features:
    """Compute the features of every track's whole map, or read them from the cache in `folder`.

    Args:
        subject: the front-end.
        manifest: the tracks; unreadable ones are skipped and listed.
        segments: of each track, in seconds.
        folder: of the cache.
        data: digest of the data, see `gafx.fitting.features.data_digest`.
    """
    front_end = subject.frontend

    def make() -> tuple[dict[str, Any], list[Skipped]]:
        reader = FileReader(manifest, front_end.sample_rate, front_end.channels)
        lengths = clip_lengths(manifest, np.arange(len(manifest)), front_end.sample_rate)
        rows, found, skipped = [], [], []
        for row in tqdm(range(len(manifest)), desc=subject.name, unit="track", disable=not sys.stderr.isatty()):
            try:
                wave = reader.read(row, 0, int(lengths[row]))
            except UnreadableAudio as error:
                skipped.append(Skipped(manifest.relative_path(row), str(error)))
                continue
            with torch.inference_mode():
                feature_map = front_end(torch.from_numpy(wave)[None].to(subject.device))[0]
                feature_map = front_end.planes_to_channels(feature_map).cpu().double().numpy()
            seconds = wave.shape[1] / front_end.sample_rate
            means = segment_means(feature_map, seconds, segments[row])
            rows.append(row)
            found.append((statistics(feature_map), modulation(feature_map, seconds), means))
        columns = list(zip(*found, strict=True)) or [(np.empty(1),)] * 3
        arrays = [np.vstack(column).astype(np.float32) for column in columns]
        return {"row": np.array(rows, np.int64)} | dict(zip(_KINDS, arrays, strict=True)), skipped

    key = (VERSION, MODULATIONS, BANDS, subject.digest, data, digest(repr(segments)))
    arrays, skipped = cached(folder, "maps", key, make, subject.device)
    return Features(**arrays, skipped=skipped)
