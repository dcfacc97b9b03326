"""Label-balanced sampling: frequencies as computed, and a function of seed and epoch alone."""

import numpy as np
import pytest

from gafx.data.batches import TrainingOrder, class_balance
from gafx.data.manifest import make_manifest

# Label 0 on 60 clips, label 1 on 12, label 2 on 3; clips 0 and 1 have all three, clip 75 has none.
LABELS = [[0, 1, 2], [0, 1, 2], *[[0]] * 58, *[[1]] * 10, [2], *[[]]]


@pytest.fixture
def manifest(tmp_path):
    count = len(LABELS)
    return make_manifest(tmp_path, "abc", [f"{i}.wav" for i in range(count)], LABELS, [1.0] * count, [8000] * count)


def _order(weights, **more):
    return TrainingOrder(len(LABELS), batch_size=7, epochs=3, seed=1, weights=weights, **more)


def test_weights_by_hand(manifest):
    weights = class_balance(manifest, np.arange(len(manifest)))
    counts = np.array([60, 12, 3])
    assert weights[0] == pytest.approx((1 / counts).sum())
    assert weights[5] == pytest.approx(1 / 60)
    assert weights[65] == pytest.approx(1 / 12)
    assert weights[70] == pytest.approx(1 / 3)
    assert weights[71] == 1  # clips without labels are balanced like one more label, and there is one
    # AST's sampler adds 1000 / (count + 0.01) over a clip's labels: the same up to a factor.
    theirs = np.array([sum(1000 / (counts[label] + 0.01) for label in labels) for labels in LABELS])[:71]
    assert weights[:71] / weights[:71].sum() == pytest.approx(theirs / theirs.sum(), rel=4e-3)


@pytest.mark.parametrize("negatives", [1, 9, 90])
def test_negatives_are_drawn_as_often_as_a_label(negatives, tmp_path):
    labels = [*[[0]] * 30, *[[1]] * 3, *[[]] * negatives]
    count = len(labels)
    manifest = make_manifest(tmp_path, "ab", [f"{i}.wav" for i in range(count)], labels, [1.0] * count, [8000] * count)
    weights = class_balance(manifest, np.arange(count))
    assert [weights[:30].sum(), weights[30:33].sum(), weights[33:].sum()] == pytest.approx([1, 1, 1])


def test_drawn_frequencies_are_the_computed_ones(manifest):
    weights = class_balance(manifest, np.arange(len(manifest)))
    order = _order(weights)
    epochs = 400
    drawn = np.concatenate([order.order(epoch) for epoch in range(epochs)])
    assert len(drawn) == epochs * len(LABELS)
    probability = weights / weights.sum()
    expected = probability * len(drawn)
    # Binomial std: none of 72 clips may be off by more than five std.
    std = np.sqrt(expected * (1 - probability))
    counted = np.bincount(drawn, minlength=len(LABELS))
    assert (np.abs(counted - expected) <= 5 * std + 1e-9).all()
    # Each label is seen as often as the clips that have it are drawn, and the rare one far more often than it occurs.
    fraction = np.array([counted[[label in labels for labels in LABELS]].sum() for label in range(3)]) / len(drawn)
    computed = np.array([probability[[label in labels for labels in LABELS]].sum() for label in range(3)])
    assert fraction == pytest.approx(computed, abs=0.01)
    assert fraction[2] > 0.25  # of the clips it is on 3 in 72


def test_uniform_sampling_sees_each_clip_once(manifest):
    order = _order(None).order(2)
    assert sorted(order.tolist()) == list(range(len(LABELS)))


def test_draws_depend_on_seed_and_epoch_not_on_rank(manifest):
    weights = class_balance(manifest, np.arange(len(manifest)))
    alone = [key for batch in _order(weights) for key in batch]
    parts = [list(_order(weights, rank=rank, world=2)) for rank in range(2)]
    together = [key for left, right in zip(*parts, strict=True) for key in [*left, *right] if key[1] >= 0]
    assert sorted(together) == sorted(alone)
    assert not np.array_equal(_order(weights).order(0), _order(weights).order(1))
