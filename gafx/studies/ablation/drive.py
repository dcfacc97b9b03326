"""Execute the jobs of a plan: train and evaluate, one process after the other or several at a time."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from gafx.io import digest, write_json
from gafx.studies.ablation.outcome import Outcome, read_outcome
from gafx.studies.ablation.plan import Job
from gafx.studies.ablation.progress import Progress

_POLL_SECONDS = 0.25
_FILE = "outcomes.json"


@dataclass
class Executor:
    """Settings of where and how jobs run.

    Attributes:
        train, evaluate: command lines that overrides are appended to.
        logs: folder of the jobs' output.
        slots: environment variables of each job that runs at the same time, e.g. its own `CUDA_VISIBLE_DEVICES`.
        max_memory: bytes of main memory above which a job and its workers are killed; None: no limit.
    """

    train: list[str]
    evaluate: list[str]
    logs: Path
    slots: list[dict[str, str]] = field(default_factory=lambda: [{}])
    max_memory: int | None = None


@dataclass
class _Running:
    job: Job
    slot: int
    phase: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    over_memory: bool = False


def drive(jobs: Sequence[Job], executor: Executor) -> dict[str, Outcome]:
    """Run every job that is not finished, and return the outcome of each by its key.

    A job that fails does not stop the others. Jobs end with this process, however it ends, and the next call resumes
    them: `gafx train` continues from the last checkpoint. Outcomes are kept in `outcomes.json` next to the logs, for a
    table that is written without running anything.
    """
    executor.logs.mkdir(parents=True, exist_ok=True)
    # Jobs that failed before run again: the cause may be gone.
    outcomes = {job.key: Outcome("finished", "before") for job in jobs if job.finished() and not job.error}
    outcomes |= {job.key: Outcome("refused", job.error) for job in jobs if job.error}
    waiting = [job for job in jobs if job.key not in outcomes]
    progress = Progress(jobs, outcomes, len(executor.slots))
    free, running = list(range(len(executor.slots))), list[_Running]()
    try:
        while waiting or running:
            for job in _ready(waiting, outcomes, running):
                if not free:
                    break
                waiting.remove(job)
                if job.finished():  # the same run is another row's job and has been trained meanwhile
                    outcomes[job.key] = Outcome("finished", "shared")
                    continue
                running.append(_start(job, "evaluate" if job.trained() else "train", free.pop(0), executor))
                progress.begin(job)
            _skip_dependents(waiting, outcomes)
            for entry in list(running):
                _limit_memory(entry, executor.max_memory)
                if entry.process.poll() is None:
                    continue
                running.remove(entry)
                outcome = read_outcome(entry.process.returncode, entry.log, over_memory=entry.over_memory)
                if outcome.state == "finished" and entry.phase == "train" and entry.job.evaluated:
                    running.append(_start(entry.job, "evaluate", entry.slot, executor, entry.began))
                    continue
                free.append(entry.slot)
                outcome = replace(outcome, seconds=time.time() - entry.began, log=str(entry.log))
                outcomes[entry.job.key] = outcome
                _write(outcomes, executor.logs)
                progress.end(entry.job, outcome)
            progress.show([entry.job for entry in running])
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        for entry in running:
            _terminate(entry.process)
        progress.close()
    _write(outcomes, executor.logs)
    return outcomes


def read_outcomes(logs: Path) -> dict[str, Outcome]:
    """Return the outcomes of the jobs when they were last run; empty where none are recorded."""
    try:
        values = json.loads((logs / _FILE).read_text(encoding="utf-8"))
        return {key: Outcome(**value) for key, value in values.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _write(outcomes: dict[str, Outcome], logs: Path) -> None:
    write_json(logs / _FILE, {key: vars(outcome) for key, outcome in outcomes.items()})


def _ready(waiting: Sequence[Job], outcomes: dict[str, Outcome], running: Sequence[_Running]) -> list[Job]:
    """Return jobs that can start: their stage is finished, and no running job writes to the same folder."""
    busy, ready = {entry.job.folder for entry in running}, []
    for job in waiting:
        stage = outcomes.get(job.needs.key) if job.needs else None
        # A trained job does not need its stage any more, which may not even be planned.
        can_start = job.needs is None or job.trained() or (stage is not None and stage.state == "finished")
        if can_start and job.folder not in busy:
            busy.add(job.folder)
            ready.append(job)
    return ready


def _skip_dependents(waiting: list[Job], outcomes: dict[str, Outcome]) -> None:
    """Give up jobs whose stage has failed."""
    for job in list(waiting):
        stage = outcomes.get(job.needs.key) if job.needs else None
        if job.needs and stage and stage.state != "finished" and not job.trained():
            waiting.remove(job)
            outcomes[job.key] = Outcome("not run", f"{job.needs.key} {stage.describe()}", log=stage.log)


def _start(job: Job, phase: str, slot: int, executor: Executor, began: float | None = None) -> _Running:
    assert job.config is not None
    data, arguments = job.config.data, list(job.overrides)
    if phase == "evaluate":
        arguments = [str(job.folder), f"workers={job.config.workers}", f"device={job.config.device}"]
        arguments += [f"root={data.root}"] if data.root is not None else []
        arguments += [f"max_unreadable={data.max_unreadable}"]
    plain = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in job.key)
    log = executor.logs / f"{plain[:140]}-{digest(job.key, size=4)}.log"
    with log.open("ab" if phase == "evaluate" else "wb") as file:
        process = subprocess.Popen(
            [*(executor.train if phase == "train" else executor.evaluate), *arguments], stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **executor.slots[slot]},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
    return _Running(job, slot, phase, process, log, time.time() if began is None else began)


def _end_with_parent() -> None:
    """Ask the kernel to end this process with its parent, so that a killed driver leaves no running job behind."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _limit_memory(entry: _Running, limit: int | None) -> None:
    """Kill a job and its workers if they use more than `limit` bytes, before the system has to kill any process."""
    if limit is None or entry.process.poll() is not None:
        return
    used, family = 0, []
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(entry.process.pid)
        family = [parent, *parent.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.Error):
            used += process.memory_info().rss
    if used > limit:
        entry.over_memory = True
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    """End a job by SIGTERM, and by SIGKILL after ten seconds."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
