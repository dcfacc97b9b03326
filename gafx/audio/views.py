"""Circular shifts of waves, over which predictions are averaged in tests and in labelling."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gafx.errors import UsageError


def average_views(predict: Callable[..., Any], views: int) -> Callable[..., Any]:
    """Test-time averaging: the mean of `predict` over circular shifts of the waves.

    A wave is rolled by `k / views` of its length (rounded down to samples) for k = 0 to `views - 1`; `views=1` is
    `predict` itself.

    Args:
        predict: `(batch, channels, samples)` waves, tensors or arrays, to `(batch, columns)` values.
        views: number of shifts.

    Raises:
        UsageError: fewer than one view.
    """
    if views < 1:
        raise UsageError(f"views={views} must be at least 1")
    if views == 1:
        return predict

    def mean(wave: Any) -> Any:
        total = predict(wave)
        for view in range(1, views):
            shift = view * wave.shape[-1] // views
            total = total + predict(np.roll(wave, shift, -1) if isinstance(wave, np.ndarray) else wave.roll(shift, -1))
        return total / views

    return mean
