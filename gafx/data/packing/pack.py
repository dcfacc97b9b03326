"""Write a packed cache (see `gafx.data.packing.cache`) with several processes, resuming after an interruption.

Every clip's position in `samples.i16` is known before the first is decoded, so any process writes clips in any order,
and a cache has the same bytes however often the work was interrupted. Until it is complete it is
`.<rate>x<channels>.packing` with `done.jsonl`, a journal of the clips whose samples are on the disk.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Manifest, Skipped
from gafx.data.packing.cache import (
    ABOUT,
    CLIP,
    CLIPS,
    DIGEST,
    FORMAT,
    SAMPLES,
    TIMES,
    Cache,
    cache_folder,
    clip_keys,
    file_status,
    stored_lengths,
)
from gafx.data.packing.encode import Job, checksum, pack_clips
from gafx.data.packing.pool import progress_bar, run_all
from gafx.data.packing.unfinished import Unfinished, check_target, write_last
from gafx.data.sharding import WHOLE, Shard
from gafx.errors import UsageError
from gafx.io import atomic_write, file_digest, flush, locked
from gafx.report.format import size as size_text

_log = logging.getLogger("gafx")
_DONE = "done.jsonl"
# Clips per job, and seconds between two writes to the journal.
_CHUNK, _JOURNAL_SECONDS = 8, 1.0


def pack(
    manifest: Manifest,
    folder: Path,
    *,
    sample_rate: int,
    channels: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
    shard: Shard = WHOLE,
) -> Cache:
    """Pack a data set, or resume; a complete cache that fits is returned as it is.

    Args:
        manifest: the data set. Unreadable clips are recorded in the cache with their reasons.
        folder: of the caches of this data set, one per rate and channel count.
        sample_rate: of the cache, in Hz.
        channels: of the cache.
        workers: processes; default: one per processor. 1 packs in this process.
        overwrite: replace a cache that does not fit, or whose samples do not match their checksums, instead of
            refusing.
        shard: of the clips, and of those that the manifest has skipped; `gafx.data.packing.merge` joins the caches.

    Raises:
        UsageError: an existing cache is out of date, damaged or of other data; the disk is full; `folder` is a file, is
            inside the data, or contains other files where the cache belongs.
    """
    manifest.require_audio("gafx pack")
    if sample_rate < 1 or channels < 1:
        raise UsageError(f"a cache needs a sampling rate and channels of at least 1, not {sample_rate} and {channels}")
    target = cache_folder(folder, sample_rate, channels)
    record = shard.record(manifest.audio_fingerprint())
    if record:
        manifest = replace(
            manifest.take(np.arange(len(manifest))[shard.span(len(manifest))]), skipped=shard.of(manifest.skipped)
        )
    if not overwrite and (target / ABOUT).is_file():
        return _fitting(target, manifest, record)  # its folder may be read-only: take no lock
    for path in (folder, target):
        check_target(path, manifest.root, "the cache folder")
    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes one packs; the others wait and find the cache.
    with locked(folder / f".{target.name}.lock", f"waiting for another process that packs into {folder}"):
        if target.exists():
            try:
                cache = _fitting(target, manifest, record)
                if not overwrite or not cache.verify():
                    return cache
            except UsageError:
                if not overwrite:
                    raise
            if others := {path.name for path in target.iterdir()} - {ABOUT, CLIPS, SAMPLES, TIMES}:
                raise UsageError(
                    f"{target} holds what is no part of a cache ({', '.join(sorted(others)[:3])}) and is left alone; "
                    "name another folder, or remove it yourself"
                )
            shutil.rmtree(target)
        return _Packing(manifest, target, sample_rate, channels, record).run(workers or os.cpu_count() or 1)


def _fitting(target: Path, manifest: Manifest, record: dict[str, str]) -> Cache:
    """Return the cache in `target`; raises `UsageError` unless it is complete, fresh and has the manifest's clips."""
    cache = Cache(target)
    if record and record != {name: cache.about.get(name) for name in record}:
        held = f"shard {cache.about['shard']}" if "shard" in cache.about else "a cache that is no shard"
        raise UsageError(
            f"{target} holds {held}, not shard {record['shard']} of these clips: name a folder for each shard, or "
            "replace it with --overwrite"
        )
    cache.rows(manifest)
    return cache


def write_records(folder: Path, clips: npt.NDArray[Any], unreadable: list[dict[str, Any]], **about: Any) -> None:
    """Complete a cache whose samples are written; its description is written last.

    Args:
        folder: has samples.i16.
        clips: `CLIP` records.
        unreadable: number, path and reason of each unreadable clip.
        **about: `sample_rate`, `channels`, `fingerprint`, and the record of a shard.
    """
    np.save(folder / CLIPS, clips)
    for name in (SAMPLES, CLIPS):
        flush(folder / name)
    write_last(
        folder / ABOUT,
        {
            "format": FORMAT, "clips": len(clips), "bytes": (folder / SAMPLES).stat().st_size,
            "clips_digest": file_digest(folder / CLIPS, DIGEST), **about, "unreadable": unreadable,
        },
    )  # fmt: skip


class _Packing:
    """One cache while it is written. The state of its clips is kept in arrays, for millions of clips."""

    def __init__(
        self, manifest: Manifest, target: Path, sample_rate: int, channels: int, record: dict[str, str]
    ):  # fmt: skip
        self.manifest, self.target, self.record = manifest, target, record
        self.sample_rate, self.channels = sample_rate, channels
        self.unfinished = Unfinished(target)
        self.folder = self.unfinished.path
        self.fingerprint = manifest.audio_fingerprint()
        self.first, self.length = stored_lengths(manifest, sample_rate)
        ends = np.cumsum(self.length * channels)
        self.bytes = 2 * int(ends[-1]) if len(ends) else 0
        self.clips = np.zeros(len(manifest), CLIP)
        self.clips["offset"] = ends - self.length * channels
        self.packed = np.zeros(len(manifest), bool)
        self.reasons: dict[int, str] = {}

    def run(self, workers: int) -> Cache:
        with self.unfinished.explain_full_disk("cache", self._progress):
            if not self._is_complete():
                self._resume()
                self._check_room()
                self._pack(workers)
                self._write_records()
            self.unfinished.finish((SAMPLES, CLIPS, ABOUT))
        return Cache(self.target)

    def _progress(self) -> str:
        return f" after {self.packed.sum()} of {len(self.manifest)} clips ({size_text(self.bytes)} in all)"

    def _is_complete(self) -> bool:
        """Return whether an earlier attempt wrote everything and was killed before it renamed the folder."""
        try:
            cache = Cache(self.folder)
        except UsageError:
            return False
        return cache.fingerprint == self.fingerprint and self.record.items() <= cache.about.items()

    def _resume(self) -> None:
        """Keep the clips that an earlier attempt has finished and whose files have not changed."""
        self.unfinished.begin(
            {
                "format": FORMAT, "fingerprint": self.fingerprint, "sample_rate": self.sample_rate,
                "channels": self.channels, **self.record,
            }
        )  # fmt: skip
        samples, log = self.folder / SAMPLES, self.folder / _DONE
        samples.touch()
        if not log.exists():
            return
        # Copied line by line: the next entry must not be appended to a line that was cut short.
        with atomic_write(log) as file, samples.open("rb") as written:
            for entry in _journal(log):
                row = entry["row"]
                span = (2 * int(self.clips["offset"][row]), 2 * entry["length"] * self.channels)
                fresh = file_status(self.manifest.file(row)) == (entry["size"], entry["mtime"])
                if fresh and checksum(written, *span) == entry["crc"]:
                    self._keep(entry)
                    file.write(json.dumps(entry) + "\n")
        if self.packed.any():
            _log.info("continuing: %d of %d clips are packed already", self.packed.sum(), len(self.manifest))

    def _keep(self, entry: dict[str, Any]) -> None:
        row = entry["row"]
        self.packed[row] = True
        for name in ("length", "scale", "crc", "size", "mtime", "file_crc"):
            self.clips[name][row] = entry[name]
        if "reason" in entry:
            self.reasons[row] = entry["reason"]

    def _check_room(self) -> None:
        """Raise before the first clip if the disk is too small."""
        done = 2 * self.channels * int(self.clips["length"].sum())
        needed = self.bytes - done + len(self.manifest) * (CLIP.itemsize + 200)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UsageError(
                f"the cache needs {size_text(needed)} more in {self.target.parent}, and {size_text(free)} are free: "
                "make room and give the command again, or choose another folder"
            )

    def _pack(self, workers: int) -> None:
        todo = np.flatnonzero(~self.packed)
        samples = self.folder / SAMPLES
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(progress_bar("packing", len(self.manifest), len(self.manifest) - len(todo)))
            written = stack.enter_context(samples.open("r+b", buffering=0))
            log = stack.enter_context((self.folder / _DONE).open("a", encoding="utf-8"))
            fresh: list[dict[str, Any]] = []

            def record() -> None:
                """Flush the samples of the latest clips to the disk, then add their entries to the journal."""
                os.fsync(written.fileno())
                log.write("".join(json.dumps(entry) + "\n" for entry in fresh))
                log.flush()
                for entry in fresh:
                    self._keep(entry)
                fresh.clear()

            stack.callback(record)
            last = time.monotonic()
            jobs = ((chunk, str(samples), self.sample_rate, self.channels) for chunk in self._jobs(todo))
            for entries in run_all(pack_clips, jobs, min(workers, -(-len(todo) // _CHUNK))):
                fresh += entries
                bar.update(len(entries))
                if time.monotonic() - last > _JOURNAL_SECONDS:
                    record()
                    last = time.monotonic()

    def _jobs(self, todo: npt.NDArray[np.int64]) -> Iterator[list[Job]]:
        manifest = self.manifest
        for begin in range(0, len(todo), _CHUNK):
            yield [
                Job(
                    row, manifest.file(row), int(manifest.sample_rate[row]), int(self.first[row]),
                    int(self.length[row]), 2 * int(self.clips["offset"][row]),
                )
                for row in todo[begin : begin + _CHUNK].tolist()
            ]  # fmt: skip

    def _write_records(self) -> None:
        """Complete the cache; its description is written last."""
        with (self.folder / SAMPLES).open("ab") as samples:
            samples.truncate(self.bytes)
        self.clips["key"] = clip_keys(self.manifest)
        unreadable = [
            {"clip": row, **Skipped(self.manifest.relative_path(row), reason).as_dict()}
            for row, reason in sorted(self.reasons.items())
        ]
        write_records(
            self.folder, self.clips, unreadable, sample_rate=self.sample_rate, channels=self.channels,
            fingerprint=self.fingerprint, **self.record,
        )  # fmt: skip


def _journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file of JSON lines, up to a line that was cut short."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
