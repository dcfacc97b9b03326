"""Does a loader grow with the data set? Start-up time and memory of 4 workers on 20,000 and on 2,000,000 clips.

    OMP_NUM_THREADS=1 python benchmarks/manifest_scale.py

The manifest is real in every column (names of 44 bytes, one to three of 527 labels a clip); all of its clips are the
same few files, so that two million of them need no disk. Each size runs in a process of its own; they take turns.
Memory of a worker is what it has to itself (USS) once it has read its share of 100 batches.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

WORKERS, BATCH, BATCHES, FILES = 4, 32, 100, 16


def make_files(root: Path) -> None:
    (root / "clips").mkdir(parents=True)
    for number in range(FILES):
        noise = np.random.default_rng(number).standard_normal(22050).astype(np.float32) * 0.1
        soundfile.write(root / "clips" / f"{number:08d}.wav", noise, 22050, subtype="PCM_16")


def make_manifest(root: Path, rows: int):
    from gafx.data.manifest import Manifest, Ragged

    names = np.array([list(f"clips/../clips/../clips/../clips/{n:08d}.wav".encode()) for n in range(FILES)], np.uint8)
    path = names[np.arange(rows) % FILES]
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, rows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Manifest(
        root=root,
        classes=tuple(f"label {n}" for n in range(527)),
        path=Ragged(path.reshape(-1), np.arange(rows + 1) * names.shape[1]),
        labels=Ragged(rng.integers(0, 527, offsets[-1]).astype(np.int32), offsets),
        group=np.arange(rows),
        start=np.zeros(rows),
        duration=np.ones(rows),
        sample_rate=np.full(rows, 22050, np.int32),
        row=np.full(rows, -1),
        fold=np.full(rows, -1, np.int32),
        split=np.zeros(rows, np.int8),
        weight=np.ones(rows),
    )


def measure(root: Path, rows: int) -> dict[str, float]:
    import psutil

    from gafx.config import AugmentConfig
    from gafx.data.batches import TrainingOrder, class_balance, training_loader
    from gafx.data.dataset import ClipDataset
    from gafx.data.readers import FileReader
    from gafx.data.segments import training_segments

    manifest = make_manifest(root, rows)
    gc.collect()
    times = [time.perf_counter()]
    segments = training_segments(manifest, np.arange(rows), 22050, 22050)
    weights = class_balance(manifest, segments.row)
    times.append(time.perf_counter())
    clips = ClipDataset(
        manifest,
        segments,
        FileReader(manifest, 22050, 1),
        random_crop=True,
        fixed_length=22050,
        augment=AugmentConfig(),
    )
    order = TrainingOrder(len(segments), batch_size=BATCH, epochs=1, seed=0)
    batches = iter(training_loader(clips, order, workers=WORKERS))
    next(batches)
    times.append(time.perf_counter())
    for _ in range(BATCHES):
        next(batches)
    workers = [psutil.Process(child.pid).memory_full_info() for child in psutil.Process().children()]
    assert len(workers) == WORKERS
    return {
        "segments_ms": 1000 * (times[1] - times[0]),
        "first_batch_ms": 1000 * (times[2] - times[1]),
        "worker_uss_mb": max(info.uss for info in workers) / 1e6,
        "main_rss_mb": psutil.Process().memory_info().rss / 1e6,
        "weights": float(weights.sum() > 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000, 2_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), int(arguments.measure[1]))))
        return
    results: dict[int, list[dict[str, float]]] = {rows: [] for rows in arguments.rows}
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        for _ in range(arguments.rounds):
            for rows in arguments.rows:
                command = [sys.executable, __file__, "--measure", folder, str(rows)]
                results[rows].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    print(f"{WORKERS} workers, batches of {BATCH}, median of {arguments.rounds}:")
    print(
        f"  {'clips':>10} {'segments and weights':>20} {'first batch':>14} {'a worker, its own':>19} "
        f"{'main process':>14}"
    )
    for rows, found in results.items():
        median = {key: statistics.median(one[key] for one in found) for key in found[0]}
        print(
            f"  {rows:10,} {median['segments_ms']:17.0f} ms {median['first_batch_ms']:11.0f} ms "
            f"{median['worker_uss_mb']:16.1f} MB {median['main_rss_mb']:11.0f} MB"
        )


if __name__ == "__main__":
    main()
