"""List and download the files of data sets on the Hugging Face hub.

Downloads go through `fetch_url`: huggingface_hub's own download deletes an incomplete file when it is interrupted, so
that 1.2 GB start over.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gafx.data.download.fetch import fetch_url
from gafx.errors import UsageError, first_line
from gafx.io import digest

_VARIABLES = "HF_ENDPOINT, HF_HUB_OFFLINE and, for a closed repository, HF_TOKEN"


def fetch_hub(repo: str, file: str, path: Path, revision: str | None = None) -> Path:
    """Download a file of a Hugging Face data set repository to `path`, as `fetch_url` does.

    Metadata come through huggingface_hub, so `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` apply. The content is
    checked against the SHA-256 that the hub announces for large files and the git hash that it announces for others.

    Args:
        repo: `owner/name`.
        file: path in the repository.
        path: the file to create.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        UsageError: as `fetch_url`, or the hub does not answer, or has no such file for this user.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, file, repo_type="dataset", revision=revision)
    by_hand = f"download it by other means and put it at {path}"
    try:
        with _asking(url, f"check the network and the variables {_VARIABLES}, or {by_hand}"):
            about = get_hf_file_metadata(url)
        etag = about.etag or ""
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
            raise UsageError(
                f"{url}: the hub announces no SHA-256 for it but {about.etag!r}, so it cannot be checked; let "
                f"HF_ENDPOINT name a complete mirror, or {by_hand}"
            )
    except UsageError:
        if path.is_file():  # complete and checked, or put there by hand
            return path
        raise
    # At the commit of the metadata, in case the file changes in between.
    url, sha256 = hf_hub_url(repo, file, repo_type="dataset", revision=about.commit_hash), len(etag) == 64
    fetch_url(url, path, sha256=etag if sha256 else None, size=about.size, headers=build_hf_headers())
    if not sha256 and _git_hash(path) != etag:
        path.unlink()
        raise UsageError(f"{url} is not what the hub announces; it has been deleted, run the same again")
    return path


def list_hub_files(repo: str, revision: str | None = None) -> tuple[str, list[str]]:
    """Return the commit of a data set's revision on the hub, and the sorted paths of its files.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        UsageError: the hub does not answer, has no such data set for this user, or names a file outside it.
    """
    from huggingface_hub import HfApi

    at = f" at {revision!r}" if revision else ""
    with _asking(f"data set {repo!r} on the hub{at}", f"check its name, the network and the variables {_VARIABLES}"):
        about = HfApi().dataset_info(repo, revision=revision)
        files = HfApi().list_repo_files(repo, repo_type="dataset", revision=about.sha)
    for path in files:
        if path != os.path.normpath(path) or path.startswith(("/", "..")) or "\\" in path:
            raise UsageError(f"data set {repo!r} names a file {path!r}, which leads out of its folder")
    return str(about.sha), sorted(files)


@contextlib.contextmanager
def _asking(what: str, cure: str) -> Iterator[None]:
    """Turn any error of huggingface_hub into a `UsageError`: those of its HTTP library pass through it."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what} could not be requested ({first_line(error)}); {cure}") from error


def _git_hash(path: Path) -> str:
    """Return git's SHA-1 of a file's content; for small files, which are read at once."""
    content = path.read_bytes()
    return digest(b"blob %d\0" % len(content), content, algorithm="sha1")
