"""Scores and their intervals: one definition for validation and evaluation.

Definitions are scikit-learn's (tests compare); they are computed here for many resamples at once, because the bootstrap
resamples groups (recordings), whose segments are not independent of each other, and scikit-learn's own functions would
take an hour for AudioSet's 527 labels.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_BINS = 15
_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval; `interval` says how that was found. The bounds are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: None stands for what is not finite (a d' of perfect ranks, a score of nothing)."""
        values = asdict(self)
        for key in ("value", "low", "high"):
            if values[key] is not None and not np.isfinite(values[key]):
                values[key] = None
        return values


def wilson(correct: int, total: int) -> Score:
    """Fraction of correct ones with Wilson's 95 % interval (Wilson, 1927); valid near 0 and 1 and for few tracks.

    The same numbers as `scipy.stats.binomtest(correct, total).proportion_ci(method="wilson")`.
    """
    p, z = correct / total, _Z
    centre = (2 * total * p + z**2) / (2 * (total + z**2))
    delta = z / (2 * (total + z**2)) * math.sqrt(4 * total * p * (1 - p) + z**2)
    low, high = 0.0 if correct == 0 else centre - delta, 1.0 if correct == total else centre + delta
    return Score(p, low, high, "Wilson 95 %")


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


@dataclass(frozen=True)
class CalibrationBin:
    """Mean confidence and accuracy of the tracks whose confidence falls into one bin of a reliability diagram."""

    confidence: float
    accuracy: float
    tracks: int


def calibration_bins(probabilities: Array, truth: Array) -> list[CalibrationBin]:
    """The bins of a reliability diagram that hold clips, of 15 equal bins of confidence."""
    correct = probabilities.argmax(axis=1) == truth
    sums = _calibration_sums(probabilities.max(axis=1), correct, np.zeros(len(truth), int), 1)[0]
    return [
        CalibrationBin(float(confidence / count), float(hits / count), int(count))
        for count, confidence, hits in sums
        if count
    ]


def calibration_error(probabilities: Array, truth: Array) -> float:
    """Expected calibration error over 15 equal bins of confidence: how far confidence and accuracy lie apart."""
    hits = probabilities.argmax(axis=1) == truth
    sums = _calibration_sums(probabilities.max(axis=1), hits, np.zeros(len(truth), int), 1)
    return float(_calibration(sums.sum(axis=0)[None])[0])


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
        tracks: whether clips are tracks; segments of tracks depend on each other, so their accuracy is bootstrapped too.
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
    """Mean average precision, mean AUC and d', bootstrapped over groups.

    A label without positives has no average precision, one without positives or without negatives no AUC: means are
    over the labels that have one, in a resample over those that have one there. A resample repeats clips, which lifts
    the precision of rare labels: the interval of the mean average precision is moved back by the mean of what that
    adds, so that it lies around the value. `d_prime` is that of the mean AUC
    (see `d_prime`); it is infinite where every positive ranks above every negative.

    Args:
        probabilities: `(clips, classes)`.
        targets: `(clips, classes)` of zeros and ones.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap over groups.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples)
    # The data as they are come first, then the resamples.
    weights = np.concatenate([np.ones((1, len(group))), draws[:, group]])
    ranked = [ranking_scores(p, t > 0, weights) for p, t in zip(probabilities.T, targets.T, strict=True)]
    precision, auc = (_mean_of_known(np.stack(columns)) for columns in zip(*ranked, strict=True))
    label = f"bootstrap over {count} groups, {resamples} resamples, 95 %"
    scores = {
        "mean_average_precision": _score(precision[0], _centred(precision), f"{label}, centred"),
        "mean_auc": _score(auc[0], auc[1:], label),
    }
    mean_auc = scores["mean_auc"]
    bounds = [None if bound is None else d_prime(bound) for bound in (mean_auc.low, mean_auc.high)]
    scores["d_prime"] = Score(d_prime(mean_auc.value), bounds[0], bounds[1], mean_auc.interval)
    return scores


def ranking_scores(scores: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """Average precision and area under the ROC curve of one label, for many weightings of the clips at once.

    Both are scikit-learn's: equal scores are one threshold, so that their order plays no part (a tie between a positive
    and a negative is half a win in the AUC).

    Args:
        scores: `(clips,)`.
        positive: `(clips,)` bool.
        weights: `(weightings, clips)`, how often each clip counts.

    Returns:
        two arrays `(weightings,)`; NaN where there is no positive, and for the AUC where there is no negative.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last clip of each distinct score
    weights, hits = weights[:, order], positive[order]
    positives = np.cumsum(weights * hits, axis=1)[:, ends]
    negatives = np.cumsum(weights * ~hits, axis=1)[:, ends]
    new_positives = np.diff(positives, axis=1, prepend=0.0)
    new_negatives = np.diff(negatives, axis=1, prepend=0.0)
    all_positives, all_negatives = positives[:, -1], negatives[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(new_positives > 0, positives / (positives + negatives), 0.0)
        average_precision = (precision * new_positives).sum(axis=1) / all_positives
        wins = (new_positives * (all_negatives[:, None] - negatives + new_negatives / 2)).sum(axis=1)
        auc = wins / (all_positives * all_negatives)
    return average_precision, auc


def d_prime(auc: float) -> float:
    """How many standard deviations two normal distributions lie apart whose ROC curve has this area (Gemmeke et al.,
    2017): 0 at 0.5, infinite at 1 and minus infinite at 0."""
    from scipy.special import ndtri  # scipy.stats takes a second to import

    return float(np.sqrt(2) * ndtri(auc))


def mean_score(values: Array, groups: Array, *, resamples: int, ratio_to: Array | None = None) -> Score:
    """Mean of a value over clips, with a bootstrap over groups; with `ratio_to` the ratio of both means.

    Args:
        values: `(clips,)`.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap.
        ratio_to: `(clips,)` denominators, resampled together with the values.
    """
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    below = np.ones(len(values)) if ratio_to is None else ratio_to
    sums = np.stack([np.bincount(group, column, minlength=count) for column in (values, below)])
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = draws @ sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        value, resampled = np.divide(*sums.sum(axis=1)), drawn[:, 0] / drawn[:, 1]
    return _score(value, resampled, f"bootstrap over {count} groups, {resamples} resamples, 95 %")


def _centred(values: Array) -> Array:
    """Resampled values (all but the first) moved so that their mean is the first value, within [0, 1]."""
    resampled = values[1:][np.isfinite(values[1:])]
    return np.clip(resampled + (values[0] - resampled.mean()), 0.0, 1.0) if len(resampled) else resampled


def _mean_of_known(values: Array) -> Array:
    """Mean over the first axis of what is no NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


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
