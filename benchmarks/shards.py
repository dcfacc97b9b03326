"""Random access to 100,000 clips: Parquet shards, the packed cache and plain files; and Parquet by its own readers.

    OMP_NUM_THREADS=1 python benchmarks/shards.py FOLDER            # a new folder with 15 GB of room

The clips are 1 s at 16 kHz, FLAC, 500 different ones over and over. What is read is a random half second of a random
clip, as float32; the first table reads the encoded clip alone, through pyarrow's row groups of several sizes, the
Arrow table of the `datasets` library, and our index. Methods take turns, medians of the rounds (of opening, the
shortest of 201 times, since that takes milliseconds). Memory of a worker is its unique set size after its part of
the batches, first what it has written (private dirty), then pages of files that no other process has touched (private
clean), which the system takes back when it needs them. Where memory does not hold all 13 GB these are costs of the
disk as well; with --rows 6000 they are not.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

RATE, SECONDS, CROP, SHARD, DISTINCT = 16000, 1.0, 8000, 5000, 500
READS, ROUNDS, BATCH, BATCHES, WORKERS = 2000, 5, 32, 150, 2
GROUPS = (1, 8, 16, 100, 1000)
SIZES = (1_000, 10_000, 100_000)


def encoded(number: int) -> bytes:
    """A chord with a little noise, as FLAC."""
    rng = np.random.default_rng(number)
    time_ = np.arange(int(SECONDS * RATE)) / RATE
    wave = sum(0.1 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time_) for _ in range(5))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave + 0.003 * rng.standard_normal(len(time_)), RATE, format="FLAC")
    return buffer.getvalue()


def write_shards(root: Path, rows: int, clips: list[bytes], **options: object) -> None:
    """Shards of `SHARD` rows; `options` are pyarrow's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    count = -(-rows // SHARD)
    for number in range(count):
        chosen = range(number * SHARD, min(rows, (number + 1) * SHARD))
        audio = pa.array([{"bytes": clips[n % len(clips)], "path": f"{n}.flac"} for n in chosen], kind)
        table = pa.table({"audio": audio, "label": pa.array([n % 10 for n in chosen], pa.int64())})
        pq.write_table(
            table, root / f"train-{number:05d}-of-{count:05d}.parquet", use_dictionary=["label"],
            write_statistics=["label"], **options,
        )  # fmt: skip


def write_files(root: Path, rows: int, clips: list[bytes]) -> None:
    for number in range(10):
        (root / f"{number}").mkdir(parents=True)
    for number in range(rows):
        (root / f"{number % 10}" / f"{number:06d}.flac").write_bytes(clips[number % len(clips)])


def seconds(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def worker(folder: Path, method: str) -> dict[str, float]:
    """One method in a separate process: opening, single reads, and a loader."""
    from gafx.data.batches import TrainingOrder, training_loader
    from gafx.data.dataset import ClipDataset
    from gafx.data.packing.cache import Cache, CacheReader
    from gafx.data.readers import FileReader
    from gafx.data.segments import training_segments
    from gafx.data.sources.base import load_manifest

    source, place = ("folder", "files") if method == "files" else ("shards", "copied" if method == "copied" else "16")
    begin = time.perf_counter()
    manifest = load_manifest(source, folder / place)
    if method == "cache":
        reader = CacheReader(Cache(folder / "cache" / f"{RATE}x1"), manifest)
    else:
        reader = FileReader(manifest, RATE, 1)
    opening = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    picks = np.stack([rng.integers(0, len(manifest), READS), rng.integers(0, CROP, READS)], axis=1).tolist()
    for row, start in picks[:200]:
        reader.read(row, start, CROP)
    single = seconds(lambda: [reader.read(row, start, CROP) for row, start in picks])
    segments = training_segments(manifest, np.arange(len(manifest)), RATE, CROP)
    clips = ClipDataset(manifest, segments, reader, random_crop=True, fixed_length=CROP)
    loader = training_loader(clips, TrainingOrder(len(segments), batch_size=BATCH, epochs=1, seed=0), workers=WORKERS)
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    loading = seconds(lambda: [next(batches) for _ in range(BATCHES)])
    memory = {"Private_Dirty": 0.0, "Private_Clean": 0.0}
    for process in batches._workers:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if (kind := line.partition(":")[0]) in memory:
                memory[kind] = max(memory[kind], int(line.split()[1]) / 1024)
    return {
        "opening": opening, "single": READS / single, "loader": BATCHES * BATCH / loading, **memory
    }  # fmt: skip


def run(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def bytes_only(folder: Path, clips: list[bytes], rows: int) -> dict[str, float]:
    """Encoded clips a second by readers of Parquet and Arrow, on one shard's rows, and by the index."""
    import datasets
    import pyarrow.parquet as pq

    from gafx.data.sources.base import load_manifest

    datasets.disable_progress_bars()
    picks = np.random.default_rng(1).integers(0, SHARD, READS).tolist()
    methods = {}
    for group in GROUPS:
        write_shards(folder / f"groups{group}", SHARD, clips, compression="none", row_group_size=group)
        file = pq.ParquetFile(next((folder / f"groups{group}").iterdir()), memory_map=True)

        def by_group(row: int, file=file, group=group) -> bytes:
            return file.read_row_group(row // group, columns=["audio.bytes"])["audio"][row % group]["bytes"].as_py()

        methods[f"pyarrow, row groups of {group}"] = by_group
    table = datasets.load_dataset("parquet", data_files=str(next((folder / "groups16").iterdir())), split="train",
                                  cache_dir=str(folder / "hf"))  # fmt: skip
    methods["datasets, Arrow table"] = lambda row: table[row]["audio"]["bytes"]
    manifest = load_manifest("shards", folder / "groups16")

    def by_index(row: int) -> bytes:
        span = manifest.file(row)
        descriptor = os.open(span.path, os.O_RDONLY)
        try:
            return os.pread(descriptor, span.size, span.offset)
        finally:
            os.close(descriptor)

    methods["gafx's index"] = by_index
    found: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            few = picks[: READS // 10] if "row groups of 100" in name else picks
            assert method(few[0]) == clips[few[0] % len(clips)]
            found[name].append(len(few) / seconds(lambda method=method, few=few: [method(row) for row in few]))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", nargs="?")
    parser.add_argument("--rows", type=int, default=SIZES[-1])
    parsed = parser.parse_args()
    folder, rows = parsed.folder, parsed.rows
    if parsed.method == "open":
        from gafx.data.sources.base import load_manifest

        load_manifest("shards", folder)  # imports and page cache
        times = [seconds(lambda: load_manifest("shards", folder)) for _ in range(201)]
        print(json.dumps({"seconds": min(times)}))
        return
    if parsed.method:
        print(json.dumps(worker(folder, parsed.method)))
        return

    from gafx.data.packing.pack import pack
    from gafx.data.sources.base import load_manifest

    folder.mkdir(parents=True)
    clips = [encoded(number) for number in range(DISTINCT)]
    print(f"{rows:,} clips of {SECONDS:g} s, {np.mean([len(clip) for clip in clips]) / 1000:.1f} kB each as FLAC")
    print("\nencoded clips a second, one process")
    for name, rate in bytes_only(folder / "alone", clips, rows).items():
        print(f"  {name:32s} {rate:10,.0f}")
    shutil.rmtree(folder / "alone")

    write_shards(folder / "16", rows, clips, compression="none", row_group_size=16)
    write_shards(folder / "copied", rows, clips, compression="snappy", row_group_size=1000)
    write_files(folder / "files", rows, clips)
    index = {name: seconds(lambda name=name: load_manifest("shards", folder / name)) for name in ("16", "copied")}
    print(f"\nindexing, {os.cpu_count()} processes: {index['16']:.1f} s in place, {index['copied']:.1f} s with a copy")
    manifest = load_manifest("shards", folder / "16")
    packing = seconds(lambda: pack(manifest, folder / "cache", sample_rate=RATE))
    print(f"packing the cache from the shards: {packing:.1f} s")
    names = {"shards": "shards, in place", "copied": "shards, copied", "cache": "cache", "files": "plain files"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(3):
        for name in names:
            found[name].append(run(folder, name))
    print(f"\n{'':18s} opened in   clips/s, one process   {WORKERS} workers   MB a worker: written, of files")
    for name, values in found.items():
        median = {key: statistics.median(value[key] for value in values) for key in values[0]}
        print(
            f"{names[name]:18s} {median['opening']:8.3f} s {median['single']:22,.0f} {median['loader']:11,.0f} "
            f"{median['Private_Dirty']:21.0f} {median['Private_Clean']:9.0f}"
        )
    print("\nopening once indexed, shortest of 201 times")
    for size in SIZES:
        if size != rows:
            write_shards(folder / f"open{size}", size, clips, compression="none", row_group_size=16)
            load_manifest("shards", folder / f"open{size}")
        place = folder / ("16" if size == rows else f"open{size}")
        print(f"  {size:9,} rows: {run(place, 'open')['seconds'] * 1000:.1f} ms")


if __name__ == "__main__":
    main()
