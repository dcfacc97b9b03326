"""Small runs that several test modules make, on 40 short synthetic tracks; each in a separate process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from gafx.cli import main

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "data.segment_seconds=0.8",
    "data.options.tracks=4",
    "data.options.seconds=1.5",
    "classifier=ast_slim",
    "classifier.depth=1",
    "batch_size=8",
    "epochs=3",
    "optim.warmup_steps=3",
    "optim.lr=1e-3",
    "tracking.log_steps=1",
    "workers=0",
    "precision=fp32",
]
MEL = ["frontend=mel"]
SLIM = ["frontend=gafx_r_slim", "data.segment_seconds=0.4"]


def run(*arguments: object) -> object:
    """Run a command of gafx in this process, and return its exit status."""
    try:
        main([str(item) for item in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **more}


def script(
    name: str, *arguments: object, launcher: tuple[str, ...] = (), preexec_fn=None, **more: str
) -> subprocess.CompletedProcess:
    """Run train.py or evaluate.py to its end; `more` are environment variables."""
    command = [*(launcher or (sys.executable,)), str(ROOT / name), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(**more), timeout=300, check=False,
        preexec_fn=preexec_fn,
    )  # fmt: skip


def command(*arguments: object, **more: str) -> subprocess.CompletedProcess:
    """Run a `gafx` command to its end; `more` are environment variables."""
    command = [sys.executable, "-m", "gafx.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300, check=False)


def train(*arguments: object, **more: str) -> Path:
    """Run train.py, which must succeed; return the run's folder, which it prints."""
    done = script("train.py", *arguments, **more)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def start(*arguments: object, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
    """Start train.py in a separate process group, loader workers included."""
    command = [*(launcher or (sys.executable,)), str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(**more), start_new_session=True
    )


def kill_when(process: subprocess.Popen, condition, timeout: float = 120.0) -> bool:
    """SIGKILL the process as soon as `condition()` holds; False if it ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("the condition was never met")


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict:
    return load_file(folder / "model" / "model.safetensors")
