"""A failure on one rank ends all ranks, with that rank's error.

A rank that fails while others wait for it in a collective would leave them there for hours. So each rank keeps a
connection of its own to the store through which the ranks found each other: the one that fails writes its error there,
and a thread of every other rank, which looks once a second, ends its process. That needs no launcher's help: `torchrun`
ends the others too, plain `srun` does not. A rank that is killed writes nothing; its neighbour misses its heartbeat.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

from gafx.errors import UsageError

# Looks a second, and how many of them a rank may be silent for. Counted in looks, not by a clock: where all ranks were
# suspended, none of them looks.
_INTERVAL, _PATIENCE = 1.0, 60
# Seconds that a rank which keeps the store waits for the others to have seen its error.
_GRACE = 5.0
_BROKEN = ("peer", "NCCL", "gloo", "socket", "Broken pipe", "process group")
_watch: "_Watch | None" = None
_inside = _joined = False


@contextmanager
def together() -> Iterator[None]:
    """The whole work of a script: a rank that fails ends its process, and those of all others once `join` was called.

    Of a single process, errors pass through, and the end is the block's. A rank's process ends here, with the status
    that the error would have had (2 for a `UsageError`, else 1), or with 0. It ends at once, also when all is well:
    torch takes a group of processes apart while it holds the interpreter's lock, for which a thread of the group that
    still lets go of its last tensor waits, and now and then (more often the busier the machine) both wait for ever.
    """
    global _inside
    _inside = True
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _watch is None:
            raise
        _watch.fail(error)
    finally:
        _inside = False
        part()
    if _joined:
        _end(0)


def ends_processes() -> bool:
    """Whether this rank's process ends with the block of `together`, so that nothing need be taken apart before."""
    return _inside and _joined


def join(rank: int, world: int) -> None:
    """Begin to watch the other ranks; no-op for a single process, and outside of `together`."""
    global _watch, _joined
    if _inside and world > 1 and _watch is None:
        _joined = True
        _watch = _Watch(rank, world)
        _watch.start()


def part() -> None:
    """End watching: from here on ranks may leave in any order."""
    global _watch
    if _watch is not None:
        _watch.done.set()
        with suppress(Exception), _watch.lock:
            _watch.store.add(f"{_watch.prefix}left/{_watch.rank}", 1)
        _watch = None


class _Watch(threading.Thread):
    """One rank's eye on the others. The store's connection is used by one thread at a time."""

    def __init__(self, rank: int, world: int):
        super().__init__(daemon=True, name="gafx-together")
        self.rank, self.world, self.done = rank, world, threading.Event()
        self.lock, self.ending = threading.Lock(), threading.Lock()
        # A group that a launcher started again must not find the failure of the one before.
        self.prefix = f"gafx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
        self.store = self._connect()

    def run(self) -> None:
        neighbour, last, silent = (self.rank + 1) % self.world, -1, 0
        while not self.done.wait(_INTERVAL):
            try:
                with self.lock:
                    self.store.add(f"{self.prefix}beat/{self.rank}", 1)
                    failure = self._failure()
                    beat = self.store.add(f"{self.prefix}beat/{neighbour}", 0)
            except Exception as error:
                # Whoever keeps the store may have left because everything is done.
                if self.done.wait(2 * _INTERVAL):
                    return
                self._leave(f"the connection to rank 0 is lost, which has ended or whose machine has ({_short(error)})")
            if failure:
                self._leave(failure)
            silent = silent + 1 if beat == last else 0
            last = beat
            if silent >= _PATIENCE and not self._left(neighbour):
                self._leave(
                    self._publish(
                        f"rank {neighbour} has not been heard of for {silent * _INTERVAL:.0f} s: it was killed (out of "
                        "memory?) or its machine is gone"
                    )
                )

    def fail(self, error: BaseException) -> NoReturn:
        """End all ranks because this one met an error."""
        usage = isinstance(error, (UsageError, OSError))  # said in a sentence, as train.py does of a single process
        text = _one_line(error)
        if _is_broken_connection(error):
            # Most likely what another's failure looks like from here, and that one's error is about to be known.
            failure = self._wait_for_failure(3 * _INTERVAL)
            if failure:
                self._leave(failure)
            text = f"lost its connection to another rank, which was killed or whose machine is gone ({_short(error)})"
            usage = True
        ours = f"rank {self.rank} failed: {text}"
        first = self._publish(ours)
        if first == ours:
            self.ending.acquire()
            if not usage and not isinstance(error, KeyboardInterrupt):
                traceback.print_exception(error)
            print(f"error on rank {self.rank}: {text}", file=sys.stderr, flush=True)
            if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self._wait_until_seen()
            _end(130 if isinstance(error, KeyboardInterrupt) else 2 if usage else 1)
        # An error that every rank met is said once.
        self._leave(first, quiet=first.partition(": ")[2] == text)

    def _leave(self, failure: str, *, quiet: bool = False) -> NoReturn:
        """End this process because of another's failure; one rank of each machine says so."""
        self.ending.acquire()  # never released: of this rank's two threads one has the last word
        if not quiet and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: rank {self.rank} ends: {failure}", file=sys.stderr, flush=True)
        with suppress(Exception):
            self.store.add(f"{self.prefix}seen", 1)
        _end(1)

    def _publish(self, failure: str) -> str:
        """Write a failure unless one is there already; returns the one that is there."""
        try:
            with self.lock:
                return self.store.compare_set(f"{self.prefix}failure", "", failure).decode(errors="replace")
        except Exception:  # the store is gone with its keeper: the error is then said by each for itself
            return failure

    def _left(self, rank: int) -> bool:
        with suppress(Exception), self.lock:
            return self.store.add(f"{self.prefix}left/{rank}", 0) > 0
        return False

    def _failure(self) -> str:
        key = f"{self.prefix}failure"
        return self.store.get(key).decode(errors="replace") if self.store.check([key]) else ""

    def _wait_for_failure(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with self.lock:
                    if failure := self._failure():
                        return failure
            except Exception:
                return ""
            time.sleep(0.1)
        return ""

    def _wait_until_seen(self) -> None:
        end = time.monotonic() + _GRACE
        with suppress(Exception):
            while time.monotonic() < end and self.store.add(f"{self.prefix}seen", 0) < self.world - 1:
                time.sleep(0.05)

    def _connect(self):  # type: ignore[no-untyped-def]  # torch is imported late, and has no type for it
        from torch.distributed import TCPStore

        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
        return TCPStore(host, port, None, False, timedelta(seconds=30), wait_for_workers=False)


def _short(error: BaseException) -> str:
    """The first sentence of an error that may carry a stack of C++."""
    return " ".join(str(error).split("\n")[0].split())[:200]


def _is_broken_connection(error: BaseException) -> bool:
    from torch.distributed import DistError

    if isinstance(error, UsageError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, DistError) or any(word in str(error) for word in _BROKEN)


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; training continues from its last checkpoint when the command is given again"
    text = " ".join(str(error).split())
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"


def _end(status: int) -> NoReturn:
    """End this process at once, its loaders and packers with it: an orderly shutdown could wait for other ranks."""
    for child in multiprocessing.active_children():
        with suppress(Exception):
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
