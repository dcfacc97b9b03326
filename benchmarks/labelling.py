"""Labelling files: speed beside transformers' audio classification pipeline, and memory for a very long file.

    python benchmarks/labelling.py speed --audio FOLDER [--files 200] [--broken 10] [--rounds 3]
    python benchmarks/labelling.py memory [--hours 10]

`speed` cuts the files of FOLDER into many of other lengths and formats, breaks some, and labels all with an AST-Tiny of
random weights on two threads: gafx reads kaldi's filter bank with patches 10 apart, which is the model that
transformers calls AST (`ASTForAudioClassification` of the same width and depth). transformers (pip install
transformers, and ffmpeg) cuts each file off after its first 10.24 s, so it is timed twice: as documented, and over the
same windows as gafx, cut by hand. It ends at the first broken file, so it is given none. Methods take turns; medians.

`memory` writes files of so many hours, of ten minutes and of ten seconds (one window, where the others fill batches)
and tells the peak memory of `gafx predict` for each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import gafx
from gafx.audio.read import read_segment
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
    parser.add_argument("--audio", type=Path, help="folder of sound files to make the files from")
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
    """Files of 2 to 30 s in six formats at three rates, the last `broken` of them damaged in five ways."""
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
    model = gafx.create_model(
        {"name": "mel", "form": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160},
        {"name": "ast", "size": "tiny", "stride": 10}, classes=LABELS, segment_seconds=WINDOW,
    ).eval()  # fmt: skip
    answers = [answer for answer in gafx.predict(files, model, overlap=0.0) if answer.error is None]
    good, lengths = [answer.file for answer in answers], [answer.seconds or 0.0 for answer in answers]
    whole, beginnings = sum(lengths), sum(min(WINDOW, length) for length in lengths)
    print(
        f"{len(files)} files, {len(files) - len(good)} of them broken; the others hold {whole:.0f} s, their first "
        f"{WINDOW} s {beginnings:.0f} s; {torch.get_num_threads()} threads"
    )
    pipeline = ast_pipeline()
    methods = {
        "gafx.predict, overlap 0.5 (default)": (lambda: with_gafx(model, files, 0.5), whole),
        "gafx.predict, overlap 0": (lambda: with_gafx(model, files, 0.0), whole),
        "gafx.predict, overlap 0, bf16": (lambda: with_gafx(model, files, 0.0, "bf16"), whole),
        "pipeline, first 10.24 s, batches of 16": (lambda: by_pipeline(pipeline, good), beginnings),
        "pipeline, the windows of overlap 0, batches of 16": (lambda: by_windows(pipeline, good), whole),
        "pipeline, the same in bf16": (lambda: by_windows(ast_pipeline(torch.bfloat16), good), whole),
    }
    took: dict[str, list[float]] = {name: [] for name in methods}
    windows: dict[str, int] = {}
    for number in range(rounds):
        for name, (method, _) in methods.items():
            begin = time.perf_counter()
            windows[name] = method()
            took[name].append(time.perf_counter() - begin)
            print(f"round {number + 1}, {name}: {took[name][-1]:.1f} s", file=sys.stderr, flush=True)
    print("| method | windows | seconds | files/s | windows/s | times real time |\n|---|---|---|---|---|---|")
    for name, times in took.items():
        middle = statistics.median(times)
        print(
            f"| {name} | {windows[name]} | {middle:.1f} ({min(times):.1f} to {max(times):.1f}) | "
            f"{len(good) / middle:.1f} | {windows[name] / middle:.1f} | {methods[name][1] / middle:.0f} |"
        )


def with_gafx(model: Any, files: list[Path], overlap: float, precision: str = "fp32") -> int:
    answers = gafx.predict(files, model, overlap=overlap, over_time=True, precision=precision)
    return sum(len(answer.windows) for answer in answers if answer.windows is not None)


def ast_pipeline(dtype: torch.dtype = torch.float32) -> Any:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    config = ASTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=len(LABELS)
    )
    return pipeline(
        "audio-classification", model=ASTForAudioClassification(config).eval(), feature_extractor=ASTFeatureExtractor(),
        device="cpu", dtype=dtype,
    )  # fmt: skip


def by_pipeline(pipeline: Any, files: list[str]) -> int:
    return sum(1 for _ in pipeline(list(files), batch_size=16, num_workers=1))


def by_windows(pipeline: Any, files: list[str]) -> int:
    from transformers.pipelines.audio_utils import ffmpeg_read

    length = round(WINDOW * 16000)

    def windows():
        for file in files:
            wave = ffmpeg_read(Path(file).read_bytes(), 16000)
            starts = list(range(0, max(1, len(wave) - length + 1), length))
            if len(wave) - starts[-1] - length >= 0.1 * length:
                starts.append(len(wave) - length)
            for start in starts:
                yield {"raw": wave[start : start + length].copy(), "sampling_rate": 16000}

    return sum(1 for _ in pipeline(windows(), batch_size=16, num_workers=0))


def memory(folder: Path, hours: float) -> None:
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
    """In a process of its own: label with `gafx predict`, then print windows and peak memory."""
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
