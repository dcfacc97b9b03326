"""Load saved models and weights without trust: no code is executed, and memory is bounded by the size of the file."""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial as partial_of
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from gafx.classifiers.base import Classifier
from gafx.errors import UsageError, first_line
from gafx.frontends.base import FrontEnd
from gafx.model import GAFX, create_frontend, create_model
from gafx.nn import bounded
from gafx.nn.part import Part
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES
from gafx.saving import catalogue, foreign, hub, weights
from gafx.saving.info import ModelInfo, Provenance, WeightSource


def load(
    source: str | os.PathLike[str] | catalogue.PublishedModel, *, classes: Sequence[str] | None = None,
    partial: bool = False, **download: Unpack[weights.Download],
) -> GAFX:  # fmt: skip
    """Load a model, in eval mode on the CPU, with its `info` (labels, sampling rate, scores and so on).

    It accepts clips of any length: the classifier resamples positions made for `info.segment_seconds`.

    Args:
        source: a folder that `GAFX.save` or transformers' `ASTForAudioClassification.save_pretrained` wrote, a run's
            folder (its `model/`), a hub repository as `owner/name` or a published model, by its name or as an entry of
            `gafx.list_models(pretrained=True)` (only these two access the network), or the weights file of one or a
            folder with it.
        classes: other labels: the output layer is initialised at random, everything else is loaded.
        partial: keep the random start of what does not fit, with a warning that lists it, instead of raising.
        **download: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of a hub repository.

    Raises:
        UsageError: no model there, a damaged one, or weights that do not fit their own configuration; the message names
            the tensors and both shapes.
    """
    if isinstance(source, catalogue.PublishedModel):
        source = source.name
    hub.check_source(source)
    model = _load(source, classes, partial, download)
    assert model.info is not None
    if (published := catalogue.find(source)) is not None:
        model.info.license = published.licence.lower()  # an SPDX identifier, which the hub writes in lower case
    model.check_statistics()
    return model.eval()


def _load(
    source: str | os.PathLike[str], classes: Sequence[str] | None, partial: bool, download: weights.Download
) -> GAFX:
    if (published := _load_published(source, classes, download)) is not None:
        return published
    if (named := catalogue.find(source)) is not None and named.repository:
        config, path = _locate_published(named, download)
        source = named.repository
    else:
        config, path = hub.locate(source, **download)
    if foreign.is_foreign(config):
        return _load_foreign(config, path, source, classes, download)
    info = hub.read_info(config)
    labels = info.classes if classes is None else hub.check_classes(classes, "classes")
    try:
        OBJECTIVES.check_name(info.objective)
        model = _build_bounded(info, labels, path, whole=classes is None and not partial)
    except UsageError as error:
        raise UsageError(f"{config}: {error}{hub.written_by_newer(info.gafx_version)}") from error
    except (RuntimeError, MemoryError, ArithmeticError, ValueError, TypeError) as error:  # impossible sizes
        raise UsageError(f"the model that {config} describes cannot be built here ({first_line(error)})") from error
    assert model.info is not None
    for key in ("sample_rate", "channels", "map_shape"):
        stated, actual = getattr(info, key), getattr(model.info, key)
        if stated != actual:
            raise UsageError(
                f"{config}: {key} is {stated}, but the front-end that it describes has {actual}: one of them was "
                "edited, or the file is damaged"
            )
    state = weights.read(path)
    if classes is not None:
        heads = tuple(f"classifier.{name}" for name in model.classifier.head_names())
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
        state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(heads)}
    cure = (
        "give classes=[...] if only the labels differ, or partial=True to load what fits and leave the rest at its "
        "random start"
    )
    left = weights.fit(model, state, path, partial=partial, cure=cure)
    if left:
        warnings.warn(f"{path} lacks tensors of these names and shapes, random now: {', '.join(left)}", stacklevel=3)
    info = hub.drop_stale_metadata(info, path, "loaded")
    if state.keys() != weights.shapes(path).keys() and not left:
        info = hub.rename_digests(info, model.state_dict())
    # The rebuilt parts have all defaults filled in, and no `pretrained`.
    rebuilt = dataclasses.replace(info, frontend=model.info.frontend, classifier=model.info.classifier)
    if left or classes is not None:
        loaded = WeightSource.from_file(path, source)
        rebuilt = rebuilt.with_other_weights(Provenance(loaded, loaded), classes=labels, license=info.license)
    model.info, model.loaded_from = rebuilt, (path, source)
    return model


def _load_published(
    source: str | os.PathLike[str], classes: Sequence[str] | None, download: weights.Download
) -> GAFX | None:
    """Build the model of the catalogue that `source` names, or whose weights it holds; None if there is none."""
    model, weight_file = catalogue.find(source), None
    path = weights.local_path(source)
    if model is None and not (path / hub.CONFIG).exists() and (found := catalogue.identify(path)) is not None:
        model, weight_file = found
    if model is None or model.repository:
        return None
    if weight_file is None:
        catalogue.check_download(model, download)
    pretrained = model.name if weight_file is None else str(weight_file)
    return _start(
        model.frontend, {**model.classifier, "pretrained": pretrained}, model.labels or [], classes,
        model.segment_seconds, model.objective,
    )  # fmt: skip


def _locate_published(model: catalogue.PublishedModel, download: weights.Download) -> tuple[Path, Path]:
    """Return the paths of config.json and of the weights of a model whose files are a repository of the hub."""
    assert model.repository is not None
    try:
        return hub.locate(model.repository, **download)
    except UsageError as error:
        raise UsageError(
            f"{model.name}: {error}; or put {hub.CONFIG} and {hub.WEIGHTS} of {model.address} into a folder by other "
            "means, and load that folder"
        ) from error


def _load_foreign(
    config: Path, path: Path, source: str | os.PathLike[str], classes: Sequence[str] | None, download: weights.Download
) -> GAFX:
    """Load a model that transformers saved; see `gafx.saving.foreign`."""
    preprocessor: Path | None = config.with_name(foreign.PREPROCESSOR)
    if not config.with_name(foreign.PREPROCESSOR).is_file():
        preprocessor = None
        if isinstance(source, str) and not weights.local_path(source).exists():
            with suppress(UsageError):  # not every repository has one
                again: weights.Download = {**download, "revision": config.parent.name}
                preprocessor = weights.fetch(source, [foreign.PREPROCESSOR], **again)
    made = foreign.describe(config, preprocessor)
    if classes is None:
        foreign.check_outputs(path, made.labels)
    model = _start(
        made.frontend, {**made.classifier, "pretrained": str(path)}, made.labels, classes, made.segment_seconds,
        made.objective,
    )  # fmt: skip
    (norm,) = model.map_norm.parts()
    norm.fit(*made.scale)
    assert model.info is not None
    model.info.provenance = Provenance(WeightSource("fixed"), WeightSource.from_file(path, source))
    return model


def _start(
    frontend: Mapping[str, Any], classifier: Mapping[str, Any], labels: list[str], classes: Sequence[str] | None,
    seconds: float, objective: str,
) -> GAFX:  # fmt: skip
    """Build a model from weights of another project, with a random output layer if `classes` are given."""
    model = create_model(frontend, classifier, classes=labels, segment_seconds=seconds)
    if classes is not None:
        classes = hub.check_classes(classes, "classes")
        plain = hub.without_pretrained(dict(classifier))
        other = create_model(frontend, plain, classes=classes, segment_seconds=seconds)
        heads = tuple(f"classifier.{name}" for name in other.classifier.head_names())
        kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(heads)}
        other.load_state_dict({**other.state_dict(), **kept})
        assert model.info is not None
        assert other.info is not None
        other.info.provenance = model.info.provenance
        model = other
    assert model.info is not None
    model.info.objective = objective
    return model


def _build_bounded(info: ModelInfo, labels: list[str], path: Path, *, whole: bool) -> GAFX:
    """Build the model of a config.json, unless it would be far larger than its weights file.

    A small configuration can require more memory than there is, so each part is first built on the meta device, where
    tensors take no memory. A front-end that cannot be built there is bounded by `check_arguments`.

    If the file replaces every parameter (`whole`), none is initialised at random, which takes a second for a large
    classifier. Those of other packages' parts are: these may compute from them what is in no file.
    """
    tensors, room = len(weights.shapes(path)), bounded.room(path)
    outer = FRONTENDS.check_part(info.frontend, "frontend")
    for part in FRONTENDS.single(outer):
        hub.check_arguments(part, tensors)
        room -= bounded.elements(partial_of(create_frontend, **part), part["name"], room)
    checked = CLASSIFIERS.check_part(info.classifier, "classifier")
    for part in (checked, *CLASSIFIERS.single(checked)):  # of a part that nests others `single` gives those alone
        hub.check_arguments(part, tensors)
    own = FRONTENDS.is_own(outer) and CLASSIFIERS.is_own(checked)
    with bounded.NoInit() if whole and own else nullcontext():
        frontend = create_frontend(**info.frontend)

        def build() -> GAFX:
            return create_model(frontend, info.classifier, classes=labels, segment_seconds=info.segment_seconds)

        bounded.elements(lambda: build().classifier, info.classifier["name"], room)
        return build()


def load_weights(
    module: nn.Module, source: str | os.PathLike[str], *, partial: bool = False, across_rates: bool = False
) -> list[str]:
    """Load saved weights into a module and return the names of its tensors that were not loaded.

    Args:
        module: a whole `GAFX`, a front-end or a classifier (which use their own tensors of a whole model), or any
            other module.
        source: as in `load`, or a `.safetensors` file.
        partial: skip what does not fit (other shapes, tensors that only one side has, an output layer of other labels)
            instead of raising. An output layer of the same labels in another order is reordered.
        across_rates: also accept weights of a front-end that were trained at another sampling rate.

    Raises:
        UsageError: no weights there, or tensors do not fit; the message names them with both shapes. With `partial`:
            none fits. Or weights of a front-end trained at another sampling rate, without `across_rates`.
    """
    hub.check_source(source)
    path = weights.local_path(source)
    if not path.is_file():
        path = hub.locate(source)[1]
    front_end = module.frontend if isinstance(module, GAFX) else module
    if isinstance(front_end, FrontEnd) and not across_rates:
        front_end.check_rate(path)
    state = weights.read(path)
    for kind, prefix in ((FrontEnd, "frontend"), (Classifier, "classifier")):
        if isinstance(module, kind):
            state = weights.part(state, prefix)
    if isinstance(module, GAFX) and module.info is not None:
        _match_head(module, state, path, partial)
    left = weights.fit(module, state, path, partial=partial)
    loaded = WeightSource.from_file(path, source)
    for part in (module.frontend, module.classifier) if isinstance(module, GAFX) else (module,):
        if isinstance(part, Part):
            part.weight_source = loaded
    if isinstance(module, GAFX) and module.info is not None:
        module.info = module.info.with_other_weights(Provenance(loaded, loaded))
    return left


def _match_head(model: GAFX, state: dict[str, Tensor], path: Path, partial: bool) -> None:
    """Reorder the output layer in a state dict by the model's labels; leave it out, or raise, if it is of others."""
    assert model.info is not None
    theirs, ours = weights.labels(path), model.info.classes
    heads = tuple(f"classifier.{name}" for name in model.classifier.head_names())
    names = [name for name in state if name.startswith(heads)]
    numbered = ours == [str(number) for number in range(len(ours))]
    if theirs is None or theirs == ours or numbered or not names:
        return
    if sorted(theirs) == sorted(ours) and not any(weights.is_extra(name) for name in names):
        order = [theirs.index(label) for label in ours]
        state.update({name: state[name][order] for name in names})
    elif partial:
        for name in names:
            del state[name]
    else:
        raise UsageError(
            f"the output layer of {path} is of other labels ({', '.join(theirs[:3])}, ...) than the model's "
            f"({', '.join(ours[:3])}, ...): give partial=True to leave it out, or gafx.load(source, classes=[...])"
        )
