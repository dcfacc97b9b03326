"""Scores and their 95 % intervals, the same definitions for validation and evaluation.

The definitions are scikit-learn's (the tests compare). They are computed here for many resamples at once: the bootstrap
resamples groups (recordings), whose segments are not independent, and scikit-learn's own functions would take an hour
for AudioSet's 527 labels.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.errors import UsageError

Array = npt.NDArray[Any]
NORMAL = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_BINS = 15
_CELLS = 1_000_000  # numbers of a block of resamples


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval.

    Attributes:
        value: NaN where the score is undefined; d' may be infinite.
        low, high: bounds; None where there is no interval.
        interval: how the bounds were computed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON, which has no numbers that are not finite: they become None."""
        values = asdict(self)
        for key in ("value", "low", "high"):
            if values[key] is not None and not math.isfinite(values[key]):
                values[key] = None
        return values

    def complement(self) -> "Score":
        """One minus the score, with its bounds."""
        low, high = (None if bound is None else 1 - bound for bound in (self.high, self.low))
        return Score(1 - self.value, low, high, self.interval)


class Bootstrap:
    """Resamples of groups (recordings): draws of as many groups, with replacement.

    Attributes:
        group: `(clips,)` number of each clip's group, from 0.
        count: number of groups.
        draws: `(resamples, groups)` uint16, how often each group is drawn; the same for every score of these groups.
        label: describes the interval.
    """

    def __init__(self, groups: Array, resamples: int):
        self.group = np.unique(groups, return_inverse=True)[1]
        self.count = int(self.group.max()) + 1
        probabilities = np.full(self.count, 1 / self.count)
        random = np.random.default_rng(0)
        # Drawn in blocks, as 64-bit integers: no group is ever drawn 65,536 times.
        self.draws = np.zeros((resamples, self.count), np.uint16)
        for block in self._blocks():
            self.draws[block] = random.multinomial(self.count, probabilities, size=len(self.draws[block]))
        self.label = f"bootstrap over {self.count} groups, {resamples} resamples, 95 %"

    def _blocks(self) -> list[slice]:
        size = max(1, _CELLS // self.count)
        return [slice(begin, begin + size) for begin in range(0, len(self.draws), size)]

    def map(self, function: Callable[[Array], Array]) -> Array:
        """Apply a function of weights `(weightings, groups)` to all draws, in blocks of bounded size."""
        return np.concatenate([function(self.draws[block].astype(float)) for block in self._blocks()] or [np.zeros(0)])

    def score(self, value: Any, resampled: Array, label: str = "") -> Score:
        """The value with the 2.5th and 97.5th percentile of its finite resamples; without bounds if there is none."""
        resampled = resampled[np.isfinite(resampled)]
        if not len(resampled):
            return Score(float(value))
        low, high = np.percentile(resampled, [2.5, 97.5])
        return Score(float(value), float(low), float(high), label or self.label)


def wilson(correct: int, total: int) -> Score:
    """Fraction of correct ones with Wilson's 95 % interval (Wilson, 1927); valid near 0 and 1 and for few tracks.

    The same numbers as `scipy.stats.binomtest(correct, total).proportion_ci(method="wilson")`.
    """
    return Score(correct / total, *wilson_bounds(correct / total, total), "Wilson 95 %")


def wilson_bounds(p: float, total: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction of `total` trials, whose number may be effective and not whole."""
    z = NORMAL
    centre = (2 * total * p + z**2) / (2 * (total + z**2))
    half = z / (2 * (total + z**2)) * math.sqrt(4 * total * p * (1 - p) + z**2)
    # At 0 and 1 the bound is exact; rounding would move it.
    return 0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half


def accuracy_score(correct: Array, groups: Array | None = None) -> Score:
    """Accuracy, of one model or over several seeds of training on the same tracks, with Wilson's interval.

    Three seeds on 200 tracks are not 600 independent tracks: the seeds mostly fail on the same ones. The interval is
    Wilson's for an effective number of tracks, `p (1 - p)` over the variance of the mean over tracks (Kish, Survey
    Sampling, 1965; for proportions: Korn and Graubard, Survey Methodology 24, 1998): the number of tracks if all seeds
    agree, at most tracks times seeds. With one seed it is Wilson's interval. If recordings have several tracks, the
    variance is that of the recordings' sums, and the effective number is at least the number of recordings.

    It covers the choice of tracks for these trained models, not the variation between seeds: report the
    `gafx.stats.compare.sample_std` of the seeds' accuracies with it.

    Args:
        correct: `(seeds, tracks)` bool, columns are the same tracks.
        groups: `(tracks,)` recording of each; default: each track is one.
    """
    correct = np.atleast_2d(np.asarray(correct, dtype=bool))
    seeds, tracks = correct.shape
    if not correct.size:
        raise UsageError(f"there is no accuracy of {seeds} seeds and {tracks} tracks")
    fraction = float(correct.mean())
    group = np.arange(tracks) if groups is None else np.unique(groups, return_inverse=True)[1]
    recordings = int(group.max()) + 1
    sums = np.bincount(group, correct.mean(axis=0) - fraction, minlength=recordings)
    variance = float((sums**2).sum()) / tracks**2  # of the mean over tracks
    if fraction in (0.0, 1.0):
        effective = float(recordings)
    else:
        effective = float(np.clip(fraction * (1 - fraction) / max(variance, 1e-12), recordings, tracks * seeds))
    low, high = wilson_bounds(fraction, effective)
    if seeds == 1 and recordings == tracks:
        return Score(fraction, low, high, "Wilson 95 %")
    text = f"{tracks} tracks" + (f" of {recordings} recordings" if recordings < tracks else "")
    text = f"{seeds} seeds on the same {text}" if seeds > 1 else text
    return Score(fraction, low, high, f"Wilson 95 %, {text}, as {effective:.0f} independent tracks")


def known_mean(values: Array, axis: int = 0) -> Array:
    """Mean over the values that are not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis))


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """Counts `(classes, classes)`: rows are true labels, columns predicted ones."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_scores(matrix: Array) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of each class from confusion counts `(..., classes, classes)`; NaN where undefined.

    Precision is undefined for a class that is never predicted, recall for one that never occurs, F1 for one that does
    neither.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    predicted, present = matrix.sum(axis=-2), matrix.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / predicted, hits / present, 2 * hits / (predicted + present)


def macro_f1(matrix: Array) -> Array:
    """Mean F1 over the classes that occur or are predicted, from confusion counts `(..., classes, classes)`."""
    return known_mean(class_scores(matrix)[2], axis=-1)


def weighted_macro_f1(truth: Array, predicted: Array, weights: Array, classes: int) -> Array:
    """Macro-F1 for many weightings of the clips at once, `(weightings,)`.

    Memory grows with weightings x classes, not with confusion matrices of classes x classes.

    Args:
        truth, predicted: `(clips,)` class numbers.
        weights: `(weightings, clips)`, how often each clip counts.
        classes: number of classes.
    """
    hit = truth == predicted

    def count(labels: Array, of: Array) -> Array:
        return np.stack([np.bincount(labels, row, minlength=classes) for row in of])

    with np.errstate(invalid="ignore"):
        f1 = 2 * count(truth[hit], weights[:, hit]) / (count(predicted, weights) + count(truth, weights))
    return known_mean(f1, axis=-1)


@dataclass(frozen=True)
class CalibrationBin:
    """Mean confidence and accuracy of the tracks whose confidence falls into one bin of a reliability diagram."""

    confidence: float
    accuracy: float
    tracks: int


def calibration_bins(probabilities: Array, truth: Array) -> list[CalibrationBin]:
    """The bins of a reliability diagram that contain clips, of 15 equal bins of confidence."""
    sums = _calibration_sums(probabilities, truth, np.zeros(len(truth), int), 1)[0]
    return [
        CalibrationBin(float(confidence / count), float(hits / count), int(count))
        for count, confidence, hits in sums
        if count
    ]


def calibration_error(probabilities: Array, truth: Array) -> float:
    """Expected calibration error: mean absolute difference of confidence and accuracy over 15 bins of confidence."""
    sums = _calibration_sums(probabilities, truth, np.zeros(len(truth), int), 1)
    return float(_calibration_error(sums)[0])


def label_scores(
    probabilities: Array,
    targets: Array,
    groups: Array,
    *,
    multi_label: bool,
    resamples: int = 1000,
) -> dict[str, Score]:
    """`single_label_scores` or `multi_label_scores` from targets of zeros and ones, `(clips, classes)`."""
    if multi_label:
        return multi_label_scores(probabilities, targets, groups, resamples=min(resamples, 200))
    return single_label_scores(probabilities, targets.argmax(axis=1), groups, resamples=resamples)


def single_label_scores(
    probabilities: Array, truth: Array, groups: Array, *, resamples: int = 1000
) -> dict[str, Score]:
    """Accuracy, macro-F1 and calibration error, each with a 95 % interval over recordings.

    Memory grows with clips x classes and resamples x recordings, not with the square of the number of classes.

    Args:
        probabilities: `(clips, classes)`, rows sum to 1.
        truth: `(clips,)` class numbers.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap over groups.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    bootstrap = Bootstrap(groups, resamples)

    def f1(weights: Array) -> Array:
        return weighted_macro_f1(truth, predicted, weights, classes)

    return {
        "accuracy": accuracy_score(predicted == truth, groups),
        "macro_f1": bootstrap.score(
            f1(np.ones((1, len(truth))))[0], bootstrap.map(lambda draws: f1(draws[:, bootstrap.group]))
        ),
        "calibration_error": _calibration_score(probabilities, truth, bootstrap),
    }


def calibration_score(probabilities: Array, truth: Array, groups: Array, *, resamples: int = 1000) -> Score:
    """`calibration_error` with a 95 % interval; arguments as of `single_label_scores`."""
    return _calibration_score(probabilities, truth, Bootstrap(groups, resamples))


def multi_label_scores(
    probabilities: Array, targets: Array, groups: Array, *, resamples: int = 200
) -> dict[str, Score]:
    """Mean average precision, mean AUC and d', bootstrapped over groups.

    A label without positives has no average precision, one without positives or without negatives no AUC: means are
    over the labels that have one, in a resample over those that have one there. A resample repeats clips, which raises
    the average precision of rare labels: the interval of the mean is shifted by the mean of that bias, so that it is
    centred on the value. `d_prime` is that of the mean AUC; it is infinite where every positive ranks above every
    negative.

    Args:
        probabilities: `(clips, classes)`.
        targets: `(clips, classes)` of zeros and ones.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap over groups.
    """
    bootstrap = Bootstrap(groups, resamples)
    # The first weighting is the data themselves, the others are the resamples.
    weights = np.concatenate([np.ones((1, len(bootstrap.group))), bootstrap.draws[:, bootstrap.group]])
    ranked = [ranking_scores(p, t > 0, weights) for p, t in zip(probabilities.T, targets.T, strict=True)]
    precision, auc = (known_mean(np.stack(columns)) for columns in zip(*ranked, strict=True))
    mean_auc = bootstrap.score(auc[0], auc[1:])
    bounds = [None if bound is None else d_prime(bound) for bound in (mean_auc.low, mean_auc.high)]
    return {
        "mean_average_precision": bootstrap.score(precision[0], _centred(precision), f"{bootstrap.label}, centred"),
        "mean_auc": mean_auc,
        "d_prime": Score(d_prime(mean_auc.value), bounds[0], bounds[1], mean_auc.interval),
    }


def ranking_scores(scores: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """Average precision and area under the ROC curve of one label, for many weightings of the clips at once.

    Both are scikit-learn's: equal scores are one threshold, so that their order has no effect (a tie between a positive
    and a negative counts one half in the AUC).

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
    """Distance, in standard deviations, of two normal distributions whose ROC curve has this area (Gemmeke et al.,
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
    bootstrap = Bootstrap(groups, resamples)
    below = np.ones(len(values)) if ratio_to is None else ratio_to
    sums = np.stack([np.bincount(bootstrap.group, column, minlength=bootstrap.count) for column in (values, below)])
    drawn = bootstrap.map(lambda draws: draws @ sums.T).reshape(-1, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return bootstrap.score(np.divide(*sums.sum(axis=1)), drawn[:, 0] / drawn[:, 1])


def explained_variance(squared_error: Array, variance: Array, groups: Array, resamples: int) -> Score:
    """1 - mean squared error / mean variance over clips, with a bootstrap over groups; see `mean_score`."""
    unexplained = mean_score(squared_error, groups, resamples=resamples, ratio_to=variance)
    low, high = (None if bound is None else 1 - bound for bound in (unexplained.high, unexplained.low))
    return Score(1 - unexplained.value, low, high, unexplained.interval)


def _centred(values: Array) -> Array:
    """Resampled values (all but the first) shifted so that their mean is the first value, clipped to [0, 1]."""
    resampled = values[1:][np.isfinite(values[1:])]
    return np.clip(resampled + (values[0] - resampled.mean()), 0.0, 1.0) if len(resampled) else resampled


def _calibration_sums(probabilities: Array, truth: Array, group: Array, groups: int) -> Array:
    """`(groups, bins, 3)`: number of clips, sum of confidence, number correct."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    sums = np.zeros((groups, _BINS, 3))
    np.add.at(sums, (group, bins), np.stack([np.ones(len(bins)), confidence, correct], axis=1))
    return sums


def _calibration_score(probabilities: Array, truth: Array, bootstrap: Bootstrap) -> Score:
    sums = _calibration_sums(probabilities, truth, bootstrap.group, bootstrap.count)
    resampled = bootstrap.map(lambda draws: _calibration_error(np.tensordot(draws, sums, axes=1)))
    return bootstrap.score(_calibration_error(sums.sum(axis=0)), resampled)


def _calibration_error(sums: Array) -> Array:
    """Expected calibration error of `(..., bins, 3)` sums."""
    return np.asarray(np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1) / sums[..., 0].sum(axis=-1))
