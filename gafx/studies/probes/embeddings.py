"""Embeddings of whole tracks, the mean over their segments, cached.

A model's embedding is the input of its classifier's last layer (`GAFX.embed`); a bare front-end's is the mean and std
over time of each bin of its map. MFCC statistics are the baseline without a learned front-end.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx.data.manifest import Manifest
from gafx.deploy.inputs import Inputs
from gafx.deploy.windows import Layout, layout_for, on_device
from gafx.fitting.features import cached_predictions, segment_features, sound_features
from gafx.inference import Predictions, to_tracks
from gafx.io import digest
from gafx.model import create_frontend
from gafx.studies.probes.subjects import Subject

VERSION = 2  # of the computation, see `features.VERSION`
BASELINE = "MFCC statistics"
_COEFFICIENTS = 20


def baseline_subject() -> Subject:
    """Mean and std of 20 MFCC and their differences: hand-crafted features as the baseline of learned ones."""
    text = f"mean and std of {_COEFFICIENTS} MFCC and their differences, from mel; no learned weights"
    return Subject(BASELINE, text, create_frontend("mel").eval(), f"mfcc {_COEFFICIENTS}")


def embed_tracks(
    subject: Subject, manifest: Manifest, rows: npt.NDArray[np.int64], seconds: float, folder: Path, data: str
) -> Predictions:
    """Compute the embeddings `(tracks, width)` of some tracks, or read them from the cache in `folder`.

    Args:
        subject: front-end or model.
        manifest: the data set.
        rows: of it.
        seconds: length of the segments; a model uses its own.
        folder: of the cache.
        data: digest of the data, see `gafx.fitting.features.data_digest`.
    """
    front_end, model = subject.frontend, subject.model
    if model is not None and model.info is not None:
        seconds = model.info.segment_seconds

    def make() -> Predictions:
        return to_tracks(segment_features(model or front_end, _embedder(subject), manifest, rows, seconds,
                                          name=subject.name))  # fmt: skip

    key = (VERSION, subject.digest, data, digest(rows), seconds)
    return cached_predictions(folder, "embeddings", key, make, subject.device)


def embed_inputs(
    subject: Subject, inputs: Inputs, *, sample_rate: float | None = None, seconds: float = 10.0, overlap: float = 0.0
) -> Predictions:
    """Compute the embeddings `(sounds, width)` that the probes read, of sounds in any form; not cached.

    Those of a file are the ones of `embed_tracks`, to rounding: its segments start at whole samples of the source.

    Args:
        subject: front-end or model.
        inputs, sample_rate: as for `gafx.predict`.
        seconds: length of the windows of a bare front-end; a model uses its own.
        overlap: of the windows, as a fraction of one.

    Returns:
        values in the order of the inputs, with their positions as `row`; `skipped` lists those that cannot be read.

    Raises:
        UsageError: inputs of another form, or none that can be read.
    """
    front_end, model = subject.frontend, subject.model
    if model is None:
        layout = Layout.of(front_end.sample_rate, front_end.channels, seconds, overlap=overlap, least=1)
    else:
        layout = layout_for(model, overlap=overlap)
    run = on_device(_embedder(subject), str(subject.device), "fp32")
    return sound_features(run, inputs, layout, sample_rate=sample_rate)


def _embedder(subject: Subject) -> Callable[[Tensor], Tensor]:
    front_end = subject.frontend
    if subject.model is not None:
        return subject.model.embed
    if subject.name == BASELINE:
        return lambda wave: mfcc_statistics(front_end(wave)[:, 0])

    def map_statistics(wave: Tensor) -> Tensor:
        maps = front_end.planes_to_channels(front_end(wave)).flatten(1, 2)
        return torch.cat([maps.mean(dim=2), maps.std(dim=2, correction=0)], dim=1)

    return map_statistics


def mfcc_statistics(log_mel: Tensor) -> Tensor:
    """`(batch, mel bins, frames)` -> `(batch, 4 * 20)`: mean and std of MFCC and of their differences in time.

    MFCC are the first coefficients of the cosine transform (orthonormal DCT-II) over the bins of a log-mel spectrogram.
    """
    from scipy.fft import dct

    coefficients = dct(log_mel.double().cpu().numpy(), axis=1, norm="ortho")[:, :_COEFFICIENTS]
    moves = np.diff(coefficients, axis=2) if coefficients.shape[2] > 1 else np.zeros_like(coefficients)
    columns = [moment for values in (coefficients, moves) for moment in (values.mean(axis=2), values.std(axis=2))]
    return torch.from_numpy(np.concatenate(columns, axis=1))
