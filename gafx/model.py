"""GAFX: a front-end and a classifier, trained together."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gafx.classifiers.base import Classifier
from gafx.frontends.base import FrontEnd
from gafx.nn.maps import map_norm, mask_map
from gafx.registry import CLASSIFIERS, FRONTENDS


class GAFX(nn.Module):
    """wave -> front-end -> map -> normalisation -> classifier -> logits.

    Args:
        frontend: turns waves into maps.
        classifier: built for the front-end's map.
    """

    def __init__(self, frontend: FrontEnd, classifier: Classifier):
        super().__init__()
        self.frontend, self.classifier = frontend, classifier
        groups = [(part.output_shape(part.sample_rate)[0], part.learned) for part in frontend.groups()]
        self.map_norm = map_norm(groups)

    def least_samples(self) -> int:
        """The shortest wave whose map the classifier can read, in samples."""
        least = 1
        while self.frontend.output_shape(least)[2] < self.classifier.least_frames:
            least *= 2
        low = least // 2
        while least - low > 1:
            middle = (low + least) // 2
            enough = self.frontend.output_shape(middle)[2] >= self.classifier.least_frames
            low, least = (low, middle) if enough else (middle, least)
        return least

    def features(self, wave: Tensor) -> Tensor:
        """The front-end's map as the classifier reads it, normalised to mean 0 and deviation 0.5.

        `(batch, channels, samples)` -> `(batch, channels, frequency, time)`.
        """
        return self.map_norm(self.frontend(wave))

    def embed(self, wave: Tensor) -> Tensor:
        """`(batch, channels, samples)` -> `(batch, classifier.width)`."""
        return self.classifier.embed(self.features(wave))

    def forward(self, wave: Tensor, masks: Tensor | None = None, time_masks: int = 0) -> Tensor:
        """`(batch, channels, samples)` -> `(batch, classes)` logits.

        Args:
            wave: at the front-end's sampling rate, in [-1, 1].
            masks: `(batch, masks, 2)`; see `gafx.nn.maps.mask_map`. Training only.
            time_masks: how many of them lie along time.
        """
        feature_map = self.features(wave)
        if masks is not None:
            feature_map = mask_map(feature_map, masks, time_masks, self.frontend.planes)
        return self.classifier(feature_map)


def create_frontend(name: str, **arguments: Any) -> FrontEnd:
    """Build a front-end by name, e.g. `create_frontend("gafx_r", width=16)`.

    Raises:
        UsageError: unknown name or argument; the message lists the choices.
    """
    return FRONTENDS.create(name, **arguments)


def create_model(
    frontend: str | Mapping[str, Any] | FrontEnd,
    classifier: str | Mapping[str, Any] = "ast",
    *,
    num_classes: int,
    segment_seconds: float,
) -> GAFX:
    """Build a model by the names of its parts.

    Args:
        frontend: name, or mapping with `name` and keyword arguments, or a front-end.
        classifier: likewise by name; it is built for the front-end's map of `segment_seconds`.
        num_classes: number of labels.
        segment_seconds: length of the clips that positions are laid out for; other lengths work too.
    """
    if not isinstance(frontend, FrontEnd):
        frontend = create_frontend(**({"name": frontend} if isinstance(frontend, str) else dict(frontend)))
    arguments = {"name": classifier} if isinstance(classifier, str) else dict(classifier)
    map_shape = frontend.output_shape(round(segment_seconds * frontend.sample_rate))
    planes = (frontend.planes,) if frontend.planes > 1 else ()
    return GAFX(frontend, CLASSIFIERS.create(arguments.pop("name"), map_shape, num_classes, *planes, **arguments))
