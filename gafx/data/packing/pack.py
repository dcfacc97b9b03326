"""Write a packed cache (see `gafx.data.packing.cache`): in parallel, and from where it stopped if it was broken off.

Every clip's place in `samples.i16` is known before the first is read, so clips are written in any order by any process,
and a cache has the same bytes however often the work was interrupted. Until it is finished it lies in
`.<rate>x<channels>.packing` with `done.jsonl`, a journal of the clips whose samples are on the disk.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from gafx.data.manifest import Manifest, Skipped
from gafx.data.packing.cache import (
    ABOUT,
    CLIP,
    CLIPS,
    FORMAT,
    SAMPLES,
    TIMES,
    Cache,
    cache_folder,
    clip_keys,
    digest,
    file_status,
    journal,
    stored_lengths,
)
from gafx.data.packing.encode import Job, checksum, pack_clips
from gafx.data.packing.pool import run_all
from gafx.errors import UsageError
from gafx.io import flush, is_disk_full, locked, write_text

_PLAN, _DONE = "plan.json", "done.jsonl"
# Clips that a process is given at a time, and seconds between two entries in the journal.
_CHUNK, _JOURNAL_SECONDS = 8, 1.0


def pack(
    manifest: Manifest,
    folder: Path,
    *,
    sample_rate: int,
    channels: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
) -> Cache:
    """Pack a data set, or go on where packing stopped; a finished cache that fits is returned as it is.

    Args:
        manifest: the data set. Clips that cannot be read are recorded in the cache with their reasons.
        folder: where caches of this data set lie, one a rate and channel count.
        sample_rate: of the cache, in Hz.
        channels: of the cache.
        workers: processes; default: one a processor. 1 packs in this process.
        overwrite: replace a cache that does not fit, or whose samples no longer have their checksums, instead of
            refusing.

    Raises:
        UsageError: a cache is there that is stale, damaged or of other data; no room; `folder` is a file, lies among
            the data, or holds something else where the cache belongs.
    """
    if sample_rate < 1 or channels < 1:
        raise UsageError(f"a cache needs a sampling rate and channels of at least 1, not {sample_rate} and {channels}")
    target = cache_folder(folder, sample_rate, channels)
    if not overwrite and (target / ABOUT).is_file():
        return _fitting(target, manifest)  # it may lie where nothing can be written, not even a lock
    for path in (folder, target):
        if path.exists() and not path.is_dir():
            raise UsageError(f"the cache folder {str(path)!r} is a file; name a folder")
    if manifest.root.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(f"the cache folder {str(folder)!r} lies inside the data ({manifest.root}); name one outside")
    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes one packs; the others wait and find the cache.
    with locked(folder / f".{target.name}.lock", f"waiting for another process that packs into {folder}"):
        if target.exists():
            try:
                cache = _fitting(target, manifest)
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
        return _Packing(manifest, target, sample_rate, channels).run(workers or os.cpu_count() or 1)


def _fitting(target: Path, manifest: Manifest) -> Cache:
    """The cache in `target`; raises `UsageError` unless it is whole, fresh and holds the manifest's clips."""
    cache = Cache(target)
    cache.rows(manifest)
    return cache


class _Packing:
    """One cache on its way. What is known of its clips stands in arrays, so that millions of them fit."""

    def __init__(self, manifest: Manifest, target: Path, sample_rate: int, channels: int):
        self.manifest, self.target = manifest, target
        self.sample_rate, self.channels = sample_rate, channels
        self.aside = target.with_name(f".{target.name}.packing")
        self.fingerprint = manifest.audio_fingerprint()
        self.first, self.length = stored_lengths(manifest, sample_rate)
        ends = np.cumsum(self.length * channels)
        self.bytes = 2 * int(ends[-1]) if len(ends) else 0
        self.clips = np.zeros(len(manifest), CLIP)
        self.clips["offset"] = ends - self.length * channels
        self.packed = np.zeros(len(manifest), bool)
        self.reasons: dict[int, str] = {}

    def run(self, workers: int) -> Cache:
        try:
            if not self._written():
                self._resume()
                self._check_room()
                self._pack(workers)
                self._write_records()
            self._give_name()
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UsageError(
                f"no room for the cache in {self.target.parent}: {error.strerror} after {self.packed.sum()} of "
                f"{len(self.manifest)} clips ({self.bytes / 1e6:,.0f} MB in all). Make room (or raise the file-size "
                "limit) and give the command again: it continues from there"
            ) from error
        return Cache(self.target)

    def _written(self) -> bool:
        """Whether all was written by an attempt that ended before it could give the folder its name."""
        try:
            return Cache(self.aside).fingerprint == self.fingerprint
        except UsageError:
            return False

    def _resume(self) -> None:
        """Take up what an earlier attempt has finished, unless it was made from other clips."""
        plan = {
            "format": FORMAT, "fingerprint": self.fingerprint, "sample_rate": self.sample_rate,
            "channels": self.channels,
        }  # fmt: skip
        if self.aside.exists():
            try:
                same = json.loads((self.aside / _PLAN).read_text(encoding="utf-8")) == plan
            except (OSError, ValueError):
                same = False
            if not same:
                _say(f"{self.aside} was begun with other clips; beginning anew")
                shutil.rmtree(self.aside)
        self.aside.mkdir(exist_ok=True)
        if not (self.aside / _PLAN).exists():
            write_text(self.aside / _PLAN, json.dumps(plan))
        log = self.aside / _DONE
        if not log.exists():
            return
        # Copied line by line: one that was cut short must not swallow the next.
        whole = log.with_suffix(".whole")
        samples = self.aside / SAMPLES
        samples.touch()
        with whole.open("w", encoding="utf-8") as file, samples.open("rb") as written:
            for entry in journal(log):
                row = entry["row"]
                place = (2 * int(self.clips["offset"][row]), 2 * entry["length"] * self.channels)
                fresh = file_status(self.manifest.file(row)) == (entry["size"], entry["mtime"])
                if fresh and checksum(written.fileno(), *place) == entry["crc"]:
                    self._keep(entry)
                    file.write(json.dumps(entry) + "\n")
        os.replace(whole, log)
        if self.packed.any():
            _say(f"continuing: {self.packed.sum()} of {len(self.manifest)} clips are packed already")

    def _keep(self, entry: dict[str, Any]) -> None:
        row = entry["row"]
        self.packed[row] = True
        for name in ("length", "scale", "crc", "size", "mtime", "file_crc"):
            self.clips[name][row] = entry[name]
        if "reason" in entry:
            self.reasons[row] = entry["reason"]

    def _check_room(self) -> None:
        """Refuse before the first clip what cannot end well."""
        done = 2 * self.channels * int(self.clips["length"].sum())
        needed = self.bytes - done + len(self.manifest) * (CLIP.itemsize + 200)
        free = shutil.disk_usage(self.aside).free
        if needed > free:
            raise UsageError(
                f"the cache needs {needed / 1e6:,.1f} MB more in {self.target.parent}, and {free / 1e6:,.1f} MB are "
                "free: make room and give the command again, or choose another folder"
            )

    def _pack(self, workers: int) -> None:
        todo = np.flatnonzero(~self.packed)
        samples = self.aside / SAMPLES
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(
                    total=len(self.manifest), initial=len(self.manifest) - len(todo), desc="packing", unit="clip",
                    file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True,
                )
            )  # fmt: skip
            descriptor = os.open(samples, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            log = stack.enter_context((self.aside / _DONE).open("a", encoding="utf-8"))
            fresh: list[dict[str, Any]] = []

            def record() -> None:
                """Write into the journal what has been packed, once its samples are on the disk."""
                os.fdatasync(descriptor)
                log.write("".join(json.dumps(entry) + "\n" for entry in fresh))
                log.flush()
                for entry in fresh:
                    self._keep(entry)
                fresh.clear()

            stack.callback(record)
            last = time.monotonic()
            about = (str(samples), self.sample_rate, self.channels)
            jobs = ((chunk, *about) for chunk in self._jobs(todo))
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
        """Complete the cache; its description comes last and whole."""
        with (self.aside / SAMPLES).open("ab") as samples:
            samples.truncate(self.bytes)
        self.clips["key"] = clip_keys(self.manifest)
        np.save(self.aside / CLIPS, self.clips)
        unreadable = [
            {"clip": row, **Skipped(self.manifest.relative_path(row), reason).as_dict()}
            for row, reason in sorted(self.reasons.items())
        ]
        about = {
            "format": FORMAT, "sample_rate": self.sample_rate, "channels": self.channels, "clips": len(self.clips),
            "bytes": self.bytes, "fingerprint": self.fingerprint, "clips_digest": digest(self.aside / CLIPS),
            "unreadable": unreadable,
        }  # fmt: skip
        for name in (SAMPLES, CLIPS):
            flush(self.aside / name)
        write_text(self.aside / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        flush(self.aside / ABOUT)

    def _give_name(self) -> None:
        for path in self.aside.iterdir():
            if path.name not in (SAMPLES, CLIPS, ABOUT):
                path.unlink()
        flush(self.aside)
        self.aside.rename(self.target)
        flush(self.target.parent)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
