"""GAFX: a front-end and a classifier, trained together; made by name, saved."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier
from gafx.errors import UsageError
from gafx.frontends.base import FrontEnd, match_channels
from gafx.nn.maps import map_norm, mask_map
from gafx.registry import CLASSIFIERS, FRONTENDS
from gafx.saving import hub
from gafx.saving.info import ModelInfo, Provenance

# No clip is longer; what lies beyond comes from a damaged configuration and would ask for all memory there is.
_LONGEST_SECONDS = 24 * 3600.0


class GAFX(nn.Module):
    """wave -> front-end -> map -> normalisation -> classifier -> logits.

    Args:
        frontend: turns waves into maps.
        classifier: built for the front-end's map.

    Attributes:
        info: what travels with the model when it is saved; `create_model` and `load` fill it.
    """

    def __init__(self, frontend: FrontEnd, classifier: Classifier):
        super().__init__()
        self.frontend, self.classifier = frontend, classifier
        groups = [(part.output_shape(part.sample_rate)[0], part.learned) for part in frontend.groups()]
        self.map_norm = map_norm(groups)
        self.info: ModelInfo | None = None

    def least_samples(self) -> int:
        """The shortest wave whose map the classifier can read, in samples."""
        least = 1
        while self.frontend.output_shape(least)[2] < self.classifier.min_frames:
            least *= 2
        low = least // 2
        while least - low > 1:
            middle = (low + least) // 2
            enough = self.frontend.output_shape(middle)[2] >= self.classifier.min_frames
            low, least = (low, middle) if enough else (middle, least)
        return least

    def features(self, wave: Tensor) -> Tensor:
        """The front-end's map as the classifier reads it, normalised to mean 0 and deviation 0.5.

        A map that is learned is normalised clip by clip. One that is fixed is so by the statistics of the training
        data, which train.py takes from them and a saved model brings along; until then they are 0 and 1, and
        `fit_statistics` sets them.

        `(batch, channels, samples)` -> `(batch, channels, frequency, time)`.
        """
        return self.map_norm(self.frontend(wave))

    @torch.no_grad()
    def fit_statistics(self, waves: Tensor | Iterable[Tensor]) -> None:
        """Set the statistics that maps of fixed front-ends (`mel`, `gafx_u` frozen) are normalised by.

        For a model that `create_model` made and another loop trains: call it once before training, with training clips.
        A learned front-end has no statistics, and nothing is set.

        Args:
            waves: `(batch, channels, samples)`, or several such batches, on the model's device; as many clips as give a
                fair picture of the data, some hundreds.

        Raises:
            ValueError: waves of another shape than the front-end takes.
        """
        groups = zip(self.frontend.groups(), self.map_norm.parts(), strict=True)
        fixed = [(part, norm, part.training) for part, norm in groups if not part.learned]
        count, total, squares = ([0.0] * len(fixed) for _ in range(3))
        for wave in [waves] if isinstance(waves, Tensor) else waves:
            self.frontend.check_wave(wave)
            for number, (part, _, training) in enumerate(fixed if len(wave) else []):
                values = part.eval()(match_channels(wave, part.channels)).double()
                part.train(training)
                count[number] += values.numel()
                total[number] += float(values.sum())
                squares[number] += float(values.square().sum())
        for number, (_, norm, _) in enumerate(fixed):
            if count[number]:
                mean = total[number] / count[number]
                norm.fit(mean, max(squares[number] / count[number] - mean**2, 0.0) ** 0.5)

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

    def fsdp_units(self) -> set[type[nn.Module]]:
        """Classes of modules that FSDP shards as units of their own."""
        return {*self.frontend.fsdp_units, *self.classifier.fsdp_units}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters with two dimensions or more that take no weight decay."""
        parts = (("frontend", self.frontend), ("classifier", self.classifier))
        return {f"{key}.{name}" for key, part in parts for name in part.no_weight_decay()}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write config.json, model.safetensors and a model card (README.md) into `folder`, whole or not at all.

        Args:
            folder: new, empty, or one that holds an earlier model and nothing else, which is replaced.

        Raises:
            UsageError: the model was not made by name, so that a file could not say how to build it; or `folder` cannot
                be written or holds other things.
        """
        return hub.write(self.state_dict(), self._known(), folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "Upload a gafx model"
    ) -> str:
        """Upload what `save` writes to the Hugging Face hub and return the repository's address. Never prompts.

        Args:
            repo_id: `owner/name`; it is created if it is not there.
            private: whether a new repository is for its owner alone.
            token: of the hub; the default is that of `hf auth login` or HF_TOKEN.
            message: of the commit.

        Raises:
            UsageError: a malformed name, nobody logged in, no right to write there, or the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as aside:
            folder = hub.write(self.state_dict(), self._known(), Path(aside, "model"), repo_id)
            return hub.push(folder, repo_id, private=private, token=token, message=message)

    def _known(self) -> ModelInfo:
        if self.info is None or not self.info.frontend:
            missing = "model" if self.info is None else "front-end"
            raise UsageError(
                f"a file could not say how this {missing} was built, since its class was called: build it by name "
                "instead, e.g. gafx.create_model('gafx_r', classes=[...], segment_seconds=10.0), or pass create_model "
                "what gafx.create_frontend returns"
            )
        known = self.info.provenance
        parts = (self.frontend.weight_source or known.frontend, self.classifier.weight_source or known.classifier)
        provenance = Provenance(*parts)
        return self.info if provenance == known else self.info.with_other_weights(provenance)


def create_frontend(name: str, *, pretrained: bool | str = False, **arguments: Any) -> FrontEnd:
    """Build a front-end by name, e.g. `create_frontend("gafx_r", width=16)`: a plain `nn.Module`.

    Args:
        name: one of `gafx.list_frontends()`.
        pretrained: weights to start from, for front-ends that learn: a saved model's folder, a `.safetensors` file or a
            hub repository; `True` for what is published, where anything is.
        **arguments: the front-end's own.

    Raises:
        UsageError: unknown name or argument; the message lists the choices.
    """
    if pretrained is not False:
        arguments["pretrained"] = pretrained
    frontend: FrontEnd = FRONTENDS.create(name, **arguments)
    frontend.built = {"name": name, **FRONTENDS.check(name, arguments)}
    return frontend


def create_model(
    frontend: str | Mapping[str, Any] | FrontEnd,
    classifier: str | Mapping[str, Any] = "ast",
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    segment_seconds: float,
) -> GAFX:
    """Build a model by the names of its parts.

    Args:
        frontend: name, or mapping with `name` and keyword arguments, or a front-end.
        classifier: likewise by name; it is built for the front-end's map of `segment_seconds`.
        num_classes: number of labels, where `classes` does not say it; the labels are "0", "1", ... then.
        classes: the labels, in the order of the outputs.
        segment_seconds: length of the clips that positions are laid out for; other lengths work too.

    Raises:
        UsageError: an unknown name or argument, or a number of classes or seconds that no model has.
    """
    labels = _labels(num_classes, classes)
    if not isinstance(segment_seconds, Real):
        raise UsageError(f"segment_seconds={segment_seconds!r} must be a number of seconds, e.g. 10.0")
    if not 0 < segment_seconds <= _LONGEST_SECONDS:
        raise UsageError(f"segment_seconds={segment_seconds} must lie above 0 and at most at {_LONGEST_SECONDS:g}")
    if not isinstance(frontend, FrontEnd):
        frontend = create_frontend(**({"name": frontend} if isinstance(frontend, str) else _named(frontend)))
    arguments = _named({"name": classifier} if isinstance(classifier, str) else classifier)
    name = arguments.pop("name")
    filled = {"name": name, **CLASSIFIERS.check(name, arguments, "classifier")}
    map_shape = frontend.output_shape(round(segment_seconds * frontend.sample_rate))
    planes = (frontend.planes,) if frontend.planes > 1 else ()
    model = GAFX(frontend, CLASSIFIERS.create(name, map_shape, len(labels), *planes, **arguments))
    built = frontend.built or {}
    model.info = ModelInfo(
        # The weights travel with the model: loading it must not ask for the pretrained ones again.
        frontend=hub.without_pretrained(built), classifier=hub.without_pretrained(filled), classes=labels,
        segment_seconds=float(segment_seconds), sample_rate=frontend.sample_rate, channels=frontend.channels,
        map_shape=list(map_shape), provenance=Provenance(
            frontend.weight_source or frontend.source_of(built),
            model.classifier.weight_source or model.classifier.source_of(filled),
        ),
    )  # fmt: skip
    return model


def _named(part: object) -> dict[str, Any]:
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        raise UsageError(f"{part!r} names no part: give a name, or a mapping of a name and the part's arguments")
    return dict(part)


def _labels(num_classes: int | None, classes: Sequence[str] | None) -> list[str]:
    if classes is None:
        if num_classes is None:
            raise UsageError("a model needs its labels: classes=[...], or num_classes=<number> for numbered ones")
        if not isinstance(num_classes, Integral) or num_classes < 1:
            raise UsageError(f"num_classes={num_classes!r} must be a whole number, at least 1")
        return [str(number) for number in range(num_classes)]
    labels = hub.check_classes(classes, "create_model")
    if num_classes not in (None, len(labels)):
        raise UsageError(f"num_classes={num_classes}, but classes holds {len(labels)} labels: give one of the two")
    return labels


def provenance_of(frontend: Mapping[str, Any], classifier: Mapping[str, Any]) -> Provenance:
    """Return the origin of the weights of a model with these parts (name and arguments), without building it."""
    frontend_class: Any = FRONTENDS.get(frontend["name"])
    classifier_class: Any = CLASSIFIERS.get(classifier["name"])
    return Provenance(frontend_class.source_of(frontend), classifier_class.source_of(classifier))
