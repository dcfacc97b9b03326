"""Iterators that run in threads while others work on what they have given."""

import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs generators, each in a thread of its own; what they give comes out of one queue of bounded length.

    A context manager to iterate over. What a generator raises is raised here. Leaving it closes the generators, in
    their threads, and waits for these, whatever they are doing.

    Args:
        sources: generators that nobody else iterates over.
        room: things that may wait to be taken; a generator with more has to wait.
        wake: called on leaving, to end what generators wait for.
    """

    def __init__(self, sources: Sequence[Generator[T, None, None]], room: int, wake: Callable[[], object] = int):
        self.queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(room)
        self.stop, self.wake = threading.Event(), wake
        # Each sees the variables of whoever began it: a web server's, say, that tell whose progress is shown.
        self.threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work, source), daemon=True)
            for source in sources
        ]

    def __enter__(self) -> "Background[T]":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.wake()
        while any(thread.is_alive() for thread in self.threads):
            try:  # one may stand before a full queue
                self.queue.get(timeout=0.01)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[T]:
        working = len(self.threads)
        while working:
            item, error = self.queue.get()
            if error is not None:
                raise error
            if item is None:
                working -= 1
            else:
                yield item

    def _work(self, source: Generator[T, None, None]) -> None:
        try:
            for item in source:
                if self.stop.is_set():
                    break
                self.queue.put((item, None))
            source.close()
        except BaseException as error:  # it ends the whole, wherever it came from
            self.queue.put((None, error))
        self.queue.put((None, None))


def ahead(source: Generator[T, None, None], room: int) -> Generator[T, None, None]:
    """Run a generator in a thread, so many things ahead of whoever takes them."""
    with Background([source], room) as found:
        yield from found
