"""Scores and intervals against scikit-learn, formulas written out, and simulation."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn import metrics as reference

from gafx.stats.scores import (
    calibration_bins,
    class_scores,
    confusion,
    d_prime,
    macro_f1,
    mean_score,
    multi_label_scores,
    ranking_scores,
    single_label_scores,
    weighted_macro_f1,
    wilson,
)


@pytest.fixture
def predictions(rng):
    truth = rng.integers(0, 5, 300)
    logits = rng.normal(size=(300, 5)) + 1.5 * np.eye(5)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, truth


def test_values_are_scikit_learns(predictions):
    probabilities, truth = predictions
    predicted = probabilities.argmax(axis=1)
    matrix = confusion(truth, predicted, 5)
    assert np.array_equal(matrix, reference.confusion_matrix(truth, predicted))
    precision, recall, f1 = class_scores(matrix)
    theirs = reference.precision_recall_fscore_support(truth, predicted)
    for ours, other in zip((precision, recall, f1), theirs, strict=False):
        assert ours == pytest.approx(other)
    assert macro_f1(matrix) == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    scores = single_label_scores(probabilities, truth, np.arange(300))
    assert scores["accuracy"].value == pytest.approx(reference.accuracy_score(truth, predicted))
    assert scores["macro_f1"].low < scores["macro_f1"].value < scores["macro_f1"].high


def test_wilson_by_its_formula():
    score, z, n, p = wilson(45, 60), 1.959963984540054, 60, 0.75
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert score.low == pytest.approx((centre - half) / (1 + z * z / n))
    assert score.high == pytest.approx((centre + half) / (1 + z * z / n))
    assert wilson(20, 20).high == 1.0
    assert 0.8 < wilson(20, 20).low < 0.9


def test_the_papers_interval_is_six_points():
    assert wilson(145, 200).high - wilson(145, 200).low == pytest.approx(0.123, abs=0.003)


def test_calibration_by_hand():
    # Two clips at 0.9 (one right) and one at 0.6 (right): |0.9 * 2 - 1| + |0.6 - 1| over 3 clips.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    scores = single_label_scores(probabilities, np.array([0, 1, 1]), np.arange(3))
    assert scores["calibration_error"].value == pytest.approx((0.8 + 0.4) / 3)
    assert sum(entry.tracks for entry in calibration_bins(probabilities, np.array([0, 1, 1]))) == 3


def test_bootstrap_resamples_groups(predictions):
    """Segments that repeat their track add no information: the interval of ten copies is that of one, not a third."""
    probabilities, truth = predictions
    one = single_label_scores(probabilities, truth, np.arange(300))
    copies = [np.repeat(array, 10, axis=0) for array in (probabilities, truth, np.arange(300))]
    ten = single_label_scores(*copies)
    for name, score in one.items():
        assert (ten[name].low, ten[name].high) == pytest.approx((score.low, score.high), abs=0.01)
    assert "3000 tracks of 300 recordings" in ten["accuracy"].interval


def test_the_bootstrap_of_macro_f1_is_that_of_dense_confusion_matrices(rng):
    truth, groups = rng.integers(0, 7, 400), rng.integers(0, 90, 400)
    probabilities = np.eye(7)[np.where(rng.random(400) < 0.6, truth, rng.integers(0, 7, 400))]
    predicted = probabilities.argmax(axis=1)
    draws = np.random.default_rng(0).multinomial(len(set(groups)), np.full(90, 1 / 90), size=500)
    resampled = []
    for weights in draws[:, np.unique(groups, return_inverse=True)[1]]:
        matrix = np.zeros((7, 7))
        np.add.at(matrix, (truth, predicted), weights)
        resampled.append(macro_f1(matrix))
    score = single_label_scores(probabilities, truth, groups, resamples=500)["macro_f1"]
    assert (score.low, score.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))
    assert weighted_macro_f1(truth, predicted, draws[:3, groups], 7) == pytest.approx(np.array(resampled[:3]))


MANY = """
import re, sys, numpy as np
from gafx.stats.compare import compare_values, macro_f1
from gafx.stats.scores import single_label_scores
rng = np.random.default_rng(0)
classes, clips = int(sys.argv[1]), int(sys.argv[2])
truth = rng.integers(0, classes, clips)
probabilities = rng.random((clips, classes), dtype=np.float32)
single_label_scores(probabilities, truth, np.arange(clips))
compare_values(macro_f1(truth, classes), probabilities.argmax(axis=1), truth, np.arange(clips), resamples=20)
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("classes", "clips"), [(1000, 20_000), (309, 1500), (5000, 2000)])
def test_memory_of_many_classes(classes, clips):
    ran = subprocess.run([sys.executable, "-c", MANY, str(classes), str(clips)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 500  # MB, 80 of them the probabilities of the first case


def test_bootstrap_covers_the_truth(rng):
    inside = 0
    for _ in range(200):
        right = rng.random(100) < 0.7
        score = mean_score(right.astype(float), np.arange(100), resamples=300)
        inside += score.low <= 0.7 <= score.high
    assert 0.88 <= inside / 200 <= 0.99


def test_multi_label_with_ties_and_a_label_without_positives():
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    probabilities = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.2], [0.8, 0.5, 0.3], [0.2, 0.5, 0.4]])
    scores = multi_label_scores(probabilities, targets, np.arange(4), resamples=20)
    # Label 0 is ranked perfectly, label 1 is one tie (precision 1/2, AUC 1/2), label 2 has no positive.
    assert scores["mean_average_precision"].value == pytest.approx((1 + 0.5) / 2)
    assert scores["mean_auc"].value == pytest.approx((1 + 0.5) / 2)


def test_absent_classes_do_not_count_in_macro_f1():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert macro_f1(matrix) == pytest.approx((6 / 7 + 8 / 9) / 2)


def test_ranking_by_hand():
    """Ranks (+ is a positive): 0.9 +, 0.8 -, 0.7 +, 0.6 -, 0.5 -."""
    scores, positive = np.array([0.7, 0.9, 0.8, 0.5, 0.6]), np.array([True, True, False, False, False])
    precision, auc = ranking_scores(scores, positive, np.ones((1, 5)))
    assert precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert auc[0] == pytest.approx(5 / 6)  # of six pairs one is the wrong way round
    # A clip that counts twice is the same as two equal clips.
    twice, once = np.array([[1, 1, 1, 1, 2]]), np.append(scores, 0.6)
    assert ranking_scores(scores, positive, twice)[1] == pytest.approx(
        reference.roc_auc_score(np.append(positive, False), once)
    )
    assert ranking_scores(scores, positive, twice)[0] == pytest.approx(
        reference.average_precision_score(np.append(positive, False), once)
    )


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_ranking_is_scikit_learns_with_ties_and_weights(data):
    count = data.draw(st.integers(2, 40))
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))) / 6
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    precision, auc = ranking_scores(scores, positive, weights[None])
    kept = weights > 0
    if not positive[kept].any():
        assert math.isnan(precision[0])
        assert math.isnan(auc[0])
        return
    expected = reference.average_precision_score(positive[kept], scores[kept], sample_weight=weights[kept])
    assert precision[0] == pytest.approx(expected)
    if positive[kept].all():
        assert math.isnan(auc[0])
        return
    assert auc[0] == pytest.approx(reference.roc_auc_score(positive[kept], scores[kept], sample_weight=weights[kept]))


def test_wilson_and_d_prime_equal_scipys():
    for correct, total in ((0, 7), (7, 7), (1, 3), (45, 60), (145, 200), (9_123, 20_371)):
        low, high = binomtest(correct, total).proportion_ci(method="wilson")
        score = wilson(correct, total)
        assert (score.value, score.low, score.high) == (correct / total, low, high)
    for auc in (0.0, 0.01, 0.5, 0.987, 1.0):
        assert d_prime(auc) == math.sqrt(2) * norm.ppf(auc)


def test_d_prime_by_hand():
    assert d_prime(0.5) == pytest.approx(0)
    assert d_prime(0.975) == pytest.approx(math.sqrt(2) * 1.959963984540054)
    assert d_prime(0.25) == -d_prime(0.75)
    assert d_prime(1.0) == math.inf
    assert math.isnan(d_prime(math.nan))


def test_two_normals_lie_d_prime_apart(rng):
    positive = np.repeat([True, False], 20_000)
    scores = rng.normal(size=40_000) + 1.2 * positive
    auc = ranking_scores(scores, positive, np.ones((1, 40_000)))[1][0]
    assert d_prime(auc) == pytest.approx(1.2, abs=0.03)


def test_perfect_ranks_have_an_infinite_d_prime_and_json_can_hold_it():
    targets = np.eye(3)[np.arange(30) % 3]
    scores = multi_label_scores(targets * 0.5 + 0.2, targets, np.arange(30), resamples=20)
    assert scores["mean_average_precision"].value == scores["mean_auc"].value == 1.0
    assert scores["d_prime"].value == math.inf
    described = {name: score.as_dict() for name, score in scores.items()}
    assert json.loads(json.dumps(described, allow_nan=False))["d_prime"]["value"] is None


def test_d_primes_interval_is_that_of_the_auc(rng):
    targets = (rng.random((200, 4)) < 0.2).astype(float)
    scores = multi_label_scores(0.3 * targets + rng.random((200, 4)), targets, np.arange(200), resamples=100)
    for bound in ("low", "value", "high"):
        assert getattr(scores["d_prime"], bound) == pytest.approx(d_prime(getattr(scores["mean_auc"], bound)))
    assert scores["mean_auc"].low < scores["mean_auc"].value < scores["mean_auc"].high


def test_no_label_occurs_or_every_clip_has_it():
    probabilities = np.array([[0.3, 0.6], [0.4, 0.7]])
    none = multi_label_scores(probabilities, np.zeros((2, 2)), np.arange(2), resamples=5)
    assert all(math.isnan(score.value) for score in none.values())
    every = multi_label_scores(probabilities, np.ones((2, 2)), np.arange(2), resamples=5)
    assert every["mean_average_precision"].value == 1.0
    assert math.isnan(every["mean_auc"].value)
    assert every["d_prime"].as_dict()["value"] is None


def test_means_over_labels_leave_out_those_without_positives(rng):
    targets = np.zeros((50, 527))
    targets[:, :40] = rng.random((50, 40)) < 0.1
    probabilities = rng.random((50, 527))
    occurs = [c for c in range(527) if targets[:, c].any()]
    scores = multi_label_scores(probabilities, targets, np.arange(50), resamples=0)
    expected = [reference.average_precision_score(targets[:, c], probabilities[:, c]) for c in occurs]
    assert scores["mean_average_precision"].value == pytest.approx(np.mean(expected))
    expected = [reference.roc_auc_score(targets[:, c], probabilities[:, c]) for c in occurs]
    assert scores["mean_auc"].value == pytest.approx(np.mean(expected))


def test_mean_score_resamples_numerator_and_denominator_together(rng):
    below = rng.random(200) + 0.5
    score = mean_score(0.3 * below, np.arange(200), resamples=50, ratio_to=below)
    assert (score.value, score.low, score.high) == pytest.approx((0.3, 0.3, 0.3))
    plain = mean_score(below, np.repeat(np.arange(100), 2), resamples=200)
    assert plain.value == pytest.approx(below.mean())
    assert plain.low < plain.value < plain.high


def test_the_interval_of_the_mean_average_precision_covers_what_is_to_be_expected():
    """Rare labels, where a plain percentile interval is wholly above the value."""
    rng = np.random.default_rng(5)

    def draw():
        targets = (rng.random((150, 12)) < 0.04).astype(float)
        return 0.5 * targets + rng.random((150, 12)), targets

    expected = np.mean(
        [multi_label_scores(*draw(), np.arange(150), resamples=0)["mean_average_precision"].value for _ in range(400)]
    )
    covered = 0
    for _ in range(100):
        score = multi_label_scores(*draw(), np.arange(150), resamples=100)["mean_average_precision"]
        assert score.low <= score.value <= score.high
        covered += score.low <= expected <= score.high
    assert 85 <= covered <= 100
