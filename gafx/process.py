"""The process of a command: standard streams that are closed or break, and signals that end it."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from gafx.errors import UsageError

_SIGNALS = ("SIGTERM", "SIGHUP")  # the second is not on Windows


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM and SIGHUP within `terminable`, so that a command ends as it does on Ctrl-C.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP, so that temporary files are removed; a second signal ends the process.

    An ignored signal stays ignored (SIGHUP under nohup). Ranks of a distributed run keep the default: Python's handlers
    do not run while a collective waits for a rank that has ended.
    """

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    with contextlib.ExitStack() as restore:
        alone = os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread()
        for number in [getattr(signal, name) for name in _SIGNALS if alone and hasattr(signal, name)]:
            if signal.getsignal(number) is signal.SIG_DFL:
                restore.callback(signal.signal, number, signal.signal(number, stop))
        yield


def occupy_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams, as in a daemon.

    Otherwise the next file opened would become, say, standard error, and get what libraries write there.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor: this one


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let a command run whatever its standard streams are.

    A closed standard input is empty. What is written to a closed standard error, or to one whose reader has ended, is
    dropped. Results written to a closed standard output raise a `UsageError`, see `print_made`.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    occupy_standard_streams()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stdout = _ClosedOutput() if sys.stdout is None else _Output(sys.stdout)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = _Messages(sys.stderr)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def check_output_open() -> None:
    """Raise `UsageError` if standard output is closed: before the work of a command that prints its result."""
    if isinstance(sys.stdout, _ClosedOutput):
        raise UsageError(
            "standard output is closed, so the result would be lost: open it (> FILE, or > /dev/null to do without), "
            "or name a file with --output where the command has that option"
        )


def print_made(text: object) -> None:
    """Print the name or a summary of what a command has made; on standard error where standard output is closed."""
    print(text, file=sys.stderr if isinstance(sys.stdout, _ClosedOutput) else sys.stdout, flush=True)


def output_fails() -> bool:
    """Return whether standard output could not be written; what is left for it then goes to /dev/null."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    failed = getattr(sys.stdout, "failed", False)
    if failed:
        _drop(sys.stdout)
    return failed


def _drop(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream without descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


class _ClosedOutput(io.TextIOBase):
    """Standard output that was closed before the process began."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        if text:
            check_output_open()
        return len(text)

    def fileno(self) -> int:
        return 1


class _Output:
    """Standard output that knows whether a write has failed: an error does not say to which file it belongs."""

    def __init__(self, stream: Any):
        self._stream, self.failed = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.failed = True
            raise


class _Messages(_Output):
    """Standard error whose failures end no command: a log that nobody reads any more is no reason to stop training."""

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _drop(self._stream)
