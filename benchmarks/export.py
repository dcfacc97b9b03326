"""Exported models by onnxruntime against eager PyTorch: seconds a window, size of the file, largest difference.

    python benchmarks/export.py [--threads 2] [--repeats 25] [--models mel gafx_r_slim]

Random weights, which take as long as trained ones. The two take turns, window by window; the best
time counts, since others may be computing meanwhile.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import gafx
from gafx.deploy.export import export, synthetic_signal
from gafx.inference import Probabilities

# Front-end, classifier, seconds of a window, batch.
MODELS = {
    "mel": ("mel", {"name": "ast"}, 10.0, 1),
    "mel_batch": ("mel", {"name": "ast"}, 10.0, 8),
    "gafx_r_slim": ({"name": "gafx_r", "width": 16}, {"name": "ast"}, 10.0, 1),
    "leaf": ("leaf", {"name": "ast"}, 10.0, 1),
    "gafx_u_slim": ({"name": "gafx_u", "width": 16}, {"name": "ast"}, 10.0, 1),
}


def main() -> None:
    """Measure each model and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=25)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{asked.threads} threads, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}\n")
    print("| model | window, batch | eager | onnxruntime | file | export and check | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.models:
        frontend, classifier, seconds, batch = MODELS[name]
        torch.manual_seed(0)
        model = gafx.create_model(frontend, classifier, num_classes=10, segment_seconds=seconds).eval()
        eager = Probabilities(model)
        wave = synthetic_signal(
            batch, model.frontend.channels, round(seconds * model.frontend.sample_rate), model.frontend.sample_rate
        )
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            found = export(eager, Path(folder, "model.onnx"))
            took, size = time.perf_counter() - begin, found.path.stat().st_size
            times = measure(eager, found.path, wave, asked)
        print(
            f"| {name} | {seconds:g} s, {batch} | {1000 * times[0]:.0f} ms | {1000 * times[1]:.0f} ms | "
            f"{size / 1e6:.1f} MB | {took:.0f} s | {found.difference:.0e} |",
            flush=True,
        )


def measure(eager: Probabilities, path: Path, wave: np.ndarray, asked: argparse.Namespace) -> tuple[float, float]:
    """Best seconds of a batch: eager, onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = asked.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tensor = torch.from_numpy(wave)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(asked.repeats + 1):  # the first is warm-up
        begin = time.perf_counter()
        with torch.inference_mode():
            eager(tensor)
        middle = time.perf_counter()
        session.run(None, {"wave": wave})
        end = time.perf_counter()
        if number:
            seconds[0].append(middle - begin)
            seconds[1].append(end - middle)
    return min(seconds[0]), min(seconds[1])


if __name__ == "__main__":
    main()
