"""Catalogue of published models that `gafx.load` makes by name, and the folder that their weights are fetched into.

Nothing is fetched unless a model is named. `GAFX_CACHE` names the folder; by default it is `gafx` in `XDG_CACHE_HOME`
or `~/.cache`. With `HF_HUB_OFFLINE=1` (or `--offline`) there is no access to the network.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, matching
from gafx.report.format import size
from gafx.saving import weights

NOT_STATED = "not stated"


@dataclass(frozen=True)
class PublishedModel:
    """A model that others trained and published.

    Attributes:
        name: argument of `gafx.load`, and of the classifier's `pretrained`.
        hears: what it was trained to recognise.
        label_file: JSON file beside this module with the labels in the order of the outputs; None if they are in the
            repository.
        licence: of the weights.
        authors: who published it, with the paper.
        address: of the weights file.
        bytes: its size; None if its authors do not state it.
        sha256: its digest; None for a repository of the Hugging Face hub, whose client checks what it downloads.
        score: published score with its protocol; None where its authors state none for these weights.
        segment_seconds: length of the clips that it was trained on.
        frontend: name and arguments of the front-end that computes its input.
        classifier: name and arguments.
        objective: registered name, which says what the outputs are.
        repository: on the Hugging Face hub, in transformers' layout, whose own configuration then describes the model;
            it is kept in the hub's cache.
    """

    name: str
    hears: str
    label_file: str | None
    licence: str
    authors: str
    address: str
    bytes: int | None
    sha256: str | None
    score: str | None
    segment_seconds: float
    frontend: Mapping[str, Any] = field(repr=False)
    classifier: Mapping[str, Any] = field(repr=False)
    objective: str = "tag"
    repository: str | None = None

    @property
    def labels(self) -> list[str] | None:
        """Labels in the order of the outputs; None if they are in the repository."""
        if self.label_file is None:
            return None
        values = json.loads(Path(__file__).with_name(self.label_file).read_text(encoding="utf-8"))
        return list(values["labels"])

    @property
    def path(self) -> Path:
        """Path of the weights file in the cache, where it may be missing."""
        if self.repository:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repository, weights.FILE)
            return Path(found) if isinstance(found, str) else Path("/dev/null/not fetched")
        return cache_folder() / "models" / self.name / self.address.rpartition("/")[2]

    @property
    def is_cached(self) -> bool:
        """Whether the weights have been fetched; a file in the cache that is not the published one does not count."""
        from gafx.io import file_digest

        return self.path.is_file() and (self.sha256 is None or self.sha256 == file_digest(self.path))

    @property
    def cache_state(self) -> str:
        """`in the cache`, `not in the cache`, or where the cache has a file that is not the published one."""
        if self.is_cached:
            return "in the cache"
        if not self.path.is_file():
            return "not in the cache"
        return f"damaged in the cache: delete {self.path}, and it is downloaded again"

    def describe(self) -> str:
        """Several lines for people: what it is, its terms, and whether it is in the cache."""
        labels = self.labels
        rows = {
            "hears": self.hears,
            "labels": f"{len(labels)}: {', '.join(labels[:5])}, ..." if labels else "in the repository's config.json",
            "size": size(self.bytes) if self.bytes else NOT_STATED,
            "licence": self.licence,
            "authors": self.authors,
            "address": self.address,
            "SHA-256": self.sha256 or "checked by the hub's client",
            "score": self.score or NOT_STATED,
            "cache": str(self.path) if self.is_cached else self.cache_state,
        }
        return "\n".join([self.name, *(f"  {key}: {value}" for key, value in rows.items())])


DEFAULT = "audioset-crnn"  # see `default_model`
CATALOGUE = {
    model.name: model
    for model in [
        PublishedModel(
            name="audioset-crnn",
            hears="everyday sounds, animals, vehicles, speech and music: the labels of AudioSet, in each frame",
            label_file="audioset_crnn_labels.json",
            licence="MIT",
            authors="Dinkel, Wang, Xu, Wu and Yu, 2021, arXiv 2105.04065 (its teacher T2)",
            address="https://raw.githubusercontent.com/RicherMans/Datadriven-GPVAD/"
            "6c94570bee753271722f64826a0ed00c030b089c/pretrained_models/teacher2/model.pth",
            bytes=3_266_036,
            sha256="49ad72bd983f0ae974aebc8ad9b38e8d6995270b90362789139a8625601bd775",
            score=None,
            segment_seconds=10.0,
            frontend={
                "name": "mel", "form": "librosa", "n_mels": 64, "win_length": 882, "hop_length": 441, "f_min": 0.0,
                "floor": 2.0**-52, "padding": "reflect",
            },
            classifier={"name": "crnn"},
        ),
        PublishedModel(
            name="ast-audioset",
            hears="everyday sounds, animals, vehicles, speech and music: the 527 labels of AudioSet",
            label_file=None,
            licence="BSD-3-Clause",
            authors="Gong, Chung and Glass, 2021, arXiv 2104.01778",
            address="https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593",
            bytes=None,
            sha256=None,
            score="mAP 0.459 on the evaluation set of AudioSet",
            segment_seconds=10.24,
            frontend={"name": "mel", "form": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160},
            classifier={"name": "ast", "size": "base", "stride": 10},
            repository="MIT/ast-finetuned-audioset-10-10-0.4593",
        ),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class PartWeights:
    """Published weights of one part, which are no whole model: a front-end or a classifier starts from them.

    Attributes:
        name: as they are published.
        option: of `gafx train` and, without the first word, of `create_model`, that selects them.
        use: what they are for.
        licence: of the weights, or what is known of it.
        address: where they are fetched from.
    """

    name: str
    option: str
    use: str
    licence: str
    address: str

    def describe(self) -> str:
        """Several lines for people."""
        rows = {"option": self.option, "use": self.use, "licence": self.licence, "address": self.address}
        return "\n".join([self.name, *(f"  {key}: {value}" for key, value in rows.items())])


PART_WEIGHTS = [
    PartWeights(
        "hdemucs_mmi", "frontend=gafx_u frontend.pretrained=true",
        "start of the front-end GAFX-U: Hybrid Demucs, trained to separate music (MUSDB and 800 more songs, 44.1 kHz)",
        f"{NOT_STATED} for the weights; demucs is under the MIT licence",
        "https://huggingface.co/adefossez/Demucs-hdemucs_mmi",
    ),
    PartWeights(
        "HDEMUCS_HIGH_MUSDB_PLUS", "frontend=gafx_u frontend.pretrained=torchaudio",
        "the same for torchaudio's bundle of Hybrid Demucs, whose file only tensors are read from", NOT_STATED,
        "https://download.pytorch.org/torchaudio/models/hdemucs_high_trained.pt",
    ),
    PartWeights(
        "deit_{tiny,small,base}_distilled_patch16_224.fb_in1k", "classifier=ast classifier.pretrained=true",
        "start of the classifier AST: DeiT of classifier.size, trained on ImageNet", "Apache-2.0 (as timm states it)",
        "https://huggingface.co/timm/deit_tiny_distilled_patch16_224.fb_in1k (and small, base)",
    ),
]  # fmt: skip


@overload
def list_models(filter: str | Iterable[str] = "", *, pretrained: Literal[False] = False) -> list[str]: ...


@overload
def list_models(filter: str | Iterable[str] = "", *, pretrained: Literal[True]) -> list[PublishedModel]: ...


def list_models(filter: str | Iterable[str] = "", *, pretrained: bool = False) -> list[Any]:
    """Return the names that `gafx.create_model` takes, or the published models; nothing is fetched.

    Args:
        filter: only names that match it, with the wildcards `*` and `?`, or one of several; empty for all.
        pretrained: return the published models, which `gafx.load` takes by name, instead of the untrained combinations
            of a front-end and a classifier, `mel+cnn` and so on.
    """
    if pretrained:
        return [CATALOGUE[name] for name in matching(CATALOGUE, filter)]
    return matching([f"{first}+{second}" for first in FRONTENDS.names() for second in CLASSIFIERS.names()], filter)


def default_model() -> str:
    """Return the name of the published model that is used where none is named.

    Raises:
        UsageError: it is not in the cache: nothing is fetched without being named.
    """
    model = CATALOGUE[DEFAULT]
    if not model.is_cached:
        raise UsageError(
            f"no --model: name a run, a folder or a hub id, or add --model {DEFAULT} (in Python: model={DEFAULT!r}; "
            f"fetched once: {size(model.bytes or 0)}, {model.licence} licence; hears {model.hears})"
        )
    return DEFAULT


def find(source: object) -> PublishedModel | None:
    """Return the model that `source` names; None if it names none, or something on the disk."""
    if not isinstance(source, str) or source not in CATALOGUE or Path(source).exists():
        return None
    return CATALOGUE[source]


def identify(path: Path) -> tuple[PublishedModel, Path] | None:
    """Return the published model whose weights are this file, or a file of this folder, by the digest; None if none.

    The second value is the path of the file.
    """
    from gafx.io import file_digest

    if path.is_dir():
        candidates = sorted(each for each in path.iterdir() if each.suffix == ".pth" and each.is_file())
    else:
        candidates = [path] if path.is_file() else []
    for candidate in candidates:
        fitting = [model for model in CATALOGUE.values() if model.bytes == candidate.stat().st_size]
        digest = file_digest(candidate) if fitting else ""
        for model in fitting:
            if model.sha256 == digest:
                return model, candidate
    return None


def fetch(model: PublishedModel) -> Path:
    """Return the path of a model's weights in the cache, after downloading them if they are not there yet.

    A download that was interrupted is continued, and the digest is checked. Of several processes one downloads.

    Raises:
        UsageError: not in the cache and offline, not available, or not the published file.
    """
    from gafx.data.download.fetch import fetch_url
    from gafx.io import locked

    path = model.path
    if not path.is_file() and weights.is_offline():
        raise UsageError(
            f"{model.name} is not in the cache, and HF_HUB_OFFLINE or --offline forbids the network: run once without "
            f"it, or put {model.address} at {path}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path.parent} cannot be created ({error.strerror or error}): let GAFX_CACHE name another folder"
        ) from error
    if path.is_file():
        _check(model, path)
        return path
    with locked(path.with_name(".lock"), f"waiting for another process that downloads {model.name}", remove=True):
        return fetch_url(model.address, path, sha256=model.sha256, size=model.bytes)


def check_download(model: PublishedModel, download: weights.Download) -> None:
    """Raise `UsageError` for options of the hub's client that a model outside the hub does not have.

    `token` has no effect; `local_files_only` is as `HF_HUB_OFFLINE=1`.
    """
    for name in ("revision", "cache_dir", "force_download"):
        if download.get(name):
            raise UsageError(
                f"{model.name} is fetched from {model.address} into GAFX_CACHE, not from the hub: leave out {name}"
            )
    if download.get("local_files_only") and not model.path.is_file():
        raise UsageError(f"{model.name} is not in the cache ({model.path}), and local_files_only forbids to fetch it")


def _check(model: PublishedModel, path: Path) -> None:
    """Raise `UsageError` if a file in the cache is not the published one: it is never replaced silently."""
    from gafx.io import file_digest

    found = file_digest(path)
    if found != model.sha256:
        raise UsageError(
            f"{path} is not {model.name}: its SHA-256 is {found} instead of {model.sha256}; delete it, and it is "
            "downloaded again"
        )


def describe_cache() -> str:
    """Where fetched models are kept, for people."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return f"cache: {cache_folder()} (GAFX_CACHE), and for repositories of the hub {HF_HUB_CACHE} (HF_HUB_CACHE)"


def cache_folder() -> Path:
    """Return the folder of fetched models: `GAFX_CACHE`, or `gafx` in `XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("GAFX_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "gafx"
