"""Progress of a table: the runs in progress, their steps, and an estimate of the time left."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from gafx.report.format import duration
from gafx.studies.ablation.outcome import Outcome
from gafx.studies.ablation.plan import Job

_LINE_SECONDS = 60.0  # between two lines where the output is not a terminal


class Progress:
    """One line that is overwritten on a terminal; elsewhere a line now and then. Starts and ends of runs are printed.

    The time left is estimated from finished runs of the same row, or else of all rows, and from the pace of the runs in
    progress; runs that were finished before are not counted.
    """

    def __init__(self, jobs: Sequence[Job], outcomes: Mapping[str, Outcome], slots: int, say: Callable[[str], None]):
        self._jobs, self._outcomes, self._slots, self._say = jobs, outcomes, slots, say
        self._began: dict[str, float] = {}
        self._first: dict[str, tuple[float, int]] = {}  # time and step when a run's steps were first seen
        self._terminal = sys.stderr.isatty()
        self._shown, self._width = 0.0, 0
        if outcomes:
            say(f"{len(outcomes)} of {len(jobs)} runs need nothing more: finished before, or refused")

    def begin(self, job: Job) -> None:
        self._began[job.key] = time.time()
        self._line(f"[{self._done() + 1}/{len(self._jobs)}] {job.key}: {job.folder}")

    def end(self, job: Job, outcome: Outcome) -> None:
        message = f": {outcome.message}" if outcome.message else ""
        after = duration(outcome.seconds)
        self._line(f"[{self._done()}/{len(self._jobs)}] {job.key}: {outcome.state} after {after}{message}")

    def show(self, running: Sequence[Job]) -> None:
        """Print the step and the loss of each run in progress, at most once a second (once a minute in a log)."""
        now = time.time()
        if now - self._shown < (1.0 if self._terminal else _LINE_SECONDS) or not running:
            return
        self._shown, parts, promised = now, [], {}
        for job in running:
            step, total, loss = _steps(job)
            parts.append(f"{job.key} step {step}/{total}, loss {loss:.3f}" if total else f"{job.key} starts")
            promised[job.key] = self._promised(job.key, step, total)
        left = self._left(promised)
        text = f"{self._done()}/{len(self._jobs)} done; {'; '.join(parts)}"
        text += f"; about {duration(left)} left" if left else ""
        if self._terminal:
            self._width = max(self._width, len(text))
            print("\r" + text.ljust(self._width)[:200], end="", file=sys.stderr, flush=True)
        else:
            self._say(text)

    def close(self) -> None:
        if self._width:
            print(file=sys.stderr)

    def _line(self, text: str) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr)
        self._say(text)

    def _done(self) -> int:
        return sum(job.key in self._outcomes for job in self._jobs)

    def _promised(self, key: str, step: int, total: int) -> tuple[float, float]:
        """Return the seconds of all steps of a run and of those left, at its pace; zeros if it is not known yet.

        The pace is that of the steps seen by this process: a resumed run has others behind it.
        """
        began, first = self._first.setdefault(key, (time.time(), step)) if total else (0.0, step)
        pace = (time.time() - began) / (step - first) if step > first else 0.0
        return pace * total, pace * (total - step)

    def _left(self, promised: Mapping[str, tuple[float, float]]) -> float:
        """Return the seconds until the last run is done, given `_promised` of the runs in progress; 0: not known."""
        took: dict[str, list[float]] = {}
        for job in self._jobs:
            outcome = self._outcomes.get(job.key)
            ended = outcome.seconds if outcome is not None and outcome.state == "finished" else 0.0
            if seconds := ended or promised.get(job.key, (0.0, 0.0))[0]:
                took.setdefault(job.row, []).append(seconds)
        every = [seconds for known in took.values() for seconds in known]
        total = 0.0
        for job in self._jobs:
            if job.key in self._outcomes or not every:
                continue
            whole, left = promised.get(job.key, (0.0, 0.0))
            if not whole:
                known = took.get(job.row, every)
                spent = time.time() - self._began.get(job.key, time.time())
                left = max(sum(known) / len(known) - spent, 0.0)
            total += left
        return total / self._slots


def _steps(job: Job) -> tuple[int, int, float]:
    """Return the last logged step of a run, the number of its steps (0: not known yet), and its loss."""
    try:
        total = int(json.loads((job.folder / "run.json").read_text(encoding="utf-8"))["total_steps"])
        with (job.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2000))
            lines = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}") and line[:1] == b"{"]
        last = next(line for line in reversed(lines) if "loss" in line)
        return int(last["step"]), total, float(last["loss"])
    except (OSError, ValueError, KeyError, StopIteration):
        return 0, 0, 0.0
