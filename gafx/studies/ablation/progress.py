"""How far a table is: which runs are at work, at which step, and how long the rest will take."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from gafx.studies.ablation.outcome import Outcome
from gafx.studies.ablation.plan import Job

_LINE_SECONDS = 60.0  # between two lines where the output is no terminal


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then, and one as each run begins and ends.

    The time left is that of runs of the same row that have ended, or of all runs, or what the steps of the present
    ones promise; runs that were finished before do not count.
    """

    def __init__(self, jobs: Sequence[Job], outcomes: Mapping[str, Outcome], slots: int, say: Callable[[str], None]):
        self._jobs, self._outcomes, self._slots, self._say = jobs, outcomes, slots, say
        self._begun: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when a run's steps were first seen, and how many
        self._terminal = sys.stderr.isatty()
        self._shown = self._width = 0.0
        before = len(outcomes)
        if before:
            say(f"{before} of {len(jobs)} runs need nothing more: finished before, or refused")

    def begin(self, job: Job) -> None:
        self._begun[job.key] = time.time()
        self._line(f"[{self._done() + 1}/{len(self._jobs)}] {job.key}: {job.folder}")

    def end(self, job: Job, outcome: Outcome) -> None:
        said = f": {outcome.said}" if outcome.said else ""
        self._line(
            f"[{self._done()}/{len(self._jobs)}] {job.key}: {outcome.state} after {_time(outcome.seconds)}{said}"
        )

    def show(self, running: Sequence[Job]) -> None:
        """Say where the present runs are."""
        now = time.time()
        if now - self._shown < (1.0 if self._terminal else _LINE_SECONDS) or not running:
            return
        self._shown = now
        steps = {job.key: _steps(job) for job in running}
        parts = [
            f"{job.key} step {done}/{total}, loss {loss:.3f}" if total else f"{job.key} starts"
            for job in running
            for done, total, loss in [steps[job.key]]
        ]
        left = self._left({key: self._promised(key, done, total) for key, (done, total, _) in steps.items()})
        text = f"{self._done()}/{len(self._jobs)} done; {'; '.join(parts)}" + (
            f"; about {_time(left)} left" if left else ""
        )
        if self._terminal:
            self._width = max(self._width, len(text))
            print("\r" + text.ljust(int(self._width))[:200], end="", file=sys.stderr, flush=True)
        else:
            self._say(text)

    def close(self) -> None:
        if self._terminal and self._width:
            print(file=sys.stderr)

    def _line(self, text: str) -> None:
        if self._terminal and self._width:
            print("\r" + " " * int(self._width) + "\r", end="", file=sys.stderr)
        self._say(text)

    def _done(self) -> int:
        return sum(job.key in self._outcomes for job in self._jobs)

    def _promised(self, key: str, step: int, total: int) -> tuple[float, float]:
        """Seconds for all of a run's steps and for those that are left, at its pace; zeros where that is not known.

        The pace is that of the steps that this driver has seen: a run that was broken off has others behind it.
        """
        begun, first = self._first.setdefault(key, (time.time(), step)) if total else (0.0, step)
        pace = (time.time() - begun) / (step - first) if step > first else 0.0
        return pace * total, pace * (total - step)

    def _left(self, promised: Mapping[str, tuple[float, float]]) -> float:
        """Seconds until the last run is done, from what `_promised` says of the present ones; 0: nothing is known."""
        took: dict[str, list[float]] = {}
        for job in self._jobs:
            outcome = self._outcomes.get(job.key)
            if outcome is not None and outcome.state == "finished" and outcome.seconds:
                took.setdefault(job.row, []).append(outcome.seconds)
        now = time.time()
        for job in self._jobs:
            if job.key in promised and promised[job.key][0]:
                took.setdefault(job.row, []).append(promised[job.key][0])
        every = [seconds for known in took.values() for seconds in known]
        if not every:
            return 0.0
        total = 0.0
        for job in self._jobs:
            if job.key in self._outcomes:
                continue
            if job.key in promised and promised[job.key][0]:
                total += promised[job.key][1]
                continue
            known = took.get(job.row, every)
            spent = now - self._begun[job.key] if job.key in self._begun else 0.0
            total += max(sum(known) / len(known) - spent, 0.0)
        return total / self._slots


def _steps(job: Job) -> tuple[int, int, float]:
    """The step that a run has logged last, how many it will take (0: not known yet), and its loss."""
    try:
        total = int(json.loads((job.folder / "run.json").read_text(encoding="utf-8"))["total_steps"])
        with (job.folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 2000))
            lines = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}") and line[:1] == b"{"]
        last = next(line for line in reversed(lines) if "loss" in line)
        return int(last["step"]), total, float(last["loss"])
    except (OSError, ValueError, KeyError, StopIteration):
        return 0, 0, 0.0


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
