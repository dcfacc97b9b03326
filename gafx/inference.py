"""Waves to probabilities, batches to predictions, segments to tracks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gafx.data.batches import Batch
from gafx.data.dataset import Sample
from gafx.data.manifest import Manifest, Skipped
from gafx.data.segments import Segments
from gafx.errors import UsageError
from gafx.model import GAFX
from gafx.nn.precision import autocast
from gafx.registry import OBJECTIVES
from gafx.stats.calibration import fit_temperature, track_means


class Probabilities(nn.Module):
    """A trained model whose outputs are calibrated probabilities of its labels.

    `(batch, channels, samples)` at the model's rate, in [-1, 1] -> `(batch, classes)` float32: outputs divided by the
    temperature that was fitted on validation tracks (1 where none was), then softmax for a model of one label a clip
    (rows sum to 1), or a sigmoid for each label.

    Args:
        model: from `gafx.load`.

    Raises:
        UsageError: the model was not trained to tell labels, or nothing says what its outputs mean.
    """

    def __init__(self, model: GAFX):
        super().__init__()
        if model.info is None:
            raise UsageError(
                "nothing says what this model's outputs mean: load it with gafx.load, or build it by name with "
                "gafx.create_model(..., classes=[...])"
            )
        self.model, self.info = model, model.info
        kind: Any = OBJECTIVES.get(self.info.objective)
        self.objective = kind
        if not kind.reads_labels:
            raise UsageError(
                f"the model was trained by objective={self.info.objective}, which reads no labels: it has none to "
                "give. Fine-tune its front-end with objective=classify or tag (frontend.pretrained=<run>), then predict"
            )

    @property
    def sums_to_one(self) -> bool:
        """Whether the labels share what there is (one label a clip), or are told one by one (several a clip)."""
        return not self.objective.multi_label

    def forward(self, wave: Tensor) -> Tensor:
        return self.of_map(self.model.features(wave))

    def of_map(self, feature_map: Tensor) -> Tensor:
        """Probabilities from what `GAFX.features` gives: `(batch, channels, frequency, time)` -> `(batch, classes)`."""
        return self.objective.probabilities(self.model.classifier(feature_map).float() / self.info.temperature)


@dataclass(frozen=True)
class Predictions:
    """What a model says of segments or of tracks.

    Attributes:
        row: manifest row of each.
        start: first sample of each segment at the model's rate (0 for tracks).
        values: `(n, columns)` float64: what the objective says of each, probabilities of the classes or errors.
        skipped: clips that could not be read, wholly or in part; they are in none of the above.
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
    """Run a model over every segment of a loader, on all ranks, and gather what they say.

    Args:
        model: what `predict` runs, on `device`; it is put into eval mode and back.
        loader: from `gafx.data.batches.evaluation_loader`.
        segments: what the loader's indices mean.
        predict: waves to values (an objective's method).
        device, precision: where and how to compute.
        progress: called with the number of segments after each batch.
    """
    was_training = model.training
    model.eval()
    indices, values, errors = [], [], {}
    batch: Batch
    for batch in loader:
        on_device = batch.to(device)
        with autocast(precision, device):
            said = predict(on_device.wave)
        good = batch.weight > 0
        indices.append(batch.index[good].numpy())
        values.append(said.double().cpu()[good].numpy())
        errors.update(batch.errors)
        if progress is not None:
            progress(len(batch.index))
    model.train(was_training)
    gathered = _gather((indices, values, errors))
    index = (
        np.concatenate([i for part, _, _ in gathered for i in part])
        if any(p for p, _, _ in gathered)
        else np.zeros(0, np.int64)
    )
    value = np.concatenate([v for _, part, _ in gathered for v in part]) if len(index) else np.zeros((0, 0))
    # A broken file is listed once, however many of its segments could not be read, and a track of which a segment could not
    # be read does not count: its other segments are no fair sample of it.
    broken = {number: clip for *_, part in gathered for number, clip in part.items()}
    skipped = {clip.path: clip for _, clip in sorted(broken.items())}
    order = np.argsort(index)
    order = order[~np.isin(segments.row[index[order]], segments.row[list(broken)])]
    index = index[order]
    return Predictions(segments.row[index], segments.start[index], value[order], tuple(skipped.values()))


def calibrate(segments: Predictions, manifest: Manifest, objective: Any) -> dict[str, Any]:
    """Fit a temperature to what a model says of validation segments, as `ModelInfo.calibration` holds it.

    Args:
        segments: probabilities at temperature 1.
        manifest: of the segments' rows.
        objective: the class of the model's objective.

    Returns:
        what `fit_temperature` returns, with `part` and `recordings`; empty where the objective reads no labels, where
        there are no segments, or where some of their probabilities are not finite.
    """
    if not (objective.reads_labels and len(segments) and np.isfinite(segments.values).all()):
        return {}
    rows, track = np.unique(segments.row, return_inverse=True)
    fitted = fit_temperature(segments.values, track, manifest.targets(rows), multi_label=objective.multi_label)
    return {**fitted, "part": "validation", "recordings": len(np.unique(manifest.group[rows]))}


def to_tracks(segments: Predictions) -> Predictions:
    """A track's values are the mean of its segments'."""
    rows, track = np.unique(segments.row, return_inverse=True)
    return Predictions(rows, np.zeros(len(rows), np.int64), track_means(segments.values, track), segments.skipped)


def _gather(value: object) -> list:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
