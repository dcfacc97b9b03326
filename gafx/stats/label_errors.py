"""Suspected label errors by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068).

Only probabilities of clips that the model was not trained on say anything about their labels.
"""

from dataclasses import dataclass

import numpy as np

from gafx.stats.scores import Array

PLANTED = 0.05  # fraction of the labels that `planted_recall` replaces
_DRAWS = 20


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


def planted_recall(probabilities: Array, labels: Array, *, fraction: float = PLANTED, seed: int = 0) -> float | None:
    """Fraction of planted label errors that `suspected` finds: the power of the list, whatever the calibration.

    Mean over draws, in each of which a fraction of the labels is replaced by random other labels that occur. The model
    is not trained again on them, so errors that it was trained on as well are found a little less often.

    Args:
        probabilities, labels: as of `suspected`.
        fraction: of the labels.
        seed: of the draws.

    Returns:
        None where fewer than two labels occur.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    rng = np.random.default_rng(seed)
    place = np.searchsorted(present, labels)
    count = max(1, round(fraction * len(labels)))
    found = 0
    for _ in range(_DRAWS):
        flipped = rng.choice(len(labels), count, replace=False)
        changed = labels.copy()
        changed[flipped] = present[(place[flipped] + rng.integers(1, len(present), count)) % len(present)]
        found += int(np.isin(flipped, suspected(probabilities, changed).clip).sum())
    return found / (_DRAWS * count)


def _confident(probabilities: Array, labels: Array) -> Array:
    """`(clips,)` class of the confident joint's column that each clip is counted in, -1 for none."""
    clips, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[np.arange(clips), labels], minlength=classes)
    threshold = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    # A mean of equal values may be rounded above them.
    reached = np.where(probabilities >= threshold - 1e-12, probabilities, -1.0)
    return np.where(reached.max(axis=1, initial=-1) >= 0, reached.argmax(axis=1), -1) if classes else labels - 1
