"""The computing thread: takes uploads from a queue and labels those that wait together."""

import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gafx.deploy.predict import Prediction, predict_files
from gafx.deploy.uploads import Limits, memory_error
from gafx.errors import UnreadableAudio, UsageError
from gafx.inference import Probabilities
from gafx.nn.precision import pick_device

_log = logging.getLogger("gafx")
# Files that are labelled together; more would make the first of them wait for the last.
_MOST_TOGETHER = 16


class Ended(Exception):
    """The service ended before the upload was labelled."""


@dataclass(frozen=True)
class Job:
    """An upload that waits for its labels.

    Attributes:
        path: of the file; it is deleted when `future` is done.
        name: of the upload.
        over_time: also give the probabilities of each window.
        future: the prediction; `UsageError` or `Ended` where there is none. Cancelling it gives up the place in the
            queue.
    """

    path: Path
    name: str
    over_time: bool = False
    future: "Future[Prediction]" = field(default_factory=Future)


class Worker:
    """Labels uploads one batch after the other, in one thread.

    Args:
        model: of the labels.
        limits: on each file.
        device: as for `predict_files`.

    Raises:
        UsageError: the device is not available.
    """

    def __init__(self, model: Probabilities, limits: Limits, device: str = "auto"):
        pick_device(device)
        self.model, self.limits, self.device = model, limits, device
        self.seconds_per_file = 0.1  # running mean
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._ended = False
        self._lock = threading.Lock()  # no job comes after the None that ends the queue
        self._thread = threading.Thread(target=self._run, name="gafx-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue; its file is deleted when it is done, whatever becomes of it."""
        job.future.add_done_callback(lambda _: delete(job.path))
        with self._lock:
            if not self._ended:
                self._jobs.put(job)
                return
        job.future.set_exception(Ended())

    def close(self, seconds: float = 60.0) -> None:
        """End the computation in progress, refuse what waits, and wait for the thread.

        A process that exits while torch computes is aborted.
        """
        with self._lock:
            self._ended = True
            self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            taken: list[Job | None] = [job]
            with suppress(queue.Empty):
                while len(taken) < _MOST_TOGETHER:
                    taken.append(self._jobs.get_nowait())
            jobs = [each for each in taken if each is not None and each.future.set_running_or_notify_cancel()]
            begin = time.perf_counter()
            self._answer(jobs)
            if jobs:
                self.seconds_per_file += 0.2 * ((time.perf_counter() - begin) / len(jobs) - self.seconds_per_file)
            if None in taken:
                return

    def _answer(self, jobs: Sequence[Job]) -> None:
        fine: list[Job] = []
        for job in jobs:
            try:
                if self._ended:
                    raise Ended
                self.limits.check(job.path, job.name)
                fine.append(job)
            except Exception as error:
                job.future.set_exception(error)
        if not fine:
            return
        try:
            found = predict_files(
                self.model, [job.path for job in fine], over_time=any(job.over_time for job in fine),
                device=self.device, progress=self._stop_if_ended,
            )  # fmt: skip
            for job, prediction in zip(fine, found, strict=True):
                if prediction.error is not None:
                    job.future.set_exception(UnreadableAudio(prediction.error))
                else:
                    job.future.set_result(replace(prediction, file=job.name))
        except Exception as error:
            left = [job for job in fine if not job.future.done()]
            if len(left) > 1 and not self._ended:  # the fault of one must not be that of all
                for job in left:
                    self._answer([job])
                return
            for job in left:
                job.future.set_exception(_reason(error, job.name))

    def _stop_if_ended(self, _: float) -> None:
        if self._ended:
            raise Ended


def _reason(error: Exception, name: str) -> Exception:
    if isinstance(error, (MemoryError, RuntimeError)):
        with suppress(MemoryError, RuntimeError):
            return memory_error(error, name)
    if not isinstance(error, (UsageError, Ended)):
        _log.error("an upload could not be labelled", exc_info=error)
    return error


def delete(path: Path) -> None:
    """Delete an upload, if it is still there."""
    with suppress(OSError):
        os.unlink(path)
