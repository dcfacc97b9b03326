"""Labelling files on a GPU: gafx.predict, eager and compiled, beside transformers' pipeline in the same precisions."""

from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from labelling import WINDOW, Method, ast_model, ast_pipeline, by_windows, interleave, readable, with_gafx

from gafx.deploy.predict import runner
from gafx.inference import Probabilities
from gafx.model import GAFX

# (windows a batch, readers). One reader limits a GPU; batches of 16 with one reader are the defaults.
LAYOUTS = ((16, 1), (64, 1), (16, 8), (64, 8))


class Compiled(Probabilities):
    """Probabilities that are computed by compiled code for whole windows; shorter ones, of any length, are not.

    Args:
        model: from `gafx.load`.
        batch_size: that code is generated for; smaller batches are filled up with silence.
        samples: of a whole window.
    """

    def __init__(self, model: GAFX, batch_size: int, samples: int):
        super().__init__(model)
        self.batch_size, self.samples = batch_size, samples
        self.compiled = torch.compile(super().forward, dynamic=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        missing = self.batch_size - len(wave)
        if wave.shape[-1] != self.samples or missing < 0:
            return super().forward(wave)
        return self.compiled(torch.nn.functional.pad(wave, (0, 0, 0, 0, 0, missing)))[: len(wave)]


def compare(files: list[Path], device: torch.device, *, rounds: int, batches: int, compiled: bool) -> dict[str, Any]:
    """Label the files by every method, interleaved, `rounds` times each.

    Args:
        files: readable ones.
        device: on a CPU, for the rehearsal, one small layout and the precisions that it has.
        rounds: timed runs of each method.
        batches: that `model alone` computes in a run.
        compiled: bf16 alone, eager and compiled; else fp32 and bf16, eager.

    Returns:
        `files`, seconds of audio, `note` (empty, or why the pipeline was not measured), and `methods`: those of
        `labelling.interleave` with `times_pipeline` (windows/s over those of the fastest pipeline in the same
        precision), and for a compiled model `compile_seconds` and `difference` (largest, of a probability, to eager).
    """
    on_gpu = device.type == "cuda"
    layouts = LAYOUTS if on_gpu else ((2, 1),)
    model = ast_model()
    good, seconds, _ = readable(files, model, str(device))
    samples = round(WINDOW * model.frontend.sample_rate)
    rng = np.random.default_rng(0)
    methods: dict[str, Method] = {}
    precision_of: dict[str, str] = {}
    more: dict[str, dict[str, float]] = {}

    def add(name: str, precision: str, call: Any, audio: float = seconds) -> None:
        methods[name], precision_of[name] = Method(call, audio), precision

    for precision in ("bf16",) if compiled else ("fp32", "bf16"):
        for batch_size in dict.fromkeys(size for size, _ in layouts):
            wave = rng.normal(0, 0.1, (batch_size, 1, samples)).astype(np.float32)
            sources: dict[str, Any] = {"": Probabilities(model)}
            if compiled:
                sources[", compiled"] = Compiled(model, batch_size, samples)
            expected = None
            for how, source in sources.items():
                label = f"{precision}{how}, batches of {batch_size}"
                run = runner(source, str(device), precision)
                begin = perf_counter()
                values = run(wave)
                if expected is not None:
                    found = {"compile_seconds": perf_counter() - begin}
                    found["difference"] = float(np.abs(values - expected).max())
                    more[label] = found
                expected = values
                name = f"model alone, {label}"
                add(name, precision, partial(alone, run, wave, batches), batches * batch_size * WINDOW)
                for readers in (count for size, count in layouts if size == batch_size):
                    options = {"overlap": 0.0, "batch_size": batch_size, "readers": readers, "precision": precision}
                    name = f"gafx.predict, {label}, readers: {readers}"
                    add(name, precision, partial(with_gafx, source, files, device=str(device), **options))
    missing = pipelines(add, good, device, ["bf16"] if compiled else ["fp32", "bf16", *(["fp16"] if on_gpu else [])])
    rows = interleave(methods, rounds, len(good))
    best: dict[str, float] = {}
    for row in rows:
        precision = precision_of[row["method"]]
        if row["method"].startswith("pipeline"):
            best[precision] = max(best.get(precision, 0.0), row["windows_per_second"])
    for row in rows:
        name, precision = row["method"], precision_of[row["method"]]
        row |= next((found for label, found in more.items() if label in name), {})
        if precision in best:
            row["times_pipeline"] = row["windows_per_second"] / best[precision]
        if name.startswith("model alone"):
            row["files_per_second"] = None
    return {"files": len(good), "seconds": seconds, "note": missing, "methods": rows}


def pipelines(add: Any, files: list[str], device: torch.device, precisions: list[str]) -> str:
    """Add transformers' pipeline in some precisions and batch sizes; return why not, if it is not installed."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for precision in precisions:
        try:
            pipeline = ast_pipeline(str(device), dtypes[precision])
        except ImportError as error:
            return f"transformers was not measured: {error}"
        for batch_size in (16, 64) if device.type == "cuda" else (16,):
            name = f"pipeline, {precision}, batches of {batch_size}"
            add(name, precision, partial(by_windows, pipeline, files, batch_size))
    return ""


def alone(run: Any, wave: np.ndarray, batches: int) -> int:
    """Compute the same batch many times, with its way to the device and back; return the number of windows."""
    for _ in range(batches):
        run(wave)
    return batches * len(wave)
