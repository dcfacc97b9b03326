"""GAFX models: a front-end and a classifier, trained together, built by name and saved."""

import dataclasses
import logging
import os
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gafx.classifiers.base import Classifier
from gafx.errors import UsageError, check_options
from gafx.frontends.base import FrontEnd, match_channels
from gafx.nn.maps import FusedMapNorm, MapNorm, mask_map
from gafx.nn.precision import HALF_TYPES, device_of, float64
from gafx.registry import CLASSIFIERS, FRONTENDS, reads_labels, trains_classifier
from gafx.saving import catalogue, hub, weights
from gafx.saving.info import ModelInfo, Provenance, WeightSource

if TYPE_CHECKING:
    from gafx.deploy.predict import PredictionIterator
    from gafx.deploy.stream import StreamWindow

_log = logging.getLogger("gafx")
# A longer segment comes from a damaged configuration and would need more memory than there is.
_MAX_SECONDS = 24 * 3600.0
_DEFAULT_SECONDS = 10.0


class GAFX(nn.Module):
    """wave -> front-end -> map -> normalisation -> classifier -> logits.

    Args:
        frontend: computes maps from waves.
        classifier: built for the map of the front-end.

    Attributes:
        info: description that is saved with the model; set by `create_model` and `load`.
        loaded_from: weights file that `load` read, and its argument.
    """

    def __init__(self, frontend: FrontEnd, classifier: Classifier):
        super().__init__()
        self.frontend, self.classifier = frontend, classifier
        shapes = [part.output_shape(part.sample_rate)[:2] for part in frontend.groups()]
        norms = [
            MapNorm(part.learned, part.map_norm, shape) for part, shape in zip(frontend.groups(), shapes, strict=True)
        ]
        self.map_norm = norms[0] if len(norms) == 1 else FusedMapNorm(norms, [channels for channels, _ in shapes])
        self.info: ModelInfo | None = None
        self.loaded_from: tuple[Path, object] | None = None
        self._has_warned = False
        self.register_load_state_dict_pre_hook(_rename_tensors)

    def min_samples(self, frames: int | None = None) -> int:
        """Return the samples of the shortest wave whose map has `frames` frames, by default `classifier.min_frames`."""
        wanted, most = frames or self.classifier.min_frames, 1

        def count(samples: int) -> int:
            return self.frontend.output_shape(samples)[2]

        while count(most) < wanted:
            most *= 2
        return bisect_left(range(most + 1), wanted, lo=most // 2 + 1, key=count)

    def features(self, wave: Tensor) -> Tensor:
        """Compute the map that the classifier reads: the front-end's, normalised to mean 0 and std 0.5.

        `MapNorm` describes the choices (`map_norm` of the front-end). By default the maps of a learned front-end are
        normalised clip by clip, those of a fixed one by statistics of the training data, which `gafx train` computes,
        `fit_statistics` sets and a saved model contains. Before, they are mean 0 and std 1, or those of the maps that
        the classifier's pretrained weights were published for.

        `(batch, channels, samples)` -> `(batch, channels, frequency, time)`.
        """
        with self._autocast(wave):
            feature_map = self.map_norm(self.frontend(wave))
        # Token ids are no quantities that could be rounded.
        return feature_map if self.frontend.map_norm == "none" else feature_map.to(self.dtype)

    @torch.no_grad()
    def fit_statistics(self, waves: Tensor | Iterable[Tensor]) -> None:
        """Compute the statistics that normalise the maps of fixed front-ends (e.g. `mel`, or a frozen one).

        Call it once before training with your own loop, with clips of the training split. It does nothing for a learned
        front-end, or for one whose maps are normalised clip by clip.

        Args:
            waves: `(batch, channels, samples)`, or several such batches, on the model's device; some hundred clips.

        Raises:
            ValueError: waves of another shape than the front-end takes.
        """
        groups = zip(self.frontend.groups(), self.map_norm.parts(), strict=True)
        fixed = [(part, norm, part.training) for part, norm in groups if norm.is_fitted_before]
        count = [0.0] * len(fixed)
        total, squares = ([torch.zeros((), dtype=torch.float64)] * len(fixed) for _ in range(2))
        for wave in [waves] if isinstance(waves, Tensor) else waves:
            self.frontend.check_wave(wave)
            for number, (part, norm, training) in enumerate(fixed if len(wave) else []):
                values = float64(part.eval()(match_channels(wave, part.channels)))
                part.train(training)
                sums = [x.sum((0, 3))[..., None] if norm.by_row else x.sum() for x in (values, values.square())]
                count[number] += values.numel() / sums[0].numel()
                total[number], squares[number] = total[number] + sums[0].cpu(), squares[number] + sums[1].cpu()
        for number, (_, norm, _) in enumerate(fixed):
            if count[number]:
                mean = total[number] / count[number]
                norm.fit(mean, (squares[number] / count[number] - mean**2).clamp(min=0).sqrt())

    def embed(self, wave: Tensor) -> Tensor:
        """Compute embeddings. `(batch, channels, samples)` -> `(batch, classifier.width)`."""
        return self.forward_head(self.features(wave), pre_logits=True)

    def forward(self, wave: Tensor, masks: Tensor | None = None, time_masks: int = 0) -> Tensor:
        """Compute logits. `(batch, channels, samples)` -> `(batch, classes)`.

        Args:
            wave: at the front-end's sampling rate, in [-1, 1].
            masks: `(batch, masks, 2)` for training; see `gafx.nn.maps.mask_map`.
            time_masks: number of masks along time.
        """
        feature_map = self.features(wave)
        if masks is not None:
            feature_map = mask_map(feature_map, masks, time_masks, self.frontend.planes)
        return self.forward_head(feature_map)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the classifier's parameters, and of maps; of embeddings and logits too if the whole model has it.

        After `bfloat16()` or `half()` the front-end and the normalisation keep float32 tensors, and compute as under
        autocast of that type.
        """
        return next((p.dtype for p in self.classifier.parameters() if p.is_floating_point()), torch.float32)

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[object]:
        """Autocast of a model that `bfloat16()` or `half()` converted; for others nothing, an outer one stays."""
        return torch.autocast(tensor.device.type, self.dtype) if self.dtype in HALF_TYPES else nullcontext()

    @property
    def num_classes(self) -> int:
        """Number of labels, as in timm."""
        return self.classifier.num_classes

    @property
    def num_features(self) -> int:
        """Size of an embedding, as in timm."""
        return self.classifier.width

    def forward_features(self, wave: Tensor) -> Tensor:
        """Compute what `forward_head` takes, as in timm: the map of `features`."""
        return self.features(wave)

    def forward_head(self, feature_map: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits, or embeddings with `pre_logits`, of a map that `features` computed.

        `(batch, channels, frequency, time)` -> `(batch, classes)`, or `(batch, num_features)`.

        Raises:
            UsageError: a map of fewer frames than the classifier accepts, of a wave of fewer samples than
                `min_samples()`.
        """
        frames, least = feature_map.shape[-1], self.classifier.min_frames
        if isinstance(frames, int) and frames < least:  # a symbolic size, of an export, cannot be compared
            samples, rate = self.min_samples(), self.frontend.sample_rate
            raise UsageError(
                f"a map of {frames} frames is too short for this classifier, which needs {least}: give waves of at "
                f"least {samples} samples ({samples / rate:.3g} s at {rate} Hz)"
            )
        with self._autocast(feature_map):
            outputs = self.classifier.embed(feature_map) if pre_logits else self.classifier(feature_map)
        return outputs.to(self.dtype) if self.dtype in HALF_TYPES else outputs

    def reset_classifier(self, num_classes: int | None = None, *, classes: Sequence[str] | None = None) -> None:
        """Replace the output layer by one for other labels, at random weights; everything else is kept.

        Create the optimiser afterwards: one that exists holds the parameters of the replaced layer. The training,
        scores and calibration in `info` are those of the earlier labels and are removed; the licence of the kept
        weights stays.

        Args:
            num_classes: number of labels, instead of `classes`; the labels are then "0", "1", ...
            classes: labels in the order of the outputs.

        Raises:
            UsageError: an invalid number or list of labels, or a model that was not built by name.
        """
        if num_classes == 0 and num_classes is not False:
            raise UsageError(
                "num_classes=0 would leave a model without labels: embeddings are model.embed(wave), or "
                "model.forward_head(feature_map, pre_logits=True)"
            )
        labels = _labels(num_classes, classes, "reset_classifier")
        if self.info is None:
            raise UsageError("reset_classifier needs a model built by name: gafx.create_model or gafx.load")
        self._randomise_head(len(labels))
        start = self.info.provenance
        if self.loaded_from is not None:
            path, asked = self.loaded_from
            loaded = WeightSource.from_file(path, asked) if path.is_file() else WeightSource.from_argument(asked, {})
            start = Provenance(loaded, loaded)
        self.info = self.info.with_other_weights(start, classes=labels, license=self.info.license)

    def _randomise_head(self, outputs: int) -> None:
        """Replace the output layer by one of `outputs` outputs at random weights."""
        assert self.info is not None
        arguments = dict(self.info.classifier)
        planes = (self.frontend.planes,) if self.classifier.takes_planes else ()
        fresh = CLASSIFIERS.create(arguments.pop("name"), tuple(self.info.map_shape), outputs, *planes, **arguments)
        like = next(self.classifier.parameters(), None)
        if like is None:  # all of it is the output layer
            self.classifier = fresh.train(self.classifier.training)
            return
        fresh.to(like.device, like.dtype).train(self.classifier.training)
        for prefix in fresh.head_names():
            if prefix.endswith("."):
                self.classifier.set_submodule(prefix[:-1], fresh.get_submodule(prefix[:-1]))
            else:
                for name, parameter in fresh.named_parameters():
                    if name.startswith(prefix):
                        module, _, own = name.rpartition(".")
                        setattr(self.classifier.get_submodule(module), own, parameter)
        self.classifier.num_classes = outputs

    def _match_head(self, labels: Sequence[str]) -> None:
        """Give a pretrained output layer the order of these labels, or random weights if it is of others."""
        theirs = self.classifier.head_labels
        if theirs is None or theirs == list(labels):
            return
        if sorted(theirs) != sorted(labels):
            _log.warning(
                "the output layer of the pretrained classifier is left out and starts at random: its labels (%s) are "
                "not those of this model (%s)", _some(theirs), _some(labels),
            )  # fmt: skip
            self._randomise_head(len(labels))
        else:
            _log.info("the outputs of the pretrained classifier are put into the order of this model's labels")
            order = [theirs.index(label) for label in labels]
            with torch.no_grad():
                for name, parameter in self.classifier.named_parameters():
                    if name.startswith(self.classifier.head_names()):
                        parameter.copy_(parameter[order].clone())
        self.classifier.head_labels = None

    def load_pretrained(self, source: str | os.PathLike[str]) -> None:
        """Load the weights of a saved model of the same front-end and classifier, e.g. of a masked pretraining.

        The output layer is left out unless that model has the same labels. A map may have another length, if the
        classifier's weights do not depend on it.

        Args:
            source: a run, a folder that `save` wrote, or a hub repository.

        Raises:
            UsageError: no model there; one of another front-end, whose maps are not those that it was trained on, of
                another classifier, or one whose training left the classifier at random weights.
        """
        config, path = hub.locate(source)
        theirs, ours = hub.read_info(config), self.info
        if ours is None:
            raise UsageError("load_pretrained needs a model built by name: gafx.create_model or gafx.load")
        where = f"pretrained={str(source)!r}"
        if not trains_classifier(theirs.objective):
            raise UsageError(
                f"{where} was trained with objective={theirs.objective}, which does not train the classifier: load its "
                "front-end alone, frontend.pretrained=<run>"
            )
        there, here = FRONTENDS.check_part(theirs.frontend, "frontend"), ours.frontend
        neutral = ("pretrained", "frozen", "across_rates")
        keys = [key for key in dict.fromkeys([*there, *here]) if key not in neutral and there.get(key) != here.get(key)]
        if here and keys:
            differ = [f"{key} is {there.get(key)} there, {here.get(key)} here" for key in keys]
            raise UsageError(
                f"{where} was trained on the maps of another front-end ({'; '.join(differ)}): build the front-end with "
                "its arguments"
            )
        own, state = self.state_dict(), weights.read(path)
        heads = tuple(f"classifier.{name}" for name in self.classifier.head_names())
        if not (reads_labels(theirs.objective) and theirs.classes == ours.classes):
            state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
            state |= {name: tensor for name, tensor in own.items() if name.startswith(heads)}
        weights.fit(self, state, path, cure=f"build it with its classifier, {theirs.classifier}")
        if any(name.startswith("frontend.") for name in own):
            self.frontend.record_source(path, source)
        self.classifier.record_source(path, source)
        ours.provenance = Provenance(
            self.frontend.weight_source or ours.provenance.frontend, self.classifier.weight_source or WeightSource()
        )

    def predict(self, inputs: Any, *, sample_rate: float | None = None, **options: Any) -> "PredictionIterator":
        """Label sounds of any length: `gafx.predict` with this model, on its own device.

        Sets eval mode.

        Args:
            inputs: path, folder, bytes, file object, array or tensor with its `sample_rate`, `{"array",
                "sampling_rate"}`, or a list or an iterator of these; all forms: `gafx.deploy.inputs.open_inputs`.
            sample_rate: in Hz, of arrays and tensors; any, they are resampled to the model's.
            **options: of `gafx.deploy.predict.predict_files`.

        Raises:
            UsageError: as `gafx.predict`.
        """
        from gafx.deploy.predict import predict

        options.setdefault("device", str(device_of(self)))
        return predict(inputs, self, sample_rate=sample_rate, **options)

    def embed_file(
        self, sound: Any, *, sample_rate: float | None = None, per_window: bool = False, **options: Any
    ) -> npt.NDArray[np.float32]:
        """Compute the embedding of one file or sound of any length, on the model's device.

        Args:
            sound: one input as for `predict`.
            sample_rate: in Hz, of an array or tensor.
            per_window: return the embedding of each window instead of their mean.
            **options: `overlap` (default 0), `window_seconds`, `batch_size`, `device`, `precision`.

        Returns:
            float32 `(width,)`, or with `per_window` `(windows, width)`.

        Raises:
            UsageError: none or several sounds.
            UnreadableAudio: it cannot be decoded, or its samples cannot be used.
        """
        from gafx.deploy.features import embed_file

        return embed_file(self, sound, sample_rate=sample_rate, per_window=per_window, **options)

    def stream(self, chunks: Iterable[Any], sample_rate: float, **options: Any) -> "Iterator[StreamWindow]":
        """Label a stream as it comes, on the model's own device: `for window in model.stream(chunks, 48000)`.

        Sets eval mode.

        Args:
            chunks: of any size: arrays or tensors `(samples,)` or `(channels, samples)`, or bytes of PCM.
            sample_rate: in Hz; any, it is resampled to the model's.
            **options: of `gafx.deploy.stream.stream`: `overlap` or `hop_seconds`, `window_seconds` and others.

        Raises:
            UsageError: as `gafx.deploy.stream.stream`.
        """
        from gafx.deploy.stream import stream

        check_options(options, stream, "stream")
        options.setdefault("device", str(device_of(self)))
        return stream(self, chunks, sample_rate, **options)

    def fsdp_units(self) -> set[type[nn.Module]]:
        """Return the classes of modules that FSDP shards as units of their own."""
        return {*self.frontend.fsdp_units, *self.classifier.fsdp_units}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters with two or more dimensions that take no weight decay."""
        parts = (("frontend", self.frontend), ("classifier", self.classifier))
        return {f"{key}.{name}" for key, part in parts for name in part.no_weight_decay()}

    def save(self, folder: str | os.PathLike[str], *, objective: Mapping[str, Tensor] | None = None) -> Path:
        """Write config.json, model.safetensors and a model card (README.md) into `folder`, atomically.

        Args:
            folder: new, empty, or one that contains an earlier model and nothing else, which is replaced.
            objective: tensors of a training objective that are no part of the model, for a file objective.safetensors.

        Raises:
            UsageError: the model was not built by name, so that config.json could not describe how to rebuild it; or
                `folder` cannot be written or contains other files.
        """
        return hub.write(self.state_dict(), self._info_to_save(), folder, objective=objective)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None,
        token: str | bool | None = None, cache_dir: str | os.PathLike[str] | None = None, force_download: bool = False,
        local_files_only: bool = False, classes: Sequence[str] | None = None, partial: bool = False, **other: Any,
    ) -> "GAFX":  # fmt: skip
        """Load a model as `gafx.load` does, with the arguments that users of the Hugging Face hub's libraries know.

        Only config.json and model.safetensors are read, and no code is executed. In eval mode on the CPU.

        Args:
            pretrained_model_name_or_path: as `source` of `gafx.load`: a folder, `owner/name` or a published model.
            revision: commit, branch or tag of the repository.
            token: of a private repository, by default that of `hf auth login` or HF_TOKEN; False sends none.
            cache_dir: folder of the downloads.
            force_download: fetch again what is in the cache.
            local_files_only: use the cache only.
            classes, partial: as in `gafx.load`.

        Raises:
            UsageError: as `gafx.load`; or another argument.
        """
        from gafx.loading import load

        if other:
            raise UsageError(
                f"from_pretrained takes no {', '.join(other)}: give revision, token, cache_dir, force_download, "
                "local_files_only, classes or partial; a device or a type by .to(...) of the result"
            )
        return load(
            pretrained_model_name_or_path, classes=classes, partial=partial, revision=revision, token=token,
            cache_dir=cache_dir, force_download=force_download, local_files_only=local_files_only,
        )  # fmt: skip

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, repo_id: str | None = None, push_to_hub: bool = False,
        license: str | None = None, **push_options: Any,
    ) -> str | None:  # fmt: skip
        """Write what `save` writes into a folder, and upload it with `push_to_hub`.

        Args:
            save_directory: as `folder` of `save`.
            repo_id: repository of the upload; default: the folder's name below the user of the token.
            push_to_hub: upload too.
            license: see `push_to_hub`.
            **push_options: of `push_to_hub`.

        Returns:
            the address of the repository with `push_to_hub`, else None.

        Raises:
            UsageError: as `save` and `push_to_hub`.
        """
        _check_push_options(push_options)
        hub.write(self.state_dict(), self._info_to_save(license), save_directory, repo_id)
        if not push_to_hub:
            return None
        repo_id = repo_id or hub.own_repository(Path(save_directory).name, push_options.get("token"))
        return self.push_to_hub(repo_id, license=license, **push_options)

    def push_to_hub(
        self, repo_id: str, *, commit_message: str = "Upload a gafx model", private: bool | None = None,
        token: str | None = None, branch: str | None = None, create_pr: bool = False,
        license: str | None = None, **other: Any,
    ) -> str:  # fmt: skip
        """Upload what `save` writes to the Hugging Face hub and return the address of the repository. Never prompts.

        Args:
            repo_id: `owner/name`; it is created if it does not exist.
            commit_message: of the commit.
            private: whether a new repository is private; by default as the owner's settings say.
            token: of the hub; by default that of `hf auth login` or HF_TOKEN.
            branch: to upload to; it is created if it does not exist. Default: the main branch.
            create_pr: upload as a pull request.
            license: the hub's identifier of the weights' licence, e.g. `cc-by-4.0`, for the card and `info.license`. By
                default that in `info`; where none is stated, `other` for weights that were trained, which inherit the
                terms of their data.

        Raises:
            UsageError: a malformed name, no login, no permission to write there, or the hub cannot be reached; or an
                argument that is not supported.
        """
        _check_push_options(other)
        with tempfile.TemporaryDirectory() as temporary:
            folder = hub.write(self.state_dict(), self._info_to_save(license), Path(temporary, "model"), repo_id)
            return hub.push(
                folder,
                repo_id,
                private=private,
                token=token,
                message=commit_message,
                branch=branch,
                create_pr=create_pr,
            )

    def check_statistics(self) -> None:
        """Warn, once for a model, if maps of a fixed front-end are normalised by statistics that were never set."""
        unset = any(norm.is_fitted_before and not norm.is_fitted for norm in self.map_norm.parts())
        if unset and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the maps of this model's fixed front-end are normalised by mean 0 and std 1, which nothing has set: "
                "the classifier reads values of another scale than it was made for. Call "
                "model.fit_statistics(waves) with clips of the training split, and save the model again",
                stacklevel=3,
            )

    def _info_to_save(self, license: str | None = None) -> ModelInfo:
        """Return `info`, without training and scores if weights of a part were loaded since it was set.

        `license` is set in it, and in `info`.
        """
        if self.info is None or not self.info.frontend:
            missing = "model" if self.info is None else "front-end"
            raise UsageError(
                f"config.json cannot describe how this {missing} was built, since its class was called: build it by "
                "name instead, e.g. gafx.create_model('gafx_r', classes=[...], segment_seconds=10.0), or pass "
                "create_model the result of gafx.create_frontend"
            )
        known = self.info.provenance
        parts = (self.frontend.weight_source or known.frontend, self.classifier.weight_source or known.classifier)
        provenance = Provenance(*parts)
        for registry, part in ((FRONTENDS, self.info.frontend), (CLASSIFIERS, self.info.classifier)):
            if names := registry.in_main(part):
                warnings.warn(
                    f"the {registry.kind} {', '.join(names)} is defined in a notebook or script: another process loads "
                    "this model only after it has registered that class. A class in a module of an installed package "
                    f"is found by the entry point group {registry.package}",
                    stacklevel=3,
                )
        info = self.info if provenance == known else self.info.with_other_weights(provenance)
        if license is not None:
            self.info.license = license
            return dataclasses.replace(info, license=license)
        if info.license != self.info.license:
            warnings.warn(
                f"the licence {self.info.license!r} was stated for other weights, and is left out: pass license=...",
                stacklevel=3,
            )
        return info


_PUSH_OPTIONS = ("commit_message", "private", "token", "branch", "create_pr", "license")
_REFUSED = {
    "message": "it is called commit_message",
    "config": "config.json is written from model.info",
    "model_card_kwargs": "the card is written from model.info; give license=..., or edit the README.md that is saved",
    "safe_serialization": "weights are always written as safetensors",
}


def _check_push_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _PUSH_OPTIONS:
            reason = _REFUSED.get(name, f"it takes {', '.join(_PUSH_OPTIONS)}")
            raise UsageError(f"push_to_hub and save_pretrained take no {name}: {reason}")


def _rename_tensors(_: nn.Module, state: dict[str, Tensor], *__: object) -> None:
    weights.rename_tensors(state)


def create_frontend(name: str, *, pretrained: bool | str = False, **arguments: Any) -> FrontEnd:
    """Build a front-end by name, e.g. `create_frontend("gafx_r", width=16)`: a plain `nn.Module`.

    Args:
        name: one of `gafx.list_frontends()`.
        pretrained: initial weights, for front-ends that learn: a saved model's folder, a `.safetensors` file or a hub
            repository; `True` for published weights, where there are any.
        **arguments: of the front-end.

    Raises:
        UsageError: unknown name or argument; the message lists the choices.
    """
    if pretrained is not False:
        arguments["pretrained"] = pretrained
    frontend: FrontEnd = FRONTENDS.create(name, **arguments)
    frontend.built = frontend.resolve({"name": name, **FRONTENDS.check(name, arguments)})
    return frontend


def create_model(
    frontend: str | Mapping[str, Any] | FrontEnd,
    classifier: str | Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    segment_seconds: float | None = None,
) -> GAFX:
    """Build a model by the names of its parts.

    Args:
        frontend: name, or mapping with `name` and keyword arguments, or a front-end; or a name of both parts from
            `gafx.list_models()`, e.g. `mel+cnn`.
        classifier: name or mapping, by default `ast`; it is built for the front-end's map of `segment_seconds`.
        num_classes: number of labels, instead of `classes`; the labels are then "0", "1", ...
        classes: labels in the order of the outputs.
        segment_seconds: length of the clips that the classifier is built for; it accepts other lengths too. Default:
            that of the classifier's or else the front-end's pretrained weights, where it is known, else 10.

    Raises:
        UsageError: an unknown name or argument, an invalid number of classes or seconds, or a classifier that does not
            fit the front-end's map.
    """
    if catalogue.find(frontend) is not None:
        wanted = "[...]" if classes is None else list(classes)
        raise UsageError(
            f"{frontend!r} is a published model, not a front-end: gafx.load({frontend!r}, classes={wanted}) gives it "
            "an output layer for other labels"
        )
    labels = _labels(num_classes, classes, "create_model")
    if isinstance(frontend, str) and "+" in frontend:
        if classifier is not None:
            raise UsageError(
                f"{frontend!r} names a classifier, and classifier={classifier!r} another: give one of them"
            )
        frontend, _, classifier = frontend.partition("+")
    classifier = "ast" if classifier is None else classifier
    if segment_seconds is None:
        segment_seconds = _pretrained_seconds(classifier, frontend) or _DEFAULT_SECONDS
    if not isinstance(segment_seconds, Real):
        raise UsageError(f"segment_seconds={segment_seconds!r} must be a number of seconds, e.g. 10.0")
    if not 0 < segment_seconds <= _MAX_SECONDS:
        raise UsageError(f"segment_seconds={segment_seconds} must be above 0 and at most {_MAX_SECONDS:g}")
    if not isinstance(frontend, FrontEnd):
        frontend = create_frontend(**({"name": frontend} if isinstance(frontend, str) else _named(frontend)))
    arguments = _named({"name": classifier} if isinstance(classifier, str) else classifier)
    name = arguments.pop("name")
    built, filled = frontend.built or {}, {"name": name, **CLASSIFIERS.check(name, arguments, "classifier")}
    map_shape = frontend.output_shape(round(segment_seconds * frontend.sample_rate))
    kind: Any = CLASSIFIERS.get(name)
    kind.check_map(map_shape)
    planes = (frontend.planes,) if kind.takes_planes else ()
    model = GAFX(frontend, CLASSIFIERS.create(name, map_shape, len(labels), *planes, **arguments))
    scale = model.classifier.input_scale
    for norm in model.map_norm.parts():
        if scale is not None and norm.is_fitted_before:
            norm.fit(*scale)
    model.info = ModelInfo(
        # The saved weights include the pretrained ones: loading the model must not fetch those again.
        frontend=hub.without_pretrained(built), classifier=hub.without_pretrained(filled), classes=labels,
        segment_seconds=float(segment_seconds), sample_rate=frontend.sample_rate, channels=frontend.channels,
        map_shape=list(map_shape), provenance=Provenance(
            frontend.weight_source or frontend.source_of(built),
            model.classifier.weight_source or kind.source_of(filled),
        ),
    )  # fmt: skip
    if classes is not None:  # numbers are no names that could be compared
        model._match_head(labels)
    return model


def _some(labels: Sequence[str], most: int = 3) -> str:
    return ", ".join(labels[:most]) + (", ..." if len(labels) > most else "")


def _pretrained_seconds(*parts: object) -> float | None:
    """Return the length of the clips that the weights of the first part with `pretrained` were made for, if known."""
    for part in parts:
        pretrained = part.get("pretrained", False) if isinstance(part, Mapping) else False
        if pretrained not in (False, None):
            assert isinstance(part, Mapping)
            published = catalogue.find(str(pretrained)) or catalogue.find(f"{part.get('name')}-{pretrained}")
            return published.segment_seconds if published else hub.saved_seconds(pretrained)
    return None


def _named(part: object) -> dict[str, Any]:
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        raise UsageError(f"{part!r} names no part: give a name, or a mapping of a name and the part's arguments")
    return dict(part)


def _labels(num_classes: int | None, classes: Sequence[str] | None, where: str) -> list[str]:
    if classes is None:
        if num_classes is None:
            raise UsageError("a model needs its labels: classes=[...], or num_classes=<number> for numbered ones")
        if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 1:
            raise UsageError(f"num_classes={num_classes!r} must be an integer of at least 1")
        return [str(number) for number in range(num_classes)]
    labels = hub.check_classes(classes, where)
    if num_classes not in (None, len(labels)):
        raise UsageError(f"num_classes={num_classes}, but classes has {len(labels)} labels: give one of the two")
    return labels


def provenance_of(
    frontend: Mapping[str, Any], classifier: Mapping[str, Any], pretrained: str | None = None
) -> Provenance:
    """Return the origin of the weights of a model, without building it.

    Args:
        frontend, classifier: name and arguments.
        pretrained: model that both are loaded from, see `GAFX.load_pretrained`.
    """
    frontend_class: Any = FRONTENDS.get(frontend["name"])
    classifier_class: Any = CLASSIFIERS.get(classifier["name"])
    source = frontend_class.source_of(frontend)
    if pretrained is None:
        return Provenance(source, classifier_class.source_of(classifier))
    whole = WeightSource.from_argument(pretrained, {})
    return Provenance(source if source.kind == "fixed" else whole, whole)
