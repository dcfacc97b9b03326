"""Fraction of a training step spent waiting for data: mel and GAFX-R, files and packed cache, 0, 1 and 2 workers.

    OMP_NUM_THREADS=2 python benchmarks/data_wait.py gtzan ROOT

Runs train.py itself (slim GAFX-R, the first four blocks of AST-Tiny, 8 crops of 5 s, bf16 where the processor has it)
for a number of steps and reads its metrics.jsonl: the median over the logged windows but the first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def waiting(folder: Path, skip: int) -> tuple[float, float]:
    """Median fraction of a step spent waiting, and clips per second."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if "data_wait" in line][skip:]
    return tuple(statistics.median(line[key] for line in kept) for key in ("data_wait", "clips_per_second"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set, e.g. gtzan")
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--front-ends", nargs="+", default=["mel", "gafx_r_slim"])
    parser.add_argument("--sources", nargs="+", default=["files", "cache"], choices=["files", "cache"])
    parser.add_argument("overrides", nargs="*", help="further keys of train.py")
    arguments = parser.parse_args()
    print(f"{arguments.data}, {arguments.steps} steps of 8 crops of 5 s")
    print(f"  {'front-end':14} {'read from':10} {'workers':>7} {'waiting':>9} {'clips/s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for front_end in arguments.front_ends:
            for source in arguments.sources:
                for workers in (0, 1, 2):
                    command = [
                        sys.executable, str(ROOT / "train.py"), f"data={arguments.data}", f"data.root={arguments.root}",
                        f"frontend={front_end}", "classifier=ast_slim", "data.segment_seconds=5.0", "batch_size=8",
                        f"max_steps={arguments.steps}", "epochs=100000", "tracking.log_steps=10", f"workers={workers}",
                        f"output_dir={folder}/{front_end}-{source}-{workers}", *arguments.overrides,
                    ]  # fmt: skip
                    if source == "cache":
                        command.append(f"data.cache={folder}/cache")
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    waited, speed = waiting(Path(done.stdout.strip()), 2)
                    print(f"  {front_end:14} {source:10} {workers:7} {100 * waited:7.1f} % {speed:9.1f}", flush=True)


if __name__ == "__main__":
    main()
