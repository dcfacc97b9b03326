"""Unpack an archive that nobody vouches for: whole or not at all, and only plain files and folders in one place."""

import contextlib
import errno
import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from gafx.errors import UsageError
from gafx.io import is_disk_full

_BLOCK = 1 << 16  # bytes read at a time
_HEADER = 1 << 20  # bytes: more than any honest name or attribute of a member
_ENTRY = 4096  # bytes: an empty file takes room on the disk too


class UnfitArchive(UsageError):
    """An archive that is damaged, or too large, or holds what is never unpacked."""


def unpack(archive: Path, folder: Path, *, inside: str | None = None, limit: float = 50e9) -> Path:
    """Unpack a tar, tar.gz or zip into `folder`, whole or not at all.

    Only regular files and folders below `folder` are made, with default permissions. Anything else in the archive
    refuses all of it, but for the litter of macOS, which is left out.

    Args:
        archive: the file; its first bytes tell what it is.
        folder: to be made; must be missing or empty.
        inside: take only what lies below this folder of the archive. `None` takes all, without the one folder that
            all of it may lie in.
        limit: bytes that it may unpack to; what is really written counts, whatever the archive says.

    Raises:
        UnfitArchive: damaged, dangerous, too large, or without what was looked for.
        UsageError: no room, or a folder that cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; move it away, or choose another folder")
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir(parents=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    try:
        found = _write(archive, beside, PurePosixPath(inside or "").parts, limit)
        made = list(beside.iterdir())
        if not made:
            raise UnfitArchive(f"{archive} holds nothing below {inside or '.'!r}; at its top: {sorted(found)[:10]}")
        os.rename(made[0] if inside is None and len(made) == 1 and made[0].is_dir() else beside, folder)
    except UsageError:
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # gzip's own, or a place in the file that cannot be
            raise _damaged(archive, error) from error
        raise unwritable(folder.parent, error) from error
    except Exception as error:  # on damaged bytes the parsers raise nearly anything
        raise _damaged(archive, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def unwritable(folder: Path, error: OSError, kept: str = "") -> UsageError:
    """What to say of an error of the disk at `folder`; `kept` adds to it what can still be used."""
    if is_disk_full(error):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            return UsageError(f"no room for more in {folder} ({error.strerror}; {free} bytes free); make room{kept}")
    path = error.filename or folder
    return UsageError(f"{path} cannot be used ({error.strerror or error}); choose another folder{kept}")


class _Member(NamedTuple):
    """Something in an archive: `kind` is `file`, `folder`, or the words for what it is instead."""

    name: str
    kind: str
    size: int
    blocks: Callable[[], Iterator[bytes]]


def _write(archive: Path, folder: Path, wanted: tuple[str, ...], limit: float) -> set[str]:
    """Write what lies below the folder `wanted` of the archive; returns what lies at its top."""
    used = 0
    tops: set[str] = set()

    def bound(size: int) -> None:
        if size > limit:
            raise UnfitArchive(f"{archive} is not unpacked: it holds more than {limit:.0f} bytes, the limit")

    def room(size: int) -> None:
        if size > (free := shutil.disk_usage(folder).free):
            raise UsageError(f"{archive} needs {size} bytes in {folder.parent}, where {free} are free; make room")

    with archive.open("rb") as file:
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            members = _zip_members(zipfile.ZipFile(file), bound, room)
        else:
            unzipped = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if magic == b"\x1f\x8b" else file
            members = _tar_members(_Forward(unzipped, bound))
        for member in members:
            parts = _safe_parts(archive, member)
            tops.update(parts[:1])
            used += _ENTRY
            bound(used + member.size)
            if parts[: len(wanted)] != wanted or len(parts) == len(wanted):
                continue
            target = folder.joinpath(*parts[len(wanted) :])
            try:
                if member.kind == "folder":
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                output = target.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                raise UnfitArchive(f"{archive} is not unpacked: it holds {member.name!r} twice") from error
            with output:
                room(member.size)
                for block in member.blocks():
                    used += len(block)
                    bound(used)
                    output.write(block)
    return tops


def _safe_parts(archive: Path, member: _Member) -> tuple[str, ...]:
    """The path of a member below the folder it is unpacked into; empty for what is left out."""
    name, kind = member.name, member.kind
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        kind = "a path that leads elsewhere"
    elif parts and (parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")):
        return ()
    if kind not in ("file", "folder"):
        raise UnfitArchive(f"{archive} is not unpacked: its member {name!r} is {kind}; get it from another place")
    return parts


class _Forward:
    """As much of a file as tarfile needs: forwards only, bounded, and without headers that would fill the memory."""

    def __init__(self, file: IO[bytes], bound: Callable[[int], None]):
        self.file, self.bound = file, bound
        self.at, self.last = 0, b""

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        self.at += len(self.last)
        self.bound(self.at)
        return self.last

    def seek(self, place: int) -> None:
        if place < self.at:
            raise tarfile.ReadError("members that overlap")
        for _ in self.blocks(place - self.at):
            pass

    def blocks(self, size: int) -> Iterator[bytes]:
        while size > 0:
            block = self.read(min(size, _BLOCK))
            if not block:
                raise EOFError("it ends early")
            size -= len(block)
            yield block


def _tar_members(stream: _Forward) -> Iterator[_Member]:
    kinds = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "folder"}
    kinds |= {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}

    def blocks(start: int, size: int) -> Iterator[bytes]:
        stream.seek(start)
        yield from stream.blocks(size)

    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold them all, however many
            kind = "a sparse file" if entry.issparse() else kinds.get(entry.type, "not a regular file")
            size = entry.size if kind == "file" else 0
            yield _Member(entry.name, kind, size, partial(blocks, entry.offset_data, size))
    # tarfile takes a damaged header, or the end of the file, for the end of the archive, which are blocks of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while stream.read(_BLOCK):  # on to the checksum of gzip
        pass


def _zip_members(
    archive: zipfile.ZipFile, bound: Callable[[int], None], room: Callable[[int], None]
) -> Iterator[_Member]:
    def blocks(entry: zipfile.ZipInfo) -> Iterator[bytes]:
        with archive.open(entry) as data:
            while block := data.read(_BLOCK):
                yield block

    entries = archive.infolist()
    total = sum(entry.file_size + _ENTRY for entry in entries)
    bound(total)
    room(total)
    for entry in entries:
        form = stat.S_IFMT(entry.external_attr >> 16)  # zero where it was not made on Unix
        kind = "folder" if entry.is_dir() else "file"
        if form not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            kind = "a symbolic link" if form == stat.S_IFLNK else "not a regular file"
        elif entry.flag_bits & 1:
            kind = "encrypted"
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "compressed in a rare way"  # not all of which can be read in small blocks
        yield _Member(entry.filename, kind, entry.file_size, partial(blocks, entry))


def _damaged(archive: Path, error: Exception) -> UnfitArchive:
    reason = str(error) or type(error).__name__
    return UnfitArchive(f"{archive} is damaged, or no tar, tar.gz or zip ({reason}); delete it and download it again")
