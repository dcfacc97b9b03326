"""`ModelInfo`, the content of a saved model's config.json, and `Provenance`, the origin of its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Literal, Self

from gafx import io
from gafx._version import __version__
from gafx.config import build
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS

IMAGENET, AUDIOSET = "ImageNet", "AudioSet"


@dataclass(frozen=True)
class WeightSource:
    """Origin of the weights of one part (front-end or classifier).

    Attributes:
        kind: `random` start; `fixed`, a part without learned weights; `published` weights of other projects; `hub`, a
            repository of the Hugging Face hub; `saved`, a file, folder or run of gafx; `mixed`, a fused front-end whose
            parts start differently.
        name: of the published weights, the repository (`owner/name`), the saved model (never a path) or the parts;
            empty for `random` and `fixed`.
        revision: commit, where the file came from the hub.
        digest: BLAKE2b of the weights file, as `file_digest` computes it; empty where no single file was read.
        repository: of published weights that came from the hub (`owner/name`).
    """

    kind: Literal["random", "fixed", "published", "hub", "saved", "mixed"] = "random"
    name: str = ""
    revision: str = ""
    digest: str = ""
    repository: str = ""

    @property
    def hub_id(self) -> str:
        """Hub repository of the weights; empty if they came from elsewhere."""
        return self.name if self.kind == "hub" else self.repository

    @classmethod
    def from_argument(cls, pretrained: object, published: Mapping[bool | str, str]) -> Self:
        """Source named by a part's argument `pretrained`; `published` maps its special values to names."""
        if pretrained is False or pretrained is None:
            return cls()
        if isinstance(pretrained, (bool, str)) and (pretrained is True or pretrained in published):
            return cls("published", published.get(pretrained, "published weights"))
        return cls("saved", model_name(pretrained))

    @classmethod
    def from_file(cls, path: Path, asked: object, published: Mapping[bool | str, str] = MappingProxyType({})) -> Self:
        """Source of weights that were read from `path`; the other arguments are those of `from_argument`.

        A file in the hub's cache (`models--<owner>--<name>/snapshots/<commit>/...`) comes from a hub repository.
        """
        source, revision = cls.from_argument(asked, published), ""
        for folder in path.parents[:-2]:
            if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
                revision, repository = folder.name, folder.parent.parent.name.removeprefix("models--")
                repository = repository.replace("--", "/", 1)
                if source.kind == "saved":
                    source = cls("hub", repository)
                else:
                    source = dataclasses.replace(source, repository=repository)
        return dataclasses.replace(source, revision=revision, digest=file_digest(path))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Source as gafx recorded it before kinds were: `random`, `fixed`, `ImageNet` or a model's name."""
        if text in ("", "random"):
            return cls()
        if text == "fixed":
            return cls("fixed")
        return cls("published" if text in (IMAGENET, AUDIOSET) else "saved", text)

    @property
    def is_plain(self) -> bool:
        """True if no weights were loaded: a random start, or a part without learned weights."""
        return self.kind in ("random", "fixed")

    def describe(self) -> str:
        """Name for tables and messages, e.g. `random`, `ImageNet` or `owner/name@1a2b3c4`."""
        return (self.name or self.kind) + (f"@{self.revision[:7]}" if self.kind == "hub" and self.revision else "")


@dataclass(frozen=True)
class Provenance:
    """Origin of the weights of a model's two parts, before its own training."""

    frontend: WeightSource = WeightSource()
    classifier: WeightSource = WeightSource()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "provenance") -> Self:
        """Read the provenance in a config.json, result.json or run.json, of this or an earlier version of gafx.

        Args:
            values: mapping that contains `provenance`, or the earlier keys `started_from` and `imagenet`.
            where: of the mapping, for messages.

        Raises:
            UsageError: a value of another type.
        """
        if "provenance" in values:
            return build(cls, values["provenance"], f"{where}.provenance")
        texts = values.get("started_from") or ({"classifier": IMAGENET} if values.get("imagenet") else {})
        if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
            raise UsageError(f"{where}.started_from={texts!r} must hold text for frontend and classifier")
        return cls(*(WeightSource.from_text(texts.get(part, "random")) for part in ("frontend", "classifier")))

    def as_dict(self) -> dict[str, dict[str, str]]:
        """Plain mapping for JSON; empty fields are omitted."""
        parts = dataclasses.asdict(self)
        return {part: {key: value for key, value in source.items() if value} for part, source in parts.items()}

    @property
    def is_random(self) -> bool:
        """True if neither part started from loaded weights."""
        return self.frontend.is_plain and self.classifier.is_plain

    @property
    def uses_imagenet(self) -> bool:
        """True if the classifier started from weights that were trained on ImageNet."""
        return self.classifier.name == IMAGENET

    def describe(self) -> str:
        """Short text of both sources, e.g. `random`, `ImageNet` or `ImageNet, front-end from hdemucs_mmi`."""
        parts = [] if self.classifier.is_plain else [self.classifier.describe()]
        if not self.frontend.is_plain:
            parts.append(f"front-end from {self.frontend.describe()}")
        return ", ".join(parts) or "random"


@dataclass
class ModelInfo:
    """Description of a saved model: how to rebuild it, the meaning of its outputs, its training and its scores.

    Attributes:
        frontend: name and arguments; empty if the front-end was built from its class, not by `create_frontend`.
        classifier: name and arguments.
        classes: label of each output.
        segment_seconds: length of the clips that the model was built for.
        sample_rate: of the waves, in Hz.
        channels: of the waves.
        map_shape: (channels, frequency, time) of the map of one segment.
        objective: registered name, e.g. `classify` (softmax) or `tag` (a sigmoid for each label).
        provenance: origin of the weights before training.
        training: data set, protocol, fold, seed, steps and so on; empty if the model was not trained by `gafx train`.
        scores: metric -> value, low, high, interval on the test tracks; empty if the model was not evaluated.
        evaluated_on: data set, protocol, fold, number of tracks, and `weights`, the digest of the scored weights.
        calibration: temperature scaling fitted on validation tracks (`temperature`, `part`, `tracks`, loss and
            calibration error `before` and `after`), and `weights`, the digest of the weights it was fitted for; empty
            if none was fitted.
        license: identifier of the weights' licence on the hub, e.g. `cc-by-4.0`; empty if it was not stated.
        gafx_version: version that wrote the file.
    """

    frontend: dict[str, Any]
    classifier: dict[str, Any]
    classes: list[str]
    segment_seconds: float
    sample_rate: int
    channels: int
    map_shape: list[int]
    objective: str = "classify"
    provenance: Provenance = field(default_factory=Provenance)
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluated_on: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    gafx_version: str = __version__

    @property
    def temperature(self) -> float:
        """Divisor of the outputs before they become probabilities; 1 if none was fitted."""
        return float(self.calibration.get("temperature", 1.0))

    def as_dict(self) -> dict[str, Any]:
        """Plain mapping, the content of config.json."""
        return {**dataclasses.asdict(self), "provenance": self.provenance.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Build from the content of a config.json, of this or an earlier version of gafx.

        Args:
            values: the content.
            where: of the file, for messages.

        Raises:
            UsageError: an unknown or missing key, or a value of another type.
        """
        known = {key: value for key, value in values.items() if key not in ("imagenet", "started_from", "provenance")}
        info = build(cls, known, where)
        info.provenance = Provenance.from_dict(values, where)
        info.frontend, info.classifier = FRONTENDS.upgrade(info.frontend), CLASSIFIERS.upgrade(info.classifier)
        return info

    def with_other_weights(self, provenance: Provenance, **changes: Any) -> Self:
        """Return a copy for other weights: without training, scores, calibration and licence of the earlier ones.

        Args:
            provenance: of the weights.
            **changes: further fields, e.g. a licence that still holds.
        """
        forget: dict[str, Any] = {key: {} for key in ("training", "scores", "evaluated_on", "calibration")}
        forget["license"] = ""
        return dataclasses.replace(self, provenance=provenance, **forget | changes)


def model_name(source: object) -> str:
    """Name of a model from the path of its file or folder: the last component that is not `model[.safetensors]`."""
    path = PurePath(str(source))
    while path.name in ("model", "model.safetensors") and path.parent.name:
        path = path.parent
    return path.name or "another model"


def file_digest(path: Path) -> str:
    """Digest of a weights file, as it is recorded in `evaluated_on`, `calibration` and `provenance`."""
    return io.file_digest(path, "blake2b-16")
