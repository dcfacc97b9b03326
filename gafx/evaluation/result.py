"""The result of an evaluation, `result.json`, as a typed class.

`Result.as_dict` and `Result.from_dict` are the only code that uses the keys of the file. Files of earlier versions are
read where their values still have a meaning, and refused with the command that writes them again otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from gafx.config import read_mapping
from gafx.data.manifest import Skipped
from gafx.errors import UsageError
from gafx.evaluation.misjudged import Misjudged
from gafx.io import write_json
from gafx.report.figures import MapPicture
from gafx.saving.info import Provenance
from gafx.stats.compare import Paired
from gafx.stats.scores import CalibrationBin, Score

FILE = "result.json"
# Keys of earlier versions and their present names.
_RENAMED = {"pieces": "segments", "piece": "segment", "piece_seconds": "segment_seconds"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources that training and evaluation took.

    Attributes:
        parameters: of the whole model.
        frontend_parameters: of its front-end.
        flops_per_clip: floating-point operations for one segment: a forward pass of each view, of each model of an
            ensemble.
        clips_per_second: segments evaluated per second, mean over the runs.
        peak_memory_bytes: of evaluation, maximum over the runs.
        train_seconds: sum over the runs.
        train_steps: of the first run; of an ensemble the sum over the runs of its first fold.
        device: that evaluation ran on, as text.
        precision: of evaluation, e.g. `bf16`.
        processes: that shared the evaluation.
    """

    parameters: int
    frontend_parameters: int
    flops_per_clip: float
    clips_per_second: float
    peak_memory_bytes: int
    train_seconds: float = 0.0
    train_steps: int = 0
    device: str = ""
    precision: str = ""
    processes: int = 1


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; None where a score is undefined (e.g. the precision of a class that is never predicted).

    Attributes:
        name: of the class.
        scores: `precision`, `recall` and `f1`, or for tagging `average_precision` and `auc`.
        tracks: test tracks with this label.
        predicted: tracks for which it was predicted; None for tagging.
    """

    name: str
    scores: dict[str, float | None]
    tracks: int
    predicted: int | None = None

    def as_dict(self) -> dict[str, Any]:
        counts = {"tracks": self.tracks, **({} if self.predicted is None else {"predicted": self.predicted})}
        return {"class": self.name, **self.scores, **counts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClassScores":
        rest = dict(values)
        name, tracks, predicted = rest.pop("class"), rest.pop("tracks"), rest.pop("predicted", None)
        return cls(name, rest, tracks, predicted)


@dataclass(frozen=True)
class FoldScores:
    """Test tracks of one fold and, for one label per clip, their `accuracy`."""

    fold: int
    tracks: int
    scores: dict[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"fold": self.fold, "tracks": self.tracks, **self.scores}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FoldScores":
        rest = dict(values)
        return cls(rest.pop("fold"), rest.pop("tracks"), rest)


@dataclass(frozen=True)
class CalibrationEffect:
    """Effect of temperature scaling on loss and calibration error of what `gafx predict` gives for the test tracks.

    Attributes:
        temperatures: of each run; 1 where none was fitted.
        before: `loss` and, for one label per clip, `calibration_error` at temperature 1.
        after: the same at the fitted temperatures.
        part: of the data that they were fitted on.
    """

    temperatures: list[float]
    before: dict[str, float]
    after: dict[str, float]
    part: str = "validation"


@dataclass(frozen=True)
class Comparison:
    """A paired test of an ensemble against one of its members, on the tracks that both were tested on.

    Attributes:
        other: name of the member.
        metric: score that is compared.
        paired: ensemble minus member.
        adjusted: p-value adjusted for all members (Holm).
    """

    other: str
    metric: str
    paired: Paired
    adjusted: float


@dataclass(kw_only=True)
class Result:
    """One evaluated model: its scores, what they were measured on, and how it was made.

    Attributes:
        name: of the configuration.
        data: name of the data set.
        protocol: name of the protocol.
        classes: labels, in the order of the model's outputs.
        scores: `track` and `segment` -> score name -> score; fractions in [0, 1].
        runs: folders whose test parts are pooled, in the order of `folds`.
        run_ids: their ids.
        frontend, classifier: configuration of the parts.
        provenance: origin of the weights before training.
        objective: its name.
        group_by: `recording`, or `segment` where segments count as recordings.
        folds: that were tested; empty for a protocol without folds.
        split_seed, seed: of the split and of training.
        part: of the data that was tested.
        tracks, segments, groups: tested tracks, their segments and their recordings.
        segment_seconds: length of a segment.
        chance: accuracy of guessing, for one label per clip.
        labels_tested: labels that occur in the test part; 0 where labels are not read.
        per_class: scores of each class.
        confusion: counts `(classes, classes)`, rows true; None for tagging.
        calibration_bins: of the reliability diagram, for one label per clip; like `calibration_error` in `scores` they
            are of the probabilities that `gafx predict` gives by default (overlapping windows, at the fitted
            temperatures), where `views` is 1.
        calibration: effect of temperature scaling; None where no temperature was fitted.
        per_fold: scores of each fold.
        cost: of training and evaluation.
        skipped: files that were left out in training or test.
        missing: clips of the data set's lists that this copy lacks.
        kept_epochs: epoch whose model was kept, counted from 1, of each run; None for a run without validation.
        notes: on the data.
        leaks: record of the leak check (`gafx.data.leaks`); None where it was not made.
        views: circular shifts of each segment that the values are the mean of.
        members: names of the configurations whose probabilities an ensemble averages; empty for a single model.
        comparisons: of an ensemble with its members.
        gafx_version: that wrote it.
    """

    name: str
    data: str
    protocol: str
    classes: list[str]
    scores: dict[str, dict[str, Score]]
    gafx_version: str = ""
    runs: list[str] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    frontend: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    objective: str = "classify"
    group_by: str = "recording"
    folds: list[int] = field(default_factory=list)
    split_seed: int = 0
    seed: int = 0
    part: str = "test"
    tracks: int = 0
    segments: int = 0
    groups: int = 0
    segment_seconds: float = 0.0
    chance: float | None = None
    labels_tested: int = 0
    per_class: list[ClassScores] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    calibration_bins: list[CalibrationBin] | None = None
    calibration: CalibrationEffect | None = None
    per_fold: list[FoldScores] = field(default_factory=list)
    cost: Cost | None = None
    skipped: list[Skipped] = field(default_factory=list)
    missing: int = 0
    kept_epochs: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leaks: dict[str, Any] | None = None
    views: int = 1
    members: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def track_scores(self) -> dict[str, Score]:
        """Score name -> score over whole tracks."""
        return self.scores.get("track", {})

    @property
    def by_segment(self) -> bool:
        """True if segments of tracks were treated as recordings (`data.group_by=segment`)."""
        return self.group_by == "segment"

    def as_dict(self) -> dict[str, Any]:
        """The content of result.json; scores that are not finite (an infinite d') become None.

        `views`, `members` and `comparisons` are only there for results of several views and of ensembles.
        """
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        plain = {"views": 1, "members": [], "comparisons": []}
        return {name: value for name, value in values.items() if name not in plain or value != plain[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the result") -> "Result":
        """Build a result from the content of result.json; keys of newer versions are ignored.

        Args:
            values: content of the file.
            source: named in the error.

        Raises:
            UsageError: a value is missing or of another kind.
        """
        renamed = _rename(values)
        try:
            renamed["scores"] = _rename(renamed["scores"])
            known = {**_known(cls, renamed), "provenance": Provenance.from_dict(renamed)}
            if known.get("group_by") == "piece":
                known["group_by"] = "segment"
            for name, read in _READERS.items():
                if known.get(name) is not None:
                    known[name] = read(known[name])
            return cls(**known)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            version = renamed.get("gafx_version")
            raise UsageError(
                f"{source} is damaged or of another version ({f'gafx {version}, ' if version else ''}"
                f"{type(error).__name__}: {error}): evaluate the run again, gafx evaluate <run folder>"
            ) from error

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Read the result.json of one run.

        Raises:
            UsageError: it is missing or damaged, or holds several models (a joint evaluation).
        """
        path = folder / FILE
        values = read_mapping(path)
        if "models" in values:
            raise UsageError(f"{path} holds several models; read it with gafx.evaluation.result.read_results")
        return cls.from_dict(values, str(path))


@dataclass(frozen=True)
class Section:
    """One evaluated model and what else its report shows.

    Attributes:
        result: as in result.json.
        curves: records of metrics.jsonl of each run, in the order of the result's runs.
        pictures: front-end maps of a few test tracks.
        misjudged: misjudged tracks and suspected label errors; None where no labels are predicted.
    """

    result: Result
    curves: list[list[dict[str, Any]]] = field(default_factory=list)
    pictures: list[MapPicture] = field(default_factory=list)
    misjudged: Misjudged | None = None


@dataclass(frozen=True)
class Evaluation:
    """The models of one report and the folder that their result, predictions and report are written to."""

    folder: Path
    sections: list[Section]

    @property
    def results(self) -> list[Result]:
        return [section.result for section in self.sections]


def read_results(folder: Path) -> list[Result]:
    """Read the result.json of a run or of a joint evaluation: a result per model.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = folder / FILE
    values = read_mapping(path)
    return [Result.from_dict(entry, str(path)) for entry in values.get("models", [values])]


def write_results(folder: Path, results: list[Result]) -> None:
    """Write result.json: one model as it is, several in a list under `models`."""
    entries = [result.as_dict() for result in results]
    value = entries[0] if len(entries) == 1 else {"models": entries}
    write_json(folder / FILE, value)


def _plain(value: Any) -> Any:
    """A value of a result as JSON holds it."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _rename(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(key, key): entry for key, entry in values.items()}


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def _score(values: Mapping[str, Any]) -> Score:
    value = float("nan") if values["value"] is None else float(values["value"])
    return Score(value, values.get("low"), values.get("high"), values.get("interval") or "")


# Builds the values of a result that are not plain numbers, text, lists or mappings.
_READERS: dict[str, Callable[[Any], Any]] = {
    "scores": lambda levels: {
        level: {name: _score(score) for name, score in scores.items()} for level, scores in levels.items()
    },
    "per_class": lambda rows: [ClassScores.from_dict(row) for row in rows],
    "per_fold": lambda rows: [FoldScores.from_dict(row) for row in rows],
    "skipped": lambda rows: [Skipped(**row) for row in rows],
    "calibration_bins": lambda rows: [CalibrationBin(**row) for row in rows],
    "calibration": lambda entry: CalibrationEffect(**_known(CalibrationEffect, entry)),
    "cost": lambda entry: Cost(**_known(Cost, entry)),
    "comparisons": lambda rows: [Comparison(**{**row, "paired": Paired(**row["paired"])}) for row in rows],
}
