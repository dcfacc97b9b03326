"""Files of data sets on the Hugging Face hub: what there is, and one of them fetched and checked."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gafx.data.download.fetch import fetch_url
from gafx.errors import UsageError


def fetch_hub(repo: str, file: str, folder: Path) -> Path:
    """Download a file of a Hugging Face data set repository into `folder`, as `fetch_url` does.

    The hub is asked through huggingface_hub, so `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured. The
    content is checked against the SHA-256 that the hub announces for the files in its large file storage.
    huggingface_hub's own download is not used: it starts from the beginning in each process.

    Raises:
        UsageError: as `fetch_url`, or the hub does not answer, or has no such file for this user.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    path = folder / PurePosixPath(file).name
    url = hf_hub_url(repo, file, repo_type="dataset")
    try:
        about = get_hf_file_metadata(url)
    except Exception as error:  # those of its HTTP library pass through, and which that is depends on the version
        if path.is_file():  # whole and checked, or put there by hand
            return path
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{url} could not be asked for ({reason}); check the network and the variables HF_ENDPOINT, HF_HUB_OFFLINE "
            f"and, for a closed repository, HF_TOKEN, or download it by other means and put it at {path}"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{64}", about.etag or ""):
        if path.is_file():
            return path
        raise UsageError(
            f"{url}: the hub announces no SHA-256 for it but {about.etag!r}, so it cannot be checked; let HF_ENDPOINT "
            f"name a complete mirror, or download it by other means and put it at {path}"
        )
    # The commit that was asked about, lest the file change in between.
    url = hf_hub_url(repo, file, repo_type="dataset", revision=about.commit_hash)
    return fetch_url(url, path, sha256=about.etag, size=about.size, headers=build_hf_headers())


@dataclass(frozen=True)
class HubFiles:
    """The files of a data set repository, all of one commit.

    Attributes:
        repo: `owner/name`.
        commit: their commit.
        files: by path: size in bytes, SHA-256 where the file is in the large file storage, and git's SHA-1 of it.
    """

    repo: str
    commit: str
    files: dict[str, tuple[int, str | None, str]]

    def fetch(self, name: str, folder: Path) -> Path:
        """Download one of them to its place below `folder`, checked against the hash that the hub announces.

        Raises:
            UsageError: as `fetch_url`, or the content is not what the hub announces.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        size, sha256, sha1 = self.files[name]
        url = hf_hub_url(self.repo, name, repo_type="dataset", revision=self.commit)
        path = fetch_url(url, folder / name, sha256=sha256, size=size, headers=build_hf_headers())
        if sha256 is None and _git_sha1(path) != sha1:
            path.unlink()
            raise UsageError(f"{url} is not what the hub announces; it has been deleted, run the same again")
        return path


def list_hub_files(repo: str, revision: str | None = None) -> HubFiles:
    """Ask the hub for the files of a data set.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        UsageError: the hub does not answer, has no such data set for this user, or names a file outside it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        commit = api.dataset_info(repo, revision=revision).sha
        tree = api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:  # those of its HTTP library pass through, and which that is depends on the version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"data set {repo!r} on the hub{f' at {revision!r}' if revision else ''} could not be asked for ({reason}); "
            "check its name, the network and the variables HF_ENDPOINT, HF_HUB_OFFLINE and, for a closed repository, "
            "HF_TOKEN"
        ) from error
    files = {}
    for entry in entries:
        if entry.path != os.path.normpath(entry.path) or entry.path.startswith(("/", "..")) or "\\" in entry.path:
            raise UsageError(f"data set {repo!r} names a file {entry.path!r}, which leads out of its folder")
        sha256 = entry.lfs.sha256 if entry.lfs is not None else None
        files[entry.path] = (entry.size, sha256, entry.blob_id)
    return HubFiles(repo, str(commit), files)


def _git_sha1(path: Path) -> str:
    """The name that git gives a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()
