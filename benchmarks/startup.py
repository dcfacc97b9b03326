"""Start-up of whole processes, wall and CPU seconds (medians): gafx commands, configuration errors, and `import torch`.

python benchmarks/startup.py
"""

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

TRAIN = str(Path(__file__).resolve().parents[1] / "train.py")


def commands(folder: Path) -> dict[str, list[str]]:
    """The arguments of Python by the names of the measured processes; writes a model and a sound file to `folder`."""
    model = gafx.create_model("mel", "ast", num_classes=3, segment_seconds=5.0)
    model.fit_statistics(torch.rand(4, 1, 110_250) - 0.5)
    sound, saved = folder / "sound.wav", model.save(folder / "model")
    exported = export(model, folder / "model.onnx").path
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 5 * 22_050), 22_050)
    return {
        "python, nothing": ["-c", "pass"],
        "import gafx": ["-c", "import gafx"],
        "gafx --help": ["-m", "gafx.cli", "--help"],
        "train.py epohcs=3 (misspelt key)": [TRAIN, "epohcs=3"],
        "train.py frontend=gafx_rr": [TRAIN, "frontend=gafx_rr"],
        "train.py frontend.widht=16": [TRAIN, "frontend.widht=16"],
        "import torch": ["-c", "import torch"],
        "gafx predict, one file of 5 s": ["-m", "gafx.cli", "predict", str(sound), "--model", str(saved)],
        "gafx predict, the same, model.onnx": ["-m", "gafx.cli", "predict", str(sound), "--model", str(exported)],
        "import timm": ["-c", "import timm"],
    }


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run every process once to warm the file cache, then five times, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        processes = commands(Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        for number in range(6):
            for name, arguments in processes.items():
                measured = run(arguments)
                if number:
                    times[name].append(measured)
    print(f"{'':36} {'wall':>6} {'CPU':>7}")
    for name, measurements in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*measurements, strict=True))
        print(f"{name:36} {wall:6.3f} {cpu:7.3f} s")


if __name__ == "__main__":
    main()
