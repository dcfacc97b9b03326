"""Shared by the demo and the service: limits on uploads with their messages, and the life of their servers."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gafx.audio.read import probe
from gafx.errors import UsageError
from gafx.report.format import duration, plural, size

_log = logging.getLogger("gafx")
MAX_BYTES = 50_000_000
MAX_SECONDS = 1200.0


class OverLimit(UsageError):
    """An upload with more bytes or seconds than are admitted, or more than memory can hold."""


@dataclass(frozen=True)
class Limits:
    """Limits on an upload.

    Attributes:
        max_bytes: largest file.
        max_seconds: longest audio.
        place: what takes the upload, for the messages.
        server: what is started with other limits, for the messages.

    Raises:
        UsageError: a limit that admits no file.
    """

    max_bytes: int = MAX_BYTES
    max_seconds: float = MAX_SECONDS
    place: str = "page"
    server: str = "demo"

    def __post_init__(self) -> None:
        for key, default in (("max_bytes", MAX_BYTES), ("max_seconds", MAX_SECONDS)):
            if not (value := getattr(self, key)) > 0:
                raise UsageError(f"{key}={value} admits no file: it must be above 0, e.g. {default:.0f}")

    @property
    def large(self) -> str:
        """Message on a file of too many bytes, with `{name}`, `{size}` and `{limit}` to be filled in."""
        return (
            f"{{name}} has {{size}}, and this {self.place} takes at most {{limit}}: cut it or store it as mp3, label "
            f"it with gafx predict, or start the {self.server} with a larger --max-mb"
        )

    def check_size(self, name: str, count: int, *, more: bool = False) -> None:
        """Raise `OverLimit` for a file of too many bytes; `more`: it has at least that many, its end was not read."""
        if count > self.max_bytes:
            limit = size(self.max_bytes)
            exact = plural(count, "byte") if size(count) == limit else size(count)
            found = f"more than {limit}" if more else exact
            raise OverLimit(self.large.format(name=name, size=found, limit=limit))

    def check(self, path: Path, name: str) -> float:
        """Seconds of audio in an upload, by its header.

        Args:
            path: of the file.
            name: of the upload, for the messages.

        Raises:
            OverLimit: it has too many bytes or seconds.
            UnreadableAudio: it cannot be decoded.
        """
        self.check_size(name, path.stat().st_size if path.is_file() else 0)
        # Only the formats of data sets: uploads may be hostile, and libsndfile's other parsers are less tested.
        seconds = probe(path).seconds
        if seconds > self.max_seconds:
            raise OverLimit(
                f"{name} lasts {duration(seconds)}, and this {self.place} takes at most {duration(self.max_seconds)}: "
                f"cut it, label it with gafx predict, or start the {self.server} with a larger --max-seconds"
            )
        return seconds


def memory_error(error: Exception, name: str) -> OverLimit:
    """The message on an upload that memory does not suffice for; any other `error` is raised."""
    if not isinstance(error, MemoryError) and "memory" not in str(error):
        raise error
    return OverLimit(f"{name} takes more memory than there is: try a shorter file")


def warn_of_host(host: str, place: str = "page") -> None:
    """Log a warning if the address can be reached from other machines."""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        _log.warning(
            "--host %s lets everybody who can reach this machine use the %s: there is no password and no encryption. "
            "Put it behind a server that has both, or leave --host out", host, place,
        )  # fmt: skip


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM and SIGHUP, too, so that uploads are deleted; main thread only."""
    with ExitStack() as restore:
        for name in ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ():
            kind = getattr(signal, name, None)
            # An ignored signal stays ignored: SIGHUP under nohup, for one.
            if kind is not None and signal.getsignal(kind) is not signal.SIG_IGN:
                restore.callback(signal.signal, kind, signal.signal(kind, signal.default_int_handler))
        yield


def wait_for_interruption() -> None:
    """Return when the process is interrupted."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
