"""Unpack an untrusted archive: all of it or nothing, only regular files and folders, and only below one folder."""

import errno
import gzip
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from gafx.errors import UsageError
from gafx.io import is_disk_full, part_path, publish

_BLOCK = 1 << 16  # bytes read at a time
_HEADER = 1 << 20  # bytes: upper limit of a tar header with its long names and attributes
_ENTRY = 4096  # bytes counted per member: empty files use disk space too


class UnfitArchive(UsageError):
    """The archive is damaged, exceeds the size limit, or has members that are never unpacked."""


def unpack(archive: Path, folder: Path, *, inside: str | None = None, limit: float = 50e9) -> Path:
    """Unpack a tar, tar.gz or zip into `folder`, completely or not at all.

    Only regular files and folders below `folder` are created, with default permissions. Any other member (links,
    devices, absolute paths, `..`) refuses the whole archive; metadata files of macOS are left out.

    `tarfile`'s own `data` filter is not enough here: it follows links inside the folder, renames absolute paths and has
    no size limit.

    Args:
        archive: the file; its format is detected from the first bytes.
        folder: to create; must be missing or empty.
        inside: unpack only what is below this folder of the archive. `None` unpacks everything; if the archive has a
            single top-level folder, that folder's content.
        limit: largest unpacked size in bytes. The bytes actually written count, not the sizes in the headers.

    Raises:
        UnfitArchive: damaged, dangerous, too large, or nothing below `inside`.
        UsageError: not enough disk space, or `folder` cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; move it away, or choose another folder")
    part = part_path(folder)
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    try:
        tops = _Unpacking(archive, part, limit).run(PurePosixPath(inside or "").parts)
        made = list(part.iterdir())
        if not made:
            raise UnfitArchive(f"{archive} holds nothing below {inside or '.'!r}; at its top: {sorted(tops)[:10]}")
        if folder.is_dir():
            folder.rmdir()
        publish(made[0] if inside is None and len(made) == 1 and made[0].is_dir() else part, folder)
    except UsageError:
        raise
    except Exception as error:  # on damaged bytes the parsers raise nearly anything
        # gzip's own errors, and seeks to impossible positions, are OSErrors too.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise unwritable(folder.parent, error) from error
        raise UnfitArchive(
            f"{archive} is damaged, or no tar, tar.gz or zip ({str(error) or type(error).__name__}); delete it and "
            "download it again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def unwritable(folder: Path, error: OSError, kept: str = "") -> UsageError:
    """Return the error to raise for an OSError below `folder`; `kept`: appended, on files still usable."""
    if is_disk_full(error) and folder.exists():
        free = shutil.disk_usage(folder).free
        return UsageError(f"no room for more in {folder} ({error.strerror}; {free} bytes free); make room{kept}")
    path = error.filename or folder
    return UsageError(f"{path} cannot be used ({error.strerror or error}); choose another folder{kept}")


class _Member(NamedTuple):
    """A member of an archive. `kind` is `file`, `folder`, or the description of another kind, for the error message."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


class _Unpacking:
    """Writes the members of one archive below `folder` and counts the bytes against `limit`."""

    def __init__(self, archive: Path, folder: Path, limit: float):
        self.archive, self.folder, self.limit = archive, folder, limit

    def run(self, wanted: tuple[str, ...]) -> set[str]:
        """Write what is below the folder `wanted` of the archive; returns the names at its top level."""
        used = 0
        tops: set[str] = set()
        with self.archive.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            for member in self._zip_members(file) if magic == b"PK" else self._tar_members(file, magic):
                parts = self._safe_parts(member)
                tops.update(parts[:1])
                used += _ENTRY
                self.bound(used + member.size)
                if parts[: len(wanted)] != wanted or len(parts) == len(wanted):
                    continue
                target = self.folder.joinpath(*parts[len(wanted) :])
                try:
                    if member.kind == "folder":
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    output = target.open("xb")
                except (FileExistsError, NotADirectoryError) as error:
                    raise self._refuse(f"it holds {member.name!r} twice") from error
                with output:
                    self._room(member.size)
                    with cast(IO[bytes], member.open()) as data:
                        while block := data.read(_BLOCK):
                            used += len(block)
                            self.bound(used)
                            output.write(block)
        return tops

    def bound(self, size: int) -> None:
        if size > self.limit:
            raise self._refuse(f"it holds more than {self.limit:.0f} bytes, the limit")

    def _room(self, size: int) -> None:
        if size > (free := shutil.disk_usage(self.folder).free):
            raise UsageError(
                f"{self.archive} needs {size} bytes in {self.folder.parent}, where {free} are free; make room"
            )

    def _refuse(self, reason: str) -> UnfitArchive:
        return UnfitArchive(f"{self.archive} is not unpacked: {reason}")

    def _safe_parts(self, member: _Member) -> tuple[str, ...]:
        """The components of a member's path; empty for members that are left out."""
        name, kind = member.name, member.kind
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
            kind = "a path that leads elsewhere"
        elif parts and (parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")):
            return ()
        if kind not in ("file", "folder"):
            raise self._refuse(f"its member {name!r} is {kind}; get it from another place")
        return parts

    def _tar_members(self, file: IO[bytes], magic: bytes) -> Iterator[_Member]:
        kinds = {
            tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "folder",
            tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link",
        }  # fmt: skip
        stream = _Forward(gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file, self.bound)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # the list of all members has no bound
                kind = "a sparse file" if entry.issparse() else kinds.get(entry.type, "not a regular file")
                size = entry.size if kind == "file" else 0
                yield _Member(entry.name, kind, size, partial(tar.extractfile, entry))
        # tarfile takes a damaged header, or the end of the file, for the end of the archive, which are blocks of zeros.
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
        while stream.read(_BLOCK):  # up to the checksum of gzip
            pass

    def _zip_members(self, file: IO[bytes]) -> Iterator[_Member]:
        archive = zipfile.ZipFile(file)
        total = sum(entry.file_size + _ENTRY for entry in archive.infolist())
        self.bound(total)
        self._room(total)
        for entry in archive.infolist():
            form = stat.S_IFMT(entry.external_attr >> 16)  # zero where it was not made on Unix
            kind = "folder" if entry.is_dir() else "file"
            if form not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
                kind = "a symbolic link" if form == stat.S_IFLNK else "not a regular file"
            elif entry.flag_bits & 1:
                kind = "encrypted"
            elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                kind = "compressed in a rare way"  # not all of which can be read in small blocks
            yield _Member(entry.filename, kind, entry.file_size, partial(archive.open, entry))


class _Forward:
    """The part of the file interface that tarfile needs: forward only, with bounded total size and header size."""

    def __init__(self, file: Any, bound: Callable[[int], None]):
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
        while self.at < place:
            if not self.read(min(place - self.at, _BLOCK)):
                raise EOFError("it ends early")
