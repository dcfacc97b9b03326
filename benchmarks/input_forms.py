"""Forms of input of gafx.predict: the bits of their answers against those of the file, and memory over an iterator.

    python benchmarks/input_forms.py equal FILE [FILE ...] --model RUN
    python benchmarks/input_forms.py memory [--clips 10000] [--seconds 1] [--model RUN]

`equal` labels each file by its path and in every other form that holds the same samples, and counts the windows whose
probabilities differ in any bit. `memory` labels an iterator of noise clips and prints the resident memory after each
tenth of them. Without a model an AST of one block with random weights is used. One thread computes.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch

import gafx

RATE = 22050


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["equal", "memory"])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"name": "ast", "depth": 1}
    model = gafx.create_model("mel", small, num_classes=10, segment_seconds=parsed.seconds)
    if parsed.model:
        model = gafx.load(parsed.model)
    if parsed.what == "memory":
        memory(model, parsed.clips, parsed.seconds)
    else:
        equal(model, parsed.files)


def forms(path: str) -> dict[str, tuple[object, dict[str, int]]]:
    """Other forms of a file; integers where it has 16 bits."""
    content = Path(path).read_bytes()
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    batch, given = samples.T[None], {"sample_rate": rate}
    found: dict[str, tuple[object, dict[str, int]]] = {
        "bytes": (content, {}),
        "file object": (io.BytesIO(content), {}),
        "float32": (batch, given),
        "float64": (batch.astype(np.float64), given),
        "tensor": (torch.from_numpy(batch), given),
        "array and sampling_rate": ({"array": samples.T, "sampling_rate": rate}, {}),
        "pair": ((samples, rate), {}),
        "list": ([batch], given),
        "iterator": (iter([batch]), given),
    }
    if soundfile.info(path).subtype == "PCM_16":
        pcm = soundfile.read(path, dtype="int16", always_2d=True)[0]
        found["int16"] = (pcm.T[None], given)
        found["int32"] = ((pcm.astype(np.int32) << 16).T[None], given)
    return found


def equal(model: gafx.GAFX, files: list[str]) -> None:
    windows: dict[str, int] = {}
    other: dict[str, int] = {}
    for path in files:
        (expected,) = model.predict(path, over_time=True)
        for name, (inputs, options) in forms(path).items():
            (found,) = model.predict(inputs, over_time=True, **options)
            differs = (found.window_probabilities != expected.window_probabilities).any(axis=1)
            windows[name] = windows.get(name, 0) + len(differs)
            other[name] = other.get(name, 0) + int(differs.sum())
    for name in windows:
        print(f"{name:24} {other[name]} of {windows[name]} windows differ")


def memory(model: gafx.GAFX, clips: int, seconds: float) -> None:
    rng = np.random.default_rng(0)
    process, begin = psutil.Process(), time.perf_counter()
    noise = ((0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32) for _ in range(clips))
    for number, _ in enumerate(model.predict(noise, sample_rate=RATE), 1):
        if number % max(1, clips // 10) == 0:
            resident = process.memory_info().rss / 1e6
            print(f"{number} clips: {resident:.0f} MB, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
