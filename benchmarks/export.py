"""Exported models by onnxruntime against eager PyTorch: time and processor time a window, files, largest difference.

    python benchmarks/export.py forms [--models ast cnn gabor] [--threads 2] [--batch 16] [--repeats 9]
    python benchmarks/export.py waiting [--busy 0 2] [--batch 1 4 16] [--repeats 9]
    python benchmarks/export.py int8 model.onnx model_int8.onnx --audio FOLDER

`forms` compares the ways to run one model (random weights, which take as long as trained ones): eager PyTorch,
torch.export, ONNX as torch's exporter writes it, ONNX as gafx writes it, and that in 8 bits. `waiting` runs the ONNX
model with one thread and with two that wait in loops or sleep, beside processes that only compute. The alternatives
take turns, batch by batch; ratios are the median over the turns with the smallest and the largest. `int8` labels the
audio files of FOLDER, which has one folder a label (`label` or `001 - label`), with two exported models and compares
their answers.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

import gafx
from gafx.deploy import onnx_graph
from gafx.deploy.export import export, synthetic_signal
from gafx.errors import UsageError
from gafx.inference import Probabilities
from gafx.nn import spectral
from gafx.stats.scores import wilson

SECONDS = 10.24
MODELS = {
    "ast": ("mel", {"name": "ast", "stride": 10}),
    "cnn": ("mel", {"name": "cnn"}),
    "gabor": ("gabor", {"name": "cnn"}),
    "gafx_r_slim": ({"name": "gafx_r", "width": 16}, {"name": "ast"}),
    "leaf": ("leaf", {"name": "ast"}),
    "gafx_u_slim": ({"name": "gafx_u", "width": 16}, {"name": "ast"}),
}
Times = dict[str, list[tuple[float, float]]]  # (wall, processor) seconds of each turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["forms", "waiting", "int8"])
    parser.add_argument("files", nargs="*", type=Path, help="int8: two exported models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["ast", "cnn", "gabor"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=None)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--audio", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{asked.threads} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, "
          f"onnxruntime {onnxruntime.__version__}\n")  # fmt: skip
    if asked.what == "int8":
        compare(*asked.files, asked.audio)
        return
    for name in asked.models if asked.what == "forms" else asked.models[:1]:
        torch.manual_seed(0)
        model = gafx.create_model(*MODELS[name], num_classes=10, segment_seconds=SECONDS).eval()
        frontend = model.frontend
        rate, channels = frontend.sample_rate, frontend.channels
        model.fit_statistics(torch.from_numpy(synthetic_signal(2, channels, rate, rate)))
        with tempfile.TemporaryDirectory() as folder:
            waves = [synthetic_signal(batch, channels, round(SECONDS * rate), rate) for batch in asked.batch or [16]]
            if asked.what == "forms":
                for wave in waves:
                    forms(name, Probabilities(model), Path(folder), wave, asked)
            else:
                waiting(export(model, Path(folder, "model.onnx")).path, asked, channels, rate)


def forms(name: str, eager: Probabilities, folder: Path, wave: np.ndarray, asked: argparse.Namespace) -> None:
    """Print a table of the ways to run a model."""
    runs: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {"eager PyTorch": ""}
    tensor = torch.from_numpy(wave)

    def of(module: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return module(tensor)

        return run

    runs["eager PyTorch"] = of(eager)
    found = export(eager, folder / "model.pt2", format="torch_export")
    runs["torch.export"] = of(torch.export.load(found.path).module())
    with plain_graph():
        files = {"ONNX of torch's exporter": export(eager, folder / "plain.onnx")}
    files["ONNX"] = export(eager, folder / "model.onnx")
    try:
        files["ONNX, int8"] = export(eager, folder / "model_int8.onnx", quantize="int8")
    except UsageError as error:
        print(error)
    for label, made in {"torch.export": found, **files}.items():
        notes[label] = f"{made.path.stat().st_size / 1e6:.1f} MB, {made.difference:.0e}"
        if label in files:
            session = opened(made.path, asked.threads, spinning=False)
            runs[label] = lambda session=session: session.run(None, {"wave": wave})
    times = turns(runs, asked.repeats)
    print(f"\n{name}, batches of {len(wave)} windows of {SECONDS:g} s")
    table(times, len(wave), notes)


def waiting(path: Path, asked: argparse.Namespace, channels: int, rate: int) -> None:
    """Print tables of numbers of threads and ways of waiting, for each batch size, beside busy processes."""
    sessions = {
        "1 thread": opened(path, 1, spinning=False),
        "2 threads, sleeping": opened(path, 2, spinning=False),
        "2 threads, spinning": opened(path, 2, spinning=True),
    }
    for busy in asked.busy:
        with busy_processes(busy):
            for batch in asked.batch or [1, 4, 16]:
                wave = synthetic_signal(batch, channels, round(SECONDS * rate), rate)
                runs = {
                    label: lambda session=session, wave=wave: session.run(None, {"wave": wave})
                    for label, session in sessions.items()
                }
                times = turns(runs, max(3, asked.repeats * 4 // (batch + 3)))
                print(f"\n{busy} busy processes, batches of {batch}, load {os.getloadavg()[0]:.1f}")
                table(times, batch, {})


def turns(runs: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Call each function in turns; the first turn is warm-up."""
    times: Times = {label: [] for label in runs}
    for number in range(repeats + 1):
        for label, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if number:
                times[label].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


def table(times: Times, batch: int, notes: dict[str, str]) -> None:
    """Print medians, and ratios of processor time and of time to the first row."""
    first = next(iter(times.values()))
    print("| | windows/s | CPU s a window | processor time | time | file, largest difference |")
    print("|---|---|---|---|---|---|")
    for label, found in times.items():
        wall, processor = (statistics.median(each[i] for each in found) / batch for i in (0, 1))
        ratios = ["", ""]
        for i in (0, 1):
            each = [one[i] / other[i] for one, other in zip(first, found, strict=True)]
            ratios[i] = f"{statistics.median(each):.2f} x ({min(each):.2f} to {max(each):.2f})"
        print(f"| {label} | {1 / wall:.2f} | {processor:.3f} | {ratios[1]} | {ratios[0]} | {notes.get(label, '')} |",
              flush=True)  # fmt: skip


def opened(path: Path, threads: int, *, spinning: bool) -> onnxruntime.InferenceSession:
    """A session of an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def plain_graph() -> Iterator[None]:
    """Export attention as torch's exporter translates it, and Fourier transforms as ONNX's STFT."""

    def power_spectrum(wave: Tensor, window: Tensor, win_length: int, hop_length: int) -> Tensor:
        spectrum = torch.stft(wave, len(window), hop_length, window=window, center=False, return_complex=True)
        return spectrum.real.square() + spectrum.imag.square()

    kept = onnx_graph.translations, spectral.power_spectrum
    onnx_graph.translations, spectral.power_spectrum = lambda program: {}, power_spectrum
    try:
        yield
    finally:
        onnx_graph.translations, spectral.power_spectrum = kept


def _compute() -> None:
    while True:
        sum(range(100_000))


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that only compute."""
    processes = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def compare(one: Path, other: Path, audio: Path) -> None:
    """Print the accuracy of two exported models on the files of a folder, and how far their answers differ."""
    answers = [list(gafx.predict(audio, path)) for path in (one, other)]
    true = [Path(found.file).parent.name for found in answers[0]]
    for path, found in zip((one, other), answers, strict=True):
        right = sum(folder.endswith(str(each.label)) for each, folder in zip(found, true, strict=True))
        score = wilson(right, len(true))
        print(f"{path.name}: {right / len(true):.1%} of {len(true)} ({score.low:.1%} to {score.high:.1%}), "
              f"{path.stat().st_size / 1e6:.1f} MB")  # fmt: skip
    rows: Sequence[np.ndarray] = [np.stack([np.asarray(each.probabilities) for each in found]) for found in answers]
    same = sum(a.label == b.label for a, b in zip(*answers, strict=True))
    difference = np.abs(rows[0] - rows[1])
    print(f"same label: {same} of {len(true)}; difference of a probability: mean {difference.mean():.2g}, "
          f"largest {difference.max():.2g}")  # fmt: skip


if __name__ == "__main__":
    main()
