"""Inference: waves to probabilities, batches to predictions, segments to tracks, validation scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gafx.data.batches import Batch, evaluation_loader
from gafx.data.dataset import ClipDataset, Sample
from gafx.data.manifest import Manifest, Skipped
from gafx.data.segments import Segments
from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.nn.precision import autocast
from gafx.registry import OBJECTIVES
from gafx.stats.calibration import fit_temperature, track_means


class Probabilities(nn.Module):
    """A trained model with calibrated probabilities of its labels as outputs.

    `(batch, channels, samples)` at the model's rate, in [-1, 1] -> `(batch, classes)` float32: logits divided by the
    temperature fitted on validation tracks (1 without one), then softmax for single-label models (rows sum to 1) or a
    sigmoid per label.

    Args:
        model: from `gafx.load`.

    Raises:
        UsageError: the model was not trained on labels, or it has no `info` that names its objective.
    """

    def __init__(self, model: GAFX):
        super().__init__()
        if model.info is None:
            raise UsageError(
                "this model has no information on its outputs (model.info): load it with gafx.load, or build it by "
                "name with gafx.create_model(..., classes=[...])"
            )
        self.model, self.info = model, model.info
        kind: Any = OBJECTIVES.get(self.info.objective)
        self.objective = kind
        if not kind.reads_labels:
            raise UsageError(
                f"the model was trained by objective={self.info.objective}, which uses no labels, so it predicts none. "
                "Fine-tune its front-end with objective=classify or tag (frontend.pretrained=<run>), then predict"
            )

    @property
    def sums_to_one(self) -> bool:
        """True if the probabilities of a clip sum to 1 (single-label), False if they are independent (tagging)."""
        return not self.objective.multi_label

    def forward(self, wave: Tensor) -> Tensor:
        return self.of_map(self.model.features(wave))

    def of_map(self, feature_map: Tensor) -> Tensor:
        """Probabilities of a map from `GAFX.features`: `(batch, channels, frequency, time)` -> `(batch, classes)`."""
        return self.objective.probabilities(self.model.classifier(feature_map).float() / self.info.temperature)


@dataclass(frozen=True)
class Predictions:
    """Predictions for segments or tracks.

    Attributes:
        row: `(n,)` manifest row of each.
        start: `(n,)` first sample of each segment at the model's rate (0 for tracks).
        values: `(n, columns)` float64 of `Objective.predict`: probabilities of the classes, or errors.
        skipped: clips that could not be read, wholly or in part; they are not in the arrays.
    """

    row: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.row)


@torch.inference_mode()
def predict_segments(
    model: nn.Module,
    loader: DataLoader[Sample],
    segments: Segments,
    predict: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    precision: str,
    progress: Callable[[int], object] | None = None,
) -> Predictions:
    """Predict every segment of a loader and gather the predictions of all ranks (collective).

    Args:
        model: run by `predict`, on `device`; in eval mode while this runs.
        loader: from `gafx.data.batches.evaluation_loader`.
        segments: that the loader's indices refer to.
        predict: waves to values, `Objective.predict`.
        device, precision: to compute on, and in.
        progress: called with the number of segments after each batch.
    """
    was_training = model.training
    model.eval()
    indices, values, errors = [], [], {}
    batch: Batch
    for batch in loader:
        on_device = batch.to(device)
        with autocast(precision, device):
            predicted = predict(on_device.wave)
        good = batch.weight > 0
        indices.append(batch.index[good].numpy())
        values.append(predicted.cpu().double()[good].numpy())
        errors.update(batch.errors)
        if progress is not None:
            progress(len(batch.index))
    model.train(was_training)
    gathered = _gather((indices, values, errors))
    index = np.concatenate([np.zeros(0, np.int64), *(i for part, _, _ in gathered for i in part)])
    value = np.concatenate([v for _, part, _ in gathered for v in part]) if len(index) else np.zeros((0, 0))
    # A broken file is listed once, however many of its segments could not be read. A track with an unreadable segment
    # is left out: its other segments do not represent it.
    broken = {number: clip for *_, part in gathered for number, clip in part.items()}
    skipped = {clip.path: clip for _, clip in sorted(broken.items())}
    order = np.argsort(index)
    order = order[~np.isin(segments.row[index[order]], segments.row[list(broken)])]
    index = index[order]
    return Predictions(segments.row[index], segments.start[index], value[order], tuple(skipped.values()))


def calibrate(segments: Predictions, manifest: Manifest, objective: Any) -> dict[str, Any]:
    """Fit a temperature on the predictions for validation segments; the result is stored as `ModelInfo.calibration`.

    Args:
        segments: probabilities at temperature 1.
        manifest: of the segments' rows.
        objective: the model's objective, or its class.

    Returns:
        the result of `fit_temperature`, with `part` and `recordings`; empty if the objective uses no labels, without
        segments, or if some probabilities are not finite.
    """
    if not (objective.reads_labels and len(segments) and np.isfinite(segments.values).all()):
        return {}
    rows, track = np.unique(segments.row, return_inverse=True)
    fitted = fit_temperature(segments.values, track, manifest.targets(rows), multi_label=objective.multi_label)
    return {**fitted, "part": "validation", "recordings": len(np.unique(manifest.group[rows]))}


def to_tracks(segments: Predictions) -> Predictions:
    """Average the values of each track's segments."""
    rows, track = np.unique(segments.row, return_inverse=True)
    return Predictions(rows, np.zeros(len(rows), np.int64), track_means(segments.values, track), segments.skipped)


def validate(
    objective: Any, clips: ClipDataset, *, batch_size: int, workers: int, rank: int, world: int, device: torch.device,
    precision: str,
) -> tuple[dict[str, float], Predictions]:  # fmt: skip
    """Score an objective's model on whole tracks, by the definitions of evaluation (collective).

    Args:
        objective: with its model on `device`.
        clips: all segments of the validation tracks.
        batch_size: segments per batch and rank.
        workers: of the data loader.
        rank, world: of this process, and the number of processes.
        device, precision: to compute on, and in.

    Returns:
        scores by name, `validation_` in front, and the predictions for the segments.
    """
    loader = evaluation_loader(clips, batch_size=batch_size, workers=workers, rank=rank, world=world)
    segments = predict_segments(
        objective.model, loader, clips.segments, objective.predict, device=device, precision=precision
    )
    tracks, manifest = to_tracks(segments), clips.manifest
    scores = objective.scores(tracks.values, manifest.targets(tracks.row), manifest.group[tracks.row], resamples=0)
    return {f"validation_{name}": score.value for name, score in scores.items()}, segments


def _gather(value: object) -> list:
    """An object of every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
