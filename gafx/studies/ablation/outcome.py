"""Outcome of a job, from its exit status and its log."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 20_000
_SIGNALS = frozenset(signal.Signals)
_NO_MEMORY = re.compile(r"out of memory|not enough memory|OutOfMemoryError|MemoryError|bad_alloc|Cannot allocate", re.I)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes:
        state: `finished`, `diverged` (a non-finite loss), `out of memory`, `refused` (an error in configuration or
            data), `failed`, `killed` or `ended` (by a signal), `damaged` (unreadable files) or `not run`.
        message: the last error, in one line.
        seconds: of wall-clock time.
        log: file of its output.
    """

    state: str
    message: str = ""
    seconds: float = 0.0
    log: str = ""

    def describe(self) -> str:
        """State and message."""
        return f"{self.state}: {self.message}" if self.message else self.state


def read_outcome(status: int, log: Path, *, over_memory: bool = False) -> Outcome:
    """Judge how a job ended.

    Args:
        status: its exit status; negative or above 128: the signal that ended it.
        log: its output.
        over_memory: whether it was killed because it exceeded `--max-memory`.
    """
    lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status == 0:
        return Outcome("finished")
    if over_memory:
        return Outcome("out of memory", "it used more memory than --max-memory allows, and was killed")
    if errors:
        diverged = "is not finite at step" in errors[-1]
        state = "out of memory" if _NO_MEMORY.search(errors[-1]) else "diverged" if diverged else "refused"
        return Outcome(state, errors[-1])
    if status == -signal.SIGKILL:
        return Outcome("killed", "by SIGKILL: the system sends it where memory runs out")
    if (number := -status if status < 0 else status - 128) in _SIGNALS:
        return Outcome("ended", f"by signal {signal.Signals(number).name}; the same command continues it")
    if line := next((line for line in reversed(lines) if _NO_MEMORY.search(line)), ""):
        return Outcome("out of memory", line)
    return Outcome("failed", lines[-1] if lines else "it printed nothing")


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
