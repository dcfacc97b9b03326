"""Write a data set as Parquet shards: in parallel, and from where it stopped if it was broken off.

`<folder>/` holds `<part>-00000-of-0000N.parquet` and `shards.json`: what they were written from and how, their
checksums, and which clips could not be read and why. Until all is written it lies beside, in `.<folder>.packing`. A
shard has the same bytes however many processes wrote it, and however often that was interrupted.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gafx.audio.read import snap
from gafx.data.manifest import Manifest, Skipped
from gafx.data.packing.cache import digest, file_status
from gafx.data.packing.encode import Job
from gafx.data.packing.pool import run_all
from gafx.data.readers import clip_span
from gafx.data.shards.encode import CODECS, Codec, encode_clips, opus_rate
from gafx.data.shards.shard_file import FORMAT, ShardFile
from gafx.errors import UsageError, did_you_mean
from gafx.io import flush, is_disk_full, locked, write_text

if TYPE_CHECKING:
    pass

ABOUT, _PLAN = "shards.json", "plan.json"
# As `datasets` calls the parts; clips that belong to none of them, or all where there are none.
_NAMES = {0: "train", 1: "validation", 2: "test"}
_REST, _ALL = "rest", "train"
# Clips a process is given at a time, and bytes of 16-bit samples a shard holds by default.
_CHUNK, _SHARD_BYTES = 8, 512e6


@dataclass(frozen=True)
class Written:
    """A finished folder of shards: how many, clips and bytes in them, and what was left out or changed."""

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
) -> Written:
    """Write a data set as shards, or go on where that stopped; finished ones that fit are left as they are.

    Args:
        manifest: the data set. A clip that is a segment of a longer file becomes a file of its own.
        folder: to be made.
        codec: `flac` keeps 16-bit audio as it is, and audio of more bits to 24; `opus` is lossy.
        sample_rate: in Hz; default: each clip's own (for Opus the next that it knows).
        channels: default: each clip's own.
        rows_per_shard: default: as many as make about 512 MB of 16-bit samples.
        workers: processes; default: one a processor.
        overwrite: replace shards of other data instead of refusing.

    Raises:
        UsageError: unknown codec or a rate that it does not know; other shards, or something else, in `folder`; no
            room.
    """
    if codec not in CODECS:
        hint = did_you_mean(codec, CODECS) or ";"
        raise UsageError(f"unknown codec {codec!r}{hint} choose one of: {', '.join(CODECS)}")
    if codec == "opus" and sample_rate is not None and opus_rate(sample_rate) != sample_rate:
        raise UsageError(
            f"Opus knows no sampling rate of {sample_rate} Hz: choose 8000, 12000, 16000, 24000 or 48000, or leave "
            "the rate out for the next above each clip's own"
        )
    if not len(manifest):
        raise UsageError(f"no usable clip under {manifest.root}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; name a folder")
    target = Path(os.path.realpath(folder))
    if manifest.root.resolve() in (target, *target.parents):
        raise UsageError(f"{str(folder)!r} lies inside the data ({manifest.root}); name a folder outside")
    target.parent.mkdir(parents=True, exist_ok=True)
    writing = _Writing(manifest, target, codec, sample_rate, channels, rows_per_shard)
    lock = target.with_name(f".{target.name}.lock")
    with locked(lock, f"waiting for another process that writes {folder}"):
        if target.exists() and any(target.iterdir()):
            if (done := _finished(target)) is not None and done["plan"] == writing.plan:
                lock.unlink(missing_ok=True)
                return _written(target, done)
            _clear(target, known=done is not None, overwrite=overwrite)
        written = writing.run(workers or os.cpu_count() or 1)
        lock.unlink(missing_ok=True)  # whoever waits for it finds the shards finished
        return written


@dataclass(frozen=True)
class _Shard:
    name: str
    rows: npt.NDArray[np.int64]


class _Writing:
    """Shards in the making."""

    def __init__(
        self, manifest: Manifest, target: Path, codec: Codec, sample_rate: int | None, channels: int | None,
        rows_per_shard: int | None,
    ):  # fmt: skip
        self.manifest, self.target, self.codec, self.channels = manifest, target, codec, channels
        self.aside = target.with_name(f".{target.name}.packing")
        source = np.unique(manifest.sample_rate).tolist()
        self.rate_of = {
            rate: sample_rate or (opus_rate(rate) if codec == "opus" else rate) for rate in map(int, source)
        }
        self.rate = next(iter(self.rate_of.values())) if len(set(self.rate_of.values())) == 1 else None
        seconds = float(manifest.duration.mean())
        rate = max(self.rate_of.values())
        self.rows_per_shard = rows_per_shard or max(1, int(_SHARD_BYTES / max(2 * seconds * rate * (channels or 2), 1)))
        self.shards = list(self._divide())
        # All that the shards' bytes depend on; `files` stands for the clips' own bytes.
        self.plan: dict[str, Any] = {
            "format": FORMAT, "codec": self.codec, "rates": {str(k): v for k, v in self.rate_of.items()},
            "channels": self.channels, "rows_per_shard": self.rows_per_shard,
            "audio": manifest.audio_fingerprint(), "clips": manifest.fingerprint(),
            "weights": hashlib.blake2b(manifest.weight.tobytes(), digest_size=8).hexdigest(),
            "files": self._files(np.arange(len(manifest))),
        }  # fmt: skip
        self.said = {"missing": manifest.missing, "notes": list(manifest.notes)}
        if any(self.said.values()):
            self.plan |= self.said

    def run(self, workers: int) -> Written:
        self._say_rates()
        try:
            self._resume()
            self._write(workers)
            return self._finish()
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UsageError(
                f"no room for the shards in {self.target.parent}: {error.strerror}. Make room (or raise the file-size "
                "limit) and give the command again: it continues from there"
            ) from error

    def _divide(self) -> Iterator[_Shard]:
        """Which clips go into which shard: part by part, in their order."""
        split = self.manifest.split
        parts = [(name, np.flatnonzero(split == number)) for number, name in _NAMES.items()]
        parts.append((_REST if (split >= 0).any() else _ALL, np.flatnonzero(split < 0)))
        for name, rows in parts:
            count = -(-len(rows) // self.rows_per_shard)
            for number in range(count):
                begin, end = number * len(rows) // count, (number + 1) * len(rows) // count
                yield _Shard(f"{name}-{number:05d}-of-{count:05d}.parquet", rows[begin:end])

    def _say_rates(self) -> None:
        changed = [f"{rate} to {new} Hz" for rate, new in self.rate_of.items() if rate != new]
        if changed:
            _say(f"clips are resampled: {', '.join(changed)}")

    def _files(self, rows: npt.NDArray[np.int64]) -> str:
        """A hash of sizes and times of the files that the clips are read from."""
        found = hashlib.blake2b(digest_size=8)
        for row in rows.tolist():
            found.update(repr(file_status(self.manifest.file(row))).encode())
        return found.hexdigest()

    def _resume(self) -> None:
        """Keep the shards that an earlier attempt has finished, unless it wrote something else."""
        plan = self.plan | {"files": None}  # files that have changed since concern their own shards alone
        if self.aside.exists():
            try:
                same = json.loads((self.aside / _PLAN).read_text(encoding="utf-8")) == plan
            except (OSError, ValueError):
                same = False
            if not same:
                _say(f"{self.aside} was begun with other clips or settings; beginning anew")
                shutil.rmtree(self.aside)
        self.aside.mkdir(exist_ok=True)
        if not (self.aside / _PLAN).exists():
            write_text(self.aside / _PLAN, json.dumps(plan))
        self.done: dict[str, dict[str, Any]] = {}
        for shard in self.shards:
            try:
                record = json.loads((self.aside / f"{shard.name}.json").read_text(encoding="utf-8"))
                kept = record["files"] == self._files(shard.rows)
                if kept and digest(self.aside / shard.name) == record["digest"]:
                    self.done[shard.name] = record
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if self.done:
            _say(f"continuing: {len(self.done)} of {len(self.shards)} shards are written already")

    def _write(self, workers: int) -> None:
        todo = [shard for shard in self.shards if shard.name not in self.done]
        kept = sum(len(shard.rows) for shard in self.shards if shard.name in self.done)
        bar = tqdm(
            total=len(self.manifest), initial=kept, desc="packing", unit="clip", file=sys.stderr, dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )  # fmt: skip
        chunks = sum(-(-len(shard.rows) // _CHUNK) for shard in todo)
        jobs = ((chunk, self.codec, self.channels) for shard in todo for chunk in self._jobs(shard))
        results = run_all(encode_clips, jobs, min(workers, chunks), ordered=True)
        with bar, closing(results):
            for shard in todo:
                files = self._files(shard.rows)
                writer = ShardFile(
                    self.aside / f".{shard.name}.writing", self.manifest, self.codec, self.rate, self.said
                )  # fmt: skip
                try:
                    for _ in range(-(-len(shard.rows) // _CHUNK)):
                        clips = next(results)
                        writer.add(clips)
                        bar.update(len(clips))
                finally:
                    writer.close()
                record = writer.record() | {"files": files}
                write_text(self.aside / f"{shard.name}.json", json.dumps(record))
                os.replace(writer.path, self.aside / shard.name)
                self.done[shard.name] = record

    def _jobs(self, shard: _Shard) -> Iterator[list[tuple[Job, int]]]:
        for begin in range(0, len(shard.rows), _CHUNK):
            yield [self._job(row) for row in shard.rows[begin : begin + _CHUNK].tolist()]

    def _job(self, row: int) -> tuple[Job, int]:
        source = int(self.manifest.sample_rate[row])
        rate = self.rate_of[source]
        begin, end = clip_span(self.manifest, row, rate)
        first = snap(begin, source, rate)
        return Job(row, self.manifest.file(row), source, first, max(end - first, 1), 0), rate

    def _finish(self) -> Written:
        """Write down what was done, take the notes away and give the folder its name."""
        records = [self.done[shard.name] for shard in self.shards]
        about = {
            "format": FORMAT, "plan": self.plan, "codec": self.codec, "sample_rate": self.rate,
            "clips": sum(record["clips"] for record in records),
            "shards": [
                {"name": shard.name, **{key: record[key] for key in ("clips", "bytes", "digest")}}
                for shard, record in zip(self.shards, records, strict=True)
            ],
            "unreadable": [
                *(clip.as_dict() for clip in self.manifest.skipped),
                *(entry for record in records for entry in record["unreadable"]),
            ],
            "scaled": [entry for record in records for entry in record["scaled"]],
            "rounded": sum(record["rounded"] for record in records),
        }  # fmt: skip
        write_text(self.aside / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        flush(self.aside / ABOUT)
        names = {ABOUT, *(shard.name for shard in self.shards)}
        for path in self.aside.iterdir():
            if path.name not in names:
                path.unlink()
        flush(self.aside)
        if self.target.exists():
            self.target.rmdir()  # empty: see `_clear`
        self.aside.rename(self.target)
        flush(self.target.parent)
        return _written(self.target, about)


def _finished(folder: Path) -> dict[str, Any] | None:
    """What is written about finished shards that are all there, or `None`."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        whole = all((folder / shard["name"]).stat().st_size == shard["bytes"] for shard in about["shards"])
        return about if whole and about["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(folder: Path, about: dict[str, Any]) -> Written:
    unreadable = tuple(Skipped(entry["path"], entry["reason"]) for entry in about["unreadable"])
    size = sum(shard["bytes"] for shard in about["shards"])
    scaled, rounded = len(about["scaled"]), about["rounded"]
    return Written(folder, len(about["shards"]), about["clips"], size, unreadable, scaled, rounded)


def _clear(target: Path, *, known: bool, overwrite: bool) -> None:
    """Empty a folder of shards that are to be replaced; refuse where that was not asked for, or it is none."""
    others = [
        path.name
        for path in sorted(target.iterdir())
        if path.name not in (ABOUT, ".gafx-index") and not path.name.endswith(".parquet")
    ]
    if others or not (known or (target / ABOUT).is_file()):
        raise UsageError(
            f"{target} holds what was not written by gafx pack --shards ({', '.join(others[:3]) or 'Parquet files'}) "
            "and is left alone; name another folder"
        )
    if not overwrite:
        raise UsageError(
            f"{target} holds shards of other data, of files that have changed since, or in another form; replace them "
            "with --overwrite, or name another folder"
        )
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
