"""What finished runs say of their test tracks, read from predictions.csv; folds pooled, rows on the same tracks."""

import collections
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gafx.stats.scores import Array


@dataclass(frozen=True)
class Tracks:
    """What one seed's runs, their folds pooled, say of the test tracks.

    Attributes:
        clip: names of the clips; they are in the order of these names.
        group: `(tracks,)` name of the recording of each.
        targets: `(tracks, classes)` of zeros and ones.
        values: `(tracks, columns)`: what the objective says.
    """

    clip: list[str]
    group: Array
    targets: Array
    values: Array

    def correct(self) -> Array:
        """`(tracks,)` bool: whether the label with the largest value is the true one."""
        return np.asarray(self.values.argmax(axis=1) == self.targets.argmax(axis=1))

    def take(self, picks: Array) -> "Tracks":
        clips = [self.clip[pick] for pick in picks.tolist()]
        return Tracks(clips, self.group[picks], self.targets[picks], self.values[picks])


def read_tracks(folder: Path, objective: Any, classes: Sequence[str]) -> Tracks:
    """predictions.csv of a run, read as its objective wrote it."""
    columns = objective.columns(classes)
    numbers = {name: number for number, name in enumerate(classes)}
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        head = next(reader)
        rows = list(reader)
    # The classes' columns may be called as one of the others: they are found by their place before the last.
    last = len(head) - (2 if head[-2] == "start_seconds" else 1)  # segments of one file are told apart by their starts
    first = last - len(columns)
    targets = np.zeros((len(rows), len(classes)))
    for index, row in enumerate(rows):
        names = row[3].split(";") if objective.multi_label or row[3] not in numbers else [row[3]]
        for name in names:
            if name in numbers:
                targets[index, numbers[name]] = 1
    values = np.array([[float(cell) for cell in row[first:last]] for row in rows]).reshape(len(rows), len(columns))
    clips = [row[0] if last == len(head) - 1 else f"{row[0]} at {row[-2]} s" for row in rows]
    return Tracks(clips, np.array([row[1] for row in rows], dtype=object), targets, values)


def pool(parts: Sequence[Tracks]) -> Tracks:
    """Tracks of several folds as one, in the order of their names; clips of one name are numbered."""
    times = collections.Counter[str]()
    clips = []
    for clip in (clip for part in parts for clip in part.clip):
        times[clip] += 1
        clips.append(clip if times[clip] == 1 else f"{clip} ({times[clip]})")
    pooled = Tracks(
        clips,
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("group", "targets", "values")),
    )
    return pooled.take(np.argsort(np.array(pooled.clip, dtype=object), kind="stable"))


def both(first: Tracks, second: Tracks) -> tuple[Tracks, Tracks] | None:
    """The tracks that both were tested on."""
    places = {clip: index for index, clip in enumerate(second.clip)}
    picks = [(index, places[clip]) for index, clip in enumerate(first.clip) if clip in places]
    if not picks:
        return None
    here, there = (np.array(column) for column in zip(*picks, strict=True))
    return first.take(here), second.take(there)
