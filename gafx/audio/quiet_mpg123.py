"""Suppress libmpg123's messages on standard error.

libsndfile's mp3 decoder writes to standard error on every seek into the middle of a file, where frames depend on others
that were not read, which cannot be turned off. The messages are of no use: those frames belong to the run-up before a
segment, which is dropped, and decoding errors are raised anyway. On Linux only; elsewhere the messages are printed.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MESSAGE = re.compile(
    rb"^(?:\n?\[src/libmpg123/|Warning: Xing stream size|"
    rb"Note: (?:Illegal Audio-MPEG-Header|Trying to resync|Hit end of|Skipped))[^\n]*\n",
    re.MULTILINE,
)
_lock = threading.Lock()
_depth = 0
_terminal = _capture = -1  # descriptors: the real standard error, and the file that replaces it meanwhile


@contextmanager
def without_messages() -> Iterator[None]:
    """Redirect standard error while a decoder runs, then print what did not come from the decoder.

    Threads may use it at the same time: the first redirects the stream, the last restores it.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _redirect()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _restore()


def _redirect() -> None:
    global _terminal, _capture
    if hasattr(os, "memfd_create"):  # Linux only
        with suppress(OSError):  # e.g. no descriptor is left: the messages are printed then
            _capture = os.memfd_create("stderr")
            _terminal = os.dup(2)
            os.dup2(_capture, 2)


def _restore() -> None:
    global _terminal, _capture
    if _terminal < 0:
        return
    os.dup2(_terminal, 2)
    length = os.lseek(_capture, 0, os.SEEK_END)
    rest = _MESSAGE.sub(b"", os.pread(_capture, length, 0)) if length else b""
    if rest:
        with suppress(OSError):  # the reader has closed it
            os.write(_terminal, rest)
    os.close(_capture)
    os.close(_terminal)
    _terminal = _capture = -1
