"""Progress of a table: the runs in progress, their steps, and an estimate of the time left."""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from gafx.report.format import duration, plural
from gafx.studies.ablation.outcome import Outcome
from gafx.studies.ablation.plan import Job

_LINE_SECONDS = 60.0  # between two lines where the output is not a terminal
_log = logging.getLogger("gafx")


class Progress:
    """A line that is updated on a terminal, and logged now and then elsewhere. Starts and ends of runs are logged.

    The time left is estimated from the pace of the runs in progress and from finished runs of the same row, or else of
    all rows; runs that were finished before are not counted.
    """

    def __init__(self, jobs: Sequence[Job], outcomes: Mapping[str, Outcome], slots: int):
        self._jobs, self._outcomes, self._slots = jobs, outcomes, slots
        self._first: dict[str, tuple[float, int]] = {}  # time and step when a run's steps were first seen
        self._line = tqdm(bar_format="{desc}", disable=not sys.stderr.isatty())
        self._shown = 0.0
        if outcomes:
            count, runs = len(outcomes), plural(len(jobs), "run")
            _log.info("%d of %s need nothing more: finished before, or refused", count, runs)

    def begin(self, job: Job) -> None:
        _log.info("[%d/%d] %s: %s", self._done() + 1, len(self._jobs), job.key, job.folder)

    def end(self, job: Job, outcome: Outcome) -> None:
        ended = f"{outcome.state} after {duration(outcome.seconds)}" + (outcome.message and f": {outcome.message}")
        _log.info("[%d/%d] %s: %s", self._done(), len(self._jobs), job.key, ended)

    def show(self, running: Sequence[Job]) -> None:
        """Print the step and the loss of each run in progress, at most once a second (once a minute in a log)."""
        now = time.time()
        if now - self._shown < (_LINE_SECONDS if self._line.disable else 1.0) or not running:
            return
        self._shown, parts, expected = now, [], {}
        for job in running:
            step, total, loss = _steps(job)
            parts.append(f"{job.key} step {step}/{total}, loss {loss:.3f}" if total else f"{job.key} starts")
            began, first = self._first.setdefault(job.key, (now, step)) if total else (now, step)
            if step > first:  # the pace is that of the steps seen by this process: a resumed run has others behind it
                pace = (now - began) / (step - first)
                expected[job.key] = pace * total, pace * (total - step)
        left = self._left(expected)
        text = f"{self._done()}/{len(self._jobs)} done; {'; '.join(parts)}"
        text += f"; about {duration(left)} left" if left else ""
        if self._line.disable:
            _log.info("%s", text)
        else:
            self._line.set_description_str(text[:200])

    def close(self) -> None:
        self._line.close()

    def _done(self) -> int:
        return sum(job.key in self._outcomes for job in self._jobs)

    def _left(self, expected: Mapping[str, tuple[float, float]]) -> float:
        """Return the seconds until the last run is done; 0 if they are not known.

        Args:
            expected: key of a run in progress -> seconds of all of its steps, and of those left.
        """
        took: dict[str, list[float]] = {}
        for job in self._jobs:
            outcome = self._outcomes.get(job.key)
            ended = outcome.seconds if outcome is not None and outcome.state == "finished" else 0.0
            if seconds := ended or expected.get(job.key, (0.0, 0.0))[0]:
                took.setdefault(job.row, []).append(seconds)
        every = [seconds for known in took.values() for seconds in known]
        if not every:
            return 0.0
        means = {row: sum(known) / len(known) for row, known in {**took, "": every}.items()}
        left = [expected[job.key][1] if job.key in expected else means.get(job.row, means[""])
                for job in self._jobs if job.key not in self._outcomes]  # fmt: skip
        return sum(left) / self._slots


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
