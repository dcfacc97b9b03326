"""Generators that run in threads while the caller works on their items."""

import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_stop: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stop", default=None)


class Stopped(Exception):
    """Raised in a thread of `background` whose block has been left."""


def stoppable(run: Callable[..., T]) -> Callable[..., T]:
    """Return `run`, to be called in any thread, which raises `Stopped` once the current thread's work is not wanted."""
    stop = _stop.get()

    def run_or_stop(*given: Any) -> T:
        if stop is not None and stop.is_set():
            raise Stopped
        return run(*given)

    return run_or_stop


@contextmanager
def background(
    sources: Sequence[Generator[T, None, None]], room: int, wake: Callable[[], object] = int
) -> Iterator[Iterator[T]]:
    """Run generators, each in its own thread, and yield an iterator over their items.

    An exception of a generator is raised by the iterator. Leaving the block closes the generators, in their threads,
    and waits for these; what they compute by functions of `stoppable` ends before its next call.

    Args:
        sources: generators that nothing else iterates over.
        room: length of the queue of items; a generator waits while it is full.
        wake: called on leaving; must end whatever a generator may be blocked on.
    """
    items: queue.Queue[tuple[bool, Any]] = queue.Queue(room)  # (False, item), or (True, error or None) at an end
    stop = threading.Event()

    def work(source: Generator[T, None, None]) -> None:
        failure = None
        _stop.set(stop)
        try:
            for item in source:
                if stop.is_set():
                    break
                items.put((False, item))
            source.close()
        except BaseException as error:  # raised in the caller's thread, whatever it is
            failure = error
        items.put((True, failure))

    def received() -> Iterator[T]:
        for _ in sources:
            while not (entry := items.get())[0]:
                yield entry[1]
            if entry[1] is not None:
                raise entry[1]

    # Each thread gets the caller's context variables: gradio's, for one, say whose progress is shown.
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(work, source), daemon=True) for source in sources
    ]
    for thread in threads:
        thread.start()
    try:
        yield received()
    finally:
        stop.set()
        wake()
        while any(thread.is_alive() for thread in threads):
            try:  # a thread may be waiting for room in the queue
                items.get(timeout=0.01)
            except queue.Empty:
                continue


def ahead(source: Generator[T, None, None], room: int) -> Generator[T, None, None]:
    """Run a generator in a thread, up to `room` items ahead of the caller."""
    with background([source], room) as items:
        yield from items
