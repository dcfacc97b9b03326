"""Inference speed of gafx.predict against transformers' audio classification pipeline, and memory for a long file.

    python benchmarks/labelling.py speed --audio FOLDER [--files 200] [--broken 10] [--rounds 3]
    python benchmarks/labelling.py memory [--hours 10]

`speed` cuts the files of FOLDER into many files of other lengths and formats, damages some of them, and labels all of
them with an AST-Tiny with random weights on two threads. gafx computes Kaldi's filter bank and patches with a stride of
10, which is the architecture of transformers' `ASTForAudioClassification` of the same width and depth. transformers
(pip install transformers, and ffmpeg) truncates each file to its first 10.24 s, so it is timed twice: as documented,
and on the same windows as gafx, cut by this script. The pipeline stops at the first unreadable file, so it gets the
readable ones only. The methods are interleaved; the medians are reported.

`memory` writes files of the given number of hours, of ten minutes and of ten seconds (one window, whereas the others
fill batches) and prints the peak memory of `gafx predict` for each.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import gafx
from gafx.audio.read import read_segment, stream
from gafx.deploy.files import find_files

WINDOW = 10.24
FORMATS = (
    ("wav", {}),
    ("flac", {}),
    ("ogg", {}),
    ("mp3", {}),
    ("aiff", {}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
)
LABELS = [f"label {number}" for number in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--audio", type=Path, help="folder of audio files to cut the test files from")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    with tempfile.TemporaryDirectory() as folder:
        if parsed.what == "memory":
            memory(Path(folder), parsed.hours)
        elif parsed.audio is None:
            parser.error("speed needs --audio FOLDER")
        else:
            files = make_files(parsed.audio, Path(folder), parsed.files, parsed.broken)
            speed(files, parsed.rounds)


def make_files(source: Path, folder: Path, count: int, broken: int) -> list[Path]:
    """Write `count` files of 2 to 30 s in six formats at three sampling rates; damage the last `broken` of them."""
    rng = np.random.default_rng(0)
    sources = find_files([str(source)]).files
    files = []
    for number in range(count):
        suffix, how = FORMATS[number % len(FORMATS)]
        rate = 48000 if suffix == "opus" else (16000, 22050, 44100)[number % 3]
        seconds = float(np.exp(rng.uniform(np.log(2), np.log(30))))
        parts: list[Any] = []
        while sum(len(part) for part in parts) < seconds * rate:
            parts.append(read_segment(sources[rng.integers(len(sources))], 0, 10**9, sample_rate=rate)[0])
        path = folder / f"{number:03d}.{suffix}"
        samples = np.concatenate(parts)[: round(seconds * rate)].clip(-1, 1)
        with soundfile.SoundFile(path, "w", rate, 1, **how) as file:
            for start in range(0, len(samples), rate):  # libsndfile 1.2.2 crashes when a long ogg is written at once
                file.write(samples[start : start + rate])
        files.append(path)
    for number, path in enumerate(files[len(files) - broken :]):
        content = path.read_bytes()
        damages = (b"", content[: len(content) // 3], b"no sound at all " * 100, b"PK\3\4" + content[4:999], None)
        damage = damages[number % len(damages)]
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
    return files


def speed(files: list[Path], rounds: int) -> None:
    """Label the files by every method on the CPU and print the comparison as a Markdown table."""
    model = ast_model()
    good, whole, beginnings = readable(files, model, "cpu")
    methods: dict[str, Method] = {}
    for name, options in (
        ("gafx.predict, overlap 0.5 (default)", {}),
        ("gafx.predict, overlap 0", {"overlap": 0.0}),
        ("gafx.predict, overlap 0, bf16", {"overlap": 0.0, "precision": "bf16"}),
    ):
        methods[name] = Method(partial(with_gafx, model, files, device="cpu", **options), whole)
    try:
        pipeline, low = ast_pipeline("cpu"), ast_pipeline("cpu", torch.bfloat16)
    except ImportError as error:
        print(f"transformers was not measured: {error}", file=sys.stderr)
    else:
        if shutil.which("ffmpeg"):
            methods["pipeline, first 10.24 s, batches of 16"] = Method(partial(by_pipeline, pipeline, good), beginnings)
        for name, one in (("the windows of overlap 0, batches of 16", pipeline), ("the same in bf16", low)):
            methods[f"pipeline, {name}"] = Method(partial(by_windows, one, good), whole)
    print(
        f"{len(files)} files, {len(files) - len(good)} of them broken; the others have {whole:.0f} s in total, "
        f"{beginnings:.0f} s in their first {WINDOW} s; {torch.get_num_threads()} threads"
    )
    print("| method | windows | seconds | files/s | windows/s | times real time |\n|---|---|---|---|---|---|")
    for row in interleave(methods, rounds, len(good)):
        print(
            f"| {row['method']} | {row['windows']} | {row['seconds']:.1f} ({row['fastest']:.1f} to "
            f"{row['slowest']:.1f}) | {row['files_per_second']:.1f} | {row['windows_per_second']:.1f} | "
            f"{row['times_real_time']:.0f} |"
        )


@dataclass(frozen=True)
class Method:
    """A way to label the files.

    Attributes:
        call: labels them and returns the number of windows.
        seconds: of audio that it labels.
    """

    call: Callable[[], int]
    seconds: float


def interleave(methods: dict[str, Method], rounds: int, files: int) -> list[dict[str, Any]]:
    """Run every method once a round.

    Args:
        methods: by name.
        rounds: number of rounds.
        files: that are labelled in each call.

    Returns:
        one mapping per method: its name, windows, median, fastest and slowest seconds, files and windows per second,
        times real time.
    """
    took: dict[str, list[float]] = {name: [] for name in methods}
    windows: dict[str, int] = {}
    for number in range(rounds):
        for name, method in methods.items():
            begin = time.perf_counter()
            windows[name] = method.call()
            took[name].append(time.perf_counter() - begin)
            print(f"round {number + 1}, {name}: {took[name][-1]:.1f} s", file=sys.stderr, flush=True)
    rows = []
    for name, times in took.items():
        middle = statistics.median(times)
        rows.append({
            "method": name, "windows": windows[name], "seconds": middle, "fastest": min(times), "slowest": max(times),
            "files_per_second": files / middle, "windows_per_second": windows[name] / middle,
            "times_real_time": methods[name].seconds / middle,
        })  # fmt: skip
    return rows


def ast_model() -> gafx.GAFX:
    """The architecture of `ast_pipeline` in gafx, with random weights."""
    model = gafx.create_model(
        {"name": "mel", "form": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160},
        {"name": "ast", "size": "tiny", "stride": 10}, classes=LABELS, segment_seconds=WINDOW,
    ).eval()  # fmt: skip
    model.fit_statistics(0.1 * torch.randn(2, 1, round(WINDOW * model.frontend.sample_rate)))
    return model


def readable(files: list[Path], model: Any, device: str) -> tuple[list[str], float, float]:
    """The files that can be read, their seconds in all, and the seconds in their first windows."""
    answers = [answer for answer in gafx.predict(files, model, overlap=0.0, device=device) if answer.error is None]
    lengths = [answer.seconds or 0.0 for answer in answers]
    return [answer.file for answer in answers], sum(lengths), sum(min(WINDOW, length) for length in lengths)


def with_gafx(model: Any, files: list[Path], **options: Any) -> int:
    """Label the files with gafx.predict and return the number of windows."""
    answers = gafx.predict(files, model, over_time=True, **options)
    return sum(len(answer.windows) for answer in answers if answer.windows is not None)


def ast_pipeline(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Build transformers' audio classification pipeline around an AST-Tiny with random weights."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    config = ASTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=len(LABELS)
    )
    return pipeline(
        "audio-classification", model=ASTForAudioClassification(config).eval(), feature_extractor=ASTFeatureExtractor(),
        device=device, dtype=dtype,
    )  # fmt: skip


def by_pipeline(pipeline: Any, files: list[str]) -> int:
    """Label the files as the pipeline does by itself: the first 10.24 s of each, decoded by ffmpeg."""
    return sum(1 for _ in pipeline(list(files), batch_size=16, num_workers=1))


def by_windows(pipeline: Any, files: list[str], batch_size: int = 16) -> int:
    """Label every 10.24 s window of the files; decoded by ffmpeg where it is installed, else by gafx."""
    length = round(WINDOW * 16000)
    with_ffmpeg = shutil.which("ffmpeg") is not None

    def decode(file: str) -> Any:
        if with_ffmpeg:
            from transformers.pipelines.audio_utils import ffmpeg_read

            return ffmpeg_read(Path(file).read_bytes(), 16000)
        return np.concatenate(list(stream(file, sample_rate=16000, any_format=True, note=str)), axis=1)[0]

    def windows() -> Iterator[dict[str, Any]]:
        for file in files:
            wave = decode(file)
            starts = list(range(0, max(1, len(wave) - length + 1), length))
            if len(wave) - starts[-1] - length >= 0.1 * length:
                starts.append(len(wave) - length)
            for start in starts:
                yield {"raw": wave[start : start + length].copy(), "sampling_rate": 16000}

    return sum(1 for _ in pipeline(windows(), batch_size=batch_size, num_workers=0))


def memory(folder: Path, hours: float) -> None:
    """Print windows, minutes and peak memory of `gafx predict` for files of 10 s, 10 min and `hours`."""
    model = gafx.create_model("mel", {"name": "ast", "depth": 4}, classes=LABELS, segment_seconds=10.0)
    model.save(folder / "model")
    rng = np.random.default_rng(0)
    print("| file | windows | minutes | peak memory, MB |\n|---|---|---|---|")
    for name, seconds in (
        ("10 s, wav", 10.0),
        ("10 min, wav", 600.0),
        (f"{hours:g} h, wav", hours * 3600),
        (f"{hours:g} h, flac", hours * 3600),
    ):
        path = folder / f"long.{name.rpartition(' ')[2]}"
        with soundfile.SoundFile(path, "w", 22050, 1) as file:
            minute = 0.1 * rng.standard_normal(60 * 22050).astype(np.float32)
            for start in np.arange(0, seconds, 60):
                file.write(minute[: round(min(60, seconds - start) * 22050)])
        begin = time.perf_counter()
        run = [sys.executable, __file__, "--", str(path), str(folder / "model")]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        windows, peak = done.stdout.split()
        print(
            f"| {name} | {windows} | {(time.perf_counter() - begin) / 60:.1f} | {int(peak) / 2**20:.0f} |", flush=True
        )
        path.unlink()


def one(path: str, model: str) -> None:
    """Run `gafx predict` on one file in this process; print the number of windows and the peak memory in bytes."""
    from gafx.cli import main as command
    from gafx.memory import peak_memory

    target = Path(path).with_suffix(".csv")
    command(["predict", path, "--model", model, "--csv", "--over-time", "--output", str(target)])
    print(len(target.read_text().splitlines()) - 1, peak_memory(torch.device("cpu")))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1:2] == ["--"]:
        one(*sys.argv[2:])
    else:
        main()
