"""Paired comparison of two models on the same tracks, with interval and test; one model over several seeds; Holm.

Overlapping intervals do not show that two models are equal: both are tested on the same tracks, and only the tracks on
which they differ separate them. All intervals and tests here are over tracks (or recordings) as a sample of music; the
effect of another training seed is a second question, which one seed per model cannot answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gafx.errors import UsageError
from gafx.stats.scores import NORMAL, Array, Score, known_mean, ranking_scores, weighted_macro_f1

# Values `(clips, ...)` and weightings of the clips `(weightings, clips)` -> a score for each weighting `(weightings,)`.
WeightedScore = Callable[[Array, Array], Array]
_ENUMERATED_GROUPS = 13  # up to which all of the at most 8,192 sign combinations are counted; for more they are drawn
_DRAWS = 9_999
_CELLS = 4_000_000  # numbers in memory at once while resampling


@dataclass(frozen=True)
class Paired:
    """First minus second on the same tracks, with a 95 % interval and the p-value of no difference.

    Attributes:
        difference: of the scores.
        low, high: bounds; None where there is no interval (a single recording).
        p_value: two-sided.
        count: number of clips.
        groups: number of recordings.
        test: describes how interval and p-value were computed.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    count: int
    groups: int
    test: str

    @property
    def name(self) -> str:
        """Short name of the test."""
        if self.test.startswith("McNemar"):
            return "McNemar's test (mid-p)"
        if self.test.startswith("sign-flip"):
            return "sign-flip permutation test over recordings"
        return "paired bootstrap over recordings" if "bootstrap" in self.test else self.test

    def as_score(self) -> Score:
        """The difference with its interval."""
        return Score(self.difference, self.low, self.high, self.test)

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return asdict(self)


def compare_correct(first: Array, second: Array, groups: Array) -> Paired:
    """Difference in accuracy of two models on the same clips.

    If every clip is a separate recording: McNemar's test, as mid-p of the exact test (for the few discordant tracks
    of small test sets the exact test is far below its nominal level, the mid-p test close to it and hardly ever above:
    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013), with the score interval for the
    difference of paired proportions (Tango, Statistics in Medicine 17, 1998). Several clips of one recording are not
    independent; `compare_values` then compares by recordings.

    Args:
        first: `(clips,)` bool, whether the first model is right.
        second: `(clips,)` bool, the same clips in the same order.
        groups: `(clips,)` recording of each clip.
    """
    first, second, group = _aligned(np.asarray(first, dtype=bool), np.asarray(second, dtype=bool), groups)
    count = int(group.max()) + 1
    if count < len(group):
        return compare_values(mean, first.astype(float), second.astype(float), group)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = paired_interval(only_first, only_second, count)
    return Paired(
        difference=(only_first - only_second) / count,
        low=low,
        high=high,
        p_value=mcnemar(only_first, only_second),
        count=count,
        groups=count,
        test=f"McNemar mid-p, {only_first} tracks right in the first alone and {only_second} in the second alone; "
        "Tango's 95 % score interval",
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided mid-p of McNemar's exact test (McNemar, 1947): a binomial test on the discordant tracks.

    Half the probability of the observed count is included; 1 where the two counts are equal.
    """
    from scipy.stats import binom

    if only_first == only_second:
        return 1.0
    fewer, tosses = min(only_first, only_second), only_first + only_second
    return float(2 * binom.cdf(fewer, tosses, 0.5) - binom.pmf(fewer, tosses, 0.5))


def paired_interval(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    """95 % score interval of a difference of paired proportions (Tango, 1998).

    It contains the differences that the score test does not reject; the variance of that test uses the maximum
    likelihood proportions under each difference, so that there is an interval also where nothing is discordant.
    """
    return -_upper(only_second, only_first, count), _upper(only_first, only_second, count)


def _upper(more: int, less: int, count: int) -> float:
    if more == count:
        return 1.0
    low, high = (more - less) / count, 1.0
    for _ in range(50):  # bisection: the statistic falls as the difference grows
        middle = (low + high) / 2
        b = -more - less + (2 * count - more + less) * middle
        c = -less * middle * (1 - middle)
        fewer = (np.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)  # maximum likelihood fraction of `less`
        std = np.sqrt(max(count * (2 * fewer + middle * (1 - middle)), 0.0))
        if more - less - count * middle > -NORMAL * std:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def compare_values(
    score: WeightedScore, first: Array, second: Array, groups: Array, *, resamples: int = 2000
) -> Paired:
    """Difference in any score of two models on the same clips: a paired bootstrap over recordings.

    A resample draws recordings with all their clips, the same for both models (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993). The interval is the observed difference plus the percentiles of the resampled differences'
    deviations from their mean: resampling repeats clips, which biases ranking scores. The deviations are scaled by the
    ratio of Student's to the normal quantile, since plain percentiles are too narrow for few recordings (Hesterberg,
    The American Statistician 69, 2015). The p-value is the fraction of deviations that are as large as the difference
    (Efron and Tibshirani, chapter 16); the data themselves count as one, so that it is never 0 (Phipson and Smyth,
    2010). For `mean` it is that of a sign-flip permutation test instead, which assumes less: under the null hypothesis
    the sign of each recording's difference is random (Fisher, 1935).

    Args:
        score: `mean`, `macro_f1(...)`, `mean_average_precision(...)` or another.
        first: `(clips, ...)` input of the score from the first model: errors, predictions, probabilities.
        second: the same from the second model, clips in the same order.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap.
    """
    first, second, group = _aligned(np.asarray(first), np.asarray(second), groups)
    count = int(group.max()) + 1
    once = np.ones((1, len(group)))
    difference = float(score(first, once)[0] - score(second, once)[0])
    if not np.isfinite(difference):
        raise UsageError(
            f"the score is not defined for these {len(group)} clips ({count} recordings), so there is no difference to "
            "test; a class or label may be missing from them"
        )
    label = f"paired bootstrap over {count} groups, {resamples} resamples, 95 %"
    if count == 1:
        return Paired(difference, None, None, 1.0, len(group), 1, "one recording: no interval and no test")
    deviations = _deviations(score, first, second, group, count, resamples)
    low: float | None = None
    high: float | None = None
    if np.ptp(deviations):  # if no recording differs, resampling gives no interval
        low, high = (float(bound) for bound in difference + np.percentile(deviations, [2.5, 97.5]))
    if score is mean:
        sums = np.bincount(group, np.asarray(first, float) - np.asarray(second, float), minlength=count)
        p_value, how = sign_flip_test(sums)
    else:
        beyond = np.abs(deviations) >= abs(difference) - 1e-12
        p_value, how = float((1 + beyond.sum()) / (1 + len(deviations))), "p-value of the same bootstrap, centred on 0"
    return Paired(difference, low, high, p_value, len(group), count, f"{how}; {label}")


def mean(values: Array, weights: Array) -> Array:
    """Mean of `(clips,)` values for each of `(weightings, clips)`."""
    return weights @ values / weights.sum(axis=1)


def macro_f1(truth: Array, classes: int) -> WeightedScore:
    """Macro-F1 as in `gafx.stats.scores`, for `(clips,)` predicted class numbers."""

    def score(predicted: Array, weights: Array) -> Array:
        return weighted_macro_f1(truth, predicted, weights, classes)

    return score


def mean_average_precision(targets: Array) -> WeightedScore:
    """Mean average precision as in `gafx.stats.scores`, for `(clips, classes)` probabilities; targets alike, 0 or 1."""

    def score(probabilities: Array, weights: Array) -> Array:
        columns = zip(probabilities.T, targets.T, strict=True)
        return known_mean(np.stack([ranking_scores(p, t > 0, weights)[0] for p, t in columns]), axis=0)

    return score


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple tests (Holm, Scandinavian Journal of Statistics 6, 1979), in the given order.

    Rejecting those below 0.05 keeps the probability of any false rejection at or below 5 %.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = highest
    return adjusted


def sign_flip_test(
    differences: Array, *, one_sided: bool = False, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, str]:
    """Sign-flip permutation test that the sum of paired differences is 0 (Fisher, 1935).

    All sign combinations are counted where few differences are not 0; otherwise they are drawn, and the data count as
    one of them. For differences of -1, 0 and 1 this is McNemar's exact test.

    Args:
        differences: `(groups,)`, one per recording (or track).
        one_sided: test against a sum above 0 instead of any other sum.
        draws: number of drawn sign combinations.
        seed: of the draws.

    Returns:
        p-value, and a description of the test.
    """
    differences = differences[np.abs(differences) > 1e-12]  # the sign of 0 has no effect
    if not len(differences):
        return 1.0, "sign-flip permutation test, no group differs"
    total, slack = differences.sum(), 1e-9 * np.abs(differences).sum()  # so that rounding does not separate equal sums

    def count(signs: Array) -> int:
        sums = signs @ differences
        return int((sums >= total - slack).sum() if one_sided else (np.abs(sums) >= abs(total) - slack).sum())

    number = len(differences)
    if number <= _ENUMERATED_GROUPS:
        ways = 2 * (np.arange(2**number)[:, None] >> np.arange(number) & 1) - 1
        return count(ways) / len(
            ways
        ), f"sign-flip permutation test, all {len(ways)} ways of {number} groups that differ"
    random = np.random.default_rng(seed)
    beyond, chunk = 0, max(1, _CELLS // number)
    for begin in range(0, draws, chunk):
        beyond += count(2 * random.integers(0, 2, size=(min(chunk, draws - begin), number), dtype=np.int8) - 1)
    return (beyond + 1) / (draws + 1), f"sign-flip permutation test, {draws} draws of {number} groups that differ"


def seeds_values(score: WeightedScore, seeds: Sequence[Array], groups: Array, *, resamples: int = 1000) -> Score:
    """Any score's mean over several seeds of training tested on the same clips, with a bootstrap over recordings.

    A resample draws recordings, the same for all seeds; the interval is the value plus the percentiles of the
    deviations, as in `compare_values`. Like `scores.accuracy_score` it covers the choice of clips only.

    Args:
        score: as in `compare_values`.
        seeds: for each seed the input of the score `(clips, ...)`, clips in the same order.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap.
    """
    group = np.unique(groups, return_inverse=True)[1]
    count = int(group.max()) + 1

    def mean_of_seeds(_: Array, weights: Array) -> Array:
        return np.mean([score(values, weights) for values in seeds], axis=0)

    once = np.ones((1, len(group)))
    value = float(mean_of_seeds(once, once)[0])
    if count == 1 or not np.isfinite(value):
        return Score(value)
    deviations = _deviations(mean_of_seeds, once[0], None, group, count, resamples)
    low, high = value + np.percentile(deviations, [2.5, 97.5])
    label = f"bootstrap over {count} groups, {resamples} resamples, {len(seeds)} seeds on the same clips, 95 %"
    return Score(value, float(low), float(high), label)


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof = 1); None for fewer than two values."""
    return float(np.std(np.asarray(values, dtype=float), ddof=1)) if len(values) > 1 else None


def _aligned(first: Array, second: Array, groups: Array) -> tuple[Array, Array, Array]:
    """Both arrays and the groups numbered from 0; refuses arrays of different clips."""
    groups = np.asarray(groups)
    if not len(first) == len(second) == len(groups):
        raise UsageError(
            f"a paired comparison needs the same clips: {len(first)}, {len(second)} and {len(groups)} groups were given"
        )
    if not len(first):
        raise UsageError("a paired comparison needs clips that both models were tested on; there is none")
    return first, second, np.unique(groups, return_inverse=True)[1]


def _deviations(
    score: WeightedScore, first: Array, second: Array | None, group: Array, count: int, resamples: int
) -> Array:
    """Deviations `(resamples,)` of the resampled difference (of the first's score if there is no second) from its
    mean, scaled up for few groups."""
    from scipy.stats import t

    random = np.random.default_rng(0)
    differences = []
    chunk = max(1, _CELLS // len(group))
    for begin in range(0, resamples, chunk):
        draws = random.multinomial(count, np.full(count, 1 / count), size=min(chunk, resamples - begin))
        weights = draws[:, group].astype(float)
        differences.append(score(first, weights) - (0.0 if second is None else score(second, weights)))
    resampled = np.concatenate(differences)
    resampled = resampled[np.isfinite(resampled)]
    # The resampled variance divides by the number of groups, not by one less; Student's quantile replaces the normal.
    wider = np.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1) / NORMAL
    return (resampled - resampled.mean()) * wider
