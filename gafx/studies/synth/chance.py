"""Random number streams of a track, and draws from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar
from zlib import crc32

import numpy as np

T = TypeVar("T")


def stream(seed: int, genre: str, index: int, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose of one track; independent of all others."""
    # A CRC, not hash(): the hash of a string is randomized per process.
    return np.random.default_rng((seed, crc32(genre.encode()), index, crc32(purpose.encode())))


def pick(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """Draw one of the keys with probability proportional to its weight."""
    names = list(weights)
    edges = np.cumsum([weights[name] for name in names])
    return names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of the options uniformly."""
    return options[int(rng.integers(len(options)))]
