"""Paired comparisons and scores over seeds, against references computed another way, and by simulation."""

import itertools
import json
import warnings

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest

from gafx.errors import UsageError
from gafx.stats.compare import (
    compare_correct,
    compare_values,
    holm,
    macro_f1,
    mcnemar,
    mean,
    mean_average_precision,
    paired_interval,
    sample_std,
    seeds_values,
)
from gafx.stats.scores import accuracy_score, multi_label_scores, single_label_scores, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (7, 3), (3, 7), (10, 10), (40, 22)])
def test_mcnemar_is_the_exact_test_less_what_was_seen(b, c):
    exact = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    seen = binom.pmf(b, b + c, 0.5) if b != c else 0.0
    assert mcnemar(b, c) == pytest.approx(exact - seen, abs=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


def slow_tango(b, c, n):
    """Both bounds by numerical maximum likelihood and root finding, from the definition."""

    def statistic(delta):
        def loss(q):
            p12, p21 = q + delta, q
            terms = [(b, p12), (c, p21), (n - b - c, 1 - p12 - p21)]
            return -sum(k * np.log(max(p, 1e-300)) for k, p in terms if k)

        q = minimize_scalar(
            loss, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-13}
        ).x
        return (b - c - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))

    seen = (b - c) / n
    low = brentq(lambda delta: statistic(delta) - Z, -1 + 1e-9, seen - 1e-9)
    return low, brentq(lambda delta: statistic(delta) + Z, seen + 1e-9, 1 - 1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(9, 3, 70), (3, 9, 70), (30, 12, 200), (5, 5, 40), (4, 1, 10)])
def test_the_interval_is_tangos(b, c, n):
    assert paired_interval(b, c, n) == pytest.approx(slow_tango(b, c, n), abs=1e-5)
    low, high = paired_interval(c, b, n)
    assert (-high, -low) == pytest.approx(paired_interval(b, c, n), abs=1e-12)


def test_the_interval_at_its_ends():
    n = 70
    # Nothing discordant: the score test has the variance of the difference itself, z^2 / (n + z^2).
    assert paired_interval(0, 0, n) == pytest.approx((-(Z**2) / (n + Z**2), Z**2 / (n + Z**2)), abs=1e-9)
    low, high = paired_interval(n, 0, n)
    assert high == 1.0
    assert 0.8 < low < 1.0
    low, high = paired_interval(1, 0, 1)
    assert low < 0 < high == 1.0


def test_two_models_on_tracks():
    first = np.array([True] * 60 + [False] * 10)
    second = np.array([True] * 50 + [False] * 18 + [True] * 2)
    paired = compare_correct(first, second, np.arange(70))
    assert paired.difference == pytest.approx(8 / 70)
    assert paired.p_value == mcnemar(10, 2)
    assert (paired.low, paired.high) == paired_interval(10, 2, 70)
    assert (paired.count, paired.groups) == (70, 70)
    assert paired.test.startswith("McNemar mid-p, 10 tracks")
    assert json.loads(json.dumps(paired.as_dict()))["difference"] == paired.difference
    other = compare_correct(second, first, np.arange(70))
    assert other.difference == -paired.difference
    assert other.p_value == paired.p_value
    assert (other.low, other.high) == pytest.approx((-paired.high, -paired.low))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("groups", [np.arange(20), np.repeat(np.arange(5), 4)])
def test_identical_models_do_not_differ(value, groups):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired = compare_correct(np.full(20, value), np.full(20, value), groups)
    assert paired.p_value == 1.0
    assert paired.difference == 0.0
    if len(np.unique(groups)) == 20:
        assert paired.low < 0 < paired.high
    else:  # no recording differs, so that resampling them is no evidence about others
        assert (paired.low, paired.high) == (None, None)
    mixed = np.arange(20) % 3 > 0
    assert compare_correct(mixed, mixed, groups).p_value == 1.0


def test_one_track_and_one_recording():
    single = compare_correct(np.array([True]), np.array([False]), np.array([7]))
    assert single.difference == 1.0
    assert single.p_value == pytest.approx(0.5)  # mid-p of one toss; nothing is found
    assert single.low < 0
    segments = compare_correct(np.ones(10, bool), np.zeros(10, bool), np.zeros(10))
    assert (segments.low, segments.high, segments.p_value, segments.groups) == (None, None, 1.0, 1)


def test_sign_flips_by_hand():
    """Four recordings of unequal length: sixteen ways to turn the signs of their differences."""
    groups = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 1])
    first = np.array([1, 1, 1, 1, 0, 1, 1, 0, 0, 1], bool)
    second = np.array([0, 0, 1, 0, 0, 0, 1, 0, 1, 0], bool)
    sums = [2, 1, 0, 1]
    ways = [abs(sum(s * d for s, d in zip(signs, sums, strict=True))) for signs in itertools.product((1, -1), repeat=4)]
    paired = compare_correct(first, second, groups)
    assert paired.p_value == np.mean([way >= 4 for way in ways]) == 0.25
    assert (paired.count, paired.groups) == (10, 4)
    assert "all 8 ways of 3 groups" in paired.test


def test_many_groups_are_drawn_and_agree_with_the_binomial():
    """Two clips a recording that agree: the sign-flip test is the exact sign test of the recordings."""
    first, second = np.zeros(60, bool), np.zeros(60, bool)
    first[:21], second[21:30] = True, True
    paired = compare_correct(np.repeat(first, 2), np.repeat(second, 2), np.repeat(np.arange(60), 2))
    assert paired.p_value == pytest.approx(binomtest(21, 30, 0.5).pvalue, abs=0.01)
    assert paired.difference == pytest.approx(12 / 60)
    # Standard error of a mean of sixty differences, and Student's quantile of 59 degrees of freedom.
    half = 2.001 * np.std(first.astype(float) - second, ddof=1) / np.sqrt(60)
    assert paired.high - paired.low == pytest.approx(2 * half, rel=0.08)
    again = compare_correct(np.repeat(second, 2), np.repeat(first, 2), np.repeat(np.arange(60), 2))
    assert again.p_value == paired.p_value
    assert (again.low, again.high) == pytest.approx((-paired.high, -paired.low), abs=0.02)


def test_mean_errors():
    random = np.random.default_rng(3)
    first = random.random(80)
    second = first + 0.02 + 0.05 * random.standard_normal(80)
    paired = compare_values(mean, first, second, np.arange(80))
    assert paired.difference == pytest.approx((first - second).mean())
    assert paired.low < paired.difference < paired.high
    half = 1.99 * (first - second).std(ddof=1) / np.sqrt(80)
    assert paired.high - paired.low == pytest.approx(2 * half, rel=0.08)
    assert (paired.p_value < 0.05) == (paired.high < 0 or paired.low > 0)


def test_scores_are_those_of_metrics():
    random = np.random.default_rng(0)
    probabilities = random.random((60, 5))
    targets = (random.random((60, 5)) < 0.3).astype(float)
    weights = np.ones((1, 60))
    tag = multi_label_scores(probabilities, targets, np.arange(60), resamples=2)
    assert mean_average_precision(targets)(probabilities, weights)[0] == tag["mean_average_precision"].value
    truth = random.integers(0, 5, 60)
    one = single_label_scores(probabilities, truth, np.arange(60), resamples=2)
    assert macro_f1(truth, 5)(probabilities.argmax(axis=1), weights)[0] == pytest.approx(one["macro_f1"].value)


def test_mean_average_precision_of_a_better_and_of_the_same_model():
    random = np.random.default_rng(1)
    targets = (random.random((150, 4)) < 0.3).astype(float)
    targets[:, 3] = 0  # a label that nobody has
    noise = random.standard_normal((150, 4))
    good, bad = targets + 0.4 * noise, targets + 3 * noise
    groups = np.arange(150) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        better = compare_values(mean_average_precision(targets), good, bad, groups, resamples=300)
        same = compare_values(mean_average_precision(targets), good, good, groups, resamples=300)
    assert better.difference > 0.2
    assert better.low > 0
    assert better.p_value == 1 / 301
    assert (same.difference, same.low, same.high, same.p_value) == (0, None, None, 1.0)
    assert better.groups == 75


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match="the same clips: 3, 4 and 3 groups"):
        compare_correct(np.ones(3, bool), np.ones(4, bool), np.arange(3))
    with pytest.raises(UsageError, match="there is none"):
        compare_correct(np.ones(0, bool), np.ones(0, bool), np.arange(0))
    with pytest.raises(UsageError, match="not defined for these 4 clips"):
        compare_values(mean_average_precision(np.zeros((4, 1))), np.ones((4, 1)), np.ones((4, 1)), np.arange(4))
    with pytest.raises(UsageError, match="2 seeds and 0 tracks"):
        accuracy_score(np.ones((2, 0), bool))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize(("right", "tracks"), [(0, 40), (40, 40), (1, 1), (31, 70), (180, 200)])
def test_one_seed_is_wilson(right, tracks):
    score = accuracy_score(np.arange(tracks) < right)
    plain = wilson(right, tracks)
    assert score.interval == plain.interval
    assert (score.value, score.low, score.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)


def test_seeds_that_agree_are_one_and_seeds_that_do_not_are_several():
    row = np.arange(100) < 70
    same = accuracy_score(np.stack([row, row, row]))
    assert (same.low, same.high) == pytest.approx((wilson(70, 100).low, wilson(70, 100).high))
    assert same.interval == "Wilson 95 %, 3 seeds on the same 100 tracks, as 100 independent tracks"
    # Every track right in just two of three seeds: the tracks tell nothing apart, and each answer counts.
    apart = np.arange(3)[:, None] != np.arange(99) % 3
    assert accuracy_score(apart).interval.endswith("as 297 independent tracks")
    assert accuracy_score(np.ones((3, 50), bool)).low == pytest.approx(wilson(50, 50).low)
    some = np.random.default_rng(0).random((3, 200)) < np.random.default_rng(1).random(200)
    assert wilson(int(some[0].sum()), 200).high - wilson(int(some[0].sum()), 200).low > (
        accuracy_score(some).high - accuracy_score(some).low
    )


def test_deviation():
    assert sample_std([0.5]) is None
    assert sample_std([0.5, 0.7]) == pytest.approx(np.sqrt(0.02))


def models(random, n, delta, sets):
    """`sets` pairs of counts of tracks that one of two models alone gets right: the first is better by `delta`."""
    return random.multinomial(n, [0.05 + delta, 0.05, 0.9 - delta], sets)[:, :2].tolist()


@pytest.mark.parametrize("n", [70, 200])
def test_intervals_hold_the_truth(n):
    """Of 2,000 test sets; benchmarks/intervals.py does more, and enumerates."""
    random = np.random.default_rng(0)
    for p in (0.5, 0.7):
        bounds = {k: wilson(k, n) for k in range(n + 1)}
        held = [bounds[k].low <= p <= bounds[k].high for k in random.binomial(n, p, 2000).tolist()]
        assert 0.93 <= np.mean(held) <= 0.97
        own = random.beta(p * 2 / 3, (1 - p) * 2 / 3, (500, n))  # tracks differ: two seeds' answers correlate by 0.6
        sets = [accuracy_score(random.random((3, n)) < row) for row in own]
        assert 0.92 <= np.mean([score.low <= p <= score.high for score in sets]) <= 0.98
    for delta in (0.0, 0.1):
        drawn = [paired_interval(*pair, n) for pair in models(random, n, delta, 500)]
        assert 0.91 <= np.mean([low <= delta <= high for low, high in drawn]) <= 0.985


def test_a_planted_difference_is_found_and_an_absent_one_is_not():
    """Five seeds fixed beforehand, 200 tracks, ten points: each finds it; a level of 5 % holds over many test sets."""
    for seed in (1, 2, 3, 4, 5):
        random = np.random.default_rng(seed)
        cell = random.choice(4, size=200, p=[0.15, 0.05, 0.55, 0.25])
        first, second = (cell == 0) | (cell == 2), (cell == 1) | (cell == 2)
        assert compare_correct(first, second, np.arange(200)).p_value < 0.05
        assert compare_correct(first, first, np.arange(200)).p_value == 1.0
    random = np.random.default_rng(0)
    alarms = [mcnemar(*pair) < 0.05 for pair in models(random, 200, 0.0, 1000)]
    assert 0.02 <= np.mean(alarms) <= 0.07


def test_segments_of_tracks_are_not_taken_for_tracks():
    """Identical answers on five segments a track: what is nothing by tracks would be a finding by segments."""
    random = np.random.default_rng(0)
    by_tracks, by_segments = [], []
    for _ in range(100):
        track = random.choice(3, size=40, p=[0.1, 0.1, 0.8])
        first, second = (np.repeat(track != wrong, 5) for wrong in (1, 0))
        by_tracks.append(compare_correct(first, second, np.repeat(np.arange(40), 5)).p_value < 0.05)
        by_segments.append(compare_correct(first, second, np.arange(200)).p_value < 0.05)
    assert np.mean(by_tracks) <= 0.1
    assert np.mean(by_segments) >= 0.2


def test_accuracy_of_several_seeds_where_recordings_have_several_tracks():
    """Four equal tracks of a recording count as one track; four independent ones as four."""
    whole = np.repeat(np.arange(50) % 2 == 0, 4)
    together = accuracy_score(np.stack([whole] * 3), np.repeat(np.arange(50), 4))
    assert (together.low, together.high) == pytest.approx((wilson(25, 50).low, wilson(25, 50).high))
    assert "200 tracks of 50 recordings, as 50 independent tracks" in together.interval
    apart = accuracy_score(np.arange(200) % 2 == 0, np.repeat(np.arange(50), 4))
    assert (apart.low, apart.high) == pytest.approx((wilson(100, 200).low, wilson(100, 200).high))


def test_coverage_where_recordings_have_several_tracks():
    rng = np.random.default_rng(1)
    groups, held = np.repeat(np.arange(50), 4), 0
    for _ in range(400):
        kind = rng.beta(0.7 * 0.5, 0.3 * 0.5, 50)  # recordings differ much: mean 0.7
        held_of = accuracy_score(rng.random((3, 200)) < np.repeat(kind, 4), groups)
        held += held_of.low <= 0.7 <= held_of.high
    assert 0.91 <= held / 400 <= 0.98


def test_any_score_over_several_seeds():
    rng = np.random.default_rng(2)
    groups, values = np.repeat(np.arange(30), 2), rng.random((3, 60))
    found = seeds_values(mean, list(values), groups, resamples=4000)
    sums = values.mean(axis=0).reshape(30, 2).mean(axis=1)
    assert found.value == pytest.approx(values.mean())
    half = 2.045 * sums.std(ddof=1) / np.sqrt(30)  # Student's interval of the recordings' means
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.01)
    alone = seeds_values(mean, [values[0]], groups)
    assert alone.value == pytest.approx(values[0].mean())
