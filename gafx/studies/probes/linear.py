"""Linear probes with honest cross-validation, the featureless prediction beside them, and tests between the two.

Tracks are dealt into folds, each is predicted once, by a probe that was fitted and whose regularisation was chosen on
the other folds' tracks alone. The same folds serve every front-end.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.stats import compare
from gafx.stats.compare import sign_flip_test
from gafx.stats.scores import Score, mean_score, wilson
from gafx.studies.probes.factors import Factor

Array = npt.NDArray[Any]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C of the logistic regression, the strongest penalty first
PENALTIES = tuple(float(value) for value in np.geomspace(1e-1, 1e6, 15))  # of the ridge regression
_INNER_FOLDS = 3
_FLIPS = 20_000
LEVEL = 0.05


@dataclass(frozen=True)
class Finding:
    """What a probe found of one factor in one front-end's map.

    Attributes:
        subject: whose map.
        factor: what was asked.
        kind: `accuracy` or `r2`.
        score: of the probe, with its interval.
        chance: the same score of the featureless prediction: 0 for `r2`.
        tracks: that were predicted.
        rows: predictions: tracks, or segments of them.
        dimensions: of the features.
        p: that the probe is no better than the featureless prediction (one-sided).
        p_adjusted: after Holm, over all probes of the page.
        within: of a tempo, the share of tracks within the tolerance; and that of the featureless prediction.
    """

    subject: str
    factor: str
    kind: str
    score: Score
    chance: float
    tracks: int
    rows: int
    dimensions: int
    p: float
    p_adjusted: float = 1.0
    within: tuple[Score, Score] | None = None

    @property
    def by_chance(self) -> bool:
        """Whether chance alone explains the score: the test does not tell it from the featureless prediction's, or the
        interval reaches that far down."""
        return self.p_adjusted >= LEVEL or (self.score.low is not None and self.score.low <= self.chance)


def deal(strata: Array, folds: int, seed: int) -> Array:
    """The fold of each track: within each stratum, shuffled tracks go round the folds, where the last one stopped.

    Args:
        strata: `(tracks,)` whole numbers; each is spread over the folds as evenly as it goes.
        folds: number of them.
        seed: of the shuffle.
    """
    rng = np.random.default_rng([seed, folds])
    order = np.concatenate([rng.permutation(np.flatnonzero(strata == value)) for value in np.unique(strata)])
    fold = np.empty(len(strata), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def strata(factor: Factor) -> Array:
    """What a factor's folds are stratified by: each track's commonest class, or the fifth of the values it lies in."""
    tracks = int(factor.track.max()) + 1
    if not factor.classes:
        ranks = np.argsort(np.argsort(factor.target, kind="stable"), kind="stable")
        return ranks * 5 // len(ranks)
    counts = np.zeros((tracks, len(factor.classes)))
    np.add.at(counts, (factor.track, factor.target), 1)
    return counts.argmax(axis=1)


def probe(subject: str, factor: Factor, features: Array, *, folds: int = 5, seed: int = 0) -> Finding:
    """Ask one front-end's features for one factor.

    Args:
        subject: name of the front-end.
        factor: the question; its rows are those of `features`.
        features: `(rows, dimensions)`.
        folds: of the cross-validation over tracks.
        seed: of the folds.
    """
    fold = deal(strata(factor), folds, seed)[factor.track]
    predict = _predict_classes if factor.classes else _predict_values
    predicted, featureless = np.empty(len(factor.target)), np.empty(len(factor.target))
    for number in range(folds):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        inner = deal(strata(factor.take(np.unique(factor.track[train]))), _INNER_FOLDS, seed)
        _, of_row = np.unique(factor.track[train], return_inverse=True)
        predicted[test] = predict(features[train], factor.target[train], inner[of_row], features[test])
        featureless[test] = _without_features(factor, train)
    return judge(subject, factor, predicted, featureless, features.shape[1])


def label_alone(factor: Factor, label: Array, *, folds: int = 5, seed: int = 0) -> Finding:
    """What knowing each track's label, and nothing of its sound, would score: the label's commonest class or mean.

    Where a factor hangs together with the label, a probe below this may have read the label instead of the factor.

    Args:
        factor: the question.
        label: `(tracks,)` whole numbers.
        folds: as in `probe`, and the same ones.
        seed: likewise.
    """
    fold, of_row = deal(strata(factor), folds, seed)[factor.track], label[factor.track]
    predicted, featureless = np.empty(len(factor.target)), np.empty(len(factor.target))
    for number in range(folds):
        train, test = fold != number, fold == number
        featureless[test] = _without_features(factor, train)
        for value in np.unique(of_row[test]):
            alike = train & (of_row == value)
            predicted[test & (of_row == value)] = _without_features(factor, alike if alike.any() else train)
    return judge("", factor, predicted, featureless, 1)


def _without_features(factor: Factor, rows: Array) -> float:
    """The commonest class of some rows, or their mean."""
    target = factor.target[rows]
    return float(np.bincount(target).argmax() if factor.classes else target.mean())


def judge(subject: str, factor: Factor, predicted: Array, featureless: Array, dimensions: int) -> Finding:
    """Score predictions, and test them against the featureless ones of the same rows."""
    truth, tracks = factor.target, len(np.unique(factor.track))
    if factor.classes:
        right, guessed = (predicted == truth).astype(float), (featureless == truth).astype(float)
        whole = tracks == len(truth)
        score = (
            wilson(int(right.sum()), len(right)) if whole else mean_score(right, factor.track, resamples=2000)
        )  # segments of a track are not independent
        gain, chance, kind = right - guessed, float(guessed.mean()), "accuracy"
    else:
        errors, spread = (predicted - truth) ** 2, (featureless - truth) ** 2
        lost = mean_score(errors, factor.track, resamples=2000, ratio_to=spread)
        score = lost.complement()
        gain, chance, kind = spread - errors, 0.0, "r2"
    p = flip_test(np.bincount(factor.track, gain))
    within = None
    if factor.tolerance is not None:
        limit = np.log2(1 + factor.tolerance)
        hits = [int((np.abs(guess - truth) <= limit).sum()) for guess in (predicted, featureless)]
        within = (wilson(hits[0], len(truth)), wilson(hits[1], len(truth)))
    return Finding(subject, factor.name, kind, score, chance, tracks, len(truth), dimensions, p, within=within)


def flip_test(differences: Array, seed: int = 0) -> float:
    """One-sided p-value of paired differences, one per track: see `gafx.stats.compare.sign_flip_test`."""
    return sign_flip_test(differences, one_sided=True, draws=_FLIPS, seed=seed)[0]


def holm(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with their p-values adjusted for all of them (Holm, 1979)."""
    adjusted = compare.holm([finding.p for finding in findings])
    return [replace(finding, p_adjusted=p) for finding, p in zip(findings, adjusted, strict=True)]


def standardise(train: Array, test: Array) -> tuple[Array, Array]:
    """Both by mean and deviation of the training rows, and turned into the space that these span.

    A penalty on the squared weights does not see a rotation, so a probe of fewer rows than dimensions gives the same
    predictions in as many dimensions as there are rows, for less work.
    """
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # A constant feature (a bin above the band limit) has a deviation of rounding errors: it is left out.
    kept = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    if not kept.any():
        return np.zeros((len(train), 1)), np.zeros((len(test), 1))
    train, test = ((rows[:, kept] - mean[kept]) / deviation[kept] for rows in (train, test))
    if train.shape[1] <= len(train):
        return train, test
    basis = np.linalg.svd(train, full_matrices=False)[2].T
    return train @ basis, test @ basis


def _predict_classes(train: Array, target: Array, inner: Array, test: Array) -> Array:
    """Logistic regression; its penalty is the strongest of those that do best in the inner folds."""
    if len(np.unique(target)) < 2:
        return np.full(len(test), target[0])
    hits = np.zeros(len(STRENGTHS))
    for number in range(_INNER_FOLDS):
        fit, check = inner != number, inner == number
        if len(np.unique(target[fit])) < 2 or not check.any():
            continue
        for index, guess in enumerate(_logistic_path(train[fit], target[fit], train[check], STRENGTHS)):
            hits[index] += (guess == target[check]).sum()
    return _logistic_path(train, target, test, STRENGTHS[: int(hits.argmax()) + 1])[-1]


def _logistic_path(train: Array, target: Array, test: Array, strengths: Sequence[float]) -> list[Array]:
    """Predictions at each penalty, each fit beginning where the one before ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, test = standardise(train, test)
    model = LogisticRegression(warm_start=True, max_iter=300, tol=1e-3)
    found = []
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            # 300 steps leave the weakest penalties a little short of the optimum, which the inner folds judge as it is.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # 24 keys, few tracks
            model.fit(train, target)
        found.append(model.predict(test))
    return found


def _predict_values(train: Array, target: Array, inner: Array, test: Array) -> Array:
    """Ridge regression; its penalty is chosen by leaving out one training track at a time, in closed form."""
    from sklearn.linear_model import RidgeCV

    train, test = standardise(train, test)
    return RidgeCV(alphas=PENALTIES).fit(train, target).predict(test)
