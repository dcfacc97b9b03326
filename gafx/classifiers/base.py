"""Base class of classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gafx.errors import UsageError
from gafx.nn.part import Part
from gafx.registry import trains_classifier
from gafx.saving import catalogue, weights

Shape = tuple[int, int, int]
ProbeFeatures = Literal["outputs", "embedding", "both"]


def check_rates(**rates: float) -> None:
    """Raise `UsageError` for a rate of dropout of a classifier that is not in [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"classifier.{name}={rate} must be at least 0 and less than 1")


def check_at_least_one(**arguments: int) -> None:
    """Raise `UsageError` for an argument of a classifier that is below 1."""
    for name, value in arguments.items():
        if value < 1:
            raise UsageError(f"classifier.{name}={value} must be at least 1")


class Classifier(Part):
    """Computes logits `(batch, classes)` from maps `(batch, channels, frequency, time)`.

    A subclass registers itself (`@CLASSIFIERS.register`) under the name of its module. Its constructor takes the shape
    of the map (channels, frequency, time) and the number of classes by position, and its configuration as keyword-only
    arguments. The number of channels is fixed by `map_shape`; maps of other lengths are accepted.

    Attributes:
        takes_planes: whether the constructor takes the number of planes as a third argument by position, for a
            classifier that depends on the position in time (`FrontEnd.planes`). Planes are equal parts of the map,
            concatenated along time; positions must apply within a plane, never across a border. Other classifiers read
            the planes as one map.
        map_shape: shape that the classifier was built for.
        num_classes: number of labels.
        width: size of an embedding.
        min_frames: number of frames of the shortest map that it accepts.
        frame_head: whether `head` applies to single frames, whose outputs `forward` pools: `forward(map)` is then not
            `head(embed(map))`, and an embedding summarises the frames.
        input_scale: mean and std of the maps that published weights were trained on, for `gafx.nn.maps.MapNorm.fit`;
            set when they are loaded. `create_model` normalises a fixed front-end by them until a training computes its
            own. None if there are none.
        head_labels: labels of an output layer that was loaded with pretrained weights, which `create_model` compares
            with the model's; None if it is random, or if they are not known.
        tokens: length of the sequence that a map of `map_shape` becomes; None if the classifier is no transformer.
    """

    map_shape: Shape
    num_classes: int
    width: int
    min_frames: int = 1
    takes_planes: bool = False
    frame_head: bool = False
    input_scale: tuple[float, float] | None = None
    head_labels: list[str] | None = None
    tokens: int | None = None

    @classmethod
    def check_map(cls, map_shape: Shape) -> None:
        """Check that a classifier can be built for maps of this shape; `create_model` calls it before it builds one.

        Where that depends on the classifier's arguments, its constructor checks it.

        Raises:
            UsageError: it cannot; the message names the accepted shapes.
        """

    def check_input(self, feature_map: Tensor) -> None:
        """Raise `ValueError` unless `feature_map` has four dimensions and the number of channels built for."""
        if feature_map.ndim != 4 or feature_map.shape[1] != self.map_shape[0]:
            raise ValueError(
                f"a map of shape {tuple(feature_map.shape)} does not fit: this {type(self).__name__} takes (batch, "
                f"{self.map_shape[0]}, frequency, time)"
            )

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute embeddings. `(batch, channels, frequency, time)` -> `(batch, width)`."""
        raise NotImplementedError

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from embeddings. `(batch, width)` -> `(batch, classes)`."""
        raise NotImplementedError

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.head(self.embed(feature_map))

    def embed_and_classify(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Compute embeddings and logits, `embed` and `forward`, in one pass where the logits allow it."""
        embedding = self.embed(feature_map)
        return embedding, self(feature_map) if self.frame_head else self.head(embedding)

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters that depend on the number of classes."""
        raise NotImplementedError


def probe_features(classifier: Classifier, feature_map: Tensor, features: ProbeFeatures) -> Tensor:
    """Compute what a linear layer or another estimator reads of a frozen classifier.

    Args:
        classifier: the frozen one.
        feature_map: `(batch, channels, frequency, time)`.
        features: `outputs` (logits), `embedding`, or `both`, concatenated in this order.

    Returns:
        `(batch, probe_width(classifier, features))`
    """
    if features == "embedding":
        return classifier.embed(feature_map)
    if features == "outputs":
        return classifier(feature_map)
    embedding, logits = classifier.embed_and_classify(feature_map)
    dtype = torch.promote_types(embedding.dtype, logits.dtype)  # they may differ under autocast
    return torch.cat([logits.to(dtype), embedding.to(dtype)], dim=1)


def probe_width(classifier: Classifier, features: ProbeFeatures) -> int:
    """Number of columns of `probe_features`."""
    widths = {"outputs": classifier.num_classes, "embedding": classifier.width}
    return widths.get(features, sum(widths.values()))


def find_weights(source: bool | str, repo: str | None, suffixes: Sequence[str] = (".safetensors",)) -> Path:
    """Return the path of a classifier's pretrained weights; arguments are those of `gafx.saving.weights.find`.

    Raises:
        UsageError: not found, of a published model with another classifier, or saved by a training with an objective
            that does not train the classifier.
    """
    if (published := catalogue.find(source)) is not None:
        raise UsageError(
            f"classifier.pretrained={source} are weights of classifier={published.classifier['name']}, and fit no other"
        )
    path = weights.find(source, repo, key="classifier.pretrained", suffixes=suffixes)
    objective = weights.about(path).get("objective") if path.suffix == ".safetensors" else None
    if not trains_classifier(objective):
        raise UsageError(
            f"{path} was trained with objective={objective}, which does not train the classifier: its weights "
            "are random. Load the front-end alone (frontend.pretrained), or pretrain with objective=tag"
        )
    return path
