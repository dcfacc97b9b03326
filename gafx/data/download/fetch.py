"""One address to one file: continued after a break, tried again, checked."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from gafx.data.download.archive import unwritable
from gafx.errors import UsageError

_BLOCK = 1 << 16  # bytes read at a time
_PAUSE = 1.0  # seconds before the first new try; doubles from try to try


class _Broken(Exception):
    """A request that failed in a way that may pass; `wait` is how long the server asked to be left alone, in s."""

    def __init__(self, reason: object, wait: float = 0.0):
        super().__init__(str(reason))
        self.wait = wait


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
    """Download a file, continuing what an earlier call, broken or killed, left in `path.part`.

    A file that is at `path` already is kept: it got that name only after its checks, or was put there by hand.

    Args:
        url: http or https.
        path: the file to make. One process at a time; `install` sees to that.
        sha256: what its content must hash to, in hexadecimal.
        size: bytes it must have; the length that the server announces is checked in any case.
        headers: for the request. `Authorization` is not passed on to another host.
        timeout: seconds without a byte after which a connection counts as broken.
        tries: how often in a row a connection may break without bringing anything new.

    Raises:
        UsageError: not to be had, not what `sha256` or `size` say (then it is deleted), or no room on the disk.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url!r} cannot be fetched: only http:// and https:// addresses are")
    sha256 = sha256.lower() if sha256 else None
    if path.is_file():
        if sha256 is None or _sha256(path) == sha256:
            return path
        path.unlink()
    part = path.with_name(path.name + ".part")
    by_hand = f"download it by other means and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    failures, reached = 0, _size(part)
    while True:
        try:
            length = _request(url, part, sha256 or url, {"User-Agent": "gafx", **(headers or {})}, timeout, by_hand)
            break
        except _Broken as error:
            failures = 1 if _size(part) > reached else failures + 1
            reached = max(reached, _size(part))
            if failures >= tries:
                raise UsageError(
                    f"{url} could not be fetched in {tries} tries ({error}); check the network and the proxy settings "
                    f"and run the same again, which continues after the {_size(part)} bytes that are here, or {by_hand}"
                ) from error
            pause = max(min(_PAUSE * 2 ** (failures - 1), 30.0), min(error.wait, 60.0))
            print(f"{path.name}: {error}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    for what, wanted, measure in (("length", length, _size), ("length", size, _size), ("SHA-256", sha256, _sha256)):
        if wanted is not None and wanted != (found := measure(part)):
            _drop(part)
            raise UsageError(
                f"{url} is not what was expected: {what} {found} instead of {wanted}. It has been deleted; run the "
                "same again, and if that gives the same, its publisher has changed it"
            )
    os.replace(part, path)
    _note(part).unlink(missing_ok=True)
    return path


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects that stay on the web, never from https down to http, and that take no token to another host."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise UsageError(f"{req.full_url} redirects to {newurl}, which is not followed: it leaves {old.scheme}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


def _request(url: str, part: Path, identity: str, headers: dict[str, str], timeout: float, by_hand: str) -> int | None:
    """Bring `part` to its whole length, as far as one connection goes.

    Beside it, a note says what it is a part of (`identity`), which version (ETag or date), and how long the whole is.

    Returns:
        The length in bytes that the server announced, if it did.

    Raises:
        _Broken: try again.
        UsageError: that would not help.
    """
    try:
        note = dict(json.loads(_note(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        note = {}
    if note.get("identity") != identity:
        note = {}
    have, length = _size(part), note.get("length")
    if have and have == length:
        return length
    if not note.get("version") or (length is not None and have > length):
        have = 0  # nothing says that the rest would fit
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": note["version"]}
    with _open(urllib.request.Request(url, headers=headers), timeout, part, by_hand) as response:
        version = _version(response.headers)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
            begin, whole = (int(span[1]), int(span[2])) if span else (None, None)
            if begin != have or length not in (None, whole) or version not in ("", note.get("version")):
                _drop(part)
                raise _Broken("the file has changed since it was begun")
            length = whole
        elif response.status == 200:  # the whole: asked for, or changed, or a server that knows no ranges
            have = 0
            announced = response.headers.get("Content-Length", "")
            length = int(announced) if announced.isdigit() else None
        else:
            raise UsageError(f"{url} cannot be fetched: the server answers {response.status}; {by_hand}")
        try:
            free = shutil.disk_usage(part.parent).free
            if not have:
                _drop(part)
                note = {"identity": identity, "version": version, "length": length}
                _note(part).write_text(json.dumps(note), encoding="utf-8")
            if length is not None and length - have > free:
                raise UsageError(
                    f"{url}: {length - have} bytes do not fit in {part.parent}, {free} are free; make room"
                )
            bar = tqdm(
                total=length, initial=have, desc=part.stem, unit="B", unit_scale=True, file=sys.stderr,
                disable=not sys.stderr.isatty(),
            )  # fmt: skip
            with bar, part.open("ab") as file:
                while block := _read(response):
                    file.write(block)
                    bar.update(len(block))
        except OSError as error:
            raise unwritable(part.parent, error, "; what has been downloaded is kept and continued from") from error
    if length is not None and _size(part) < length:
        raise _Broken(f"the connection ended after {_size(part)} of {length} bytes")
    return length


def _open(
    request: urllib.request.Request, timeout: float, part: Path, by_hand: str
) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
    """The server's answer if it is one that brings something, else `_Broken` or `UsageError`."""
    url = request.full_url
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} ({error.reason})"
        if error.code == 416:  # there is no such rest, so this is not the file it began as
            _drop(part)
        elif error.code not in (408, 425, 429) and error.code < 500:
            raise UsageError(f"{url} cannot be fetched: {answer}; {by_hand}") from error
        wait = error.headers.get("Retry-After") or ""
        raise _Broken(answer, int(wait) if wait.isdigit() else 0) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UsageError(
                f"{url}: the server's certificate cannot be verified ({reason.verify_message}); let SSL_CERT_FILE name "
                f"the certificates to trust, or {by_hand}"
            ) from error
        raise _Broken(reason or type(error).__name__) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of a body; apart from the writing, whose errors are of the same types."""
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke: {error or type(error).__name__}") from error


def _version(headers: http.client.HTTPMessage) -> str:
    """What names a version in `If-Range`. A weak ETag does not: two files of other bytes may share it."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified") or ""


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)  # first: a part without its note is never continued, the reverse might be
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
