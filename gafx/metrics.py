"""Scores and their intervals: one definition for validation and evaluation.

Values are scikit-learn's and scipy's; the bootstrap is vectorised here because it resamples groups (recordings), whose
pieces are not independent of each other.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_BINS = 15


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval; `interval` says how that was found. The bounds are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(correct: int, total: int) -> Score:
    """Share of correct ones with Wilson's 95 % interval (Wilson, 1927); valid near 0 and 1 and for few tracks."""
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return Score(correct / total, float(interval.low), float(interval.high), "Wilson 95 %")


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """Counts `(classes, classes)`: rows are true labels, columns predicted ones."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_scores(matrix: Array) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of each class from confusion counts `(..., classes, classes)`; NaN where undefined.

    Precision is undefined for a class never predicted, recall for one never present, F1 for one that is neither.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    predicted, present = matrix.sum(axis=-2), matrix.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / predicted, hits / present, 2 * hits / (predicted + present)


def macro_f1(matrix: Array) -> Array:
    """Mean F1 over the classes that are present or predicted, from confusion counts `(..., classes, classes)`."""
    f1 = class_scores(matrix)[2]
    return np.nanmean(f1, axis=-1)


def calibration_bins(probabilities: Array, truth: Array) -> list[dict[str, float]]:
    """Mean confidence and accuracy in each of 15 equal bins of confidence that holds clips (a reliability diagram)."""
    correct = probabilities.argmax(axis=1) == truth
    sums = _calibration_sums(probabilities.max(axis=1), correct, np.zeros(len(truth), int), 1)[0]
    return [
        {"confidence": float(confidence / count), "accuracy": float(hits / count), "tracks": int(count)}
        for count, confidence, hits in sums
        if count
    ]


def label_scores(
    probabilities: Array,
    targets: Array,
    groups: Array,
    *,
    multi_label: bool,
    resamples: int = 1000,
    tracks: bool = True,
) -> dict[str, Score]:
    """`single_label_scores` or `multi_label_scores` from targets of zeros and ones, `(clips, classes)`."""
    if multi_label:
        return multi_label_scores(probabilities, targets, groups, resamples=min(resamples, 200))
    return single_label_scores(probabilities, targets.argmax(axis=1), groups, resamples=resamples, tracks=tracks)


def single_label_scores(
    probabilities: Array, truth: Array, groups: Array, *, resamples: int = 1000, tracks: bool = True
) -> dict[str, Score]:
    """Accuracy, macro-F1 and calibration error, each with a 95 % interval.

    Args:
        probabilities: `(clips, classes)`, rows sum to 1.
        truth: `(clips,)` class numbers.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap over groups.
        tracks: whether clips are tracks; pieces of tracks depend on each other, so their accuracy is bootstrapped too.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    correct = predicted == truth
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    cells = np.zeros((count, classes * classes))
    np.add.at(cells, (group, truth * classes + predicted), 1)
    sums = _calibration_sums(probabilities.max(axis=1), correct, group, count)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples)
    matrices = (draws @ cells).reshape(resamples, classes, classes)
    matrix = confusion(truth, predicted, classes)
    label = f"bootstrap over {count} groups, {resamples} resamples, 95 %"
    trace = np.trace(matrices, axis1=1, axis2=2) / matrices.sum(axis=(1, 2))
    calibration = _calibration(np.tensordot(draws, sums, axes=1))
    return {
        "accuracy": wilson(int(correct.sum()), len(correct)) if tracks else _score(correct.mean(), trace, label),
        "macro_f1": _score(macro_f1(matrix), macro_f1(matrices), label),
        "calibration_error": _score(_calibration(sums.sum(axis=0)[None])[0], calibration, label),
    }


def multi_label_scores(
    probabilities: Array, targets: Array, groups: Array, *, resamples: int = 200
) -> dict[str, Score]:
    """Mean average precision and mean AUC over the labels that have positives and negatives, bootstrapped over groups.

    Args:
        probabilities: `(clips, classes)`.
        targets: `(clips, classes)` of zeros and ones.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap over groups.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    def mean_over(score: Callable[..., float], weight: Array) -> float:
        kept = weight > 0
        positive = (targets[kept] > 0).any(axis=0)
        mixed = positive & (targets[kept] == 0).any(axis=0)
        chosen = np.flatnonzero(positive if score is average_precision_score else mixed)
        if not len(chosen):
            return float("nan")
        return float(
            np.mean([score(targets[kept, c], probabilities[kept, c], sample_weight=weight[kept]) for c in chosen])
        )

    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples)
    label = f"bootstrap over {count} groups, {resamples} resamples, 95 %"
    scores = {}
    for name, score in (("mean_average_precision", average_precision_score), ("mean_auc", roc_auc_score)):
        value = mean_over(score, np.ones(len(group)))
        scores[name] = _score(value, np.array([mean_over(score, draw[group].astype(float)) for draw in draws]), label)
    return scores


def _score(value: Any, resampled: Array, label: str) -> Score:
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Score(float(value))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Score(float(value), float(low), float(high), label)


def _calibration_sums(confidence: Array, correct: Array, group: Array, groups: int) -> Array:
    """`(groups, bins, 3)`: number of clips, sum of confidence, number correct."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    sums = np.zeros((groups, _BINS, 3))
    np.add.at(sums, (group, bins), np.stack([np.ones(len(bins)), confidence, correct], axis=1))
    return sums


def _calibration(sums: Array) -> Array:
    """Expected calibration error of `(..., bins, 3)` sums."""
    return np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1) / sums[..., 0].sum(axis=-1)
