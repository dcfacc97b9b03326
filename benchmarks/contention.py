"""Training speed while other processes keep the processor busy, under different ways of waiting for threads.

    python benchmarks/contention.py DATA --busy 0 8

Runs `gafx train experiment=quickstart` for some steps beside a number of processes that only compute, once for each
environment, taking turns. The fair share of a process with P threads on P processors beside B busy ones is P / (P + B),
so a step cannot be expected to take less than (P + B) / P of its time on a free machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# How often a waiting thread looks again before it gives the processor away. libgomp's own number is 300,000, that of
# the gafx command is 1,000.
VARIANTS = {
    "spin 300000": {"GOMP_SPINCOUNT": "300000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def train(
    data: Path, environment: dict[str, str], steps: int, workers: int, overrides: list[str]
) -> tuple[float, float]:  # fmt: skip
    """Median milliseconds of a step over the logged windows but the first, and CPU seconds of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable, "-m", "gafx.cli", "train", "experiment=quickstart", f"data.root={data}", "epochs=100000",
            f"max_steps={steps}", f"workers={workers}", f"output_dir={folder}", "data.leak_check=false",
            "tracking.log_steps=5", *overrides,
        ]  # fmt: skip
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = [json.loads(line) for line in Path(done.stdout.strip(), "metrics.jsonl").read_text().splitlines()]
        speeds = [line["clips_per_second"] for line in lines if "clips_per_second" in line][1:]
    return 1000 * 16 / statistics.median(speeds), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of gafx synthesize")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    for busy in arguments.busy:
        burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for workers in arguments.workers:
                for name in [each for _ in range(arguments.repeats) for each in arguments.variants]:
                    begin = time.perf_counter()
                    step, cpu = train(arguments.data, VARIANTS[name], arguments.steps, workers, arguments.overrides)
                    wall = time.perf_counter() - begin
                    print(f"busy {busy}, workers {workers}, {name:12} step {step:8.0f} ms, whole {wall:6.1f} s, "
                          f"CPU {cpu:6.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
        finally:
            for burner in burners:
                burner.kill()


if __name__ == "__main__":
    main()
