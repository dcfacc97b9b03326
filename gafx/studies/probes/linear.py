"""Linear probes with nested cross-validation over tracks, and the prediction without features.

Each track is predicted once, by a probe that was fitted, and whose penalty was chosen, on the other folds' tracks. All
front-ends use the same folds.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.fitting.folds import deal
from gafx.fitting.scaling import Scaling
from gafx.fitting.table import Table
from gafx.fitting.tune import Method, grid, tune
from gafx.stats.scores import mean_score, wilson
from gafx.studies.probes.factors import Factor
from gafx.studies.probes.findings import Finding, flip_test

Array = npt.NDArray[Any]
PENALTIES = tuple(float(value) for value in np.geomspace(1e-1, 1e6, 15))  # of the ridge regression
_INNER_FOLDS = 3
_RESAMPLES = 2000


def strata(factor: Factor) -> Array:
    """Return the stratum `(tracks,)` of each track: its most frequent class, or the quintile of its value."""
    if not factor.classes:
        ranks = np.argsort(np.argsort(factor.target, kind="stable"), kind="stable")
        return ranks * 5 // len(ranks)
    counts = np.zeros((int(factor.track.max()) + 1, len(factor.classes)))
    np.add.at(counts, (factor.track, factor.target), 1)
    return counts.argmax(axis=1)


def probe(subject: str, factor: Factor, features: Array, *, folds: int = 5, seed: int = 0) -> Finding:
    """Predict a factor from the features of one front-end.

    Args:
        subject: name of the front-end.
        factor: the target; its rows are those of `features`.
        features: `(rows, dimensions)`.
        folds: of the cross-validation over tracks.
        seed: of the folds.
    """
    fit_predict = _predict_classes if factor.classes else _predict_values

    def predict(train: Array, test: Array) -> Array:
        inner = deal(strata(factor.take(np.unique(factor.track[train]))), _INNER_FOLDS, seed)
        _, of_row = np.unique(factor.track[train], return_inverse=True)
        return fit_predict(features[train], factor.target[train], inner[of_row], features[test])

    return judge(subject, factor, *_cross_predict(factor, predict, folds, seed), features.shape[1])


def label_alone(factor: Factor, label: Array, *, folds: int = 5, seed: int = 0) -> Finding:
    """Score the prediction from each track's label alone, without audio: the label's most frequent class or mean.

    Where a factor depends on the label, a probe below this score may have predicted the label instead of the factor.

    Args:
        factor: the target.
        label: `(tracks,)` whole numbers.
        folds: as in `probe`; the folds are the same.
        seed: likewise.
    """
    of_row = label[factor.track]

    def predict(train: Array, test: Array) -> Array:
        alike = {value: train[of_row[train] == value] for value in np.unique(of_row[test])}
        guess = {value: _without_features(factor, rows if len(rows) else train) for value, rows in alike.items()}
        return np.array([guess[value] for value in of_row[test]])

    return judge("", factor, *_cross_predict(factor, predict, folds, seed), 1)


def _cross_predict(
    factor: Factor, predict: Callable[[Array, Array], Array], folds: int, seed: int
) -> tuple[Array, Array]:
    """Return the predictions `(rows,)` of every fold, and those without features."""
    predicted, featureless = np.empty(len(factor.target)), np.empty(len(factor.target))
    fold = deal(strata(factor), folds, seed)[factor.track]
    for train, test in _sides(fold, folds):
        predicted[test] = predict(train, test)
        featureless[test] = _without_features(factor, train)
    return predicted, featureless


def _sides(fold: Array, folds: int) -> Iterator[tuple[Array, Array]]:
    """Yield training and test rows of each fold."""
    for number in range(folds):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _without_features(factor: Factor, rows: Array) -> float:
    """Return the most frequent class of some rows, or their mean."""
    target = factor.target[rows]
    return float(np.bincount(target).argmax() if factor.classes else target.mean())


def judge(subject: str, factor: Factor, predicted: Array, featureless: Array, dimensions: int) -> Finding:
    """Score predictions, and test them against those without features on the same rows."""
    truth, tracks = factor.target, len(np.unique(factor.track))
    others = {}
    if factor.classes:
        metric, right, guessed = "accuracy", (predicted == truth).astype(float), (featureless == truth).astype(float)
        independent = tracks == len(truth)  # segments of a track are not
        score = (
            wilson(int(right.sum()), len(right))
            if independent
            else mean_score(right, factor.track, resamples=_RESAMPLES)
        )
        gain, chance = right - guessed, float(guessed.mean())
    else:
        metric, errors, spread = "r2", (predicted - truth) ** 2, (featureless - truth) ** 2
        score = mean_score(errors, factor.track, resamples=_RESAMPLES, ratio_to=spread).complement()
        gain, chance = spread - errors, 0.0
    if factor.tolerance is not None:
        limit = np.log2(1 + factor.tolerance)
        hits, guesses = (int((np.abs(guess - truth) <= limit).sum()) for guess in (predicted, featureless))
        others["within_tolerance"] = wilson(hits, len(truth)), guesses / len(truth)
    p = flip_test(gain, factor.track)
    return Finding(subject, factor.name, metric, score, chance, tracks, len(truth), dimensions, p, others=others)


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Scale both by the training rows, see `Scaling`."""
    scaling = Scaling.fit(train)
    return scaling.apply(train), scaling.apply(test)


def _predict_classes(train: Array, target: Array, inner: Array, test: Array) -> Array:
    """Logistic regression with the strongest penalty of those that score best in the inner folds.

    Targets may change within a track, so each row is a clip of its own, and the folds are those of the tracks.
    """
    sides = [(fit, check) for fit, check in _sides(inner, _INNER_FOLDS)
             if len(check) and len(np.unique(target[fit])) > 1]  # fmt: skip
    rows = np.arange(len(target))
    tuned = tune(_LOGISTIC, Table(train, rows, target, rows, int(target.max()) + 1), sides=sides)
    return np.asarray(tuned.fitted.outputs(test).argmax(axis=1))


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    # 300 steps leave the weakest penalties slightly short of the optimum; the inner folds judge them like that.
    return LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)


_LOGISTIC = Method(_logistic, grid(C=(1e-4, 1e-3, 1e-2, 1e-1, 1.0)), "decision_function")


def _predict_values(train: Array, target: Array, inner: Array, test: Array) -> Array:
    """Ridge regression; the penalty is chosen by leaving out one training track at a time, in closed form."""
    from sklearn.linear_model import RidgeCV

    train, test = standardise(train, test)
    return RidgeCV(alphas=PENALTIES).fit(train, target).predict(test)
