"""Embeddings of whole tracks: the mean over their segments, cached.

A model's is what its classifier reads before its last layer (`GAFX.embed`). A bare front-end has none: mean and
deviation over time of each bin of its map stand for it. MFCC statistics are the reference that needs no front-end.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest, Skipped
from gafx.data.readers import FileReader
from gafx.data.segments import evaluation_segments
from gafx.inference import predict_segments, to_tracks
from gafx.model import create_frontend
from gafx.studies.probes.features import cached
from gafx.studies.probes.subjects import Subject

VERSION = 1
REFERENCE = "MFCC statistics"
_COEFFICIENTS = 20


@dataclass(frozen=True)
class Embeddings:
    """Embeddings `(tracks, width)` of the tracks that could be read: their rows, and what was skipped."""

    row: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    skipped: tuple[Skipped, ...] = ()


def reference_subject() -> Subject:
    """Mean and deviation of 20 MFCC and their differences: the handcrafted features that learned ones have to beat."""
    said = f"mean and deviation of {_COEFFICIENTS} MFCC and their differences, from mel; nothing is learned"
    return Subject(REFERENCE, said, create_frontend("mel").eval(), f"mfcc {_COEFFICIENTS}")


def embed_tracks(
    subject: Subject, manifest: Manifest, rows: npt.NDArray[np.int64], seconds: float, folder: Path, data: str
) -> Embeddings:
    """Embeddings of some tracks, from the cache in `folder` where they lie there already.

    Args:
        subject: whose.
        manifest: the data set.
        rows: of it.
        seconds: length of the segments; a model reads those it was built for.
        folder: of the cache.
        data: hash of the data, see `features.data_digest`.
    """
    front_end, model = subject.frontend, subject.model
    if model is not None and model.info is not None:
        seconds = model.info.segment_seconds

    def make() -> dict[str, Any]:
        segment_length = round(seconds * front_end.sample_rate)
        least = 1 if model is None else model.min_samples()
        segments = evaluation_segments(manifest, rows, front_end.sample_rate, segment_length, least)
        clips = ClipDataset(manifest, segments, FileReader(manifest, front_end.sample_rate, front_end.channels))
        with tqdm(total=len(clips), desc=subject.name, unit="segment", disable=not sys.stderr.isatty()) as bar:
            said = predict_segments(
                front_end if model is None else model, evaluation_loader(clips, batch_size=8), segments, _reader(subject),
                device=torch.device("cpu"), precision="fp32", progress=bar.update,
            )  # fmt: skip
        tracks = to_tracks(said)
        skipped = json.dumps([clip.as_dict() for clip in tracks.skipped])
        return {"row": tracks.row, "values": tracks.values, "skipped": np.array(skipped)}

    which = hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()
    kept = cached(folder, "embeddings", (VERSION, subject.digest, data, which, seconds), make)
    skipped = tuple(Skipped(**entry) for entry in json.loads(str(kept["skipped"])))
    return Embeddings(kept["row"], kept["values"], skipped)


def _reader(subject: Subject) -> Callable[[Tensor], Tensor]:
    if subject.model is not None:
        return subject.model.embed
    front_end = subject.frontend
    if subject.name == REFERENCE:
        return lambda wave: mfcc_statistics(front_end(wave)[:, 0])

    def read(wave: Tensor) -> Tensor:
        maps = front_end.planes_to_channels(front_end(wave)).flatten(1, 2)
        return torch.cat([maps.mean(dim=2), maps.std(dim=2, correction=0)], dim=1)

    return read


def mfcc_statistics(log_mel: Tensor) -> Tensor:
    """`(batch, mel bins, frames)` -> `(batch, 4 * 20)`: mean and deviation of MFCC and of their differences in time.

    MFCC are the first coefficients of the cosine transform (orthonormal DCT-II) over the bins of a log-mel spectrogram.
    """
    from scipy.fft import dct

    coefficients = dct(log_mel.double().cpu().numpy(), axis=1, norm="ortho")[:, :_COEFFICIENTS]
    moves = np.diff(coefficients, axis=2) if coefficients.shape[2] > 1 else np.zeros_like(coefficients)
    columns = [coefficients.mean(axis=2), coefficients.std(axis=2), moves.mean(axis=2), moves.std(axis=2)]
    return torch.from_numpy(np.concatenate(columns, axis=1))
