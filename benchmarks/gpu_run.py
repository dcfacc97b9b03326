"""The loop of gpu.py: command line, budget, time limits, signals, and results that survive a kill."""

import argparse
import gc
import hashlib
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpu_rows import Row, Setup, Skip, reset_accelerate
from gpu_sections import SECTIONS
from gpu_table import table

import gafx
from gafx.io import write_text


class OutOfTime(BaseException):
    """The time limit of a row has passed; not an `Exception`, so that no library handles it."""


class Terminated(BaseException):
    """SIGTERM or SIGINT was received."""


class Results:
    """The JSON file and the Markdown table next to it.

    Args:
        path: of the JSON file; it is continued if it exists.
        environment: description of machine and run for the head of the table.
    """

    def __init__(self, path: Path, environment: dict[str, Any]):
        self.path, self.rows = path, {}
        if path.is_file():
            try:
                self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            except (ValueError, KeyError) as error:
                sys.exit(f"{path} cannot be read ({error}); remove it, or choose another --output")
        self.environment = environment
        path.parent.mkdir(parents=True, exist_ok=True)

    def plan(self, rows: list[Row], again: bool) -> list[Row]:
        """Return the rows still to be measured, those tried before last, and mark them as not reached."""
        todo = [row for row in rows if again or not self.is_done(row)]
        for row in todo:
            self.put(row, "skipped", reason="not reached before the end", write=False)
        self.write()
        return sorted(todo, key=lambda row: self.rows[row.key]["attempts"])

    def is_done(self, row: Row) -> bool:
        found = self.rows.get(row.key, {})
        return found.get("status") == "done" and found.get("digest") == digest(row)

    def put(self, row: Row, status: str, *, write: bool = True, **found: Any) -> None:
        """Record what became of a row and write both files.

        Args:
            row: the row.
            status: `done`, `skipped`, `failed`, or `interrupted` (also while the row is running).
            write: whether to write the files now.
            **found: `values` (measured), `reason` (why it was skipped or failed), `seconds` (duration).
        """
        attempts = self.rows.get(row.key, {}).get("attempts", 0) + (status == "interrupted")
        self.rows[row.key] = {
            "section": row.section, "name": row.name, "status": status, "attempts": attempts, "digest": digest(row),
            "settings": row.settings, "date": now(), **finite(found),
        }  # fmt: skip
        if write:
            self.write()

    def write(self) -> None:
        """Write the JSON file and the table, each atomically."""
        content = {"environment": self.environment, "rows": self.rows}
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        try:
            text = table(content)
        except Exception as error:  # the figures are safe in the JSON; the table can be written again from them
            text = f"The table could not be written: {type(error).__name__}: {error}\n"
        write_text(self.path.with_suffix(".md"), text)


def digest(row: Row) -> str:
    """Hash of what the row's result depends on: its settings and the version of PyTorch."""
    known = json.dumps([row.key, row.settings, str(torch.__version__)], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def measure(rows: list[Row], setup: Setup, results: Results, *, budget: float, patience: float, started: float) -> None:
    """Measure the rows one after another.

    Args:
        rows: in this order.
        setup: common to all rows.
        results: where to record them.
        budget: seconds in all, counted from `started` (of `time.perf_counter`).
        patience: a row is stopped after this multiple of its expected duration.
        started: when the budget began to run.

    Raises:
        Terminated: SIGTERM or SIGINT was received; everything measured so far is recorded.
    """
    for number, row in enumerate(rows):
        left = budget - (time.perf_counter() - started)
        if row.cost > left:
            reason = (
                f"expected to take {row.cost:.0f} s, {max(left, 0):.0f} s of the budget of {budget:.0f} s were left"
            )
            results.put(row, "skipped", reason=reason)
            continue
        print(f"[{budget - left:4.0f} s] {number + 1}/{len(rows)} {row.key}", file=sys.stderr, flush=True)
        results.put(row, "interrupted", reason="the process ended while this was running")
        begin, limit = time.perf_counter(), left
        outcome: dict[str, Any] = {}
        try:
            if row.needs_data:
                with time_limit(limit):
                    setup.prepare()
            left = budget - (time.perf_counter() - started)
            begin, limit = time.perf_counter(), min(left, patience * row.cost)
            with time_limit(limit):
                outcome = {"status": "done", "values": row.measure(setup, **row.settings)}
        except Skip as skip:
            outcome = {"status": "skipped", "reason": str(skip)}
        except OutOfTime:
            outcome = {"status": "failed", "reason": f"stopped after {limit:.0f} s"}
        except Exception as error:
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            print(f"  failed: {outcome['reason']}", file=sys.stderr, flush=True)
        results.put(row, **outcome, seconds=round(time.perf_counter() - begin, 1))
        if outcome["status"] != "skipped":
            clean()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after `seconds`."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Again every few seconds: an exception that is raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clean() -> None:
    """Free what a row left behind: Accelerate's state, compiled code and memory of the GPU."""
    reset_accelerate()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_machine() -> dict[str, Any]:
    """Card, versions and date, for the head of the table."""
    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else None
    return {
        "card": card, "memory_gb": memory, "processors": os.cpu_count(), "torch": str(torch.__version__),
        "cuda": torch.version.cuda, "python": platform.python_version(), "gafx": gafx.__version__, "date": now(),
    }  # fmt: skip


def read_command(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.py", description="Measure gafx on one GPU within a time budget.")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="folder of the JSON and the table")
    parser.add_argument("--budget", type=float, default=480, help="seconds in all, start-up included; default 480")
    parser.add_argument(
        "--patience", type=float, default=3, help="stop a row after so many times its expected duration"
    )
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s that count as the ceiling; default 790 (bf16)")
    parser.add_argument("--seconds", type=float, default=4, help="measured time of a throughput row; default 4")
    parser.add_argument("--workers", type=int, default=4, help="loader workers of a throughput row; default 4")
    parser.add_argument("--esc10", type=Path, help="root of ESC-10, for the training run of the last section")
    parser.add_argument("--work", type=Path, help="folder for data and runs; default: a temporary one")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections to run")
    parser.add_argument("--again", action="store_true", help="measure rows again that are done")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and few steps; needs no GPU")
    parser.add_argument("--all", action="store_true", help="rehearse compiled models and FSDP2 as well (minutes)")
    return parser.parse_args(arguments)


def main(arguments: list[str], started: float | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: of the command line.
        started: `time.perf_counter()` at the start of the process; default: now.

    Returns:
        The exit status: 0, 1 if a row failed, 143 after a signal.
    """
    asked = read_command(arguments)
    started = time.perf_counter() if started is None else started
    if not (asked.rehearse or torch.cuda.is_available()):
        sys.exit(
            "no GPU here: PyTorch sees no CUDA device; `make gpu GPU=--rehearse` (or `python benchmarks/gpu.py "
            "--rehearse`) runs every section with tiny models on the CPU"
        )
    environment = {
        **describe_machine(), "peak_tflops": asked.peak, "rehearsal": asked.rehearse, "budget_seconds": asked.budget,
    }  # fmt: skip
    stem = "-".join("".join(c if c.isalnum() else " " for c in environment["card"].lower()).split())
    results = Results(asked.output / f"{'rehearsal' if asked.rehearse else stem}.json", environment)

    owner = os.getpid()

    def terminate(number: int, _: object) -> None:
        if os.getpid() != owner:  # a loader's worker, which was forked with this handler
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(signal.Signals(number).name)

    handlers = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            setup = Setup(
                work=(asked.work or Path(temporary)).absolute(), tiny=asked.rehearse, everything=asked.all,
                peak=asked.peak, seconds=asked.seconds, workers=asked.workers, esc10=asked.esc10,
            )  # fmt: skip
            setup.work.mkdir(parents=True, exist_ok=True)
            rows = sorted((row for name in asked.only for row in SECTIONS[name](setup)), key=lambda row: row.order)
            measure(
                results.plan(rows, asked.again), setup, results, budget=asked.budget, patience=asked.patience,
                started=started,
            )  # fmt: skip
    except Terminated as signal_name:
        print(f"stopped by {signal_name}; the same command continues", file=sys.stderr)
        return 143
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if results.path.is_file():
            print(results.path.with_suffix(".md").read_text(encoding="utf-8"), results.path, sep="\n")
    return int(any(found["status"] == "failed" for found in results.rows.values()))
