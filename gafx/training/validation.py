"""Scores on the validation part, by the same definitions as in evaluation."""

import torch

from gafx.data.batches import evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.inference import Predictions, predict_segments, to_tracks
from gafx.objectives.base import Objective


def validate(
    objective: Objective,
    clips: ClipDataset,
    *,
    batch_size: int,
    workers: int,
    rank: int,
    world: int,
    device: torch.device,
    precision: str,
) -> tuple[dict[str, float], Predictions]:
    """Score an objective's model, over all ranks, on whole tracks; also return what it says of each segment.

    Args:
        objective: with its model on `device`.
        clips: every segment of every validation track.
        batch_size: segments a batch and rank.
        workers: of the loader.
        rank, world: this process, of how many.
        device, precision: where and how to compute.
    """
    loader = evaluation_loader(clips, batch_size=batch_size, workers=workers, rank=rank, world=world)
    segments = predict_segments(
        objective.model, loader, clips.segments, objective.predict, device=device, precision=precision
    )
    tracks, manifest = to_tracks(segments), clips.manifest
    scores = objective.scores(tracks.values, manifest.targets(tracks.row), manifest.group[tracks.row], resamples=0)
    return {f"validation_{name}": score.value for name, score in scores.items()}, segments
