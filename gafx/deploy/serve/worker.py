"""The computing thread: takes uploads from a queue and labels one after the other.

Each is labelled by itself, as `gafx predict FILE` does: in a batch with others the last bits of its probabilities would
depend on them (for silence, whose log-mel map amplifies rounding, more than the last bits).
"""

import os
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gafx.deploy.predict import Prediction, predict_files
from gafx.deploy.uploads import Limits, memory_error
from gafx.errors import UnreadableAudio
from gafx.inference import Probabilities
from gafx.nn.precision import pick_device


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
    """Labels uploads in one thread.

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
            if not job.future.set_running_or_notify_cancel():
                continue
            begin = time.perf_counter()
            try:
                job.future.set_result(self._label(job))
            except Exception as error:
                job.future.set_exception(error)
            self.seconds_per_file += 0.1 * (time.perf_counter() - begin - self.seconds_per_file)

    def _label(self, job: Job) -> Prediction:
        if self._ended:
            raise Ended
        try:
            self.limits.check(job.path, job.name)
            (found,) = predict_files(
                self.model, [job.path], over_time=job.over_time, device=self.device, progress=self._stop_if_ended
            )
        except (MemoryError, RuntimeError) as error:
            raise memory_error(error, job.name) from error
        if found.error is not None:
            raise UnreadableAudio(found.error)
        return replace(found, file=job.name)

    def _stop_if_ended(self, _: float) -> None:
        if self._ended:
            raise Ended


def delete(path: Path) -> None:
    """Delete an upload, if it is still there."""
    with suppress(OSError):
        os.unlink(path)
