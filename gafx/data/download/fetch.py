"""Download one address to one file: resumed after an interruption, retried, checked.

`pooch` and huggingface_hub's own download are not used because neither resumes across processes: both delete or ignore
what an interrupted process has downloaded.
"""

import contextlib
import http.client
import json
import logging
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from gafx.data.download.archive import unwritable
from gafx.errors import UsageError
from gafx.io import file_digest, publish
from gafx.report.format import duration

_log = logging.getLogger("gafx")
_BLOCK = 1 << 16  # bytes read at a time
_PAUSE = 1.0  # seconds before the first retry; doubles with each further one
_NETWORK = (OSError, http.client.HTTPException)


class _Broken(Exception):
    """A request failed in a way that may pass.

    Attributes:
        wait: delay that the server asked for, in seconds.
        is_offline: the server's name is not known, so that a retry helps only where it was known before.
    """

    def __init__(self, reason: object, wait: float = 0.0, *, is_offline: bool = False):
        super().__init__(str(reason))
        self.wait, self.is_offline = wait, is_offline


def fetch_url(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    tries: int = 5,
) -> Path:
    """Download a file; resume from `path.part` if an earlier call was interrupted or killed.

    A file that is at `path` already is kept: it got that name only after its checks, or was put there by hand.

    Args:
        url: http or https.
        path: the file to create. One process at a time; `install` ensures that.
        sha256: expected digest in hexadecimal.
        size: expected size in bytes; the length that the server announces is always checked.
        headers: of the request. `Authorization` is not sent to another host after a redirect.
        timeout: seconds without a byte after which a connection counts as broken.
        tries: consecutive failures without new bytes after which to give up; the first one counts where the server's
            name is not known, as without a network.

    Raises:
        UsageError: not available, or not of this digest or size (the file is then deleted), or the disk is full.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url!r} cannot be fetched: only http:// and https:// addresses are")
    if path.is_file():
        if sha256 is None or file_digest(path) == sha256.lower():
            return path
        path.unlink()
    cure = f"download it by other means and put it at {path}"
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(path, sha256.lower() if sha256 else url)
    failures, reached = 0, part.size
    before = reached
    while True:
        try:
            _request(url, part, {"User-Agent": "gafx", **(headers or {})}, timeout, cure)
            break
        except _Broken as error:
            failures = 1 if part.size > reached else failures + 1
            reached = max(reached, part.size)
            if failures >= tries or (error.is_offline and reached == before):
                often = "" if error.is_offline else f" in {tries} tries"
                raise UsageError(
                    f"{url} could not be fetched{often} ({error}); check the network and the proxy settings "
                    f"and run the same command again, which resumes after {part.size} bytes, or {cure}"
                ) from error
            pause = max(min(_PAUSE * 2 ** (failures - 1), 30.0), min(error.wait, 60.0))
            _log.info("%s: %s; trying again in %s", path.name, error, duration(pause))
            time.sleep(pause)
    found: list[tuple[str, Any, Any]] = [("length", wanted, part.size) for wanted in (part.length, size)]
    if sha256:
        found.append(("SHA-256", sha256.lower(), file_digest(part.path)))
    for what, wanted, actual in found:
        if wanted not in (None, actual):
            part.drop()
            raise UsageError(
                f"{url} is not the expected file: {what} {actual} instead of {wanted}. It has been deleted; run the "
                "same command again; if that gives the same, its publisher has changed it"
            )
    publish(part.path, path)
    part.drop()
    return path


class _Part:
    """The incomplete file `<path>.part`, and `<path>.part.json`, which identifies the complete file.

    Attributes:
        identity: digest or address of the complete file.
        version: its strong ETag or its date on the server, as in `If-Range`; empty if it has neither.
        length: its size in bytes, if the server announced it.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.note = (path.with_name(path.name + suffix) for suffix in (".part", ".part.json"))
        self.identity, self.version, self.length = identity, "", None
        with contextlib.suppress(OSError, ValueError, TypeError):
            note = dict(json.loads(self.note.read_text(encoding="utf-8")))
            if note.get("identity") == identity:
                self.version, self.length = note.get("version") or "", note.get("length")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, version: str, length: int | None) -> None:
        """Start over with this version of the file."""
        self.drop()
        self.version, self.length = version, length
        note = {"identity": self.identity, "version": version, "length": length}
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)  # first: a part without its note is never resumed, the reverse might be
        self.note.unlink(missing_ok=True)
        self.version = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) addresses, never from https to http, and sends no token to another host."""

    def redirect_request(self, req: urllib.request.Request, *details: Any) -> urllib.request.Request | None:
        source, target = req.full_url, details[-1]
        old, new = urlsplit(source), urlsplit(target)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise UsageError(f"{source} redirects to {target}, which is not followed: it leaves {old.scheme}")
        request = super().redirect_request(req, *details)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


def _request(url: str, part: _Part, headers: dict[str, str], timeout: float, cure: str) -> None:
    """Download the missing bytes of `part`, as far as one connection reaches.

    Raises:
        _Broken: a retry may help.
        UsageError: a retry does not help.
    """
    have = part.size
    if have and have == part.length:
        return
    if not part.version or (part.length is not None and have > part.length):
        have = 0  # the rest may be of another version
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": part.version}
    with _open(urllib.request.Request(url, headers=headers), timeout, part, cure) as response:
        # A weak ETag does not identify a version: two files of other bytes may have the same one.
        etag = response.headers.get("ETag") or ""
        version = etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""
        with _writing(part.path.parent, "; what has been downloaded is kept and continued from"):
            if response.status == 206:
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
                begin, length = (int(span[1]), int(span[2])) if span else (None, None)
                if begin != have or part.length not in (None, length) or version not in ("", part.version):
                    part.drop()
                    raise _Broken("the file has changed since it was begun")
                part.length = length
            elif response.status == 200:  # complete: as requested, or changed, or a server without ranges
                have, announced = 0, response.headers.get("Content-Length", "")
                part.begin(version, int(announced) if announced.isdigit() else None)
            else:
                raise UsageError(f"{url} cannot be fetched: the server answers {response.status}; {cure}")
            free, missing = shutil.disk_usage(part.path.parent).free, (part.length or 0) - have
            if missing > free:
                raise UsageError(f"{url}: {missing} bytes do not fit in {part.path.parent}, {free} are free; make room")
            bar = tqdm(
                total=part.length, initial=have, desc=part.path.stem, unit="B", unit_scale=True,
                disable=not sys.stderr.isatty(),
            )  # fmt: skip
            with bar, part.path.open("ab") as file:
                for block in _blocks(response):
                    file.write(block)
                    bar.update(len(block))
    if part.length is not None and part.size < part.length:
        raise _Broken(f"the connection ended after {part.size} of {part.length} bytes")


def _open(
    request: urllib.request.Request, timeout: float, part: _Part, cure: str
) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
    """Return the server's answer if it has content; else raise `_Broken` or `UsageError`."""
    url = request.full_url
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} ({error.reason})"
        if error.code == 416:  # there is no such range: the file has changed
            part.drop()
        elif error.code not in (408, 425, 429) and error.code < 500:
            raise UsageError(f"{url} cannot be fetched: {answer}; {cure}") from error
        wait = error.headers.get("Retry-After") or ""
        raise _Broken(answer, int(wait) if wait.isdigit() else 0) from error
    except _NETWORK as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UsageError(
                f"{url}: the server's certificate cannot be verified ({reason.verify_message}); let SSL_CERT_FILE name "
                f"the certificates to trust, or {cure}"
            ) from error
        if isinstance(reason, socket.gaierror):
            raise _Broken(f"no address for {request.host}, as without a network", is_offline=True) from error
        raise _Broken(reason or type(error).__name__) from error


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a response's body; network errors become `_Broken`, so that `OSError` means the disk."""
    while True:
        try:
            block = response.read(_BLOCK)
        except _NETWORK as error:
            raise _Broken(f"the connection broke: {error or type(error).__name__}") from error
        if not block:
            return
        yield block


@contextlib.contextmanager
def _writing(folder: Path, kept: str = "") -> Iterator[None]:
    """Turn an error of the disk into a `UsageError` with the remedy; see `unwritable`."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error, kept) from error
