"""Keep libmpg123's remarks off the terminal.

libsndfile's mp3 decoder writes to standard error on every seek into the middle of a file, where frames lean on others
that were not read, and offers no way to turn that off. What it says is of no use: those frames lie in the run-up before
a segment, which is dropped, and what cannot be decoded is an error of its own.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_REMARK = re.compile(
    rb"^(?:\n?\[src/libmpg123/|Warning: Xing stream size|"
    rb"Note: (?:Illegal Audio-MPEG-Header|Trying to resync|Hit end of|Skipped))[^\n]*\n",
    re.MULTILINE,
)
_lock = threading.Lock()
_depth = 0
_terminal = _aside = -1  # descriptors: where standard error leads to, and where it goes meanwhile


@contextmanager
def without_remarks() -> Iterator[None]:
    """Hold standard error back while a decoder works, and pass on what did not come from it.

    Threads may use it at the same time: the first diverts the stream, the last puts it back.
    """
    _divert()
    try:
        yield
    finally:
        _restore()


def occupy_standard_streams() -> None:
    """Open /dev/null in the place of standard streams that are closed, as a daemon's are.

    Else the next file to be opened would become standard error, and be diverted.
    """
    try:
        os.fstat(2)
        return
    except OSError:
        pass
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 2:
        pass
    if descriptor != 2:
        os.close(descriptor)


def _divert() -> None:
    global _depth, _terminal, _aside
    with _lock:
        _depth += 1
        if _depth > 1 or not hasattr(os, "memfd_create"):  # Linux alone has it
            return
        try:
            _aside = os.memfd_create("stderr")
            _terminal = os.dup(2)
            os.dup2(_aside, 2)
        except OSError:  # no descriptor is left, say: the remarks are printed then
            return


def _restore() -> None:
    global _depth, _terminal, _aside
    with _lock:
        _depth -= 1
        if _depth or _terminal < 0:
            return
        os.dup2(_terminal, 2)
        length = os.lseek(_aside, 0, os.SEEK_END)
        rest = _REMARK.sub(b"", os.pread(_aside, length, 0)) if length else b""
        if rest:
            with suppress(OSError):  # nobody reads it any more
                os.write(_terminal, rest)
        os.close(_aside)
        os.close(_terminal)
        _terminal = _aside = -1
