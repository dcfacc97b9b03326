"""Confident learning: against the definition written out clip by clip, and on planted label errors."""

import numpy as np
import pytest
from scipy.special import softmax

from gafx.stats.label_errors import planted_recall, suspected


def model_of(rng, clips, classes, skill):
    """True labels, and probabilities of a model that is right the more often the larger `skill`."""
    truth = rng.integers(0, classes, clips)
    outputs = rng.normal(size=(clips, classes))
    outputs[np.arange(clips), truth] += skill
    return truth, softmax(1.5 * outputs, axis=1)


def planted(rng, truth, classes, fraction):
    """Labels of which a fraction is another class, and which ones."""
    flipped = rng.random(len(truth)) < fraction
    return np.where(flipped, (truth + rng.integers(1, classes, len(truth))) % classes, truth), flipped


def by_hand(probabilities, labels):
    """Northcutt et al. 2021, equations 1 and 2, one clip after the other: (clip, suggested class, margin)."""
    classes = range(probabilities.shape[1])
    thresholds = {}
    for j in classes:
        own = [p[j] for p, label in zip(probabilities, labels, strict=True) if label == j]
        if own:
            thresholds[j] = sum(own) / len(own)
    found = []
    for number, (p, label) in enumerate(zip(probabilities, labels, strict=True)):
        above = [j for j, least in thresholds.items() if p[j] >= least]
        if not above:
            continue
        guess = max(above, key=lambda j: p[j])
        margin = max(p[j] for j in classes) - p[label]
        if guess != label and margin > 0:
            found.append((number, guess, margin))
    return sorted(found, key=lambda entry: -entry[2])


@pytest.mark.parametrize(("clips", "classes", "skill"), [(300, 10, 3.0), (134, 10, 1.5), (500, 2, 2.0), (60, 40, 2.0)])
def test_the_confident_joint(clips, classes, skill, rng):
    truth, probabilities = model_of(rng, clips, classes, skill)
    labels, _ = planted(rng, truth, classes, 0.1)
    found = suspected(probabilities, labels)
    expected = by_hand(probabilities, labels)
    assert len(expected) > 3
    assert list(zip(found.clip.tolist(), found.suggested.tolist(), strict=True)) == [entry[:2] for entry in expected]
    assert found.margin == pytest.approx([margin for *_, margin in expected])


def test_planted_errors_are_found(rng):
    """5 % of the labels flipped: most are found, and with a good model most of what is found was flipped."""
    for skill, precision, recall in ((4.0, 0.95, 0.6), (3.0, 0.75, 0.55)):
        truth, probabilities = model_of(rng, 4000, 10, skill)
        labels, flipped = planted(rng, truth, 10, 0.05)
        hits = flipped[suspected(probabilities, labels).clip]
        assert hits.mean() > precision
        assert hits.sum() / flipped.sum() > recall
        # The most suspicious ones first: the first half holds more of them than the second.
        assert hits[: len(hits) // 2].sum() >= hits[len(hits) // 2 :].sum()


def test_the_power_of_the_list_is_what_planted_errors_show(rng):
    """The recall that is reported for labels without errors is that of errors planted by hand."""
    truth, probabilities = model_of(rng, 4000, 10, 3.0)
    labels, flipped = planted(rng, truth, 10, 0.05)
    found = flipped[suspected(probabilities, labels).clip].sum() / flipped.sum()
    told = planted_recall(probabilities, truth)
    assert told == planted_recall(probabilities, truth)
    assert abs(told - found) < 4 * np.sqrt(told * (1 - told) / flipped.sum())
    # It depends on the ranking alone, not on how confident the model is; a model without skill finds few.
    mild = softmax(0.3 * np.log(probabilities), axis=1)
    assert planted_recall(mild, truth) > 0.5
    assert planted_recall(np.full((100, 4), 0.25), np.arange(100) % 4) == 0


def test_little_to_judge():
    nothing = suspected(np.zeros((0, 3)), np.zeros(0, int))
    assert len(nothing) == 0
    assert planted_recall(np.zeros((0, 3)), np.zeros(0, int)) is None
    assert planted_recall(np.full((5, 3), 1 / 3), np.ones(5, int)) is None
    # A class without a clip is never suggested, and a label that is the most probable class is no suspect.
    probabilities = np.array([[0.1, 0.1, 0.8], [0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.45, 0.55, 0.0]])
    assert len(suspected(probabilities, np.array([0, 0, 0, 1]))) == 0
    assert len(suspected(np.eye(3), np.arange(3))) == 0
