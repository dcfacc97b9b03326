"""Predictions of finished runs: folds pooled, rows aligned on the same tracks."""

import collections
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gafx.evaluation.predictions import PredictionTable, concatenate


def pool(parts: Sequence[PredictionTable]) -> PredictionTable:
    """Concatenate the tracks of several folds in the order of the manifest; clips of one name are numbered."""
    pooled = concatenate(parts)
    pooled = pooled.take(np.argsort(pooled.row, kind="stable"))
    names = pooled.clip.tolist()
    if pooled.start_seconds is not None:  # segments that count as recordings differ in their starts
        names = [f"{clip} at {start:.3f} s" for clip, start in zip(names, pooled.start_seconds, strict=True)]
    times = collections.Counter[str]()
    clips = []
    for clip in names:
        times[clip] += 1
        clips.append(clip if times[clip] == 1 else f"{clip} ({times[clip]})")
    return replace(pooled, clip=np.array(clips, object))


def both(first: PredictionTable, second: PredictionTable) -> tuple[PredictionTable, PredictionTable] | None:
    """Take the tracks that both were tested on, in the order of the first; None where there is none."""
    index = {clip: number for number, clip in enumerate(second.clip)}
    picks = [(number, index[clip]) for number, clip in enumerate(first.clip) if clip in index]
    if not picks:
        return None
    here, there = (np.array(column) for column in zip(*picks, strict=True))
    return first.take(here), second.take(there)
