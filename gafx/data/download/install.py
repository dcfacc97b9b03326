"""Data sets that their publishers allow to be fetched, as folders: whole or not at all, by one of several processes."""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gafx.data.download.archive import UnfitArchive, unpack, unwritable
from gafx.data.download.hub_files import list_hub_files
from gafx.errors import UsageError


def install(
    root: Path,
    fetch: Callable[[Path], Path],
    *,
    check: Callable[[Path], None] | None = None,
    inside: str | None = None,
) -> Path:
    """Make the folder `root` from an archive, unless it is there and not empty. Of several processes one works.

    All happens in `.<name>.download` beside it, from where the next call continues; the finished folder is renamed.

    Args:
        root: the data set's folder.
        fetch: downloads into the folder it is given and returns the archive, e.g. by `fetch_url`.
        check: raises where the unpacked folder is not the data set; then all is deleted.
        inside: as in `unpack`.

    Raises:
        UsageError: of `fetch`, `unpack` and `check`; or `root` is a file or cannot be made.
    """
    with _made_once(root) as places:
        if places is None:
            return root
        place, work = places
        unpacked = work / "unpacked"
        if not unpacked.is_dir():
            archive = fetch(work)
            try:
                unpack(archive, unpacked, inside=inside)
            except UnfitArchive as error:
                _clear(work)
                raise UnfitArchive(f"{error} (the download has been deleted)") from error
        try:
            if check is not None:
                check(unpacked)
        except Exception:
            _clear(work)
            raise
        _clear(work, keep=unpacked.name)
        os.rename(unpacked, place)
    return root


def install_from_hub(
    repo: str, root: Path, choose: Callable[[list[str]], list[str]], *, revision: str | None = None
) -> Path:
    """Make the folder `root` from files of a data set repository, unless it is there and not empty.

    All files are of one commit, and each is checked against the hash that the hub announces. As in `install`, what is
    interrupted continues, one of several processes works, and the folder gets its name when it is whole.

    Args:
        repo: `owner/name`.
        root: the data set's folder.
        choose: which of the repository's files are wanted.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        UsageError: of `choose`, `list_hub_files` and `HubFiles.fetch`; or `root` is a file or cannot be made.
    """
    with _made_once(root) as places:
        if places is None:
            return root
        place, work = places
        files = work / "files"
        there = list_hub_files(repo, revision)
        wanted = choose(sorted(there.files))
        if files.is_dir():  # of an earlier call, perhaps of an earlier commit
            for path in [path for path in files.rglob("*") if path.is_file()]:
                if path.relative_to(files).as_posix().removesuffix(".json").removesuffix(".part") not in wanted:
                    path.unlink()
        for name in wanted:
            there.fetch(name, files)
        os.replace(files, place)
    return root


def tree_digest(folder: Path, names: Iterable[str]) -> str:
    """One SHA-256 for the contents of many files: of the sorted lines `MD5  name` that md5sum would print.

    Args:
        folder: what the names are relative to.
        names: paths with `/`.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    lines = []
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'md5').hexdigest()}  {name}\n")
        except OSError as error:
            raise UsageError(
                f"{folder / name} cannot be read ({error.strerror}); the data set is incomplete"
            ) from error
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@contextlib.contextmanager
def _made_once(root: Path) -> Iterator[tuple[Path, Path] | None]:
    """Where a data set's folder is to be made and where to work for it, or None where it is there and not empty.

    Of several processes one gets the places; the others wait, and find the folder.

    Raises:
        UsageError: `root` is a file, or what is needed cannot be written.
    """
    place = Path(os.path.realpath(root))
    if place.exists() and not place.is_dir():
        raise UsageError(f"{root} is a file, not a folder; choose another folder")
    try:
        if _is_made(place):
            yield None
            return
        work = place.with_name(f".{place.name}.download")
        with _locked(work):
            yield None if _is_made(place) else (place, work)
    except OSError as error:
        raise unwritable(place.parent, error) from error


def _is_made(place: Path) -> bool:
    return place.exists() and any(place.iterdir())


def _clear(work: Path, keep: str | None = None) -> None:
    for path in work.iterdir():
        if path.name in ("lock", keep):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Make the folder `work` and have it alone; where nothing of use is left in it, it goes at the end."""
    import fcntl

    lock = work / "lock"
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("ab")
        except FileNotFoundError:  # the holder has just cleaned up
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that works in {work}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    continue
            except FileNotFoundError:  # a lock on a file that is gone keeps nobody out
                continue
            try:
                yield
            finally:
                if os.listdir(work) == [lock.name]:
                    lock.unlink()
                    with contextlib.suppress(OSError):  # the next process has already made its own lock
                        work.rmdir()
            return
