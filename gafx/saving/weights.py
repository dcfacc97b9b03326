"""Find, read and load pretrained weights: from a local file or folder, a run, or the Hugging Face hub.

Only safetensors files are read, never a pickle. The one exception is `read_state_dict`, for torchaudio's bundles and
plain state dicts of image networks, with `torch.load(weights_only=True)`, which builds only tensors.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from gafx.errors import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "model.safetensors"
# Earlier names of tensors (patterns), and their names.
_RENAMED = ((re.compile(r"(^|\.)(map_norm\.(?:norms\.\d+\.)?)deviation$"), r"\1\2std"),)
ABOUT = "gafx"  # key of gafx's metadata in the header of a weights file
# Suffixes that mark a name as a file, not a hub repository, whose name may contain dots.
_NOWHERE = Path("/dev/null/not there")
_MODEL_FILES = ("config.json", "model/config.json", "run.json", FILE)  # one of them is in a run or a model's folder
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th", ".pkl")
_OUR_FOLDERS = ("outputs", "runs")  # never the owner of a repository, also where there is no such folder
_TIMEOUT = 5.0  # seconds for the hub's first answer; HF_HUB_ETAG_TIMEOUT changes it


class Download(TypedDict, total=False):
    """How files are fetched from the hub, in the words of its client.

    revision: commit, branch or tag; by default the newest commit.
    token: of a private repository, by default that of `hf auth login` or HF_TOKEN; False sends none.
    cache_dir: folder of the downloads, by default HF_HUB_CACHE.
    force_download: fetch again what is in the cache.
    local_files_only: use the cache only, as HF_HUB_OFFLINE=1 does.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    force_download: bool
    local_files_only: bool


def find(
    source: bool | str,
    repo: str | None = None,
    *,
    key: str,
    files: Sequence[str] = (FILE,),
    suffixes: Sequence[str] = (".safetensors",),
) -> Path:
    """Return the path of a weights file.

    Args:
        source: `True` for the hub repository `repo`; the path of a file, of a folder, or of a run's folder (its
            `model/`); or the id (`owner/name`) of another hub repository.
        repo: hub repository of the published weights; None if there are none.
        key: configuration key of `source`, for messages.
        files: names to look for in a folder or repository, in this order. In a local folder without any of them, the
            only file with one of `suffixes` is used.
        suffixes: of the files that the caller can read.

    Raises:
        UsageError: no file there, not reachable, or a file of another type. The message lists the ways to get weights.
    """
    published = f"{key}=true (the hub's {repo}; needs the network once), " if repo else ""
    ways = (
        f"Ways to get them: {published}{key}=<file>.safetensors, {key}=<folder with {files[0]}>, {key}=<owner/name on "
        f"the hub>; or {key}=false for a random start"
    )
    if isinstance(source, str):
        if not source.strip():
            raise UsageError(f"{key}={source!r} is empty and names no weights. {ways}")
        path = local_path(source)
        if path.is_dir():
            return _in_folder(path, files, suffixes, f"{key}={source!r}", ways)
        if path.is_file():
            if path.suffix not in suffixes:
                raise UsageError(
                    f"{key}={source!r} is not a {' or '.join(suffixes)} file, and pickles are never loaded; convert it "
                    f"with safetensors.torch.save_file. {ways}"
                )
            return path
        if not is_remote(source):
            raise UsageError(f"{key}={source!r} does not exist{models_near(path)}. {ways}")
        repo = source
    if repo is None:
        raise UsageError(f"{key}=true: no such weights are published yet. {ways}")
    try:
        return fetch(repo, files) if source is True else fetch_named(repo, files)
    except UsageError as error:
        asked = "true" if source is True else source
        raise UsageError(f"{key}={asked}: {error}. {ways}") from error


def refuse_shards(folder: Path) -> None:
    """Raise `UsageError` for a folder in which transformers split the weights into several files."""
    if (folder / f"{FILE}.index.json").is_file():
        shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
        raise UsageError(
            f"{folder} holds the weights in several files ({', '.join(shards[:3])}{', ...' * (len(shards) > 3)}), "
            f"which gafx does not join: save them as one, model.save_pretrained(folder, max_shard_size='100GB')"
        )


def _in_folder(folder: Path, files: Sequence[str], suffixes: Sequence[str], asked: str, ways: str) -> Path:
    for directory in (folder, folder / "model"):
        for name in files:
            if (directory / name).is_file():
                return directory / name
    if (folder / "run.json").is_file():
        raise UsageError(
            f"{asked}: that run is not finished; repeat its train command, which resumes it from the last checkpoint"
        )
    refuse_shards(folder)
    others = [path for path in folder.iterdir() if path.suffix in suffixes and path.is_file()]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(sorted(path.name for path in others)) or f"none of {', '.join(files)}"
    raise UsageError(f"{asked}: the folder holds {listed}; name one file. {ways}")


def local_path(source: object) -> Path:
    """Return `source` as a path on this machine; for a name that no file can have, a path that does not exist."""
    try:
        path = Path(str(source)).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a byte 0
        return _NOWHERE
    return path


def is_repo(name: str) -> bool:
    """Return whether `name` has the form of a hub repository's id: owner/name, without `..`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII) is not None and (
        ".." not in name
    )


def is_remote(source: str) -> bool:
    """Return whether a name that is nothing on this machine may be asked of the hub.

    It has the form of a repository's id, and is no path typed wrongly: it has no suffix of a weights file, and the
    owner's name is neither a folder here nor one of gafx's own (`outputs`, `runs`).
    """
    path = local_path(source)
    mistyped = path.suffix in _SUFFIXES or path.parent.is_dir() or path.parent.name in _OUR_FOLDERS
    return is_repo(source) and not path.exists() and not mistyped


def models_near(path: Path, most: int = 10) -> str:
    """Return, for a message about a missing path, the closest model and all models in the nearest folder that exists.

    Args:
        path: that does not exist.
        most: models to name.
    """
    if path == _NOWHERE:
        return ""
    while not path.parent.is_dir():
        path = path.parent
    folder = path.parent
    if folder == Path() and Path("outputs").is_dir():  # a run named without its folder
        folder = Path("outputs")
    try:
        found = sorted(
            each.name
            for each in folder.iterdir()
            if each.suffix == ".safetensors" or any((each / name).is_file() for name in _MODEL_FILES)
        )
    except OSError:
        return ""
    folder = folder.absolute()
    if not found:
        return f"; there is no run or model in {folder}"
    more = f" and {len(found) - most} more" if len(found) > most else ""
    close = did_you_mean(path.stem if path.suffix in _SUFFIXES else path.name, found).rstrip("?").removeprefix("; ")
    return f"; {close + ', ' if close else ''}in {folder} there are: {', '.join(found[:most])}{more}"


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network, read as the hub's client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def fetch(repo: str, files: Sequence[str], **download: Unpack[Download]) -> Path:
    """Download the first of `files` that a hub repository has into the hub's cache; return its path there.

    Args:
        repo: owner/name.
        files: names in the repository.
        **download: see `Download`.

    Raises:
        UsageError: the repository or the files do not exist, or the hub cannot be reached.
    """
    if not is_repo(repo):
        raise UsageError(f"{repo!r} is no hub repository (<owner>/<name>)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reason, options = "", dict(download)
    if is_offline() or download.get("local_files_only"):
        reason = f"not in the cache, and {'HF_HUB_OFFLINE' if is_offline() else 'local_files_only'} forbids the network"
    failure: Exception | None = None
    for name in files:
        reason = reason or _why_unreachable(repo, name, download)
        options["local_files_only"] = bool(reason)
        try:
            return Path(hf_hub_download(repo, name, **cast("Any", options)))
        except LocalEntryNotFoundError as error:  # the hub is not asked or cannot be reached: other files fail too
            failure = error
            break
        except EntryNotFoundError as error:
            failure = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            failure = error
            break
    assert failure is not None
    raise UsageError(f"{repo} could not be fetched from the hub: {reason or _why(failure, files)}") from failure


def fetch_named(repo: str, files: Sequence[str], **download: Unpack[Download]) -> Path:
    """`fetch` for a name that could also be a path typed wrongly: the error says that it is no folder here, either."""
    try:
        return fetch(repo, files, **download)
    except UsageError as error:
        raise UsageError(f"there is no folder {local_path(repo).absolute()}, and {error}") from error.__cause__


def _why_unreachable(repo: str, name: str, download: Download) -> str:
    """Why the hub does not answer about a file that is not in the cache; empty if it does, or is not to be asked.

    A download of such a file would try again for half a minute.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    revision, token, cache = download.get("revision"), download.get("token"), download.get("cache_dir")
    folder = None if cache is None else Path(cache)
    if isinstance(try_to_load_from_cache(repo, name, cache_dir=folder, revision=revision), str):
        return ""
    try:
        seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _TIMEOUT)
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), token=token, timeout=seconds)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        return f"the hub answers with status {status}" if status == 429 or status >= 500 else ""
    except Exception as error:  # of the client's HTTP library, which is another one from version to version
        return f"the hub cannot be reached ({first_line(error)})"
    return ""


def _why(error: Exception, files: Sequence[str]) -> str:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "access to it must be asked for on its page, and a token given (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or a private one that needs a token (hf auth login)"
    if isinstance(error, EntryNotFoundError):
        return f"it has no {' or '.join(files)}"
    return first_line(error)


def read(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file; those that an earlier gafx wrote get their present names.

    Raises:
        UsageError: the file is damaged or has another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return rename_tensors(load_file(path))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    # safetensors reports a file that may not be read as one that does not exist.
    if path.exists() and not os.access(path, os.R_OK):
        return UsageError(f"{path} cannot be read (Permission denied): ask its owner for access, e.g. chmod a+r {path}")
    return UsageError(f"{path} cannot be read as safetensors ({error}); download or write it again")


def rename_tensors(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Rename, in place, the tensors that had other names in earlier versions of gafx; return the same mapping."""
    for pattern, name in _RENAMED:
        for old in [key for key in state if pattern.search(key)]:
            state[pattern.sub(name, old)] = state.pop(old)
    return state


def shapes(path: Path) -> dict[str, list[int]]:
    """Read the shapes of a safetensors file's tensors from its header, without the tensors; errors as of `read`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def about(path: Path) -> dict[str, Any]:
    """Read gafx's metadata of a weights file: `sample_rate` in Hz, `frontend` (name), `objective`.

    It is in the file's header, or for older files in the config.json next to it. Empty for files of other projects. It
    is not trusted: check types before using a value.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ABOUT)
        if text is None:
            text = path.with_name("config.json").read_text(encoding="utf-8")
        values = json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or not {"sample_rate", "objective"} <= values.keys():  # not gafx's
        return {}
    front_end = values.get("frontend")
    return {**values, "frontend": front_end.get("name") if isinstance(front_end, dict) else front_end}


def labels(path: Path) -> list[str] | None:
    """Read the labels of a model's outputs from the config.json next to its weights; None if it does not tell.

    gafx writes them as `classes`, transformers as `id2label`.
    """
    try:
        values = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        found = values.get("classes")
        if found is None:
            found = [name for _, name in sorted(values["id2label"].items(), key=lambda entry: int(entry[0]))]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def read_state_dict(path: Path) -> "dict[str, Tensor]":
    """Read a plain state dict that `torch.save` wrote; nothing in the file is executed.

    Raises:
        UsageError: the file is damaged, or contains anything but plain tensors by name.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise any exception
        reason = first_line(error)
        # For a pickle, torch's message explains how to execute it, which is no advice for an untrusted file.
        if re.search("weights.only", reason, re.IGNORECASE):
            reason = "it holds more than tensors"
        raise UsageError(f"{path} cannot be read as a plain state dict ({reason}); nothing in it was run") from error
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds no plain state dict (tensors by name)")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{path} holds no plain state dict (tensors by name): {name!r} is a {_kind(name, tensor)}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise UsageError(f"{path}: the tensor {name!r} holds no plain values (it is sparse, quantised or empty)")
    return state


def _kind(name: object, value: object) -> str:
    return type(value).__name__ if isinstance(name, str) else f"name of type {type(name).__name__}"


def part(state: "Mapping[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    """Return the tensors under `prefix.`, without it; all tensors if none has it (a file of that part alone)."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)} or dict(state)


def is_extra(name: str) -> bool:
    """Return whether a tensor is a module's extra state (torch's term): of any size, the module checks its content."""
    return name.rpartition(".")[2] == "_extra_state"


def fit(
    module: "nn.Module", state: "Mapping[str, Tensor]", where: object, *, partial: bool = False, cure: str = ""
) -> list[str]:
    """Load a state dict into a module and return the names of its parameters and buffers that were not loaded.

    Args:
        module: module to load into.
        state: tensors by name.
        where: file of the tensors, for messages.
        partial: skip tensors that the file lacks or has in another shape, instead of raising, and those of the file
            that the module lacks.
        cure: remedy if the tensors do not fit, for the message.

    Raises:
        UsageError: tensors are missing, unexpected or of another shape; the message names them. With `partial`: none
            fits.
    """
    own = module.state_dict()

    def fits(name: str, tensor: "Tensor") -> bool:
        return own[name].shape == tensor.shape or (is_extra(name) and tensor.dtype == own[name].dtype)

    fitting = {name: tensor for name, tensor in state.items() if name in own and fits(name, tensor)}
    if partial:
        if not fitting:
            raise UsageError(f"not one tensor of {where} fits {type(module).__name__}")
        _load(module, fitting, where, strict=False)
        return [name for name in own if name not in fitting]
    differ = [name for name in [*own, *(name for name in state if name not in own)] if name not in fitting]
    if differ:
        lines = [
            f"{name}: {tuple(state[name].shape) if name in state else 'nothing'} in the file, "
            f"{tuple(own[name].shape) if name in own else 'nothing'} here"
            for name in differ[:3]
        ]
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        cure = cure or "build it as it was saved, or load what fits: gafx.load_weights(module, source, partial=True)"
        raise UsageError(f"{where} does not fit {type(module).__name__} ({'; '.join(lines)}{more}): {cure}")
    _load(module, state, where, strict=True)
    return []


def _load(module: "nn.Module", state: "Mapping[str, Tensor]", where: object, *, strict: bool) -> None:
    try:
        module.load_state_dict(dict(state), strict=strict)
    except RuntimeError as error:  # shapes agree, but a value cannot be copied, or a module's own hook raises
        reason = " ".join(str(error).split())
        raise UsageError(f"{where} cannot be loaded into {type(module).__name__} ({reason})") from error
