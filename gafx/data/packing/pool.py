"""Work spread over processes: results as they complete or in order, and no process left behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from tqdm import tqdm

from gafx.errors import UsageError

Result = TypeVar("Result")
# Jobs per process that are submitted ahead: enough that none waits, few enough that results do not pile up.
_AHEAD = 3


def run_all(
    function: Callable[..., Result], jobs: Iterator[tuple[Any, ...]], workers: int, *, ordered: bool = False,
    killed: str = "a packing process was killed (out of memory?). What is packed is kept: give the command again, with "
    "fewer workers if memory is short",
) -> Generator[Result, None, None]:  # fmt: skip
    """Yield `function(*job)` for all jobs.

    Ctrl-C, SIGTERM, and closing the generator end the processes at once, in the middle of a job.

    Args:
        function: at the top level of a module, so that another process can import it.
        jobs: its arguments; the iterator is advanced as they are needed.
        workers: processes; 1 works in this process.
        ordered: yield in the order of the jobs instead of as they complete.
        killed: message where a process was killed.

    Raises:
        UsageError: a process was killed, or the function raised it.
        OSError: raised by the function; without `ordered` after the jobs under way have been yielded.
    """
    if workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    # Spawned, not forked: the caller may hold threads (torch, DDP) that do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    try:
        yield from _run(pool, function, jobs, _AHEAD * workers, ordered)
    except (KeyboardInterrupt, GeneratorExit):  # what the processes compute is not read; a job may take minutes
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    except BrokenProcessPool as broken:
        raise UsageError(killed) from broken
    finally:
        pool.shutdown(cancel_futures=True)


def progress_bar(
    what: str, total: int, done: int = 0, *, hidden: bool = False, unit: str = "clip"
) -> "tqdm[Any]":  # fmt: skip
    """Return a progress bar over clips on standard error; in a log file it prints every 30 s."""
    return tqdm(
        total=total, initial=done, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, disable=hidden,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )  # fmt: skip


def _run(
    pool: Executor, function: Callable[..., Result], jobs: Iterator[tuple[Any, ...]], ahead: int, ordered: bool
) -> Iterator[Result]:
    waiting: list[Future[Result]] = []
    error: OSError | None = None
    while error is None or waiting:
        if error is None:
            waiting += [pool.submit(function, *job) for job in islice(jobs, ahead - len(waiting))]
            if not waiting:
                return
        done = waiting[:1] if ordered else wait(waiting, return_when=FIRST_COMPLETED).done
        waiting = [future for future in waiting if future not in done]
        for future in done:
            try:
                result = future.result()
            except OSError as caught:
                if ordered:
                    raise
                error = caught
            else:
                yield result
    raise error


def _follow_parent() -> None:
    """End this process when its parent ends for any reason, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
