"""Start-up of whole processes beside bare Python and `import torch`: wall and CPU seconds, medians with their range.

    OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds 5] [--before CHECKOUT] [--only predict]

With `--before` every process also runs with the gafx of another checkout, taking turns. A process that does not end
with the status that it should have (2 after a mistake) ends the benchmark; that of the other checkout may differ.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

import gafx
from gafx.deploy.export import export

HERE = Path(__file__).resolve().parents[1]
RATE, SECONDS = 22_050, 5
MODELS = (("mel", "cnn"), ("gabor", "cnn"), ("mel", "ast"), ("mel", "bert"))
MISTAKE = 2


def commands(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Status and arguments of Python by the names of the measured processes; writes models and a sound to `folder`."""
    sound = str(folder / "sound.wav")
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, SECONDS * RATE), RATE)
    models = {}
    for frontend, classifier in MODELS:
        model = gafx.create_model(frontend, classifier, num_classes=3, segment_seconds=SECONDS)
        model.fit_statistics(torch.rand(4, 1, SECONDS * RATE) - 0.5)
        models[f"{frontend}+{classifier}"] = str(model.save(folder / f"{frontend}+{classifier}"))
        if classifier == "ast":
            exported = str(export(model, folder / "model.onnx").path)
    command = ["-m", "gafx.cli"]
    mistakes = {
        "gafx trian (misspelt command)": ["trian"],
        "gafx train epohcs=3 (misspelt key)": ["train", "epohcs=3"],
        "gafx train frontend=gafx_rr": ["train", "frontend=gafx_rr"],
        "gafx train, no such folder": ["train", "data=gtzan", f"data.root={folder / 'none'}"],
        "gafx predict, no such model": ["predict", sound, "--model", str(folder / "none")],
    }
    done = {
        "python -c pass": ["-c", "pass"],
        "import gafx": ["-c", "import gafx"],
        "gafx --help": [*command, "--help"],
        "gafx predict --help": [*command, "predict", "--help"],
        "gafx leaks --help": [*command, "leaks", "--help"],
        "gafx train --help": [*command, "train", "--help"],
        "gafx list": [*command, "list"],
        "import torch": ["-c", "import torch"],
        **{f"gafx predict, {name}": [*command, "predict", sound, "--model", path] for name, path in models.items()},
        "gafx predict, model.onnx": [*command, "predict", sound, "--model", exported],
        "gafx features, mel+cnn": [
            *command, "features", sound, "--model", models["mel+cnn"], "--output", str(folder / "features"),
        ],
    }  # fmt: skip
    return {
        **{name: (MISTAKE, [*command, *arguments]) for name, arguments in mistakes.items()},
        **{name: (0, arguments) for name, arguments in done.items()},
    }


def run(arguments: list[str], checkout: Path, status: int) -> tuple[float, float]:
    """Wall and CPU seconds of one process; its modules are compiled to files, as those of an installed package are."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(checkout)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=checkout
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != status and checkout == HERE:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {status}:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shown(values: list[float]) -> str:
    """Median and range of seconds."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Run every process once to warm the file cache, then `--rounds` times, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="folder of an earlier gafx")
    parser.add_argument("--only", metavar="TEXT", default="", help="processes whose names contain this")
    asked = parser.parse_args()
    checkouts = [HERE, *([asked.before.resolve()] if asked.before else [])]
    with tempfile.TemporaryDirectory() as folder:
        processes = {name: each for name, each in commands(Path(folder)).items() if asked.only in name}
        times: dict[tuple[str, Path], list[tuple[float, float]]] = {}
        for number in range(asked.rounds + 1):
            for name, (status, arguments) in processes.items():
                for checkout in checkouts:
                    measured = run(arguments, checkout, status)
                    if number:
                        times.setdefault((name, checkout), []).append(measured)
    titles = ["wall, s", "CPU, s", "wall before", "CPU before"][: 2 * len(checkouts)]
    print(" " * 36, *(f"{title:>25}" for title in titles))
    for name in processes:
        cells = [shown(list(each)) for checkout in checkouts for each in zip(*times[name, checkout], strict=True)]
        print(f"{name:36}", *(f"{text:>25}" for text in cells))


if __name__ == "__main__":
    main()
