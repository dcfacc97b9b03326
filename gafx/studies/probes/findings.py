"""Scores of probes against a prediction without features, with tests, and the result of one call of `gafx probe`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Skipped
from gafx.stats import compare
from gafx.stats.scores import Score

LEVEL = 0.05
_FLIPS = 20_000


@dataclass(frozen=True)
class Finding:
    """Score of one probe.

    Attributes:
        subject: front-end or embedding.
        question: factor that is predicted, or classifier that predicts.
        metric: `accuracy` or `r2`.
        score: of the probe, with its interval.
        chance: the same score of the prediction without features: 0 for `r2`.
        tracks: that were predicted.
        rows: predictions: tracks, or segments of them.
        dimensions: of the features.
        p: p-value that the probe is no better than the prediction without features (one-sided).
        p_adjusted: after Holm's correction for all probes of the page.
        others: further scores by name, each with that of the prediction without features.
    """

    subject: str
    question: str
    metric: str
    score: Score
    chance: float
    tracks: int
    rows: int
    dimensions: int
    p: float
    p_adjusted: float = 1.0
    others: dict[str, tuple[Score, float]] = field(default_factory=dict)

    @property
    def by_chance(self) -> bool:
        """Return whether the probe is not shown to be better than the prediction without features.

        That is, the test does not reject equality, or the interval reaches the other's score.
        """
        return self.p_adjusted >= LEVEL or (self.score.low is not None and self.score.low <= self.chance)

    def as_dict(self) -> dict[str, Any]:
        """Content for JSON and CSV."""
        values = {
            "subject": self.subject, "question": self.question, "score": self.metric, **self.score.as_dict(),
            "chance": self.chance, "p": self.p, "p_adjusted": self.p_adjusted, "by_chance": self.by_chance,
            "tracks": self.tracks, "rows": self.rows, "dimensions": self.dimensions,
        }  # fmt: skip
        for name, (score, chance) in self.others.items():
            values |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high,
                       f"{name}_interval": score.interval, f"{name}_chance": chance}  # fmt: skip
        return values


@dataclass(frozen=True)
class Described:
    """A subject or a question with the text that the page prints about it.

    Attributes:
        name: in `Finding`.
        text: its description.
        note: printed after the name, e.g. its folds.
        details: further content for JSON.
    """

    name: str
    text: str
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Probed:
    """Result of one call of `gafx probe`.

    Attributes:
        kind: `synthetic` (linear probes of maps) or `real` (classifiers of embeddings).
        title: of the page.
        tested: data, protocol and number of tracks, as text.
        subjects: rows of the table.
        questions: columns of the table.
        findings: one per subject and question, grouped by question.
        data: name, settings and fingerprint of the data, for JSON.
        folds: of the cross-validation.
        seed: of random draws.
        label_alone: question -> score of predicting from the track's label alone, without audio.
        skipped: unreadable files.
        notes: on the data.
    """

    kind: Literal["synthetic", "real"]
    title: str
    tested: str
    subjects: list[Described]
    questions: list[Described]
    findings: list[Finding]
    data: dict[str, Any]
    folds: list[int]
    seed: int
    label_alone: dict[str, Finding] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    notes: Sequence[str] = ()

    def of(self, question: str) -> list[Finding]:
        """Findings of one question, in the order of the subjects."""
        return [finding for finding in self.findings if finding.question == question]

    def as_dict(self) -> dict[str, Any]:
        """Content of probe.json."""
        return {
            "kind": self.kind,
            "data": self.data,
            "protocol": {"folds": self.folds, "seed": self.seed, "tests": len(self.findings)},
            **{key: [{"name": entry.name, "text": entry.text, **entry.details} for entry in entries]
               for key, entries in (("subjects", self.subjects), ("questions", self.questions))},
            "findings": [finding.as_dict() for finding in self.findings],
            "label_alone": {name: {"score": f.metric, **f.score.as_dict()} for name, f in self.label_alone.items()},
            "skipped": [clip.as_dict() for clip in self.skipped],
        }  # fmt: skip


def flip_test(gain: npt.NDArray[Any], track: npt.NDArray[Any]) -> float:
    """One-sided p-value of differences per row, summed over each track: see `gafx.stats.compare.sign_flip_test`."""
    sums = np.bincount(np.unique(track, return_inverse=True)[1], gain)
    return compare.sign_flip_test(sums, one_sided=True, draws=_FLIPS)[0]


def holm(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with their p-values adjusted for all of them (Holm, 1979)."""
    adjusted = compare.holm([finding.p for finding in findings])
    return [replace(finding, p_adjusted=p) for finding, p in zip(findings, adjusted, strict=True)]
