"""A linear layer on the outputs and the embedding of another classifier: what `gafx fit` fits and saves."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier, Shape, check_at_least_one, probe_features, probe_width
from gafx.registry import CLASSIFIERS
from gafx.saving.info import WeightSource


@CLASSIFIERS.register
class LinearProbe(Classifier):
    """Logits of new labels that are linear in what another classifier computes.

    The embedding of this classifier is the input of the linear layer: the base's logits, its embedding, or both, in
    this order. `gafx fit` standardises them, fits the layer, and folds mean and std into its weights; the base stays
    as it was. Nothing is frozen in `gafx train`: all of it learns from there.

    Args:
        map_shape: (channels, frequency, time) of the maps.
        num_classes: number of outputs.
        planes: of the map, for a base whose positions depend on them.
        base: name and arguments of the other classifier, including its `pretrained`; by default `crnn`.
        base_classes: number of its outputs; 527 are the labels of AudioSet.
        features: what the linear layer reads: `outputs` (the base's logits), `embedding`, or `both`.

    Raises:
        UsageError: `base_classes` below 1, or a base that cannot be built for such maps.
    """

    nested: ClassVar[tuple[str, ...]] = ("base",)
    takes_planes = True

    def __init__(
        self,
        map_shape: Shape,
        num_classes: int,
        planes: int = 1,
        /,
        *,
        base: dict | None = None,
        base_classes: int = 527,
        features: Literal["outputs", "embedding", "both"] = "both",
    ):
        super().__init__()
        check_at_least_one(base_classes=base_classes)
        arguments = _base(base)
        kind: Any = CLASSIFIERS.get(arguments.pop("name"))
        kind.check_map(map_shape)
        self.base: Classifier = kind(map_shape, base_classes, *((planes,) if kind.takes_planes else ()), **arguments)
        self.features = features
        self.map_shape, self.num_classes = map_shape, num_classes
        self.width = probe_width(self.base, features)
        self.min_frames, self.tokens, self.input_scale = self.base.min_frames, self.base.tokens, self.base.input_scale
        self.fixed_length, self.fsdp_units = self.base.fixed_length, self.base.fsdp_units
        self.not_exportable = self.base.not_exportable
        self.weight_source = self.base.weight_source
        if features == "embedding":  # its output layer has no part in the result
            for name, parameter in self.base.named_parameters():
                parameter.requires_grad_(not name.startswith(self.base.head_names()))
        self.output = nn.Linear(self.width, num_classes)

    @classmethod
    def source_of(cls, arguments: Mapping[str, Any]) -> WeightSource:
        base = _base(arguments.get("base"))
        kind: Any = CLASSIFIERS.get(base["name"])
        return kind.source_of(base)

    def embed(self, feature_map: Tensor) -> Tensor:
        """Compute the input of the linear layer. `(batch, channels, frequency, time)` -> `(batch, width)`, float32."""
        values = probe_features(self.base, feature_map, self.features)
        return values.to(torch.promote_types(values.dtype, self.output.weight.dtype))

    def head(self, embedding: Tensor) -> Tensor:
        """Compute logits from embeddings. `(batch, width)` -> `(batch, classes)`."""
        # The weights contain mean and std of the features: rounded to bfloat16, features far from 0 would be lost.
        with torch.autocast(embedding.device.type, enabled=False):
            return self.output(embedding.to(self.output.weight.dtype))

    def head_names(self) -> tuple[str, ...]:
        """Return the name prefixes of the parameters of the linear layer."""
        return ("output.",)

    def no_weight_decay(self) -> set[str]:
        return {f"base.{name}" for name in self.base.no_weight_decay()}


def _base(base: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(CLASSIFIERS.check_part({"name": "crnn"} if base is None else base, "classifier.base"))
