"""Frozen maps as numbers that probes read: one recipe for every front-end, cached.

The map is the front-end's own, before the normalisation that `GAFX.features` adds: that brings each clip's map of a
learned front-end to one deviation, and with it takes the clip's loudness away. Planes that lie one after another in
time (GAFX-U's sources) are channels here.

- statistics: mean and deviation over time of each bin.
- modulation: how strongly the bins move at each modulation frequency, `MODULATIONS` of them from 0.5 to 7 Hz (30 to 420
  a minute), evenly spaced in pitch: each bin's time course is centred, brought to deviation 1 and tapered; its power
  is averaged over the bins of a band (a quarter of the map's height) and its logarithm taken. A beat shows here as
  peaks at its rate and its multiples; a mean and a deviation know nothing of it. The power is averaged, not the map:
  neighbouring bins of a learned map may move against each other. 7 Hz lie below half the frame rate of every front-end
  (GAFX-U has 15.6 frames a second).
- segments: mean over the frames of each segment (chord) of each bin.
"""

import hashlib
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
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
from gafx.frontends.base import FrontEnd
from gafx.studies.probes.subjects import Subject

Array = npt.NDArray[Any]
VERSION = 1  # of the recipe: counts what changes the numbers, so that caches made before are not taken for new ones
MODULATIONS, BANDS = 64, 4
_SLOWEST, _FASTEST = 0.5, 7.0  # Hz


@dataclass(frozen=True)
class Features:
    """Features of the tracks that could be read.

    Attributes:
        row: `(tracks,)` manifest row of each track.
        statistics: `(tracks, 2 * channels * bins)`.
        modulation: `(tracks, channels * BANDS * MODULATIONS)`.
        segments: `(segments, channels * bins)`, track by track.
        skipped: what could not be read.
    """

    row: Array
    statistics: Array
    modulation: Array
    segments: Array
    skipped: tuple[Skipped, ...] = ()


def unfold_planes(front_end: FrontEnd, feature_map: torch.Tensor) -> Array:
    """`(channels, frequency, planes * time)` -> float64 `(channels * planes, frequency, time)`."""
    return front_end.planes_to_channels(feature_map).double().cpu().numpy()


def statistics(feature_map: Array) -> Array:
    """`(channels, bins, frames)` -> `(2 * channels * bins,)`: means, then deviations."""
    return np.concatenate([feature_map.mean(axis=2).ravel(), feature_map.std(axis=2).ravel()])


def modulation(feature_map: Array, seconds: float) -> Array:
    """`(channels, bins, frames)` -> `(channels * BANDS * MODULATIONS,)`: logarithm of the modulation power."""
    channels, bins, frames = feature_map.shape
    moving = feature_map - feature_map.mean(axis=2, keepdims=True)
    deviation = moving.std(axis=2, keepdims=True)
    moving = np.where(deviation > 1e-9, moving / np.maximum(deviation, 1e-9), 0.0) * np.hanning(frames + 2)[1:-1]
    frequencies = np.geomspace(_SLOWEST, _FASTEST, MODULATIONS)
    times = (np.arange(frames) + 0.5) * seconds / frames
    power = np.abs(moving @ np.exp(-2j * np.pi * np.outer(times, frequencies))) ** 2 / frames
    edges = np.linspace(0, bins, BANDS + 1).round().astype(int)
    bands = [power[:, low : max(high, low + 1)].mean(axis=1) for low, high in itertools.pairwise(edges)]
    return np.log(np.stack(bands, axis=1) + 1e-4).reshape(channels * BANDS * MODULATIONS)


def segment_means(feature_map: Array, seconds: float, segments: Sequence[tuple[float, float]]) -> Array:
    """`(channels, bins, frames)` -> `(segments, channels * bins)`: the map's mean between two times.

    Frames count whose middle lies inside; a segment shorter than a frame takes the one it lies in.
    """
    frames = feature_map.shape[2]
    means = np.empty((len(segments), feature_map.shape[0] * feature_map.shape[1]))
    for number, (start, end) in enumerate(segments):
        first = int(np.clip(np.ceil(start / seconds * frames - 0.5), 0, frames - 1))
        last = int(np.clip(np.ceil(end / seconds * frames - 0.5), first + 1, frames))
        means[number] = feature_map[:, :, first:last].mean(axis=2).ravel()
    return means


def data_digest(manifest: Manifest) -> str:
    """Hash of a data set's clips, labels and files (their sizes and times of change), for the cache's name."""
    hashed = hashlib.blake2b((manifest.fingerprint() + manifest.audio_fingerprint()).encode(), digest_size=12)
    for row in range(len(manifest)):
        file = manifest.file(row)
        status = os.stat(file if isinstance(file, bytes) else file.path)
        hashed.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return hashed.hexdigest()


def map_features(
    subject: Subject, manifest: Manifest, segments: Sequence[Sequence[tuple[float, float]]], folder: Path, data: str
) -> Features:
    """Features of every track's whole map, from the cache in `folder` where they lie there already.

    Args:
        subject: whose maps.
        manifest: the tracks; those that cannot be read are skipped and listed.
        segments: of each track, in seconds.
        folder: of the cache.
        data: hash of the data, see `data_digest`.
    """
    front_end = subject.frontend

    def make() -> dict[str, Any]:
        reader = FileReader(manifest, front_end.sample_rate, front_end.channels)
        lengths = clip_lengths(manifest, np.arange(len(manifest)), front_end.sample_rate)
        rows, found, skipped = [], [], []
        for row in _progress(range(len(manifest)), subject.name):
            try:
                wave = reader.read(row, 0, int(lengths[row]))
            except UnreadableAudio as error:
                skipped.append(Skipped(manifest.relative_path(row), str(error)).as_dict())
                continue
            with torch.inference_mode():
                array = unfold_planes(front_end, front_end(torch.from_numpy(wave)[None])[0])
            seconds = wave.shape[1] / front_end.sample_rate
            rows.append(row)
            found.append((statistics(array), modulation(array, seconds), segment_means(array, seconds, segments[row])))
        names = ("statistics", "modulation", "segments")
        columns = list(zip(*found, strict=True)) or [(np.empty(1),)] * 3
        arrays = {name: np.vstack(column).astype(np.float32) for name, column in zip(names, columns, strict=True)}
        return {"row": np.array(rows, np.int64), **arrays, "skipped": np.array(json.dumps(skipped))}

    times = hashlib.blake2b(repr(segments).encode(), digest_size=8).hexdigest()
    kept = cached(folder, "maps", (VERSION, MODULATIONS, BANDS, subject.digest, data, times), make)
    skipped = tuple(Skipped(**entry) for entry in json.loads(str(kept["skipped"])))
    return Features(kept["row"], kept["statistics"], kept["modulation"], kept["segments"], skipped)


def cached(folder: Path, name: str, made_from: Sequence[object], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, kept as `<name>-<hash of made_from>.npz`; never pickled. A damaged file is made anew."""
    path = folder / f"{name}-{hashlib.blake2b(repr(made_from).encode(), digest_size=10).hexdigest()}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            print(f"warning: {path} is damaged ({error}) and is made anew", file=sys.stderr)
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.writing.npz")
    np.savez(aside, **arrays)
    os.replace(aside, path)
    return arrays


def _progress(rows: range, name: str) -> Any:
    return tqdm(rows, desc=name, unit="track", disable=not sys.stderr.isatty())
