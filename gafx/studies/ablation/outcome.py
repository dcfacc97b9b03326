"""What became of a job, read from how it ended and what it said."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 20_000
_NO_MEMORY = re.compile(r"out of memory|not enough memory|OutOfMemoryError|MemoryError|bad_alloc|Cannot allocate", re.I)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: `finished`, `diverged` (a loss that is not finite), `out of memory`, `refused` (a configuration or data
            that cannot be), `failed`, `killed` or `ended` (by a signal), `damaged` (files that cannot be read) or
            `not run`.
        said: its last words.
        seconds: that it took.
        log: file of what it said.
    """

    state: str
    said: str = ""
    seconds: float = 0.0
    log: str = ""


def read_outcome(status: int, log: Path, *, over_memory: bool = False) -> Outcome:
    """Judge a job's end.

    Args:
        status: its exit status; negative: the signal that ended it.
        log: what it wrote.
        over_memory: whether it was ended for taking more memory than it may.
    """
    lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status == 0:
        return Outcome("finished")
    if over_memory:
        return Outcome("out of memory", "it took more memory than --max-memory allows, and was ended")
    if errors:
        said = errors[-1]
        if _NO_MEMORY.search(said):
            return Outcome("out of memory", said)
        return Outcome("diverged" if "is not finite at step" in said else "refused", said)
    if status == -signal.SIGKILL:
        return Outcome("killed", "by SIGKILL: as the system does where memory runs out, or by somebody's hand")
    if status < 0:
        return Outcome("ended", f"by signal {signal.Signals(-status).name}; the same command continues it")
    if said := next((line for line in reversed(lines) if _NO_MEMORY.search(line)), ""):
        return Outcome("out of memory", said)
    return Outcome("failed", last)


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
