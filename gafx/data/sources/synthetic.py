"""The built-in data set: generated music, written once as FLAC with its generation parameters.

`root/<genre>/<genre>.NNNNN.flac` and `root/truth.jsonl` (one JSON object per track). A root that does not exist is
created on first use; one that was generated with other arguments is refused. docs/synthetic.md describes the generator.
"""

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile

from gafx.data.manifest import Manifest, make_manifest
from gafx.data.sources.base import probe_all
from gafx.errors import UsageError
from gafx.io import atomic_folder, locked, read_json_lines
from gafx.registry import SOURCES

_log = logging.getLogger("gafx")
TRUTH, SETTINGS = "truth.jsonl", "synthetic.json"
SAMPLE_RATE = 22050


@SOURCES.register
def synthetic(
    root: Path | None, /, *, tracks: int = 40, seconds: float = 10.0, seed: int = 0, vary: str = "all"
) -> Manifest:
    """Read the synthetic data set; generate it first if `root` does not exist.

    `Manifest.facts` holds each track's parameters: tempo, key, instruments, loudness, room, timed chords.

    Args:
        root: folder of the data set.
        tracks: per genre; there are ten genres.
        seconds: length of a track.
        seed: of the random generator.
        vary: factors that differ between genres: `all`, `rhythm`, `harmony`, `timbre` or one of
            `gafx.studies.synth.FACTORS`; the others have the same distribution in every genre.

    Raises:
        UsageError: invalid arguments, or a root with other content.
    """
    from gafx.studies.synth import GENRES

    if root is None:
        raise UsageError(
            "data.root is missing: name the folder to generate the synthetic data set in, e.g. data/synthetic"
        )
    synthesize(root, tracks=tracks, seconds=seconds, seed=seed, vary=vary)
    if not (root / TRUTH).is_file():
        raise UsageError(f"{root} is incomplete (it lacks {TRUTH}); remove the folder; it will be generated again")
    truth = read_json_lines(root / TRUTH)
    kept, infos, skipped = probe_all(root, [entry["path"] for entry in truth])
    truth = [truth[i] for i in kept]
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
    vary: str = "all",
    midi: bool = False,
    workers: int | None = None,
) -> Path:
    """Generate the data set under `root`, completely or not at all; no-op if it exists already.

    Args:
        root: folder to create.
        tracks, seconds, seed, vary: see `synthetic`.
        midi: write the scores as MIDI files, for `data=midi`, in place of the sound.
        workers: processes; default: one per processor.

    Raises:
        UsageError: invalid arguments, or `root` has other content or was generated with other arguments.
    """
    from gafx.studies.synth import GENRES, VARY

    settings = {"tracks": tracks, "seconds": float(seconds), "seed": seed, "vary": vary}
    settings |= {"midi": True} if midi else {"sample_rate": SAMPLE_RATE}
    if tracks < 1 or seed < 0 or not 1 <= seconds <= 600:
        raise UsageError(
            f"tracks={tracks}, seconds={seconds}, seed={seed}: need tracks >= 1, 1 <= seconds <= 600, seed >= 0"
        )
    if vary not in VARY:
        raise UsageError(f"vary={vary!r} is none of {', '.join(VARY)}")
    if _exists(root, settings):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lock = root.with_name(f".{root.name}.lock")
        with locked(lock, f"waiting for another process that makes {root}", remove=True):
            if not _exists(root, settings):
                _log.info("making %d synthetic tracks of %g s in %s", tracks * len(GENRES), seconds, root)
                _generate(root, settings, workers or os.cpu_count() or 1)
    except (OSError, soundfile.SoundFileError) as error:
        raise UsageError(f"the synthetic data set cannot be written into {root} ({error}); make room there") from error
    return root


def _exists(root: Path, settings: dict[str, Any]) -> bool:
    """Return whether the data set exists; raise `UsageError` if `root` has other content or other settings."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / SETTINGS).is_file():
        raise UsageError(
            f"data.root={str(root)!r} exists and is no synthetic data set: train on recordings of your own, a folder "
            "for each label, with data=folder; to generate the synthetic data set, name a folder that does not exist"
        )
    there = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
    keys = [*settings, *(key for key in there if key not in settings)]
    differs = [f"{key} {there.get(key)} -> {settings.get(key)}" for key in keys if there.get(key) != settings.get(key)]
    if differs:
        raise UsageError(
            f"{root} was made with other arguments ({', '.join(differs)}); choose another data.root, or remove the "
            "folder"
        )
    return True


def _generate(root: Path, settings: dict[str, Any], workers: int) -> None:
    from gafx.studies.synth import GENRES

    with atomic_folder(root, replace=True) as part:
        for genre in GENRES:
            (part / genre).mkdir()
        jobs = [(part, genre, index, settings) for genre in GENRES for index in range(settings["tracks"])]
        # Spawned, not forked: the caller may hold threads (torch, DDP) that do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            truth = list(pool.map(_make, jobs, chunksize=8))
        (part / TRUTH).write_text("".join(json.dumps(entry) + "\n" for entry in truth), encoding="utf-8")
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _make(job: tuple[Path, str, int, dict[str, Any]]) -> dict[str, Any]:
    """Generate and write one track; return its parameters."""
    from gafx.midi.write import write_midi
    from gafx.studies.synth import compose, render
    from gafx.studies.synth.midi import song_of

    folder, genre, index, settings = job
    score = compose(genre, index, seed=settings["seed"], seconds=settings["seconds"], vary=settings["vary"])
    path = f"{genre}/{genre}.{index:05d}.{'mid' if settings.get('midi') else 'flac'}"
    if settings.get("midi"):
        write_midi(song_of(score), folder / path)
    else:
        soundfile.write(folder / path, render(score, SAMPLE_RATE), SAMPLE_RATE, subtype="PCM_16")
    return {"path": path, **score.truth()}
