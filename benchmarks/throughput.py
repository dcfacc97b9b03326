"""Training throughput through train.py: clips a second, share of the ceiling, share of time that waits for data.

    python benchmarks/throughput.py [--steps 60] [--batch 32] [--models mel gafx_r gafx_u] [--ceiling 790]

Input is included: synthetic tracks in a packed cache, crops, workers. `--ceiling` is the TFLOP/s of the device in the
chosen precision (790 in bf16 for an H100 or H200 that is kept busy); a training step counts as three forward passes.
Eager and compiled runs of one model follow each other. Needs no GPU to run, but says little without one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import gafx
from gafx.nn.flops import count_flops

ROOT = Path(__file__).resolve().parents[1]
# 204,800 samples at 22.05 kHz fill 1024 frames; 30 s are a GTZAN track.
MODELS = {
    "mel": (["frontend=mel", "classifier=ast_tiny"], 9.28798),
    "gafx_r": (["frontend=gafx_r", "classifier=ast_tiny"], 30.0),
    "gafx_r_10s": (["frontend=gafx_r", "classifier=ast_tiny"], 9.28798),
    "gafx_u": (["frontend=gafx_u", "classifier=ast_tiny"], 30.0),
    "gafx_r_slim": (["frontend=gafx_r_slim", "classifier=ast_slim"], 2.0),
}


def main() -> None:
    """Measure each model, eager and compiled, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mel", "gafx_r", "gafx_u"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps; the first third is warm-up")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--ceiling", type=float, help="TFLOP/s of the device; without it no share is printed")
    parser.add_argument("--eager-only", action="store_true")
    parser.add_argument("--tracks", type=int, default=20, help="synthetic tracks a genre")
    asked = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}, {asked.precision}, batches of {asked.batch}, {asked.steps} steps, torch {torch.__version__}\n")
    print("| model | clip | mode | clips/s | data wait | GFLOP a clip | share of the ceiling | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models:
            recipe, seconds = MODELS[name]
            flops = clip_flops(recipe, seconds)
            for compiled in (False,) if asked.eager_only else (False, True):
                clips, waited, memory = measure(asked, Path(folder), name, recipe, seconds, compiled)
                share = "" if asked.ceiling is None else f"{100 * 3 * flops * clips / (asked.ceiling * 1e12):.1f} %"
                print(
                    f"| {name} | {seconds:g} s | {'compiled' if compiled else 'eager'} | {clips:.1f} | "
                    f"{100 * waited:.1f} % | {flops / 1e9:.1f} | {share} | {memory} |",
                    flush=True,
                )


def clip_flops(recipe: list[str], seconds: float) -> float:
    """Forward FLOPs of one clip."""
    from gafx.compose import compose_train

    config = compose_train([*recipe, f"data.segment_seconds={seconds}"], ROOT / "configs")
    model = gafx.create_model(config.frontend, config.classifier, num_classes=10, segment_seconds=seconds).eval()
    return count_flops(model, torch.zeros(1, model.frontend.channels, round(seconds * model.frontend.sample_rate)))


def measure(
    asked: argparse.Namespace, folder: Path, name: str, recipe: list[str], seconds: float, compiled: bool
) -> tuple[float, float, str]:
    """Clips a second and data-wait share (medians of what is logged after the warm-up), and peak memory."""
    length = max(seconds, 10.0)
    command = [
        sys.executable, str(ROOT / "train.py"), *recipe, f"data.segment_seconds={seconds}",
        f"data.root={folder / f'synthetic-{length:g}'}", f"data.options.tracks={asked.tracks}",
        f"data.options.seconds={length}", f"data.cache={folder / f'cache-{length:g}'}", f"batch_size={asked.batch}",
        "epochs=100000", f"max_steps={asked.steps}", f"tracking.log_steps={max(1, asked.steps // 12)}",
        f"workers={asked.workers}", f"precision={asked.precision}", f"compile={str(compiled).lower()}",
        f"name={name}-{'compiled' if compiled else 'eager'}", f"output_dir={folder / 'runs'}",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    run = Path(done.stdout.strip().splitlines()[-1])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [r for r in records if "clips_per_second" in r and r["step"] > asked.steps / 3]
    peaks = [r["peak_memory_gb"] for r in records if r.get("peak_memory_gb")]
    return (
        statistics.median(r["clips_per_second"] for r in records),
        statistics.median(r["data_wait_share"] for r in records),
        f"{max(peaks):.1f} GB" if peaks else "",
    )


if __name__ == "__main__":
    main()
