"""Find pretrained weights: a local file, a local folder, or the Hugging Face hub. Only safetensors, never a pickle."""

from pathlib import Path
from typing import TYPE_CHECKING

from gafx.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.safetensors"


def find(source: bool | str, repo: str, *, key: str) -> Path:
    """Return the path of a safetensors file.

    Args:
        source: `True` for the hub's `repo`; a path of a file or a folder; or the id (`owner/name`) of another hub
            repository.
        repo: hub repository of the default weights.
        key: configuration key that asked, for messages.

    Raises:
        UsageError: nothing there, not reachable, or a file that is not safetensors. Names the ways to get weights.
    """
    ways = (
        f"Ways to get them: {key}=true (the hub's {repo}; needs the network once), {key}=<file>.safetensors, "
        f"{key}=<folder with {FILE}>; or {key}=false for a random start"
    )
    if isinstance(source, str):
        path = Path(source).expanduser()
        if path.is_dir():
            path = path / FILE
            if not path.is_file():
                others = [p for p in Path(source).expanduser().iterdir() if p.suffix == ".safetensors"]
                if len(others) != 1:
                    raise UsageError(f"{key}={source!r}: the folder holds no {FILE}. {ways}")
                path = others[0]
        if path.is_file():
            if path.suffix != ".safetensors":
                raise UsageError(
                    f"{key}={source!r} is not a .safetensors file, and pickles are never loaded; convert it with "
                    f"safetensors.torch.save_file. {ways}"
                )
            return path
        if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix:
            raise UsageError(f"{key}={source!r} does not exist. {ways}")
        repo = source
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        asked = "true" if source is True else source
        raise UsageError(f"{key}={asked}: {repo} could not be fetched from the hub ({reason}). {ways}") from error


def read(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file.

    Raises:
        UsageError: the file is damaged or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read as safetensors ({error}); download or write it again") from error
