"""Run what a plan holds: train and evaluate, one process after the other or several at a time, come what may."""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gafx.io import write_text
from gafx.studies.ablation.outcome import Outcome, read_outcome
from gafx.studies.ablation.plan import Job
from gafx.studies.ablation.progress import Progress

_POLL_SECONDS = 0.25


@dataclass
class Workplace:
    """Where and how jobs run.

    Attributes:
        train, evaluate: command lines that overrides are added to.
        logs: folder of the jobs' output.
        slots: the environment of each job that runs at the same time, e.g. `CUDA_VISIBLE_DEVICES` of its own.
        most_memory: bytes of main memory that a job may take; it is ended above that. None: no limit.
    """

    train: list[str]
    evaluate: list[str]
    logs: Path
    slots: list[dict[str, str]] = field(default_factory=lambda: [{}])
    most_memory: int | None = None


@dataclass
class _Running:
    job: Job
    slot: int
    phase: str
    process: subprocess.Popen[bytes]
    log: Path
    begun: float
    over_memory: bool = False


def drive(jobs: Sequence[Job], place: Workplace, say: Callable[[str], None]) -> dict[str, Outcome]:
    """Run every job that is not finished, and return what became of each, by key.

    A job that fails is noted and the next one is begun. Jobs end with this process, however it ends, and the next call
    goes on with them: train.py continues from its last checkpoint. What became of them is kept in `outcomes.json`
    beside the logs, for a table that is written without running anything.
    """
    place.logs.mkdir(parents=True, exist_ok=True)
    # A row's earlier failure is no reason not to try it again: its cause may be gone.
    outcomes = {job.key: Outcome("finished", said="before") for job in jobs if job.finished() and not job.error}
    outcomes |= {job.key: Outcome("refused", said=job.error) for job in jobs if job.error}
    waiting = [job for job in jobs if job.key not in outcomes]
    progress = Progress(jobs, outcomes, len(place.slots), say)
    free, running = list(range(len(place.slots))), list[_Running]()
    try:
        while waiting or running:
            for job in _ready(waiting, outcomes, running):
                if not free:
                    break
                waiting.remove(job)
                if job.finished():  # another row's job, the same run, has been trained meanwhile
                    outcomes[job.key] = Outcome("finished", said="shared")
                    continue
                running.append(_start(job, "evaluate" if job.trained() else "train", free.pop(0), place))
                progress.begin(job)
            _give_up(waiting, outcomes)
            for one in list(running):
                _watch_memory(one, place.most_memory)
                if one.process.poll() is None:
                    continue
                running.remove(one)
                outcome = read_outcome(one.process.returncode, one.log, over_memory=one.over_memory)
                if outcome.state == "finished" and one.phase == "train" and one.job.evaluated:
                    running.append(_start(one.job, "evaluate", one.slot, place, one.begun))
                    continue
                free.append(one.slot)
                outcomes[one.job.key] = Outcome(outcome.state, outcome.said, time.time() - one.begun, str(one.log))
                _keep(outcomes, place.logs)
                progress.end(one.job, outcomes[one.job.key])
            progress.show([one.job for one in running])
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        for one in running:
            _end(one.process)
        progress.close()
    _keep(outcomes, place.logs)
    return outcomes


def read_outcomes(logs: Path) -> dict[str, Outcome]:
    """What became of the jobs when they were last run."""
    try:
        values = json.loads((logs / "outcomes.json").read_text(encoding="utf-8"))
        return {key: Outcome(**value) for key, value in values.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _keep(outcomes: dict[str, Outcome], logs: Path) -> None:
    values = {key: vars(outcome) for key, outcome in outcomes.items()}
    write_text(logs / "outcomes.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _ready(waiting: Sequence[Job], outcomes: dict[str, Outcome], running: Sequence[_Running]) -> list[Job]:
    """Jobs that may begin: their stage is finished, and nothing that runs writes the same folder."""
    busy, ready = {one.job.folder for one in running}, []
    for job in waiting:
        stage = outcomes.get(job.needs.key) if job.needs else None
        # One that is trained and only to be evaluated needs its stage no more, which may not even be planned.
        may_begin = job.needs is None or job.trained() or (stage is not None and stage.state == "finished")
        if may_begin and job.folder not in busy:
            busy.add(job.folder)
            ready.append(job)
    return ready


def _give_up(waiting: list[Job], outcomes: dict[str, Outcome]) -> None:
    """What needs a stage that failed cannot be run."""
    for job in list(waiting):
        before = job.needs and outcomes.get(job.needs.key)
        if job.needs and before and before.state != "finished" and not job.trained():
            waiting.remove(job)
            outcomes[job.key] = Outcome("not run", f"{job.needs.key} {before.state}: {before.said}", 0.0, before.log)


def _start(job: Job, phase: str, slot: int, place: Workplace, begun: float | None = None) -> _Running:
    assert job.config is not None
    data, arguments = job.config.data, list(job.words)
    if phase == "evaluate":
        arguments = [str(job.folder), f"workers={job.config.workers}", f"device={job.config.device}"]
        arguments += [f"root={data.root}"] if data.root is not None else []
        arguments += [f"max_unreadable={data.max_unreadable}"]
    log = place.logs / f"{_file_name(job.key)}.log"
    with log.open("ab" if phase == "evaluate" else "wb") as file:
        process = subprocess.Popen(
            [*(place.train if phase == "train" else place.evaluate), *arguments], stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **place.slots[slot]},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
    return _Running(job, slot, phase, process, log, time.time() if begun is None else begun)


def _file_name(key: str) -> str:
    plain = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in key)
    if "-" not in key and plain == key.replace(" ", "-") and len(plain) <= 150:
        return plain  # no other key becomes this name
    return f"{plain[:140]}-{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"


def _end_with_parent() -> None:
    """Ask the system to end this process with its parent: a killed driver must leave no run behind that goes on."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _watch_memory(one: _Running, most: int | None) -> None:
    """End a job, its workers included, that takes more than its share: the others are to survive it."""
    if most is None or one.process.poll() is not None:
        return
    import psutil

    try:
        family = [psutil.Process(one.process.pid)]
        family += family[0].children(recursive=True)
        used = sum(_memory(process) for process in family)
    except psutil.Error:
        return
    if used > most:
        one.over_memory = True
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _memory(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a job as gently as it allows."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
