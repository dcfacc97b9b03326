"""Suspected label errors by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068).

Only probabilities of clips that the model was not trained on say anything about their labels.
"""

from dataclasses import dataclass

import numpy as np

from gafx.stats.scores import Array

_DRAWS = 100  # sets of labels that `expected_by_chance` averages over
_BLOCK = 2**22  # numbers of an array that are computed at once


@dataclass(frozen=True)
class Suspects:
    """Clips whose labels are suspected to be wrong, the most suspicious first; `(n,)` each.

    Attributes:
        clip: position among the clips.
        suggested: class that the model proposes.
        margin: probability of the most probable class minus that of the label, in (0, 1].
    """

    clip: Array
    suggested: Array
    margin: Array

    def __len__(self) -> int:
        return len(self.clip)


def suspected(probabilities: Array, labels: Array) -> Suspects:
    """Clips in the off-diagonal cells of the confident joint, by falling normalised margin.

    A class's threshold is the mean of its probability over the clips that are labelled with it. A clip is counted for
    the most probable of the classes whose threshold it reaches; it is suspected if that is not its label. Clips whose
    label is the most probable class all the same are left out, and classes without a clip are never suggested.

    Args:
        probabilities: `(clips, classes)`, of clips that the model was not trained on.
        labels: `(clips,)` given class of each.
    """
    confident = _confident(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels]
    margin = probabilities.max(axis=1, initial=0) - own
    clip = np.flatnonzero((confident >= 0) & (confident != labels) & (margin > 0))
    clip = clip[np.argsort(-margin[clip], kind="stable")]
    return Suspects(clip, confident[clip], margin[clip])


def expected_by_chance(probabilities: Array, *, seed: int = 0) -> float:
    """Number of clips that `suspected` would return if no label were wrong and the probabilities were exact.

    Mean over sets of labels that are drawn from the probabilities themselves. A model that is too confident, as most
    are, has more such clips than that.

    Args:
        probabilities: `(clips, classes)`.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sums = np.cumsum(probabilities, axis=1)
    last = probabilities.shape[1] - 1
    draws = max(1, min(_DRAWS, _BLOCK * 8 // max(probabilities.size, 1)))
    counts = []
    for _ in range(draws):
        drawn = (sums < rng.random(len(sums))[:, None] * sums[:, -1:]).sum(axis=1)
        counts.append(len(suspected(probabilities, np.minimum(drawn, last))))
    return float(np.mean(counts))


def _confident(probabilities: Array, labels: Array) -> Array:
    """`(clips,)` class of the confident joint's column that each clip is counted in, -1 for none."""
    clips, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[np.arange(clips), labels], minlength=classes)
    threshold = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    # A mean of equal values may be rounded above them.
    reached = np.where(probabilities >= threshold - 1e-12, probabilities, -1.0)
    return np.where(reached.max(axis=1, initial=-1) >= 0, reached.argmax(axis=1), -1) if classes else labels - 1
