"""Temperature scaling: one number that calibrates a model's probabilities (Guo et al., 2017).

Outputs are divided by the temperature before they become probabilities; above 1 it lowers the confidence. It changes
neither the order of the labels nor, with one label per clip, the accuracy of single segments.
"""

from typing import Any

import numpy as np

from gafx.stats.scores import Array, calibration_error

# Bounds of the temperature: validation tracks that lead to a value outside are too few to determine it.
_COLDEST, _HOTTEST = 0.05, 20.0
# Smallest probability, and smallest distance from 1, in float64: logits up to 690 (softmax) and 36 (sigmoid).
_LEAST_PROBABILITY, _LEAST_DOUBT = 1e-300, 1e-16


def temper(probabilities: Array, temperature: float, *, multi_label: bool) -> Array:
    """Probabilities `(clips, classes)`, float64, after dividing the outputs by `temperature`.

    The outputs are recovered from the probabilities: the logarithms of a softmax are its outputs up to a constant
    without effect; the log odds of a sigmoid are its output. Float64 is precise enough for outputs of any usual size;
    float32 is not for confident models.
    """
    p = np.clip(probabilities.astype(np.float64), _LEAST_PROBABILITY, 1.0)
    if multi_label:
        p = np.minimum(p, 1 - _LEAST_DOUBT)
        return 1 / (1 + np.exp(np.clip((np.log1p(-p) - np.log(p)) / temperature, None, 700)))
    scaled = np.log(p) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def track_means(values: Array, track: Array) -> Array:
    """Mean over the segments of each track: `(segments, columns)` -> `(tracks, columns)`.

    Args:
        values: of the segments.
        track: `(segments,)` number of each segment's track, from 0.
    """
    sums = np.zeros((int(track.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, track, values)
    return np.asarray(sums / np.bincount(track)[:, None])


def loss(probabilities: Array, targets: Array, *, multi_label: bool) -> float:
    """Mean cross-entropy in nats of probabilities and of targets in [0, 1], both `(clips, classes)`."""
    p = np.clip(probabilities, _LEAST_PROBABILITY, 1.0)
    likelihood = (targets * np.log(p)).sum(axis=1)
    if multi_label:
        likelihood = likelihood + ((1 - targets) * np.log(np.clip(1 - probabilities, _LEAST_DOUBT, 1.0))).sum(1)
    return float(-likelihood.mean())


def fit_report(probabilities: Array, targets: Array, *, multi_label: bool) -> dict[str, float]:
    """`loss` in nats and, with one label per clip, `calibration_error` of tracks' probabilities `(tracks, classes)`."""
    values = {"loss": round(loss(probabilities, targets, multi_label=multi_label), 6)}
    if not multi_label:
        values["calibration_error"] = round(calibration_error(probabilities, targets.argmax(axis=1)), 6)
    return values


def fit_temperature(probabilities: Array, track: Array, targets: Array, *, multi_label: bool) -> dict[str, Any]:
    """Fit the temperature that minimises the cross-entropy of the tracks' labels.

    A track's probabilities are the mean over its segments, as in prediction. Targets are smoothed as by one further
    track of unknown label (a prior of Perks, 1947; as in Platt, 1999): otherwise a model that is right on all of a few
    tracks would get the lowest temperature.

    Args:
        probabilities: `(segments, classes)` at temperature 1.
        track: `(segments,)` number of each segment's track, from 0.
        targets: `(tracks, classes)` of zeros and ones.
        multi_label: sigmoids instead of a softmax.

    Returns:
        `temperature`, `tracks`, and `before` and `after`, each as from `fit_report`.
    """
    from scipy.optimize import minimize_scalar

    def at(temperature: float) -> Array:
        return track_means(temper(probabilities, temperature, multi_label=multi_label), track)

    tracks, classes = targets.shape
    smoothed = (tracks * targets + (1 / 2 if multi_label else 1 / classes)) / (tracks + 1)
    found = minimize_scalar(
        lambda logarithm: loss(at(float(np.exp(logarithm))), smoothed, multi_label=multi_label),
        bounds=(np.log(_COLDEST), np.log(_HOTTEST)),
        method="bounded",
    )
    temperature = round(float(np.exp(found.x)), 6)
    before, after = (fit_report(at(value), targets, multi_label=multi_label) for value in (1.0, temperature))
    return {"temperature": temperature, "tracks": len(targets), "before": before, "after": after}
