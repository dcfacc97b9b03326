"""Reading clips: the direct path and the packed cache compared with librosa's and torchaudio's usual way; medians.

    OMP_NUM_THREADS=1 python benchmarks/input.py formats     # wav, flac, ogg, mp3: one process on one core
    OMP_NUM_THREADS=1 python benchmarks/input.py cache       # the cache and a bare memory-mapped slice
    OMP_NUM_THREADS=1 python benchmarks/input.py loader      # the same through the DataLoader, 0, 1 and 2 workers
    OMP_NUM_THREADS=1 python benchmarks/input.py segments    # short segments, beside soundfile alone; checks

Every clip is a random 10 s crop of a 30 s file at 22.05 kHz, as mono float32 at 16 kHz. The usual way loads the whole
file, resamples it and crops. The methods take turns in one run. librosa is a development dependency; torchaudio.load
needs torchcodec and FFmpeg, and is left out, with a message, where those are missing.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch

from gafx.audio.read import probe, read_segment
from gafx.data.batches import Batch, EqualLengthBatches, collate, evaluation_loader
from gafx.data.dataset import ClipDataset, Sample
from gafx.data.packing.cache import CacheReader
from gafx.data.packing.pack import pack
from gafx.data.readers import FileReader
from gafx.data.segments import Segments
from gafx.data.sources.base import load_manifest

RATE, SECONDS, CROP = 22050, 30, 10
WANTED = 16000
LENGTH = CROP * WANTED
FORMATS = ("wav", "flac", "ogg", "mp3")
Read = Callable[[int, int], object]


def music(seed: int) -> np.ndarray:
    """30 s of the synthetic data set's music."""
    from gafx.studies.synth import GENRES, compose, render

    return render(compose(GENRES[seed % len(GENRES)], seed, seed=1, seconds=float(SECONDS), vary="all"), RATE)


def write_files(folder: Path, count: int, make: Callable[[int], np.ndarray], formats: Sequence[str] = FORMATS) -> None:
    """`count` tracks in every format, each in two class folders."""
    for number in range(count):
        samples = make(number)
        for extension in formats:
            path = folder / extension / f"class{number % 2}" / f"{number:04d}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, RATE, **({"subtype": "PCM_16"} if extension in ("wav", "flac") else {}))


def crop(wave: np.ndarray, start: int) -> np.ndarray:
    return wave[start : start + LENGTH]


def with_librosa(path: str, start: int) -> np.ndarray:
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wave, _ = librosa.load(path, sr=WANTED, mono=True)
    return crop(wave, start)


def with_torchaudio(path: str, start: int) -> np.ndarray:
    import torchaudio

    wave, rate = torchaudio.load(path)
    return crop(torchaudio.functional.resample(wave.mean(0), rate, WANTED).numpy(), start)


def has_torchaudio(path: str) -> bool:
    try:
        with_torchaudio(path, 0)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchaudio.load is left out: {str(error).splitlines()[0]}")
        return False
    return True


def take_turns(methods: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, float]:
    """Calls a second of each method: the median over rounds, in each of which every method gets `seconds`."""
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, call in methods.items():
            begin, calls = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                call()
                calls += 1
            if number:  # the first round warms up
                speeds[name].append(calls / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in speeds.items()}


def readers(folder: Path, cache: Path) -> dict[str, Callable[[int, int], object]]:
    """`read(row, start)` of each method on the tracks in `folder`."""
    manifest = load_manifest("folder", folder)
    paths = [os.fsdecode(manifest.file(row)) for row in range(len(manifest))]
    files = FileReader(manifest, WANTED, 1)
    cached = CacheReader(pack(manifest, cache, sample_rate=WANTED), manifest)
    methods: dict[str, Read] = {"librosa.load, crop": lambda row, start: with_librosa(paths[row], start)}
    if has_torchaudio(paths[0]):
        methods["torchaudio.load, resample, crop"] = lambda row, start: with_torchaudio(paths[row], start)
    methods["gafx, files"] = lambda row, start: files.read(row, start, LENGTH)
    methods["gafx, cache"] = lambda row, start: cached.read(row, start, LENGTH)
    return methods


def print_table(title: str, speeds: dict[str, float], first: str) -> None:
    print(title)
    for name, speed in speeds.items():
        print(f"  {name:34} {speed:10,.0f} clips/s {speed / speeds[first]:8.2f} x")


def formats(folder: Path, arguments: argparse.Namespace) -> None:
    os.sched_setaffinity(0, {arguments.core})
    write_files(folder, 8, music)
    rng = np.random.default_rng(0)
    for extension in FORMATS:
        methods = readers(folder / extension, folder / f"cache-{extension}")

        def on_any(read: Read) -> Callable[[], object]:
            return lambda: read(int(rng.integers(8)), int(rng.integers((SECONDS - CROP) * WANTED)))

        speeds = take_turns({name: on_any(read) for name, read in methods.items()}, arguments.rounds, 0.5)
        print_table(f"{extension}, one core", speeds, "librosa.load, crop")


def cache(folder: Path, arguments: argparse.Namespace) -> None:
    os.sched_setaffinity(0, {arguments.core})
    tracks = 200  # 190 MB: more than the processor's caches hold
    for number in range(tracks):
        path = folder / "wav" / f"class{number % 2}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).standard_normal(SECONDS * RATE).astype(np.float32) * 0.1
        soundfile.write(path, noise, RATE, subtype="PCM_16")
    rng = np.random.default_rng(0)
    manifest = load_manifest("folder", folder / "wav")
    packed = pack(manifest, folder / "cache", sample_rate=WANTED)
    reader = CacheReader(packed, manifest)
    flat = np.memmap(packed.folder / "samples.i16", np.int16, mode="r")
    places = rng.integers(len(flat) - LENGTH, size=100_000).tolist()
    rows, starts = (rng.integers(most, size=100_000).tolist() for most in (tracks, (SECONDS - CROP) * WANTED))
    pairs = list(zip(rows, starts, strict=True))
    paths = [os.fsdecode(manifest.file(row)) for row in range(tracks)]
    turn = iter(range(10**9))

    def bare() -> object:
        place = places[next(turn) % 100_000]
        return flat[place : place + LENGTH].astype(np.float32)

    def ours() -> object:
        return reader.read(*pairs[next(turn) % 100_000], LENGTH)

    def usual() -> object:
        row, start = pairs[next(turn) % 100_000]
        return with_librosa(paths[row], start)

    methods = {"librosa.load, crop": usual, "bare slice of a memory map": bare, "gafx, cache": ours}
    speeds = take_turns(methods, arguments.rounds, 1.0)
    print_table(f"cache of {tracks} tracks from wav, one core", speeds, "librosa.load, crop")
    print(f"  cache / bare slice: {speeds['gafx, cache'] / speeds['bare slice of a memory map']:.2f}")


class Usual(torch.utils.data.Dataset[Sample]):
    """A data set around a function that reads a path from a start on."""

    def __init__(self, clips: ClipDataset, read: Callable[[str, int], np.ndarray]):
        self.clips, self.read = clips, read

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index = key[1]
        row, start = int(self.clips.segments.row[index]), int(self.clips.segments.start[index])
        wave = torch.from_numpy(np.ascontiguousarray(self.read(os.fsdecode(self.clips.manifest.file(row)), start)))
        return Sample(wave[None], torch.zeros(2), torch.zeros(0, 2), 1.0, index)


def segments(folder: Path, arguments: argparse.Namespace) -> None:
    """Processor time of short segments at the file's rate beside soundfile alone, and of the check of a whole file."""
    make = lambda _: (0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE)).astype(np.float32)  # noqa: E731
    write_files(folder, 1, make, arguments.formats)
    rng = np.random.default_rng(0)

    def bare(path: str, start: int, length: int) -> np.ndarray:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            return file.read(length, dtype=kind, always_2d=True).astype(np.float32)

    def ours(path: str, start: int, length: int) -> np.ndarray:
        return read_segment(path, start, length, sample_rate=RATE)

    print(f"microseconds of a segment, medians of {arguments.rounds} rounds of 20; ratio (lowest to highest)")
    for seconds in (0.5, 5.0):
        for extension in arguments.formats:
            path, length = str(folder / extension / "class0" / f"0000.{extension}"), round(seconds * RATE)
            taken: dict[str, list[float]] = {"bare": [], "ours": []}
            for _ in range(arguments.rounds + 1):
                starts = rng.integers((SECONDS - 5) * RATE - length, size=20).tolist()
                for name, read in (("bare", bare), ("ours", ours)):
                    begin = time.process_time()
                    for start in starts:
                        read(path, start, length)
                    taken[name].append((time.process_time() - begin) / 20e-6)
            ratios = [b / a for a, b in zip(taken["bare"][1:], taken["ours"][1:], strict=True)]
            low, median, high = min(ratios), statistics.median(ratios), max(ratios)
            print(f"  {extension:5} {seconds} s: soundfile {statistics.median(taken['bare'][1:]):6.0f}, gafx "
                  f"{statistics.median(taken['ours'][1:]):6.0f}, {median:.2f} ({low:.2f} to {high:.2f})")  # fmt: skip
    long = folder / "long.flac"
    soundfile.write(long, (0.3 * rng.standard_normal(450 * RATE)).astype(np.float32), RATE, subtype="PCM_16")
    taken_by_check = []
    for _ in range(arguments.rounds + 1):
        begin = time.process_time()
        probe(long)
        taken_by_check.append(1000 * (time.process_time() - begin))
    print(f"check of a flac of {long.stat().st_size / 1e6:.0f} MB: {statistics.median(taken_by_check[1:]):.1f} ms "
          f"({min(taken_by_check[1:]):.1f} to {max(taken_by_check[1:]):.1f})")  # fmt: skip


def processor_time() -> float:
    """Seconds of this process and its workers."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(one.user + one.system for one in times)


def loader(folder: Path, arguments: argparse.Namespace) -> None:
    write_files(folder, 8, music, arguments.formats)
    rng = np.random.default_rng(0)
    count = 100_000
    segments = Segments(rng.integers(8, size=count), rng.integers(320_000, size=count), np.full(count, LENGTH))

    def torchs(clips: torch.utils.data.Dataset[Sample], workers: int) -> Iterable[Batch]:
        return torch.utils.data.DataLoader(
            clips, batch_sampler=EqualLengthBatches(segments.length, 16), num_workers=workers, collate_fn=collate,
            prefetch_factor=4 if workers else None, multiprocessing_context="fork" if workers else None,
        )  # fmt: skip

    for extension in arguments.formats:
        manifest = load_manifest("folder", folder / extension)
        files = ClipDataset(manifest, segments, FileReader(manifest, WANTED, 1))
        packed = pack(manifest, folder / f"cache-{extension}", sample_rate=WANTED)
        cached = ClipDataset(manifest, segments, CacheReader(packed, manifest))
        makes: dict[str, Callable[[int], Iterable[Batch]]] = {
            "librosa.load, crop": lambda workers, files=files: torchs(Usual(files, with_librosa), workers),
            "gafx, files": lambda workers, files=files: evaluation_loader(files, batch_size=16, workers=workers),
            "gafx, cache": lambda workers, cached=cached: evaluation_loader(cached, batch_size=16, workers=workers),
            "gafx, cache, torch's shared memory": lambda workers, cached=cached: torchs(cached, workers),
        }
        if has_torchaudio(os.fsdecode(manifest.file(0))):
            makes["torchaudio.load, resample, crop"] = lambda workers, files=files: torchs(
                Usual(files, with_torchaudio), workers
            )
        for workers in (0, 1, 2):
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in makes}
            for _ in range(arguments.rounds):
                for name, make in makes.items():
                    batches = iter(make(workers))
                    for _ in range(8 * max(workers, 1)):  # what the workers have read ahead, and their start
                        next(batches)
                    begin, used, clips = time.perf_counter(), processor_time(), 0
                    while time.perf_counter() - begin < arguments.seconds:
                        clips += len(next(batches).index)
                    measured[name].append(
                        (clips / (time.perf_counter() - begin), 1000 * (processor_time() - used) / clips * 16)
                    )
                    # The workers of one method must not read ahead while the next is measured.
                    del batches
            print(f"{extension}, batches of 16, {workers} workers: clips/s, and processor time of a batch in all "
                  f"processes, medians of {arguments.rounds} rounds (lowest to highest)")  # fmt: skip
            for name, values in measured.items():
                speeds, costs = zip(*values, strict=True)
                print(f"  {name:36} {statistics.median(speeds):9,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
                      f"  {statistics.median(costs):8.2f} ms ({min(costs):.2f} to {max(costs):.2f})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["formats", "cache", "loader", "segments"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="a method, through the DataLoader")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS, help="through the DataLoader")
    parser.add_argument("--core", type=int, default=0, help="processor to run on (formats, cache)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        what = {"formats": formats, "cache": cache, "loader": loader, "segments": segments}[arguments.what]
        what(Path(folder), arguments)


if __name__ == "__main__":
    main()
