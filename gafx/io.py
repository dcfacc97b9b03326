"""Files that survive a kill: atomic writes, locks between processes, and digests. Every other module uses these.

A file is written to a temporary name in the same folder and renamed, so that a reader sees the old or the new content.
Locks are `filelock`'s: they end with their process and work on Linux, macOS and Windows.
"""

import contextlib
import csv
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from gafx.errors import UsageError

_log = logging.getLogger("gafx")
_BLOCK = 1 << 20  # bytes read at a time for a digest
_PART, _OLD = ".part", ".old"  # suffixes of files and folders that are being written, or replaced
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<process>\d+)(?P<suffix>\.part|\.old)", re.DOTALL)
_LONGEST = 220  # bytes of a name that fit into that of its temporary file
_cleaned: set[tuple[int, int]] = set()  # folders that this process has cleaned
_cleaning = threading.Lock()


def part_path(path: Path) -> Path:
    """Path of the temporary file or folder for `path`: hidden, in the same folder, its process in the name.

    The first call for a folder removes what processes that were killed have left there.
    """
    with contextlib.suppress(OSError):
        status = os.stat(path.parent)
        with _cleaning:
            if (key := (status.st_dev, status.st_ino)) not in _cleaned:
                _cleaned.add(key)
                remove_leftovers(path.parent)
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f".{name}.{_this_machine()}-{os.getpid()}{_PART}")


def remove_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove what killed processes were writing into a folder; a folder that was being replaced gets its name back.

    Args:
        folder: only its own entries are looked at.
        locked: no other process writes there, so that all is left over. Otherwise temporary files of other machines and
            containers are kept: whether their process still runs cannot be known.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            if locked or (found["machine"] == _this_machine() and not _is_running(int(found["process"]))):
                if found["suffix"] == _OLD and not (path := folder / found["name"]).exists():
                    os.replace(entry.path, path)
                elif entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


@cache
def _this_machine() -> str:
    """Hash of the machine and, on Linux, of the space of process numbers, which containers have of their own."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return digest(f"{platform.node()} {space}", size=3)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `path`, on an exception it is deleted.

    Of several processes that write the same file at the same time the last one's content stays.

    Args:
        path: the file to create or replace; its folder must exist.
        sync: flush file and folder to the disk before and after the rename, so that it also survives a power cut.
    """
    part = part_path(path)
    try:
        yield part
        if sync:
            flush(part)
        publish(part, path, sync=sync)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and is_disk_full(error):
            error.filename = str(path)  # the error of a write has none
        raise


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", *, sync: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    Args:
        path: the file to create or replace.
        mode: `w` (UTF-8 text) or `wb`.
        sync: see `atomic_path`.
        **options: of `open`, e.g. `newline=""`.
    """
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    with atomic_path(path, sync=sync) as part, part.open(mode, **options) as file:
        yield file


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Replace a file by UTF-8 text atomically."""
    with atomic_write(path, sync=sync) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file by a CSV table atomically: a column per key of any row, empty where a row lacks it."""
    with atomic_write(path, newline="") as file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by bytes atomically."""
    with atomic_write(path, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an exception.

    Args:
        path: the folder to create; its parent must exist.
        replace: delete an existing folder of that name after the new one is complete; otherwise it must not exist.
        sync: flush the files and both folders to the disk before and after the rename, see `atomic_path`; files in
            folders below are not flushed.
    """
    part = part_path(path)
    old = part.with_suffix(_OLD)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if sync:
            for file in [*part.iterdir(), part]:
                flush(file)
        if replace and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            publish(path, old)
        publish(part, path, sync=sync)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Read bytes of a file that is open for reading, fewer where it ends before; its position is not used.

    Unlike a memory map, this survives that another process cuts the file short, and processes may share the file.
    """
    if not hasattr(os, "pread"):  # Windows
        file.seek(offset)
        return file.read(size)
    parts = []
    while size > 0 and (part := os.pread(file.fileno(), size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def apply_umask(path: Path) -> None:
    """Give a file the permissions that `open` gives a new one; libraries write through files of their owner alone."""
    probe = part_path(path.with_name(f"{path.name}.mode"))
    try:
        probe.touch()
        shutil.copymode(probe, path)
    finally:
        probe.unlink(missing_ok=True)


def publish(part: Path, path: Path, *, sync: bool = False) -> None:
    """Give a finished temporary file or folder its name in one step.

    Args:
        part: on the same file system as `path`.
        path: a file of that name is replaced; an existing folder, even an empty one, must be removed beforehand.
        sync: flush the folder's list of names to the disk afterwards.
    """
    os.replace(part, path)
    if sync:
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk (a folder: not on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, busy: str, *, wait: bool = True, remove: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs; the lock ends with the process.

    Args:
        path: of the lock file; it is created.
        busy: logged where another process holds the lock; raised as the error if `wait` is false.
        wait: wait for the other process.
        remove: delete the lock file at the end. Processes that wait for it then lock a new one.

    Raises:
        UsageError: another process holds the lock and `wait` is false.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UsageError(busy) from None
        _log.warning("%s", busy)
        lock.acquire()
    try:
        yield
    finally:
        if remove:
            with contextlib.suppress(OSError):  # Windows deletes no open file; filelock does after the release
                path.unlink()
        lock.release()


def check_writable(folder: Path, cure: str) -> None:
    """Raise `UsageError` where nothing can be written into a folder, which need not exist, before it is computed.

    Args:
        folder: to write into.
        cure: end of the message.
    """
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UsageError(f"{folder}: {above} is a file, not a folder; {cure}")
    if not os.access(above, os.W_OK):
        raise UsageError(f"{folder} cannot be written ({above} is read-only or of another user); {cure}")


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means that the disk, the quota or the largest file size is used up."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def file_digest(
    path: str | bytes | os.PathLike[str], algorithm: str = "sha256", *, offset: int = 0, size: int | None = None
) -> str:
    """Hexadecimal digest of a file's content.

    Args:
        path: of the file.
        algorithm: any of `hashlib`'s, or `blake2b-<bytes>` for a short one.
        offset: first byte.
        size: bytes from there on; default: up to the end of the file.
    """
    state = _hash(algorithm)
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK if size is None else min(_BLOCK, size)):
            state.update(block)
            size = None if size is None else size - len(block)
    return str(state.hexdigest())


def digest(*parts: Any, size: int = 8, algorithm: str = "") -> str:
    """Hexadecimal digest over the concatenated parts: text (as UTF-8) or contiguous buffers.

    Args:
        *parts: what is hashed.
        size: bytes of the BLAKE2b digest.
        algorithm: another one of `hashlib`'s, where a publisher or git prescribes it.
    """
    state = _hash(algorithm or f"blake2b-{size}")
    for part in parts:
        state.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return str(state.hexdigest())


def _hash(algorithm: str) -> Any:
    name, _, size = algorithm.partition("-")
    return hashlib.blake2b(digest_size=int(size)) if size else hashlib.new(name)
