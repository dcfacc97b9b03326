"""Time and peak memory of alternatives, each in a separate process, taking turns; used by the other benchmarks."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """Of one alternative: median seconds, and memory in GB of its process: at the peak, and before the first call."""

    seconds: float
    peak: float
    idle: float

    @property
    def added(self) -> float:
        """GB that a call needs on top of the loaded libraries, the model and its input."""
        return self.peak - self.idle


def measure(
    alternatives: Mapping[str, tuple[Callable[..., Callable[[], Any]], tuple]], rounds: int
) -> dict[str, Measured]:
    """Measure alternatives, taking turns; the first round warms up and counts for memory only.

    Args:
        alternatives: name -> (a function at the top of a module, its arguments); it returns what is to be timed.
        rounds: timed calls of each.
    """
    context = multiprocessing.get_context("spawn")
    running = {}
    for name, (build, arguments) in alternatives.items():
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(build, arguments, there), daemon=True)
        process.start()
        running[name] = (process, here, [], here.recv())
    peaks = dict.fromkeys(alternatives, 0.0)
    for _ in range(rounds + 1):
        for name, (_, pipe, times, _) in running.items():
            pipe.send(True)
            seconds, peak = pipe.recv()
            times.append(seconds)
            peaks[name] = max(peaks[name], peak)
    for process, pipe, _, _ in running.values():
        pipe.send(False)
        process.join()
    return {
        name: Measured(statistics.median(times[1:]), peaks[name], idle) for name, (_, _, times, idle) in running.items()
    }


def _serve(build: Callable[..., Callable[[], Any]], arguments: tuple, pipe: Connection) -> None:
    call = build(*arguments)
    pipe.send(_memory("VmRSS"))
    while pipe.recv():
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        call()
        pipe.send((time.perf_counter() - begin, _memory("VmHWM")))


def _memory(field: str) -> float:
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) * 1024 / 1e9
