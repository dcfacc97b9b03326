"""Inner folds: whole recordings, spread evenly over the folds class by class."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sides = list[tuple[Array, Array]]


def deal(strata: Array, folds: int, seed: int) -> Array:
    """Return the fold `(tracks,)` of each track: shuffled, then assigned round robin, stratum by stratum.

    Args:
        strata: `(tracks,)` whole numbers, each spread over the folds as evenly as possible.
        folds: their number.
        seed: of the shuffle.
    """
    rng = np.random.default_rng([seed, folds])
    order = np.concatenate([rng.permutation(np.flatnonzero(strata == value)) for value in np.unique(strata)])
    fold = np.empty(len(strata), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def inner_folds(label: Array, group: Array, folds: int, seed: int) -> Sides:
    """Return the rows to fit and to check of each fold that has rows to check and two classes to fit.

    Args:
        label: `(rows,)` class numbers.
        group: `(rows,)` recordings, none of which is on both sides of a fold.
        folds: their number.
        seed: of the shuffle.
    """
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    fold = deal(label[first], folds, seed)[number]
    sides = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]
    return [(fit, check) for fit, check in sides if len(check) and len(np.unique(label[fit])) > 1]
