"""Paired tests between the predictions of two models for the same tracks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gafx.evaluation.predictions import PredictionTable
from gafx.stats import compare
from gafx.stats.compare import Paired, WeightedScore
from gafx.stats.scores import Array


def compare_tables(objective: Any, first: PredictionTable, second: PredictionTable) -> Paired:
    """Compare two models in the objective's metric, first minus second, by the tests of `gafx.stats.compare`.

    Args:
        objective: of both, or its class.
        first, second: predictions of the same tracks in the same order.
    """
    if objective.reads_labels and not objective.multi_label:
        return compare.compare_correct(first.correct(), second.correct(), first.group)
    score, (here, there) = weighted_score(objective, (first, second))
    return compare.compare_values(score, here, there, first.group, resamples=500 if objective.reads_labels else 2000)


def weighted_score(objective: Any, tables: Sequence[PredictionTable]) -> tuple[WeightedScore, list[Array]]:
    """Return the objective's metric as a function of weighted tracks, and its input from each table."""
    if objective.reads_labels:
        return compare.mean_average_precision(tables[0].targets), [table.values for table in tables]
    return compare.mean, [_per_track(objective, table) for table in tables]


def _per_track(objective: Any, table: PredictionTable) -> Array:
    """Return the score of every track by itself, for objectives whose score is a mean over tracks."""
    parts = (table.take(np.array([index])) for index in range(len(table)))
    scores = [objective.scores(part.values, part.targets, part.group, resamples=1) for part in parts]
    return np.array([score[objective.metric].value for score in scores])
