"""Receive an upload into a file: limits on its size and its time hold while it arrives."""

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gafx.deploy.serve.worker import delete
from gafx.deploy.uploads import Limits
from gafx.report.format import printable

if TYPE_CHECKING:
    from starlette.requests import Request

# Longest wait for the next bytes of an upload, and for all of them.
IDLE_SECONDS = 10.0
UPLOAD_SECONDS = 300.0
# Bytes that a form may have besides its file.
_ENVELOPE = 65_536
_MAX_NAME = 200
_FIELD = "file"
_HOW = (
    f"send a form (multipart/form-data) with the file in the field {_FIELD!r}, or the file's bytes with a Content-Type "
    "of audio/..., video/..., application/ogg or application/octet-stream"
)
_RAW = ("audio/", "video/", "application/octet-stream", "application/ogg")


class Refusal(Exception):
    """A request without an answer.

    Args:
        status: of HTTP.
        sentence: what is wrong, and the cure.
        headers: of the response.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


async def receive(request: "Request", folder: Path, limits: Limits) -> tuple[Path, str]:
    """Write the file of a request into a folder.

    Args:
        request: with a form or with the bytes of a file.
        folder: of uploads.
        limits: on the file.

    Returns:
        path of the file, which the caller deletes, and the name that the client gave it.

    Raises:
        Refusal: neither form nor audio (415), a damaged form (400), one without or with several files (422), or too
            slow (408).
        OverLimit: too many bytes; the rest is not read.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    is_form = kind == b"multipart/form-data"
    if not is_form and not (named := kind.decode("latin-1")).startswith(_RAW):
        raise Refusal(415, f"the Content-Type is {printable(named)[:_MAX_NAME] or 'missing'}: {_HOW}")
    if is_form and not boundary:
        raise Refusal(400, f"the form has no boundary: {_HOW}")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.max_bytes + (_ENVELOPE if is_form else 0):
        limits.check_size("the upload", int(stated))
    descriptor, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            sink: _Form | _Raw = _Form(boundary, out, limits) if is_form and boundary else _Raw(out, limits)
            await _copy(request, sink.write)
            return path, sink.finish()
    except BaseException:
        delete(path)
        raise


async def _copy(request: "Request", write: Callable[[bytes], object]) -> None:
    blocks = request.stream()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    block = await anext(blocks, None)
                if block is None:
                    return
                write(block)
    except TimeoutError:
        sentence = (
            f"the upload was too slow: it may take {UPLOAD_SECONDS:.0f} s, and {IDLE_SECONDS:.0f} s may pass between "
            "two parts of it"
        )
        raise Refusal(408, sentence, {"Connection": "close"}) from None


class _Raw:
    """The body is the file."""

    def __init__(self, out: BinaryIO, limits: Limits, name: str = "upload"):
        self.out, self.limits, self.name, self.count = out, limits, name, 0

    def write(self, block: bytes) -> None:
        self.count += len(block)
        self.limits.check_size(self.name, self.count, more=True)
        self.out.write(block)

    def finish(self) -> str:
        return self.name


class _Form:
    """A form with the file in one of its fields."""

    def __init__(self, boundary: bytes, out: BinaryIO, limits: Limits):
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        self.errors = FormParserError
        self.out, self.limits = out, limits
        self.file: _Raw | None = None
        self.inside = self.complete = False  # of the file's field; of the form
        self.other = 0  # bytes of other fields
        self.header, self.value = b"", b""
        self.headers: dict[bytes, bytes] = {}
        try:
            self.parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self.headers.clear, "on_header_field": self._header_field,
                    "on_header_value": self._header_value, "on_header_end": self._header_end,
                    "on_headers_finished": self._begin, "on_part_data": self._data, "on_end": self._end,
                },
            )  # fmt: skip
        except FormParserError as error:
            raise self._damaged() from error

    def write(self, block: bytes) -> None:
        try:
            self.parser.write(block)
        except self.errors as error:
            raise self._damaged() from error

    def finish(self) -> str:
        if self.file is None:
            raise Refusal(422, f"the form has no file in the field {_FIELD!r}: {_HOW}")
        if not self.complete:
            raise self._damaged()
        return self.file.name

    def _damaged(self) -> Refusal:
        return Refusal(400, f"the form is damaged or incomplete: {_HOW}")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        self.headers[self.header.lower()] = self.value
        self.header, self.value = b"", b""

    def _begin(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        self.inside = options.get(b"name") == _FIELD.encode()
        if self.inside and self.file is not None:
            raise Refusal(422, f"the form has several files in the field {_FIELD!r}: send one request for each")
        if self.inside:
            self.file = _Raw(self.out, self.limits, _name(options.get(b"filename", b"")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.inside and self.file is not None:
            self.file.write(data[start:end])
            return
        self.other += end - start
        if self.other > _ENVELOPE:
            raise Refusal(413, f"the form has too much besides the file in the field {_FIELD!r}: {_HOW}")

    def _end(self) -> None:
        self.complete = True


def _name(given: bytes) -> str:
    """Name of a file without its folders, in printable characters."""
    text = given.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return printable(text)[-_MAX_NAME:] or "upload"
