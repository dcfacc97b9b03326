"""Throughput of a run, and the fraction of its time spent waiting for data."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator

# Steps left out of the figures of a whole run: first allocations, start of the data loader's workers.
_WARM_UP = 5
Value = TypeVar("Value")


@dataclass
class _Span:
    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Throughput:
    """Clips per second over all ranks, and the largest data wait of any rank: one that waits makes all wait.

    Args:
        accelerator: of the run.
        seconds: of training before this process, from a checkpoint.

    Attributes:
        seconds: of training, without validation and checkpoints.
    """

    def __init__(self, accelerator: Accelerator, seconds: float = 0.0):
        self.accelerator, self.seconds = accelerator, seconds
        self._window, self._run, self._first = _Span(), _Span(), _Span()
        self._warm = 0
        self.start()

    def start(self) -> None:
        """Start the clock: call it before training and after every interruption (validation, checkpoint)."""
        self._mark = time.perf_counter()

    def wait(self, fetch: Callable[[], Value]) -> Value:
        """Call `fetch` and count its time as data wait."""
        begin = time.perf_counter()
        value = fetch()
        waited = time.perf_counter() - begin
        self._window.waited += waited
        self._run.waited += waited
        return value

    def step(self, clips: int) -> None:
        """Count a finished step of so many clips over all ranks."""
        now = time.perf_counter()
        took, self._mark = now - self._mark, now
        self.seconds += took
        for span in (self._window, self._run):
            span.steps += 1
            span.clips += clips
            span.seconds += took
        self._warm += 1
        if self._warm == _WARM_UP:
            self._first, self._run = self._run, _Span()

    def read(self) -> dict[str, float]:
        """Figures since the last call (collective): `clips_per_second`, `data_wait` (fraction of the time),
        `seconds_per_step` and, on GPUs, `peak_memory_gb`."""
        window, self._window = self._window, _Span()
        return self._figures(window)

    def summary(self) -> dict[str, float]:
        """Figures of all steps of this process but the first `_WARM_UP`, if there are more (collective)."""
        figures = self._figures(self._run if self._run.steps else self._first)
        return {name: round(value, 4) for name, value in figures.items()}

    def _figures(self, span: _Span) -> dict[str, float]:
        device = self.accelerator.device
        cuda = device.type == "cuda"
        own = [span.waited / max(span.seconds, 1e-9), torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0]
        wait, memory = self.accelerator.gather(torch.tensor([own], device=device)).amax(dim=0).tolist()
        return {
            "clips_per_second": span.clips / max(span.seconds, 1e-9), "data_wait": wait,
            "seconds_per_step": span.seconds / max(span.steps, 1), **({"peak_memory_gb": memory} if cuda else {}),
        }  # fmt: skip
