"""The built-in data set: music made by code, written once as FLAC with the truth it was made from.

`root/<genre>/<genre>.NNNNN.flac` and `root/truth.jsonl` (a JSON object a track). A root that does not exist is made on
first use; one that was made with other arguments is refused. The generator is described in docs/synthetic.md.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import soundfile

from gafx.data.manifest import Manifest, make_manifest
from gafx.data.sources.base import probe_all
from gafx.errors import UsageError
from gafx.registry import SOURCES

TRUTH, SETTINGS = "truth.jsonl", "synthetic.json"
SAMPLE_RATE = 22050


@SOURCES.register
def synthetic(
    root: Path | None, /, *, tracks: int = 40, seconds: float = 10.0, seed: int = 0, vary: str = "all"
) -> Manifest:
    """Read the synthetic data set, making it first if `root` does not exist.

    `Manifest.facts` holds each track's truth: tempo, key, instruments, loudness, room, timed chords.

    Args:
        root: where it lies or is to lie.
        tracks: tracks a genre, ten genres.
        seconds: length of a track.
        seed: of all draws.
        vary: which factors differ between genres: `all`, `rhythm`, `harmony`, `timbre` or one of
            `gafx.studies.synth.FACTORS`; the others are drawn alike for every genre.

    Raises:
        UsageError: bad arguments, or a root that holds something else.
    """
    if root is None:
        raise UsageError(
            "data.root is missing: name the folder that the synthetic data set is to be made in, e.g. data/synthetic"
        )
    synthesize(root, tracks=tracks, seconds=seconds, seed=seed, vary=vary)
    if not (root / TRUTH).is_file():
        raise UsageError(f"{root} is incomplete (it lacks {TRUTH}); remove the folder, it is made anew")
    truth = [json.loads(line) for line in (root / TRUTH).read_text(encoding="utf-8").splitlines()]
    kept, infos, skipped = probe_all(root, [entry["path"] for entry in truth])
    truth = [truth[i] for i in kept]
    from gafx.studies.synth import GENRES

    return make_manifest(
        root, GENRES, [entry["path"] for entry in truth], [[GENRES.index(entry["genre"])] for entry in truth],
        [info.seconds for info in infos], [info.sample_rate for info in infos], skipped=skipped, facts=truth,
    )  # fmt: skip


def synthesize(
    root: Path,
    *,
    tracks: int = 40,
    seconds: float = 10.0,
    seed: int = 0,
    vary: str | Literal["all"] = "all",
    workers: int | None = None,
) -> Path:
    """Make the data set under `root`; no-op if it is there already.

    It is made beside `root` and renamed, so it is whole.

    Args:
        root: folder to make.
        tracks, seconds, seed, vary: see `synthetic`.
        workers: processes; default: one a processor.

    Raises:
        UsageError: bad arguments, or `root` holds something else or was made with other arguments.
    """
    from gafx.studies.synth import GENRES, VARY

    settings = {"tracks": tracks, "seconds": float(seconds), "seed": seed, "vary": vary, "sample_rate": SAMPLE_RATE}
    if tracks < 1 or seed < 0 or not 1 <= seconds <= 600:
        raise UsageError(
            f"tracks={tracks}, seconds={seconds}, seed={seed}: need tracks >= 1, 1 <= seconds <= 600, seed >= 0"
        )
    if vary not in VARY:
        raise UsageError(f"vary={vary!r} is none of {', '.join(VARY)}")
    if root.exists():
        found = root / SETTINGS
        if not found.is_file():
            if root.is_dir() and not any(root.iterdir()):
                root.rmdir()
                return synthesize(root, tracks=tracks, seconds=seconds, seed=seed, vary=vary, workers=workers)
            raise UsageError(
                f"data.root={str(root)!r} exists and is no synthetic data set; choose a folder that does not exist"
            )
        there = json.loads(found.read_text(encoding="utf-8"))
        if there != settings:
            differs = ", ".join(
                f"{key} {there.get(key)} -> {value}" for key, value in settings.items() if there.get(key) != value
            )
            raise UsageError(
                f"{root} was made with other arguments ({differs}); choose another data.root, or remove the folder"
            )
        return root
    print(f"making {tracks * len(GENRES)} synthetic tracks of {seconds:g} s in {root}", file=sys.stderr, flush=True)
    aside = root.with_name(f".{root.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    for genre in GENRES:
        (aside / genre).mkdir(parents=True)
    jobs = [(aside, genre, index, seed, seconds, vary) for genre in GENRES for index in range(tracks)]
    # Spawned, not forked: the caller may hold threads (torch, DDP) that do not survive a fork.
    try:
        with ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
            truth = list(pool.map(_make, jobs, chunksize=8))
    except (OSError, soundfile.SoundFileError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UsageError(f"the synthetic data set cannot be written into {root} ({error}); make room there") from error
    (aside / TRUTH).write_text("".join(json.dumps(entry) + "\n" for entry in truth), encoding="utf-8")
    (aside / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    aside.rename(root)
    return root


def _make(job: tuple[Path, str, int, int, float, str]) -> dict[str, Any]:
    from gafx.studies.synth import compose, render

    folder, genre, index, seed, seconds, vary = job
    score = compose(genre, index, seed=seed, seconds=seconds, vary=vary)
    path = f"{genre}/{genre}.{index:05d}.flac"
    soundfile.write(folder / path, render(score, SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_16")
    return {"path": path, **score.truth()}
