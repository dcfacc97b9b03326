"""Start-up of whole processes, medians: gafx and configuration errors, beside importing torch and timm.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

TRAIN = str(Path(__file__).resolve().parents[1] / "train.py")
COMMANDS = {
    "python, nothing": ["-c", "pass"],
    "import gafx": ["-c", "import gafx"],
    "gafx --help": ["-m", "gafx.cli", "--help"],
    "train.py epohcs=3 (misspelt key)": [TRAIN, "epohcs=3"],
    "train.py frontend=gafx_rr": [TRAIN, "frontend=gafx_rr"],
    "train.py frontend.widht=16": [TRAIN, "frontend.widht=16"],
    "import torch": ["-c", "import torch"],
    "import timm": ["-c", "import timm"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(6):
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=False)
            if number:
                times[name].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        print(f"{name:36} {statistics.median(seconds):6.3f} s")


if __name__ == "__main__":
    main()
