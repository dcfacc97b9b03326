"""Start-up of whole processes beside bare Python and `import torch`: wall and CPU seconds, medians with their range.

python benchmarks/startup.py [--rounds 5] [--before CHECKOUT]

With `--before` every process also runs with the gafx of another checkout, taking turns, and its CPU seconds are shown.
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
RUN = ["experiment=quickstart", "frontend=mel", "data.name=synthetic"]


def commands(folder: Path) -> dict[str, list[str]]:
    """The arguments of Python by the names of the measured processes; writes models and a sound file to `folder`."""
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
    return {
        "python -c pass": ["-c", "pass"],
        "import gafx": ["-c", "import gafx"],
        "gafx --help": [*command, "--help"],
        "gafx predict --help": [*command, "predict", "--help"],
        "gafx leaks --help": [*command, "leaks", "--help"],
        "gafx train --help": [*command, "train", "--help"],
        "gafx list": [*command, "list"],
        "gafx train epohcs=3 (misspelt key)": [*command, "train", "epohcs=3"],
        "gafx train frontend=gafx_rr": [*command, "train", "frontend=gafx_rr"],
        "gafx train frontend.widht=16": [*command, "train", "frontend.widht=16"],
        "gafx train optim.lr=-1": [*command, "train", "optim.lr=-1"],
        "gafx predict, no such model": [*command, "predict", sound, "--model", str(folder / "none")],
        "import torch": ["-c", "import torch"],
        **{f"gafx predict, {name}": [*command, "predict", sound, "--model", path] for name, path in models.items()},
        "gafx predict, model.onnx": [*command, "predict", sound, "--model", exported],
        "gafx features, mel+cnn": [
            *command, "features", sound, "--model", models["mel+cnn"], "--output", str(folder / "features"),
        ],
        "gafx train dry_run=true": [*command, "train", *RUN, f"data.root={folder / 'data'}", "dry_run=true"],
    }  # fmt: skip


def run(arguments: list[str], checkout: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one process; its modules are compiled to files, as those of an installed package are."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(checkout)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=environment)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shown(values: list[float]) -> str:
    """Median and range of seconds."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Run every process once to warm the file cache, then `--rounds` times, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="folder of an earlier gafx")
    asked = parser.parse_args()
    checkouts = [HERE, *([asked.before.resolve()] if asked.before else [])]
    with tempfile.TemporaryDirectory() as folder:
        processes = commands(Path(folder))
        times: dict[tuple[str, Path], list[tuple[float, float]]] = {}
        for number in range(asked.rounds + 1):
            for name, arguments in processes.items():
                for checkout in checkouts:
                    measured = run(arguments, checkout)
                    if number:
                        times.setdefault((name, checkout), []).append(measured)
    titles = ["wall", "CPU", *["CPU before"] * (len(checkouts) - 1)]
    print(" " * 36, *(f"{title:>25}" for title in titles))
    for name in processes:
        wall, cpu = ([each[column] for each in times[name, HERE]] for column in (0, 1))
        earlier = [shown([each[1] for each in times[name, checkout]]) for checkout in checkouts[1:]]
        print(f"{name:36}", *(f"{text:>25}" for text in (shown(wall), shown(cpu), *earlier)))


if __name__ == "__main__":
    main()
