"""An n-gram model of token sequences, the baseline of learned generators; and the runs of tokens that are copies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Grams:
    """The different n-grams of one order in the training sequences.

    Attributes:
        keys: `(grams,)`, ascending: number of the context (an (n - 1)-gram) times the vocabulary, plus the last token.
        counts: `(grams,)` occurrences.
        preceding: `(grams,)` number of different tokens, or the beginning of a sequence, in front of it.
    """

    keys: Ids
    counts: Ids
    preceding: Ids


class NGram:
    """Interpolated Kneser-Ney smoothing with three discounts per order (Chen and Goodman, Computer Speech and Language
    13, 1999, section 3; the lowest order is interpolated with equal probabilities).

    A sequence has no context before its first token. The probabilities of all tokens sum to 1 in every context.

    Args:
        orders: n-grams of the orders 1, 2, ..., see `fit` and `choose`.
        vocabulary: number of tokens.
    """

    def __init__(self, orders: Sequence[_Grams], vocabulary: int):
        self.vocabulary, self.order = vocabulary, len(orders)
        self._keys = [each.keys for each in orders]
        contexts = [1, *map(len, self._keys)]
        values = [*(each.preceding for each in orders[:-1]), orders[-1].counts]
        self._weights = [
            _discounted(keys // vocabulary, count, size)
            for keys, count, size in zip(self._keys, values, contexts, strict=False)
        ]

    @classmethod
    def fit(cls, sequences: Sequence[Ids], vocabulary: int, order: int) -> Self:
        """Count the n-grams of training sequences.

        Args:
            sequences: int64 `(tokens,)` each, ids in [0, vocabulary).
            vocabulary: number of tokens; those that do not occur have a probability, too.
            order: tokens of the longest n-gram, at least 1.
        """
        return cls(list(_count(sequences, vocabulary, order)), vocabulary)

    @classmethod
    def choose(cls, sequences: Sequence[Ids], held_out: Sequence[Ids], vocabulary: int, highest: int = 8) -> Self:
        """Return the model of the order, up to `highest`, with the highest likelihood of held-out sequences.

        The search ends after two orders in a row that are no better.
        """
        orders: list[_Grams] = []
        best, highest_sum = None, -np.inf
        for grams in _count(sequences, vocabulary, highest):
            orders.append(grams)
            model = cls(orders, vocabulary)
            likelihood = sum(float(part.sum()) for part in model.log_probabilities(held_out))
            if best is None or likelihood > highest_sum:
                best, highest_sum = model, likelihood
            elif model.order >= best.order + 2:
                break
        assert best is not None
        return best

    def log_probabilities(self, sequences: Sequence[Ids]) -> list[Floats]:
        """Return the logarithm of each token's probability in its sequence, in nats, `(tokens,)` each."""
        tokens, place = _joined(sequences)
        contexts = [_previous(grams) for grams in self._find(tokens, place, self.order - 1)]
        contexts = [np.where(place >= length, grams, -1) for length, grams in enumerate(contexts)]
        logs = np.log(self._probabilities(contexts, tokens))
        return np.split(logs, np.cumsum([len(each) for each in sequences])[:-1])

    def next(self, contexts: Ids) -> Floats:
        """Return every token's probability after contexts of one length: `(batch, tokens)` -> `(batch, vocabulary)`."""
        batch, length = contexts.shape
        kept = contexts[:, length - min(length, self.order - 1) :]
        length = kept.shape[1]
        found = [np.zeros(batch, np.int64)]
        if length:
            place = np.tile(np.arange(length), batch)
            found += [grams[length - 1 :: length] for grams in self._find(kept.ravel(), place, length)][1:]
        each = [np.repeat(grams, self.vocabulary) for grams in found]
        every = np.tile(np.arange(self.vocabulary), batch)
        return self._probabilities(each, every).reshape(batch, self.vocabulary)

    def sample(self, number: int, length: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Ids:
        """Draw sequences `(number, length)`, as `gafx.nn.sampling.pick` draws from a model."""
        import torch

        from gafx.nn.sampling import pick

        random = torch.Generator().manual_seed(seed)
        drawn = np.zeros((number, 0), np.int64)
        for _ in range(length):
            logits = torch.from_numpy(np.log(self.next(drawn)))
            drawn = np.column_stack([drawn, pick(logits, temperature, top_p, random).numpy()])
        return drawn

    def _find(self, tokens: Ids, place: Ids, longest: int) -> Iterator[Ids]:
        """Number of the n-gram that ends at each token, for n = 0 to `longest`; -1 of one that did not occur."""
        grams = np.zeros(len(tokens), np.int64)
        yield grams
        for order in range(longest):
            before = np.where(place >= order, _previous(grams), -1)
            found = _lookup(self._keys[order], before * self.vocabulary + tokens)
            grams = np.where(before >= 0, found, -1)
            yield grams

    def _probabilities(self, contexts: Sequence[Ids], tokens: Ids) -> Floats:
        """Probability of each token after its contexts of 0, 1, ... tokens (-1: did not occur)."""
        probability = np.full(len(tokens), 1 / self.vocabulary)
        for keys, (kept, lower), context in zip(self._keys, self._weights, contexts, strict=False):
            found = _lookup(keys, context * self.vocabulary + tokens)
            own = np.where(found >= 0, kept[found], 0.0)
            probability = np.where(context >= 0, own + lower[context] * probability, probability)
        return probability


def longest_copies(training: Sequence[Ids], pieces: Sequence[Ids]) -> list[Ids]:
    """Return for each token of each piece the length of the longest run that ends with it and occurs in the training.

    Args:
        training: int64 `(tokens,)` each; a run does not reach over their borders.
        pieces: the same, ids at least 0.
    """
    tokens, place = _joined([*training, *pieces])
    known = np.arange(len(tokens)) < sum(map(len, training))
    vocabulary = int(tokens.max(initial=0)) + 1
    length = np.zeros(len(tokens), np.int64)
    at = np.arange(len(tokens))
    grams = np.zeros(len(tokens), np.int64)  # of those that are still runs of both; -1 of others
    order = 0
    while len(at := at[place[at] >= order]):
        before = grams[at - 1] if order else np.zeros(len(at), np.int64)
        at, before = at[before >= 0], before[before >= 0]
        number = np.unique(before * vocabulary + tokens[at], return_inverse=True)[1]
        both = np.zeros((2, number.max(initial=0) + 1), bool)
        both[known[at].astype(int), number] = True
        keep = (both[0] & both[1])[number]
        grams[:] = -1
        at = at[keep]
        grams[at] = number[keep]
        order += 1
        length[at] = order
    split = np.split(length, np.cumsum([len(each) for each in (*training, *pieces)])[:-1])
    return split[len(training) :]


def _count(sequences: Sequence[Ids], vocabulary: int, highest: int) -> Iterator[_Grams]:
    """Count the n-grams of the orders 1 to `highest`."""
    tokens, place = _joined(sequences)
    grams = np.zeros(len(tokens), np.int64)
    shorter: tuple[Ids, Ids] | None = None
    for order in range(1, highest + 2):  # one more, for what precedes the highest
        at = np.flatnonzero(place >= order - 1)
        before = grams[at - 1] if order > 1 else np.zeros(len(at), np.int64)
        keys, first, number, counts = np.unique(
            before * vocabulary + tokens[at], return_index=True, return_inverse=True, return_counts=True
        )
        if shorter is not None:
            size = len(shorter[0])
            begins = np.bincount(grams[place == order - 2], minlength=size) > 0
            yield _Grams(*shorter, np.bincount(grams[at[first]], minlength=size) + begins)
        shorter = keys, counts
        grams = np.full(len(tokens), -1)
        grams[at] = number


def _discounted(context: Ids, counts: Ids, contexts: int) -> tuple[Floats, Floats]:
    """Discounted probability of each n-gram `(grams,)`, and each context's weight of the lower order `(contexts,)`."""
    one, two, three, four = (int((counts == number).sum()) for number in range(1, 5))
    fraction = one / (one + 2 * two) if one else 0.5
    ratios = ((two, one), (three, two), (four, three))
    estimates = [n - (n + 1) * fraction * (more / less if less else 0.5) for n, (more, less) in enumerate(ratios, 1)]
    # Few or no n-grams of a count give no usable estimate. Above 0, so that every token keeps a probability.
    discounts = np.array([0.0, *(np.clip(estimate, 0.1, 0.9 * n) for n, estimate in enumerate(estimates, 1))])
    taken = discounts[np.minimum(counts, 3)]
    total = np.bincount(context, counts, contexts)
    lost = np.bincount(context, taken, contexts)
    lower = np.divide(lost, total, out=np.ones(contexts), where=total > 0)
    return (counts - taken) / total[context], lower


def _joined(sequences: Sequence[Ids]) -> tuple[Ids, Ids]:
    """All tokens, and the place of each in its own sequence."""
    tokens = np.concatenate([np.zeros(0, np.int64), *sequences])
    return tokens, np.concatenate([np.zeros(0, np.int64), *(np.arange(len(each)) for each in sequences)])


def _previous(values: Ids) -> Ids:
    return np.concatenate([values[:1], values[:-1]])


def _lookup(keys: Ids, wanted: Ids) -> Ids:
    """Index of each wanted key among ascending ones, -1 of one that is not there."""
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
