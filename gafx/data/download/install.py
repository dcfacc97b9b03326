"""Create a data set's folder from a download: complete or not at all, by one of several processes."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from gafx.data.download.archive import UnfitArchive, unpack, unwritable
from gafx.data.download.hub_files import fetch_hub, list_hub_files
from gafx.errors import UsageError
from gafx.io import digest, file_digest, locked, publish


def install(
    root: Path,
    fetch: Callable[[Path], Path],
    *,
    check: Callable[[Path], object] | None = None,
    inside: str | None = None,
) -> Path:
    """Create the folder `root` from an archive, unless it exists and is not empty. Of several processes one works.

    All work is done in `.<name>.download` of the same parent; the next call resumes there. The result is renamed.

    Args:
        root: the data set's folder.
        fetch: downloads into the folder it is given and returns the archive, e.g. by `fetch_url`.
        check: raises if the unpacked folder is not the data set; everything is deleted then.
        inside: as in `unpack`.

    Raises:
        UsageError: of `fetch`, `unpack` and `check`; or `root` is a file or cannot be created.
    """

    def make(work: Path) -> Path:
        unpacked = work / "unpacked"
        if not unpacked.is_dir():
            archive = fetch(work)
            try:
                unpack(archive, unpacked, inside=inside)
            except UnfitArchive as error:
                _clear(work)
                raise UnfitArchive(f"{error} (the download has been deleted)") from error
        if check is not None:
            try:
                check(unpacked)
            except Exception:
                _clear(work)
                raise
        return unpacked

    return _make_once(root, make)


def install_from_hub(
    repo: str, root: Path, choose: Callable[[list[str]], list[str]], *, revision: str | None = None
) -> Path:
    """Create the folder `root` from files of a data set repository, unless it exists and is not empty.

    All files are of one commit, and each is checked against the hash that the hub announces. Interruptions and several
    processes are handled as in `install`.

    Args:
        repo: `owner/name`.
        root: the data set's folder.
        choose: selects the wanted files from the paths in the repository.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        UsageError: of `choose`, `list_hub_files` and `fetch_hub`; or `root` is a file or cannot be created.
    """

    def make(work: Path) -> Path:
        files = work / "files"
        commit, names = list_hub_files(repo, revision)
        wanted = choose(names)
        for path in [path for path in files.rglob("*") if path.is_file()]:  # of an earlier call, maybe another commit
            if path.relative_to(files).as_posix().removesuffix(".json").removesuffix(".part") not in wanted:
                path.unlink()
        for name in wanted:
            fetch_hub(repo, name, files / name, commit)
        return files

    return _make_once(root, make)


def tree_digest(folder: Path, names: Iterable[str]) -> str:
    """Return one SHA-256 for the contents of many files: of the sorted lines `MD5  name` that md5sum would print.

    Args:
        folder: the names are relative to it.
        names: paths with `/`.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    try:
        lines = sorted(f"{file_digest(folder / name, 'md5')}  {name}\n" for name in names)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}); the data set is incomplete") from error
    return digest(*lines, algorithm="sha256")


def _make_once(root: Path, make: Callable[[Path], Path]) -> Path:
    """Create the folder `root` unless it exists and is not empty; other processes wait for the one that does.

    Args:
        root: the folder; a link is followed.
        make: gets the work folder, which is kept if it fails, and returns the finished folder in it.

    Raises:
        UsageError: of `make`; or `root` is a file, or something cannot be written.
    """
    place = Path(os.path.realpath(root))
    work, lock = (place.with_name(f".{place.name}.{suffix}") for suffix in ("download", "lock"))
    if place.exists() and not place.is_dir():
        raise UsageError(f"{root} is a file, not a folder; choose another folder")
    try:
        if _is_made(place):
            return root
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"waiting for another process that downloads {root}", remove=True):
            if not _is_made(place):
                work.mkdir(exist_ok=True)
                try:
                    made = make(work)
                    _clear(work, keep=made)
                    if place.is_dir():
                        place.rmdir()
                    publish(made, place)
                finally:
                    with contextlib.suppress(OSError):  # it holds what the next call resumes from
                        work.rmdir()
    except OSError as error:
        raise unwritable(place.parent, error) from error
    return root


def _is_made(place: Path) -> bool:
    return place.exists() and any(place.iterdir())


def _clear(work: Path, keep: Path | None = None) -> None:
    for path in work.iterdir():
        if path != keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
