"""Write a data set as Parquet shards with several processes, resuming after an interruption.

`<folder>/` contains `<part>-00000-of-0000N.parquet` and `shards.json`: source and settings, checksums of the shards,
and the unreadable clips with reasons. Until it is complete it is `.<folder>.packing`. A shard has the same bytes
whatever the number of processes and interruptions.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import snap
from gafx.data.manifest import Manifest, Skipped
from gafx.data.packing.cache import DIGEST, file_status
from gafx.data.packing.encode import Job
from gafx.data.packing.pool import progress_bar, run_all
from gafx.data.packing.unfinished import Unfinished, check_target, read_json, write_last
from gafx.data.readers import clip_span
from gafx.data.sharding import WHOLE, Shard
from gafx.data.shards.encode import CODECS, Codec, encode_clips, opus_rate
from gafx.data.shards.shard_file import FORMAT, ShardFile
from gafx.errors import UsageError, did_you_mean
from gafx.io import atomic_path, digest, file_digest, locked, write_text

_log = logging.getLogger("gafx")
ABOUT = "shards.json"
# Names of the parts as in `datasets`; of clips in none of them, and of all clips of a data set without parts.
_NAMES = {0: "train", 1: "validation", 2: "test"}
_REST, _ALL = "rest", "train"
# Clips per job, and bytes of 16-bit samples per shard by default.
_CHUNK, _SHARD_BYTES = 8, 512e6


@dataclass(frozen=True)
class Written:
    """A complete folder of shards.

    Attributes:
        folder: of the shards.
        shards, clips, bytes: their number, the clips in them and their size.
        unreadable: clips that were left out.
        scaled: number of clips scaled down because they exceed full scale.
        rounded: number of clips whose samples do not keep their exact values.
    """

    folder: Path
    shards: int
    clips: int
    bytes: int
    unreadable: tuple[Skipped, ...]
    scaled: int
    rounded: int


def write_shards(
    manifest: Manifest,
    folder: Path,
    *,
    codec: str = "flac",
    sample_rate: int | None = None,
    channels: int | None = None,
    rows_per_shard: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    shard: Shard = WHOLE,
) -> Written:
    """Write a data set as shards, or resume; complete ones that fit are left as they are.

    With `shard` the Parquet files are divided, not the clips: each file is the one that is written without it.

    Args:
        manifest: the data set. A clip that is a segment of a longer file becomes a separate file.
        folder: to create.
        codec: `flac` is lossless for up to 24 bits per sample; `opus` is lossy.
        sample_rate: in Hz; default: each clip's own (for Opus the next rate that it supports).
        channels: default: each clip's own.
        rows_per_shard: default: about 512 MB of 16-bit samples.
        workers: processes; default: one per processor.
        overwrite: replace shards of other data instead of refusing.
        shard: of the Parquet files, and of the clips that the manifest has skipped, see `gafx.data.shards.merge`.

    Raises:
        UsageError: unknown codec or a rate that it does not support; other shards or other files in `folder`; the disk
            is full.
    """
    manifest.require_audio("gafx pack")
    if codec not in CODECS:
        hint = did_you_mean(codec, CODECS) or ";"
        raise UsageError(f"unknown codec {codec!r}{hint} choose one of: {', '.join(CODECS)}")
    if codec == "opus" and sample_rate is not None and opus_rate(sample_rate) != sample_rate:
        raise UsageError(
            f"Opus has no sampling rate of {sample_rate} Hz: choose 8000, 12000, 16000, 24000 or 48000, or leave "
            "the rate out for the next above each clip's own"
        )
    if not len(manifest):
        raise UsageError(f"no usable clip under {manifest.root}")
    check_target(folder, manifest.root, "the folder of shards")
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    writing = _Writing(manifest, target, codec, sample_rate, channels, rows_per_shard, shard)
    lock = target.with_name(f".{target.name}.lock")
    with locked(lock, f"waiting for another process that writes {folder}", remove=True):
        if target.exists() and any(target.iterdir()):
            if (done := complete(target)) is not None and done["plan"] | recorded(
                done
            ) == writing.plan | writing.record:
                return _written(target, done)
            _clear(target, known=done is not None, overwrite=overwrite)
        return writing.run(workers or os.cpu_count() or 1)


@dataclass(frozen=True)
class _Shard:
    name: str
    rows: npt.NDArray[np.int64]


class _Writing:
    """A folder of shards while it is written."""

    def __init__(
        self, manifest: Manifest, target: Path, codec: Codec, sample_rate: int | None, channels: int | None,
        rows_per_shard: int | None, shard: Shard,
    ):  # fmt: skip
        self.manifest, self.target, self.codec, self.channels = manifest, target, codec, channels
        self.unfinished = Unfinished(target)
        self.folder = self.unfinished.path
        source = np.unique(manifest.sample_rate).tolist()
        self.rate_of = {
            rate: sample_rate or (opus_rate(rate) if codec == "opus" else rate) for rate in map(int, source)
        }
        self.rate = next(iter(self.rate_of.values())) if len(set(self.rate_of.values())) == 1 else None
        seconds = float(manifest.duration.mean())
        rate = max(self.rate_of.values())
        self.rows_per_shard = rows_per_shard or max(1, int(_SHARD_BYTES / max(2 * seconds * rate * (channels or 2), 1)))
        self.shards = shard.of(list(self._divide()))
        self.skipped = shard.of(manifest.skipped)
        # Everything that the shards' bytes depend on; `files` represents the content of the clips' files.
        self.plan: dict[str, Any] = {
            "format": FORMAT, "codec": self.codec, "rates": {str(k): v for k, v in self.rate_of.items()},
            "channels": self.channels, "rows_per_shard": self.rows_per_shard,
            "audio": manifest.audio_fingerprint(), "clips": manifest.fingerprint(),
            "weights": digest(manifest.weight.tobytes()),
            "files": self._files(np.arange(len(manifest))),
        }  # fmt: skip
        self.facts = {"missing": manifest.missing, "notes": list(manifest.notes)}
        if any(self.facts.values()):
            self.plan |= self.facts
        # The times of the files may differ on another machine.
        self.record = shard.record(digest(json.dumps(self.plan | {"files": None}, sort_keys=True)))

    def run(self, workers: int) -> Written:
        changed = [f"{rate} to {new} Hz" for rate, new in self.rate_of.items() if rate != new]
        if changed:
            _log.info("clips are resampled: %s", ", ".join(changed))
        with self.unfinished.explain_full_disk("shards"):
            self._resume()
            self._write(workers)
            return self._finish()

    def _divide(self) -> Iterator[_Shard]:
        """Assign the clips to shards: part by part, in their order."""
        split = self.manifest.split
        parts = [(name, np.flatnonzero(split == number)) for number, name in _NAMES.items()]
        parts.append((_REST if (split >= 0).any() else _ALL, np.flatnonzero(split < 0)))
        for name, rows in parts:
            count = -(-len(rows) // self.rows_per_shard)
            for number in range(count):
                begin, end = number * len(rows) // count, (number + 1) * len(rows) // count
                yield _Shard(f"{name}-{number:05d}-of-{count:05d}.parquet", rows[begin:end])

    def _files(self, rows: npt.NDArray[np.int64]) -> str:
        """Return a hash of sizes and times of the clips' files."""
        return digest(*(repr(file_status(self.manifest.file(row))) for row in rows.tolist()))

    def _resume(self) -> None:
        """Keep the shards that an earlier attempt has completed with the same settings and unchanged files."""
        self.unfinished.begin(
            self.plan | {"files": None} | self.record
        )  # files that have changed since concern their shards alone
        self.done: dict[str, dict[str, Any]] = {}
        for shard in self.shards:
            try:
                record = read_json(self.folder / f"{shard.name}.json")
                kept = record["files"] == self._files(shard.rows)
                if kept and file_digest(self.folder / shard.name, DIGEST) == record["digest"]:
                    self.done[shard.name] = record
            except (OSError, KeyError, TypeError):
                continue
        if self.done:
            _log.info("continuing: %d of %d shards are written already", len(self.done), len(self.shards))

    def _write(self, workers: int) -> None:
        todo = [shard for shard in self.shards if shard.name not in self.done]
        kept = sum(len(shard.rows) for shard in self.shards if shard.name in self.done)
        chunks = sum(-(-len(shard.rows) // _CHUNK) for shard in todo)
        jobs = ((chunk, self.codec, self.channels) for shard in todo for chunk in self._jobs(shard))
        results = run_all(encode_clips, jobs, min(workers, chunks), ordered=True)
        with progress_bar("packing", len(self.manifest), kept) as bar, closing(results):
            for shard in todo:
                files = self._files(shard.rows)
                with atomic_path(self.folder / shard.name) as part:
                    with ShardFile(part, self.manifest, self.codec, self.rate, self.facts) as writer:
                        for _ in range(-(-len(shard.rows) // _CHUNK)):
                            clips = next(results)
                            writer.add(clips)
                            bar.update(len(clips))
                    record = writer.record() | {"files": files}
                    write_text(self.folder / f"{shard.name}.json", json.dumps(record))
                self.done[shard.name] = record

    def _jobs(self, shard: _Shard) -> Iterator[list[tuple[Job, int]]]:
        for begin in range(0, len(shard.rows), _CHUNK):
            yield [self._job(row) for row in shard.rows[begin : begin + _CHUNK].tolist()]

    def _job(self, row: int) -> tuple[Job, int]:
        source = int(self.manifest.sample_rate[row])
        rate = self.rate_of[source]
        begin, end = clip_span(self.manifest, row, rate)
        first = snap(begin, source, rate)
        return Job(row, self.manifest.file(row), source, first, max(end - first, 1)), rate

    def _finish(self) -> Written:
        """Describe the shards in `shards.json` and give the folder its name."""
        records = [self.done[shard.name] for shard in self.shards]
        about = {
            "format": FORMAT, **self.record, "plan": self.plan, "codec": self.codec, "sample_rate": self.rate,
            "clips": sum(record["clips"] for record in records),
            "shards": [
                {"name": shard.name, **{key: record[key] for key in ("clips", "bytes", "digest")}}
                for shard, record in zip(self.shards, records, strict=True)
            ],
            "unreadable": [
                *(clip.as_dict() for clip in self.skipped),
                *(entry for record in records for entry in record["unreadable"]),
            ],
            "scaled": [entry for record in records for entry in record["scaled"]],
            "rounded": sum(record["rounded"] for record in records),
        }  # fmt: skip
        if self.record:
            about["skipped"] = len(self.skipped)  # of `unreadable`: the first ones of the merged list, too
        write_last(self.folder / ABOUT, about)
        self.unfinished.finish((ABOUT, *(shard.name for shard in self.shards)))
        return _written(self.target, about)


def complete(folder: Path) -> dict[str, Any] | None:
    """Return the description of shards that are all there; `None` otherwise."""
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        whole = all((folder / shard["name"]).stat().st_size == shard["bytes"] for shard in about["shards"])
        return about if whole and about["format"] == FORMAT else None
    except (OSError, KeyError, TypeError):
        return None


def recorded(about: dict[str, Any]) -> dict[str, str]:
    """The `Shard.record` in a `shards.json`."""
    return {name: about[name] for name in ("shard", "whole") if name in about}


def _written(folder: Path, about: dict[str, Any]) -> Written:
    unreadable = tuple(Skipped(entry["path"], entry["reason"]) for entry in about["unreadable"])
    size = sum(shard["bytes"] for shard in about["shards"])
    scaled, rounded = len(about["scaled"]), about["rounded"]
    return Written(folder, len(about["shards"]), about["clips"], size, unreadable, scaled, rounded)


def _clear(target: Path, *, known: bool, overwrite: bool) -> None:
    """Empty a folder of shards that are replaced; refuse without `overwrite`, or if it contains other files."""
    others = [
        path.name
        for path in sorted(target.iterdir())
        if path.name not in (ABOUT, ".gafx-index") and not path.name.endswith(".parquet")
    ]
    if others or not (known or (target / ABOUT).is_file()):
        raise UsageError(
            f"{target} holds files that gafx pack --shards did not write ({', '.join(others[:3]) or 'Parquet files'}) "
            "and is left alone; name another folder"
        )
    if not overwrite:
        raise UsageError(
            f"{target} holds shards of other data, of files that have changed since, or in another form; replace them "
            "with --overwrite, or name another folder"
        )
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
