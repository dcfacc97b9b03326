"""Inference: waves to probabilities, batches to predictions, segments to tracks, validation scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.data.batches import Batch, Loader, evaluation_loader
from gafx.data.dataset import ClipDataset
from gafx.data.manifest import Manifest, Skipped
from gafx.data.segments import Segments
from gafx.errors import UsageError
from gafx.midi.tokens import scheme_of
from gafx.model import GAFX
from gafx.nn.cpu import by_clips
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
        model.check_statistics()
        kind: Any = OBJECTIVES.get(self.info.objective)
        self.objective = kind
        if not kind.reads_labels and scheme_of(self.info.classes):
            raise UsageError(
                f"the model was trained by objective={self.info.objective} on tokens of MIDI: it writes music (gafx "
                "generate), and predicts no labels"
            )
        if not kind.reads_labels:
            raise UsageError(
                f"the model was trained by objective={self.info.objective}, which uses no labels, so it predicts none. "
                "Fine-tune it with objective=classify or tag (pretrained=<run> or frontend.pretrained=<run>), first"
            )

    @property
    def sums_to_one(self) -> bool:
        """True if the probabilities of a clip sum to 1 (single-label), False if they are independent (tagging)."""
        return not self.objective.multi_label

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, in the order of the outputs."""
        return tuple(self.info.classes)

    def forward(self, wave: Tensor) -> Tensor:
        return self.of_map(self.model.features(wave))

    def of_map(self, feature_map: Tensor) -> Tensor:
        """Probabilities of a map from `GAFX.features`: `(batch, channels, frequency, time)` -> `(batch, classes)`."""
        return self.objective.probabilities(self.model.forward_head(feature_map).float() / self.info.temperature)


class Ensemble(nn.Module):
    """Several models of the same labels; `gafx.predict` averages their calibrated probabilities.

    The models may differ in everything else (sampling rate, channels, length of their clips), so there is no common
    wave: `member` gives the probabilities of one model for a wave at its own rate.

    Args:
        models: of the same labels, in any order.
        names: of the models, for messages; default: `model 1`, `model 2` and so on.

    Attributes:
        members: the models.
        classes: labels, in the order of the first model.

    Raises:
        UsageError: no model, other labels, or single-label models together with tagging models.
    """

    def __init__(self, models: Sequence[Probabilities], names: Sequence[str] = ()):
        super().__init__()
        if not models:
            raise UsageError("an ensemble needs at least one model, and none is given")
        self.members = list(models)
        self.models = nn.ModuleList(models)  # for `to` and `eval`
        self.names = list(names) or [f"model {number}" for number in range(1, len(models) + 1)]
        self.classes = models[0].classes
        self._orders = [self._order(model, name) for model, name in zip(models, self.names, strict=True)]

    def _order(self, model: Probabilities, name: str) -> list[int]:
        """Column of each of the ensemble's labels in the outputs of a model."""
        first = self.members[0]
        if model.objective.multi_label != first.objective.multi_label:
            kinds = ("single-label", "tagging")
            raise UsageError(
                f"{self.names[0]} is a {kinds[first.objective.multi_label]} model and {name} a "
                f"{kinds[model.objective.multi_label]} model: their probabilities have different meanings and cannot "
                "be averaged"
            )
        lacks, more = (
            sorted(set(a) - set(b)) for a, b in ((first.classes, model.classes), (model.classes, first.classes))
        )
        if lacks or more:
            raise UsageError(
                f"{self.names[0]} and {name} have different labels: only in the first: {_listed(lacks)}; only in the "
                f"second: {_listed(more)}. Probabilities are averaged over models of the same labels"
            )
        return [model.classes.index(label) for label in self.classes]

    @property
    def sums_to_one(self) -> bool:
        """As of `Probabilities`, the same for all models."""
        return self.members[0].sums_to_one

    def member(self, index: int, wave: Tensor) -> Tensor:
        """Probabilities of model `index`: `(batch, channels, samples)` at its rate -> `(batch, classes)`."""
        probabilities: Tensor = self.members[index](wave)
        return probabilities[:, self._orders[index]]


def _listed(labels: Sequence[str], most: int = 10) -> str:
    return (", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")) or "none"


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
    loader: Loader,
    segments: Segments,
    predict: Callable[..., Tensor],
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
        predict: waves (and the clips' `numbers`, where they have them) to values, `Objective.predict`.
        device, precision: to compute on, and in.
        progress: called with the number of segments after each batch.
    """
    was_training = model.training
    model.eval()
    indices, values, errors = [], [], {}
    batch: Batch
    for batch in loader:
        on_device = batch.to(device)
        names = tuple(on_device.draws)

        def run(wave: Tensor, *draws: Tensor, names: tuple[str, ...] = names) -> Tensor:
            with torch.inference_mode(), autocast(precision, device):
                return predict(wave, **dict(zip(names, draws, strict=True)))

        clips = (on_device.wave, *on_device.draws.values())
        # Sharded models gather weights in collectives, which all processes have to call in one order.
        apart = device.type == "cpu" and not _is_distributed()
        predicted = torch.cat(by_clips(run, *clips)) if apart else run(*clips)
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


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several runs or passes, one after the other."""
    return Predictions(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.values for part in parts]),
        tuple(clip for part in parts for clip in part.skipped),
    )


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


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gather(value: object) -> list:
    """An object of every rank."""
    if not _is_distributed():
        return [value]
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
