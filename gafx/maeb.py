"""gafx models as encoders for mteb's audio benchmark (MAEB): `mteb.evaluate(gafx.maeb.encoder(model), tasks)`.

An embedding is that of `gafx.hear.get_scene_embeddings`: audio of any length and sampling rate, whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gafx._version import __version__
from gafx.audio.decode import mix_channels
from gafx.audio.read import resample
from gafx.errors import UsageError
from gafx.hear import HEARModel, get_scene_embeddings, load_model
from gafx.nn.precision import pick_device


class Encoder:
    """An encoder of sounds by mteb's protocol (`EncoderProtocol`), which needs no text.

    Args:
        model_name: model, or front-end alone, as for `gafx.hear.load_model`.
        revision: for mteb's records.
        device: `auto`, `cpu`, `cuda` or the like; None is `auto`.
        **options: of `gafx.hear.load_model`; mteb passes options of its own, which are ignored.

    Attributes:
        model: that computes the embeddings.

    Raises:
        UsageError: no model there.
    """

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = None, **options: Any):
        self.name, self.revision = str(model_name), revision or f"gafx-{__version__}"
        self.model: HEARModel = load_model(self.name).to(pick_device(device or "auto"))

    @property
    def mteb_model_meta(self) -> Any:
        """Metadata that mteb writes with the scores.

        Raises:
            UsageError: mteb is not installed.
        """
        try:
            from mteb.models import ModelMeta
        except ModuleNotFoundError as error:
            if error.name != "mteb":
                raise
            raise UsageError("gafx.maeb needs mteb: pip install mteb") from error
        name = self.name if self.name.count("/") == 1 and not self.name.startswith(("/", ".")) else _name(self.name)
        return ModelMeta.create_empty(
            overwrites={
                "name": name, "revision": self.revision, "modalities": ["audio"], "framework": ["PyTorch"],
                "similarity_fn_name": "cosine", "embed_dim": self.model.scene_embedding_size,
                "n_parameters": sum(p.numel() for p in self.model.parameters()),
            }
        )  # fmt: skip

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any = None, hf_split: str = "",
        hf_subset: str = "", prompt_type: Any = None, **options: Any,
    ) -> npt.NDArray[np.float32]:  # fmt: skip
        """Compute the embeddings of sounds.

        Args:
            inputs: batches; the key `audio` of each holds items with `array`, `(samples,)` or `(channels, samples)` in
                [-1, 1], and `sampling_rate` in Hz.
            task_metadata, hf_split, hf_subset, prompt_type: of mteb, not used: the embedding of a sound depends on
                nothing else.
            **options: of mteb, not used.

        Returns:
            `(sounds, model.scene_embedding_size)`.

        Raises:
            UsageError: a batch without `audio` (this encoder reads no text and no images), or an item of another form.
        """
        found = [self._embed(item) for batch in inputs for item in _sounds(batch)]
        return torch.cat(found).cpu().numpy() if found else np.zeros((0, self.model.scene_embedding_size), np.float32)

    def _embed(self, item: Mapping[str, Any]) -> Tensor:
        if not isinstance(item, Mapping) or not {"array", "sampling_rate"} <= item.keys():
            held = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
            raise UsageError(f"an item of a batch must hold 'array' and 'sampling_rate', in Hz; it holds {held}")
        samples = np.atleast_2d(np.asarray(item["array"], np.float32)).T  # gafx's audio is (samples, channels)
        mono = resample(mix_channels(samples, 1), int(item["sampling_rate"]), self.model.sample_rate)
        return get_scene_embeddings(torch.from_numpy(np.ascontiguousarray(mono.T)), self.model)

    def similarity(self, embeddings1: npt.ArrayLike | Tensor, embeddings2: npt.ArrayLike | Tensor) -> Tensor:
        """Cosine similarity of all pairs: `(n, size)` and `(m, size)` -> `(n, m)`."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: npt.ArrayLike | Tensor, embeddings2: npt.ArrayLike | Tensor) -> Tensor:
        """Cosine similarity of pairs: `(n, size)` and `(n, size)` -> `(n,)`."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=1)


def encoder(model: str, **options: Any) -> Encoder:
    """Make the encoder of a model; arguments as for `Encoder`.

    Args:
        model: a run's folder, a saved model, a name of the catalogue, a repository of the hub, or `frontend=mel`.
        **options: of `Encoder`.

    Raises:
        UsageError: no model there.
    """
    return Encoder(model, **options)


def _sounds(batch: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if "audio" not in batch:
        raise UsageError(
            f"a batch of {', '.join(map(str, batch)) or 'nothing'}: gafx models encode audio alone; choose tasks of "
            "audio classification, clustering, pair classification or audio-to-audio retrieval"
        )
    return batch["audio"]


def _name(source: str) -> str:
    """A name in mteb's form, owner/model."""
    return f"gafx/{source.rstrip('/').rpartition('/')[2].replace('=', '-').replace(',', '-')}"


def _unit(values: npt.ArrayLike | Tensor) -> Tensor:
    found = torch.atleast_2d(torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values).float())
    return torch.nn.functional.normalize(found, dim=1)
