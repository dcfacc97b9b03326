"""Commands that are killed at random moments and given again: the same bytes, and no temporary file left.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--only train pack]
    python benchmarks/kills.py --quick

Training, packing into a cache and into shards, evaluation and prediction run on 40 synthetic tracks. Each is killed by
SIGKILL, with all its processes, one to three times in a row: half of the times at any moment, half of them after it has
begun to write. Then it is given once more and runs to its end. Its files must have the bytes of a command that was not
killed, and no temporary file may be left. A command that ends before its time to be killed is not counted.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA = ("data.options.tracks=4", "data.options.seconds=1.5")
RECIPE = (
    *DATA, "frontend=mel", "data.segment_seconds=0.8", "data.protocol=paper_val", "data.val_fraction=0.3",
    "classifier=ast_slim", "classifier.depth=1", "batch_size=8", "optim.warmup_steps=3", "optim.lr=1e-3",
    "optim.ema_decay=0.9", "augment.mixup_probability=0.5", "tracking.log_steps=1", "checkpoint_steps=1", "workers=1",
    "precision=fp32", "device=cpu",
)  # fmt: skip
TEMPORARY = (".part", ".old", ".writing", ".packing", ".download")


@dataclass
class Task:
    """A command.

    Attributes:
        name: of the task.
        command: its arguments, for the folder to write into.
        results: glob patterns of the files whose bytes are compared.
        seconds, writing: length of the whole command, and of the part after it began to write.
        expected: digests of the files of a command that was not killed.
    """

    name: str
    command: Callable[[Path], list[object]]
    results: tuple[str, ...]
    seconds: float = 0.0
    writing: float = 0.0
    expected: dict[str, str] | None = None
    kills: int = 0
    rounds: int = 0
    differing: int = 0
    left: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="tasks: train, pack, shards, evaluate, predict")
    parser.add_argument("--quick", action="store_true", help="one kill of each task")
    parsed = parser.parse_args()
    rng = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        audio, run = base / "audio", base / "run"
        finish(["synthesize", audio, "--tracks", 4, "--seconds", 1.5])
        finish(["train", *RECIPE, f"data.root={audio}", f"output_dir={run}", "epochs=1"])
        (model,) = run.glob("*-*")
        tasks = [task for task in make_tasks(audio, model) if parsed.only is None or task.name in parsed.only]
        for task in tasks:
            measure(task, base / f"{task.name}-whole")
        wanted = len(tasks) if parsed.quick else parsed.kills
        number = 0
        while sum(task.kills for task in tasks) < wanted:
            task = min(tasks, key=lambda task: task.kills)
            number += 1
            most = 1 if parsed.quick else min(rng.randint(1, 3), wanted - sum(task.kills for task in tasks))
            attempt(task, base / f"{task.name}-{number}", most, rng)
    print(f"{'task':<10} {'kills':>6} {'rounds':>7} {'other bytes':>12} {'temporary files':>16}")
    for task in tasks:
        print(f"{task.name:<10} {task.kills:>6} {task.rounds:>7} {task.differing:>12} {task.left:>16}")
    if any(task.differing or task.left for task in tasks):
        sys.exit(1)


def make_tasks(audio: Path, model: Path) -> list[Task]:
    synthetic = ("--option", "tracks=4", "--option", "seconds=1.5", "--workers", 2)
    return [
        Task("train", lambda out: ["train", *RECIPE, f"data.root={audio}", f"output_dir={out}", "epochs=3"],
             ("*/model/model.safetensors", "*/checkpoints/step-*/*.safetensors")),
        Task("pack", lambda out: ["pack", "synthetic", audio, out, "--rate", 16000, *synthetic],
             ("*/samples.i16", "*/clips.npy")),
        Task("shards", lambda out: ["pack", "synthetic", audio, out, "--shards", "flac", "--rows-per-shard", 8,
                                    *synthetic], ("*.parquet", "shards.json")),
        Task("evaluate", lambda out: ["evaluate", model, f"output={out}", "workers=0", "resamples=200"],
             ("predictions.csv", "segments.csv")),
        Task("predict", lambda out: ["predict", audio / "ambient", audio / "ballad", "--model", model, "--csv",
                                     "--over-time", "--overlap", 0.9, "--output", out / "labels.csv",
                                     "--plot", out / "plots"], ("labels.csv",)),
    ]  # fmt: skip


def begin(arguments: list[object]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "gafx", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=environment, start_new_session=True,
    )  # fmt: skip


def finish(arguments: list[object]) -> None:
    process = begin(arguments)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"gafx {' '.join(map(str, arguments))} ended with {process.returncode}:\n{errors.decode()}")


def measure(task: Task, out: Path) -> None:
    """Run the command without a kill: its length and its files."""
    process = begin(task.command(out))
    started = time.monotonic()
    written = None
    while process.poll() is None:
        if written is None and has_begun(out):
            written = time.monotonic()
        time.sleep(0.002)
    ended = time.monotonic()
    if process.returncode:
        sys.exit(f"{task.name} ended with {process.returncode}:\n{process.communicate()[1].decode()}")
    task.seconds, task.writing = ended - started, ended - (written or ended)
    task.expected = digests(task, out)
    assert task.expected, task.name
    print(f"{task.name}: {task.seconds:.1f} s, of which it writes for {task.writing:.1f} s", file=sys.stderr)


def attempt(task: Task, out: Path, most: int, rng: random.Random) -> None:
    """Kill the command up to `most` times, run it to its end, and compare."""
    for _ in range(most):
        process = begin(task.command(out))
        started, while_writing = time.monotonic(), rng.random() < 0.5
        while while_writing and process.poll() is None and not has_begun(out):
            time.sleep(0.0005)
        end = (time.monotonic() if while_writing else started) + rng.uniform(
            0, task.writing if while_writing else task.seconds
        )
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.0005)
        if process.poll() is not None:
            process.communicate()
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        task.kills += 1
    finish(task.command(out))
    task.rounds += 1
    found = digests(task, out)
    if found != task.expected:
        task.differing += 1
        names = [name for name in {**found, **(task.expected or {})} if found.get(name) != task.expected.get(name)]
        print(f"{task.name}: other bytes in {', '.join(sorted(names))}", file=sys.stderr)
    left = [path for path in [out, *out.rglob("*"), *out.parent.glob(f".{out.name}*")] if path.suffix in TEMPORARY]
    task.left += len(left)
    for path in left:
        print(f"{task.name}: {path.relative_to(out.parent)} is left", file=sys.stderr)


def has_begun(out: Path) -> bool:
    """Whether anything was written but lock files."""
    if any(path.suffix != ".lock" for path in out.parent.glob(f".{out.name}*")):
        return True
    return out.exists() and any(path.is_file() and path.suffix != ".lock" for path in out.rglob("*"))


def digests(task: Task, out: Path) -> dict[str, str]:
    paths = sorted(path for pattern in task.results for path in out.glob(pattern))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
