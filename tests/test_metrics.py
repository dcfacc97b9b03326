"""Scores and intervals against scikit-learn, formulas written out, and simulation."""

import numpy as np
import pytest
from sklearn import metrics as reference

from gafx.metrics import (
    calibration_bins,
    class_scores,
    confusion,
    macro_f1,
    multi_label_scores,
    single_label_scores,
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
    assert sum(entry["tracks"] for entry in calibration_bins(probabilities, np.array([0, 1, 1]))) == 3


def test_bootstrap_resamples_groups(predictions):
    """Pieces that repeat their track say nothing new: the interval of ten copies is that of one, not a third of it."""
    probabilities, truth = predictions
    one = single_label_scores(probabilities, truth, np.arange(300), tracks=False)["accuracy"]
    copies = [np.repeat(array, 10, axis=0) for array in (probabilities, truth, np.arange(300))]
    ten = single_label_scores(*copies, tracks=False)["accuracy"]
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), abs=0.01)


def test_bootstrap_covers_the_truth(rng):
    inside = 0
    for _ in range(200):
        truth = rng.integers(0, 2, 100)
        right = rng.random(100) < 0.7
        predicted = np.where(right, truth, 1 - truth)
        probabilities = np.eye(2)[predicted] * 0.8 + 0.1
        score = single_label_scores(probabilities, truth, np.arange(100), resamples=300, tracks=False)["accuracy"]
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
