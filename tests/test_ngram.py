"""The n-gram model and copied runs, against counting in plain Python."""

import math
from collections import Counter

import numpy as np
import pytest

from gafx.studies.music.ngram import NGram, longest_copies

VOCABULARY = 9


@pytest.fixture
def sequences(rng):
    """Sequences of a Markov chain of second order; token 8 never occurs."""
    table = rng.dirichlet(np.full(8, 0.3), size=(8, 8))
    found = []
    for length in (200, 3, 1, 150, 90):
        tokens = [0, 1]
        for _ in range(length):
            tokens.append(int(rng.choice(8, p=table[tokens[-2], tokens[-1]])))
        found.append(np.array(tokens[2:]))
    return found


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_and_are_those_of_sequences(sequences, order):
    model = NGram.fit(sequences, VOCABULARY, order)
    for context in ([], [3], [8], [8, 2], [2, 3, 4, 5, 6]):
        found = model.next(np.array([context, context], np.int64).reshape(2, -1))
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
        assert found.min() > 0
    tokens = np.append(sequences[0][:20], 8)
    (logs,) = model.log_probabilities([tokens])
    for place in range(len(tokens)):
        np.testing.assert_allclose(logs[place], math.log(model.next(tokens[None, :place])[0, tokens[place]]))


def test_kneser_ney_against_counting(sequences):
    """Bigrams of the definition: discounted counts, and a unigram of the number of different tokens in front."""
    pairs = Counter(pair for each in sequences for pair in zip(each[:-1].tolist(), each[1:].tolist(), strict=True))
    ahead = Counter(token for _, token in pairs)
    ahead.update({int(each[0]) for each in sequences})  # the beginning of a sequence

    def discounts(counts):
        n = [sum(value == size for value in counts.values()) for size in range(5)]
        fraction = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        ratio = lambda size: n[size + 1] / n[size] if n[size] else 0.5  # noqa: E731
        plain = [size - (size + 1) * fraction * ratio(size) for size in (1, 2, 3)]
        return [0.0, *(min(max(value, 0.1), 0.9 * size) for size, value in enumerate(plain, 1))]

    def probability(token, before):
        own = discounts(ahead)
        total = sum(ahead.values())
        lost = sum(own[min(count, 3)] for count in ahead.values()) / total
        unigram = max(ahead[token] - own[min(ahead[token], 3)], 0) / total + lost / VOCABULARY
        following = {pair[1]: count for pair, count in pairs.items() if pair[0] == before}
        if not following:
            return unigram
        own, total = discounts(pairs), sum(following.values())
        lost = sum(own[min(count, 3)] for count in following.values()) / total
        count = following.get(token, 0)
        return (count - own[min(count, 3)]) / total + lost * unigram

    model = NGram.fit(sequences, VOCABULARY, 2)
    for before in range(VOCABULARY):
        expected = [probability(token, before) for token in range(VOCABULARY)]
        np.testing.assert_allclose(model.next(np.array([[before]]))[0], expected, rtol=1e-10)


def test_the_order_is_that_of_the_chain(rng):
    table = rng.dirichlet(np.full(6, 0.1), size=(6, 6))
    chains = []
    for _ in range(12):
        tokens = [0, 1]
        for _ in range(600):
            tokens.append(int(rng.choice(6, p=table[tokens[-2], tokens[-1]])))
        chains.append(np.array(tokens))
    model = NGram.choose(chains[:10], chains[10:], 6, highest=6)
    assert model.order == 3
    truth = -np.mean([math.log(table[a, b, c]) for each in chains[10:]
                      for a, b, c in zip(each, each[1:], each[2:], strict=False)])  # fmt: skip
    loss = -np.concatenate([each[2:] for each in model.log_probabilities(chains[10:])]).mean()
    assert truth < loss < 1.1 * truth


def test_samples_follow_the_probabilities(sequences):
    model = NGram.fit(sequences, VOCABULARY, 3)
    drawn = model.sample(4000, 1, seed=3)[:, 0]
    expected = model.next(np.zeros((1, 0), np.int64))[0] * len(drawn)
    statistic = ((np.bincount(drawn, minlength=VOCABULARY) - expected) ** 2 / expected).sum()
    assert statistic < 26.1  # 99.9 % of chi-square with 8 degrees of freedom
    greedy = model.sample(2, 12, temperature=0)
    assert (greedy[0] == greedy[1]).all()
    for place in range(12):
        assert greedy[0, place] == model.next(greedy[:1, :place])[0].argmax()


def test_longest_copies_against_a_search(sequences):
    known = {tuple(each[a:b].tolist()) for each in sequences[:3]
             for a in range(len(each)) for b in range(a + 1, min(len(each), a + 40) + 1)}  # fmt: skip
    pieces = [
        sequences[3][:40],
        np.concatenate([sequences[4][:5], sequences[0][20:45]]),
        np.array([8, 8]),
        np.array([], int),
    ]
    found = longest_copies(sequences[:3], pieces)
    for piece, lengths in zip(pieces, found, strict=True):
        for place in range(len(piece)):
            longest = max(
                (n for n in range(1, place + 2) if tuple(piece[place + 1 - n : place + 1].tolist()) in known), default=0
            )
            assert lengths[place] == longest
    assert found[1].max() >= 25
