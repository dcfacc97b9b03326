"""Work spread over processes, for the packers: results as they come or in order, and no process left behind."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from gafx.errors import UsageError

Result = TypeVar("Result")
# Jobs a process that are handed out at a time: enough that none waits, few enough that results do not pile up.
_AHEAD = 3


def run_all(
    function: Callable[..., Result], jobs: Iterator[tuple[Any, ...]], workers: int, *, ordered: bool = False
) -> Generator[Result, None, None]:
    """`function(*job)` of all jobs.

    Args:
        function: of a module, so that another process finds it.
        jobs: its arguments; taken as they are needed.
        workers: processes; 1 works in this one.
        ordered: in the order of the jobs, else as they are done.

    Raises:
        UsageError: a process was killed, or the function raised it.
        OSError: as the function raised it, once the jobs under way have ended.
    """
    if workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    # Spawned, not forked: the caller may hold threads (torch, DDP) that do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    try:
        yield from (_in_order if ordered else _as_done)(pool, function, jobs, _AHEAD * workers)
    except BrokenProcessPool as broken:
        raise UsageError(
            "a packing process was killed (out of memory?). What is packed is kept: give the command "
            "again, with fewer workers if memory is short"
        ) from broken
    finally:
        pool.shutdown(cancel_futures=True)


def _as_done(
    pool: Executor, function: Callable[..., Result], jobs: Iterator[tuple[Any, ...]], ahead: int
) -> Iterator[Result]:
    waiting = {pool.submit(function, *job) for job in _take(jobs, ahead)}
    error: BaseException | None = None
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                yield future.result()
            except OSError as caught:
                error = caught
        if error is None:
            waiting |= {pool.submit(function, *job) for job in _take(jobs, len(done))}
    if error is not None:
        raise error


def _in_order(
    pool: Executor, function: Callable[..., Result], jobs: Iterator[tuple[Any, ...]], ahead: int
) -> Iterator[Result]:
    waiting: list[Future[Result]] = [pool.submit(function, *job) for job in _take(jobs, ahead)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [pool.submit(function, *job) for job in _take(jobs, 1)]
        yield result


def _take(jobs: Iterator[tuple[Any, ...]], count: int) -> Iterator[tuple[Any, ...]]:
    for _, job in zip(range(count), jobs, strict=False):
        yield job


def _follow_parent() -> None:
    """End this process when the one that started it ends, however that ends, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
