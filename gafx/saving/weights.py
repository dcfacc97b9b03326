"""Find, read and fit pretrained weights: a local file, a local folder, a run, or the Hugging Face hub.

Only safetensors are read, never a pickle. The one exception is `read_state_dict`, for torchaudio's bundles: through
`torch.load(weights_only=True)`, which builds tensors and nothing else.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "model.safetensors"
# Earlier names of tensors (patterns), and their names.
_RENAMED = ((re.compile(r"(^|\.)(map_norm\.(?:norms\.\d+\.)?)deviation$"), r"\1\2std"),)
ABOUT = "gafx"  # key of what gafx says of a file of weights in its header
# Endings by which a name is taken for that of a file, not of a hub repository (these may hold dots).
_KINDS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th", ".pkl")


def find(
    source: bool | str,
    repo: str | None = None,
    *,
    key: str,
    files: Sequence[str] = (FILE,),
    suffixes: Sequence[str] = (".safetensors",),
) -> Path:
    """Return the path of a file of weights.

    Args:
        source: `True` for the hub's `repo`; a path of a file, of a folder, or of a run's folder (its `model/`); or the
            id (`owner/name`) of another hub repository.
        repo: hub repository of the default weights; `None` where nobody has published any.
        key: configuration key that asked, for messages.
        files: names looked for in a folder or repository, in this order. In a local folder without any of them, the
            only file of the right kind serves.
        suffixes: kinds of files that the caller can read.

    Raises:
        UsageError: nothing there, not reachable, or a file of another kind. Names the ways to get weights.
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
        if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix in _KINDS:
            raise UsageError(f"{key}={source!r} does not exist. {ways}")
        repo = source
    if repo is None:
        raise UsageError(f"{key}=true: nobody has published such weights yet. {ways}")
    try:
        return fetch(repo, files)
    except UsageError as error:
        asked = "true" if source is True else source
        raise UsageError(f"{key}={asked}: {error}. {ways}") from error


def _in_folder(folder: Path, files: Sequence[str], suffixes: Sequence[str], asked: str, ways: str) -> Path:
    for place in (folder, folder / "model"):
        for name in files:
            if (place / name).is_file():
                return place / name
    if (folder / "run.json").is_file():
        raise UsageError(
            f"{asked}: that run is not finished; give its train.py command again, it continues from the last checkpoint"
        )
    others = [path for path in folder.iterdir() if path.suffix in suffixes and path.is_file()]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(sorted(path.name for path in others)) or f"none of {', '.join(files)}"
    raise UsageError(f"{asked}: the folder holds {listed}; name one file. {ways}")


def local_path(source: object) -> Path:
    """`source` as a path on this machine; a name that no file can have is one of a file that is not there."""
    try:
        path = Path(str(source)).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a byte 0
        return Path("/dev/null/not there")
    return path


def is_repo(name: str) -> bool:
    """Whether `name` has the form of a hub repository's id: owner/name, without a way out of either."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII) is not None and (
        ".." not in name
    )


def fetch(repo: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Fetch the first of `files` that a hub repository has into the hub's cache, and return its path there.

    Args:
        repo: owner/name.
        files: names in the repository.
        revision: commit or branch; the default is the newest commit.

    Raises:
        UsageError: the repository or the files are not there, or the hub cannot be reached.
    """
    if not is_repo(repo):
        raise UsageError(f"{repo!r} is no hub repository (<owner>/<name>)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failure: Exception | None = None
    for name in files:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # the hub cannot be reached: no use in asking for other files
            failure = error
            break
        except EntryNotFoundError as error:
            failure = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            failure = error
            break
    assert failure is not None
    raise UsageError(f"{repo} could not be fetched from the hub ({_first_line(failure)})") from failure


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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
        raise UsageError(f"{path} cannot be read as safetensors ({error}); download or write it again") from error


def rename_tensors(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Rename, in place, the tensors that had other names in earlier versions of gafx; return the same mapping."""
    for pattern, name in _RENAMED:
        for old in [key for key in state if pattern.search(key)]:
            state[pattern.sub(name, old)] = state.pop(old)
    return state


def shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, from its header: no tensor is read.

    Raises:
        UsageError: the file is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors ({error}); download or write it again") from error


def about(path: Path) -> dict[str, Any]:
    """What gafx wrote about weights that it saved: `sample_rate` in Hz, `frontend` (name), `objective`.

    It stands in the file's header, in older files in the config.json beside it. Empty for files of others. It comes
    with the file: check types before using a value.
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


def read_state_dict(path: Path) -> "dict[str, Tensor]":
    """The tensors of a file that `torch.save` wrote of a plain state dict; nothing in it is executed.

    Raises:
        UsageError: the file is damaged, or holds anything but plain tensors by name.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader stumble over anything
        reason = _first_line(error)
        # Of a pickle or a TorchScript archive, torch says how to run what is in it: no advice for a stranger's file.
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
    """The tensors under `prefix.`, without it; all of them where none is (the file holds that part alone)."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)} or dict(state)


def fit(
    module: "nn.Module", state: "Mapping[str, Tensor]", where: object, *, partial: bool = False, cure: str = ""
) -> list[str]:
    """Load a state dict into a module and return the names of its parameters and buffers that stayed as they were.

    Args:
        module: what to load into.
        state: tensors by name.
        where: file that they came from, for messages.
        partial: leave out what the file lacks or has in another shape, instead of raising. Tensors of the file that the
            module does not have are left out too.
        cure: what to do about a misfit, for the message.

    Raises:
        UsageError: tensors are missing, left over or of another shape; the message names them. With `partial`: not one
            fits.
    """
    own = module.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
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
        cure = cure or "build it as it was saved, or take what fits: gafx.load_weights(module, source, partial=True)"
        raise UsageError(f"{where} does not fit {type(module).__name__} ({'; '.join(lines)}{more}): {cure}")
    _load(module, state, where, strict=True)
    return []


def _load(module: "nn.Module", state: "Mapping[str, Tensor]", where: object, *, strict: bool) -> None:
    try:
        module.load_state_dict(dict(state), strict=strict)
    except RuntimeError as error:  # shapes agree, but a value cannot be copied, or a module's own hook objects
        reason = " ".join(str(error).split())
        raise UsageError(f"{where} cannot be loaded into {type(module).__name__} ({reason})") from error
