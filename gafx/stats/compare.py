"""Two rows on the same tracks: the difference, its interval and a paired test; one row over several seeds.

Two intervals that overlap do not say that two models are alike: they are right and wrong on the same tracks, and only
the tracks on which they differ tell them apart. Everything here is about tracks (or recordings) as a sample of music;
what another seed of training would give is a second question, which one seed of each row cannot answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gafx.errors import UsageError
from gafx.stats.scores import Array, Score, class_scores, ranking_scores

# Values `(clips, ...)` and weightings of the clips `(weightings, clips)` -> a score for each weighting `(weightings,)`.
WeightedScore = Callable[[Array, Array], Array]
_NORMAL = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_ENUMERATED_GROUPS = 13  # at most 8,192 ways to turn signs; with more groups ways are drawn
_DRAWS = 9_999
_CELLS = 4_000_000  # numbers held at once by the resampling


@dataclass(frozen=True)
class Paired:
    """First minus second on the same tracks, with a 95 % interval and the p-value of no difference.

    The bounds are None where there is no interval (a single recording). `count` is the number of clips, `groups` that
    of recordings, and `test` says in words how interval and p-value were found.
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
        """The test in a few words."""
        if self.test.startswith("McNemar"):
            return "McNemar's test (mid-p)"
        if self.test.startswith("sign-flip"):
            return "sign-flip permutation test over recordings"
        return "paired bootstrap over recordings" if "bootstrap" in self.test else self.test

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def compare_correct(first: Array, second: Array, groups: Array) -> Paired:
    """Difference in accuracy of two models on the same clips.

    Where every clip is a recording of its own: McNemar's test, as mid-p of the exact one (the exact one is far below
    its level for the few discordant tracks of small test sets, the mid-p one close to it and hardly ever above:
    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013), with the score interval for the
    difference of paired proportions (Tango, Statistics in Medicine 17, 1998). Where recordings have several clips,
    these depend on each other, and `compare_values` does the same by recordings.

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
    """Two-sided mid-p of McNemar's exact test (McNemar, 1947): the discordant tracks are a coin's tosses.

    Half the probability of what was seen counts as beyond it; 1 where the two are equal.
    """
    from scipy.stats import binom

    if only_first == only_second:
        return 1.0
    fewer, tosses = min(only_first, only_second), only_first + only_second
    return float(2 * binom.cdf(fewer, tosses, 0.5) - binom.pmf(fewer, tosses, 0.5))


def paired_interval(only_first: int, only_second: int, count: int) -> tuple[float, float]:
    """95 % score interval of a difference of paired proportions (Tango, 1998).

    It holds the differences that the score test does not reject; that test's variance is of the proportions which are
    most likely under the difference in question, so that there is an interval also where nothing is discordant.
    """
    return -_upper(only_second, only_first, count), _upper(only_first, only_second, count)


def _upper(more: int, less: int, count: int) -> float:
    if more == count:
        return 1.0
    low, high = (more - less) / count, 1.0
    for _ in range(50):  # halvings: the statistic falls as the difference grows
        middle = (low + high) / 2
        b = -more - less + (2 * count - more + less) * middle
        c = -less * middle * (1 - middle)
        fewer = (np.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)  # most likely share of `less`
        deviation = np.sqrt(max(count * (2 * fewer + middle * (1 - middle)), 0.0))
        if more - less - count * middle > -_NORMAL * deviation:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def compare_values(
    score: WeightedScore, first: Array, second: Array, groups: Array, *, resamples: int = 2000
) -> Paired:
    """Difference in any score of two models on the same clips: a paired bootstrap over recordings.

    A resample draws recordings with all their clips, the same for both models (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993). The deviations of the resampled differences from their mean are put around the difference
    that was seen: resampling repeats clips, which shifts ranking scores. They are widened by what separates Student's
    distribution of so many recordings from the normal one, since the plain percentiles are too narrow for few
    (Hesterberg, The American Statistician 69, 2015). The p-value is the share of these deviations that are as large as
    the difference (Efron and Tibshirani, chapter 16); the data themselves count as one, so that it is never 0 (Phipson
    and Smyth, 2010). For `mean` it is that of a sign-flip permutation test instead, which supposes less: were the
    models alike, each recording's difference would as likely have the other sign (Fisher, 1935).

    Args:
        score: `mean`, `macro_f1(...)`, `mean_average_precision(...)` or another.
        first: `(clips, ...)` what the score reads of the first model: errors, predictions, probabilities.
        second: the same of the second model, clips in the same order.
        groups: `(clips,)` recording of each clip.
        resamples: of the bootstrap.
    """
    first, second, group = _aligned(np.asarray(first), np.asarray(second), groups)
    count = int(group.max()) + 1
    once = np.ones((1, len(group)))
    difference = float(score(first, once)[0] - score(second, once)[0])
    if not np.isfinite(difference):
        raise UsageError(
            f"the score is not defined for these {len(group)} clips ({count} recordings), so that there is no "
            "difference to test; a class or label may be missing from them"
        )
    label = f"paired bootstrap over {count} groups, {resamples} resamples, 95 %"
    if count == 1:
        return Paired(difference, None, None, 1.0, len(group), 1, "one recording: no interval and no test")
    deviations = _deviations(score, first, second, group, count, resamples)
    low: float | None = None
    high: float | None = None
    if np.ptp(deviations):  # where no recording differs, resampling says nothing of others
        low, high = (float(bound) for bound in difference + np.percentile(deviations, [2.5, 97.5]))
    if score is mean:
        sums = np.bincount(group, np.asarray(first, float) - np.asarray(second, float), minlength=count)
        p_value, how = _sign_flips(sums)
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
        cells = np.zeros((len(truth), classes * classes))
        cells[np.arange(len(truth)), truth * classes + predicted] = 1
        return _known_mean(class_scores((weights @ cells).reshape(-1, classes, classes))[2], axis=1)

    return score


def mean_average_precision(targets: Array) -> WeightedScore:
    """Mean average precision as in `gafx.stats.scores`, for `(clips, classes)` probabilities; targets alike, 0 or 1."""

    def score(probabilities: Array, weights: Array) -> Array:
        columns = zip(probabilities.T, targets.T, strict=True)
        return _known_mean(np.stack([ranking_scores(p, t > 0, weights)[0] for p, t in columns]), axis=0)

    return score


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for as many tests (Holm, Scandinavian Journal of Statistics 6, 1979), in their given order.

    The chance that any of the tests that are below 5 % afterwards is a false alarm is at most 5 %.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = highest
    return adjusted


def seeds_score(correct: Array, groups: Array | None = None) -> Score:
    """Accuracy over several seeds of training tested on the same tracks, with Wilson's interval.

    Three seeds on 200 tracks are not 600 tracks: the seeds mostly fail on the same ones. The interval is Wilson's for
    an effective number of tracks, `p (1 - p)` over the variance of the mean over tracks (Kish, Survey Sampling, 1965;
    in an interval of a proportion: Korn and Graubard, Survey Methodology 24, 1998): the number of tracks where all
    seeds agree on each, at most tracks times seeds. With one seed it is Wilson's own. Where recordings have several
    tracks, the variance is that of the recordings' sums, and the effective number at least that of recordings.

    It covers the choice of tracks, for these trained models. How much another seed changes the result is not in it:
    that is `deviation` of the seeds' accuracies, which belongs beside it.

    Args:
        correct: `(seeds, tracks)` bool, columns are the same tracks.
        groups: `(tracks,)` recording of each; default: each track is one.
    """
    correct = np.atleast_2d(np.asarray(correct, dtype=bool))
    seeds, tracks = correct.shape
    if not correct.size:
        raise UsageError(f"there is no accuracy of {seeds} seeds and {tracks} tracks")
    share = float(correct.mean())
    group = np.arange(tracks) if groups is None else np.unique(groups, return_inverse=True)[1]
    recordings = int(group.max()) + 1
    sums = np.bincount(group, correct.mean(axis=0) - share, minlength=recordings)
    variance = float((sums**2).sum()) / tracks**2  # of the mean over tracks
    if share in (0.0, 1.0):
        effective = float(recordings)
    else:
        effective = float(np.clip(share * (1 - share) / max(variance, 1e-12), recordings, tracks * seeds))
    low, high = _wilson(share, effective)
    if seeds == 1 and recordings == tracks:
        return Score(share, low, high, "Wilson 95 %")
    said = f"{tracks} tracks" + (f" of {recordings} recordings" if recordings < tracks else "")
    said = f"{seeds} seeds on the same {said}" if seeds > 1 else said
    return Score(share, low, high, f"Wilson 95 %, {said}, as {effective:.0f} independent tracks")


def seeds_values(score: WeightedScore, seeds: Sequence[Array], groups: Array, *, resamples: int = 1000) -> Score:
    """Any score's mean over several seeds of training tested on the same clips, with a bootstrap over recordings.

    A resample draws recordings, the same for all seeds; the deviations of the resampled means from their own mean are
    put around the value, as in `compare_values`. Like `seeds_score` it covers the choice of clips alone.

    Args:
        score: as in `compare_values`.
        seeds: of each seed `(clips, ...)`, what the score reads, clips in the same order.
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


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divided by one less than their number); None for fewer than two values."""
    return float(np.std(np.asarray(values, dtype=float), ddof=1)) if len(values) > 1 else None


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of a number that need not be whole."""
    squared = _NORMAL**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = _NORMAL / (1 + squared / count) * np.sqrt(share * (1 - share) / count + squared / (4 * count**2))
    # At 0 and 1 the bound is exactly that; rounding would leave it beside.
    return 0.0 if share == 0 else float(centre - half), 1.0 if share == 1 else float(centre + half)


def _aligned(first: Array, second: Array, groups: Array) -> tuple[Array, Array, Array]:
    """Both arrays and the groups numbered from 0; refuses what is not about the same clips."""
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
    """Deviations `(resamples,)` of the resampled difference (of the first's score, without a second) from its mean,
    widened for few groups."""
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
    # Resampling divides by the number of groups, not by one less; the quantile is that of so few degrees of freedom.
    wider = np.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1) / _NORMAL
    return (resampled - resampled.mean()) * wider


def _sign_flips(sums: Array) -> tuple[float, str]:
    """Two-sided p-value of a sum of groups' differences whose signs are as likely the other way, and what was done.

    All ways are counted where few groups differ; otherwise ways are drawn, and the data count as one of them.
    """
    sums = sums[np.abs(sums) > 1e-12]  # a group without a difference is the same either way
    if not len(sums):
        return 1.0, "sign-flip permutation test, no group differs"
    seen = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # rounding shall not separate equal sums
    if len(sums) <= _ENUMERATED_GROUPS:
        ways = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        p_value = float((np.abs((2 * ways - 1) @ sums) >= seen).mean())
        return p_value, f"sign-flip permutation test, all {len(ways)} ways of {len(sums)} groups that differ"
    random = np.random.default_rng(0)
    beyond, chunk = 0, max(1, _CELLS // len(sums))
    for begin in range(0, _DRAWS, chunk):
        signs = 2 * random.integers(0, 2, size=(min(chunk, _DRAWS - begin), len(sums)), dtype=np.int8) - 1
        beyond += int((np.abs(signs @ sums) >= seen).sum())
    return (beyond + 1) / (_DRAWS + 1), f"sign-flip permutation test, {_DRAWS} draws of {len(sums)} groups that differ"


def _known_mean(values: Array, axis: int) -> Array:
    """Mean of what is no NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)
