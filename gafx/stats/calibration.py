"""Temperature scaling: one number that makes a model's probabilities honest (Guo et al., 2017).

Outputs are divided by a temperature before they become probabilities; above 1 a model is made less sure. Neither the
order of the labels nor, with one label a clip, the accuracy of single segments changes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.stats.scores import calibration_error

Array = npt.NDArray[Any]
# Beyond these a model is all but certain, or says nothing: validation tracks that ask for more are too few to tell.
_COLDEST, _HOTTEST = 0.05, 20.0
# What float64 tells from 0, and a sigmoid's from 1: outputs of up to 690 and 36 come back from their probabilities.
_LEAST_PROBABILITY, _LEAST_DOUBT = 1e-300, 1e-16


def temper(probabilities: Array, temperature: float, *, multi_label: bool) -> Array:
    """Probabilities `(clips, classes)`, float64, as they would be with outputs divided by `temperature`.

    A softmax's logarithms are its outputs but for a constant, which changes nothing; a sigmoid's log odds are. In
    float64 that holds for outputs of any size that models have; float32 would have lost those of sure models.
    """
    p = np.clip(probabilities.astype(np.float64), _LEAST_PROBABILITY, 1.0)
    if multi_label:
        p = np.minimum(p, 1 - _LEAST_DOUBT)
        return 1 / (1 + np.exp(np.clip((np.log1p(-p) - np.log(p)) / temperature, None, 700)))
    scaled = np.log(p) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def track_means(values: Array, track: Array) -> Array:
    """Mean over the segments of each track: `(segments, columns)` and track numbers from 0 on -> `(tracks, columns)`."""
    sums = np.zeros((int(track.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(sums, track, values)
    return sums / np.bincount(track)[:, None]


def loss(probabilities: Array, targets: Array, *, multi_label: bool) -> float:
    """Mean cross-entropy of targets in [0, 1], `(clips, classes)`, in nats: of zeros and ones the log-likelihood."""
    p = np.clip(probabilities, _LEAST_PROBABILITY, 1.0)
    likelihood = (targets * np.log(p)).sum(axis=1)
    if multi_label:
        likelihood = likelihood + ((1 - targets) * np.log(np.clip(1 - probabilities, _LEAST_DOUBT, 1.0))).sum(1)
    return float(-likelihood.mean())


def fit_report(probabilities: Array, targets: Array, *, multi_label: bool) -> dict[str, float]:
    """`loss` in nats and, with one label a clip, `calibration_error`, of tracks' probabilities `(tracks, classes)`."""
    values = {"loss": round(loss(probabilities, targets, multi_label=multi_label), 6)}
    if not multi_label:
        values["calibration_error"] = round(calibration_error(probabilities, targets.argmax(axis=1)), 6)
    return values


def fit_temperature(probabilities: Array, track: Array, targets: Array, *, multi_label: bool) -> dict[str, Any]:
    """Find the temperature under which tracks' labels are likeliest.

    A track's probabilities are the mean over its segments, as they are where files are labelled, so the temperature is
    fitted to what is reported. Targets are smoothed as by one more track of which nobody
    knows the label (a prior of Perks, 1947; Platt, 1999, smooths likewise): a model that is right on all of a few
    tracks would otherwise be made as sure as numbers can be.

    Args:
        probabilities: `(segments, classes)` at temperature 1.
        track: `(segments,)` number of each segment's track, from 0 on.
        targets: `(tracks, classes)` of zeros and ones.
        multi_label: sigmoids instead of a softmax.

    Returns:
        `temperature`, `tracks`, and `before` and `after` the loss in nats and, with one label a clip, the expected
        calibration error.
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

    return {
        "temperature": temperature, "tracks": len(targets),
        "before": fit_report(at(1.0), targets, multi_label=multi_label),
        "after": fit_report(at(temperature), targets, multi_label=multi_label),
    }  # fmt: skip
