"""The packed cache: all clips of a data set at one sampling rate, as int16 in one flat file.

`<folder>/<rate>x<channels>/` (one cache per rate and channel count) contains

`samples.i16`   the clips one after another, little-endian; within a clip channel after channel
`clips.npy`     one record per clip (`CLIP`): offset, length, scale and checksum of its samples; size, time and CRC of
                its file
`cache.json`    format, rate, channels, number of clips, checksum of clips.npy, unreadable clips with reasons
`times.npy`     later modification times of files whose content was compared (see `Cache.rows`), if there are any

A sample is `int16 * scale`. 16-bit audio that is neither resampled nor mixed keeps its bits (scale 1/32768); any other
clip is scaled to its own peak, so that resampling that exceeds full scale does not clip, and quiet clips keep 16 bits
of resolution. `gafx.data.packing.pack` writes caches. Nothing here imports torch before a reader is created.
"""

import contextlib
import json
import logging
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gafx.audio.read import Samples, Span, rate_ratio
from gafx.data.manifest import Manifest
from gafx.data.readers import clip_lengths
from gafx.errors import UnreadableAudio, UsageError
from gafx.io import atomic_write, digest, file_digest, read_at

_log = logging.getLogger("gafx")
FORMAT = "gafx-cache-1"
SAMPLES, CLIPS, ABOUT, TIMES = "samples.i16", "clips.npy", "cache.json", "times.npy"
DIGEST = "blake2b-16"  # of clips.npy
CLIP = np.dtype(
    [
        ("key", "<u8"),  # hash of path, start and duration
        ("offset", "<i8"),  # first sample in samples.i16
        ("length", "<i8"),  # samples per channel; 0 for an unreadable clip
        ("scale", "<f4"),
        ("crc", "<u4"),  # CRC-32 of the clip's bytes in samples.i16
        ("size", "<i8"),  # of its file, in bytes
        ("mtime", "<i8"),  # of its file, in nanoseconds
        ("file_crc", "<u4"),  # CRC-32 of its file
    ]
)
_BLOCK = 1 << 20


def cache_folder(folder: Path, sample_rate: int, channels: int) -> Path:
    """Return the folder of the cache with this rate and channel count."""
    return folder / f"{sample_rate}x{channels}"


def clip_keys(manifest: Manifest) -> npt.NDArray[np.uint64]:
    """Return a hash of each clip's path, start, duration and shard row, by which any selection of clips finds them."""
    keys = np.empty(len(manifest), np.uint64)
    times = np.stack([np.rint(manifest.start * 1e6), np.rint(manifest.duration * 1e6)], axis=1).astype("<i8")
    for row in range(len(manifest)):
        text = manifest.path[row].tobytes() + b"\0" + times[row].tobytes()
        if manifest.row[row] >= 0:
            text += struct.pack("<q", manifest.row[row])
        keys[row] = int.from_bytes(bytes.fromhex(digest(text)), "little")
    return keys


def stored_lengths(manifest: Manifest, sample_rate: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each clip's first sample (in its file, at `sample_rate`) and number of samples per channel in a cache.

    The first sample is the clip's start, moved back to a multiple of the rate ratio's step, as direct reads do.
    """
    rows = np.arange(len(manifest))
    source = manifest.sample_rate.astype(np.int64)
    up = sample_rate // np.gcd(source, sample_rate)
    offset = np.rint(manifest.start * sample_rate).astype(np.int64)
    first = offset // up * up
    return first, np.maximum(offset + clip_lengths(manifest, rows, sample_rate) - first, 1)


@lru_cache(maxsize=256)  # clips of one file follow each other
def file_crc(file: bytes | Span, size: int, mtime: int) -> int:
    """Return the CRC-32 of a file or span; size and time are the keys of the memo."""
    value = 0
    with open(file.path if isinstance(file, Span) else file, "rb") as content:
        if isinstance(file, Span):
            content.seek(file.offset)
        while size > 0 and (block := content.read(min(_BLOCK, size))):
            value, size = zlib.crc32(block, value), size - len(block)
    return value


def file_status(file: bytes | str | Span) -> tuple[int, int]:
    """Return size in bytes and modification time in ns, (-1, -1) for a missing file; a span has its shard's time."""
    try:
        status = os.stat(file.path if isinstance(file, Span) else file)
    except OSError:
        return -1, -1
    return file.size if isinstance(file, Span) else status.st_size, status.st_mtime_ns


class Cache:
    """A complete cache.

    Args:
        folder: see `cache_folder`.

    Attributes:
        clips: `CLIP` records, memory-mapped.
        unreadable: reasons by record number.
        about: content of cache.json.

    Raises:
        UsageError: the folder contains no cache, one of another format, or a damaged one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.about = about = self._about()
        self.sample_rate, self.channels = int(about["sample_rate"]), int(about["channels"])
        self.fingerprint: str = about["fingerprint"]
        self.unreadable: dict[int, str] = {int(entry["clip"]): str(entry["reason"]) for entry in about["unreadable"]}
        try:
            # In memory, which forked workers share; a map of it would end the process if the file were cut short.
            self.clips = np.load(folder / CLIPS, allow_pickle=False)
            size = (folder / SAMPLES).stat().st_size
        except (OSError, ValueError, EOFError) as error:
            raise self.damaged(str(error)) from error
        if self.clips.dtype != CLIP or self.clips.shape != (about["clips"],):
            raise self.damaged(f"{CLIPS} does not hold {about['clips']} records")
        if file_digest(folder / CLIPS, DIGEST) != about["clips_digest"]:
            raise self.damaged(f"{CLIPS} has another checksum than it was written with")
        if size != about["bytes"]:
            raise self.damaged(f"{SAMPLES} has {size:,} bytes, it was written with {about['bytes']:,}")

    def __len__(self) -> int:
        return len(self.clips)

    def rows(self, manifest: Manifest) -> npt.NDArray[np.int64]:
        """Return the record number of each of a manifest's clips.

        Raises:
            UsageError: the cache lacks some of them (it was packed from other data), or files have changed since.
        """
        if manifest.audio_fingerprint() == self.fingerprint:
            rows = np.arange(len(manifest))
        else:
            order = np.argsort(self.clips["key"])
            known, wanted = self.clips["key"][order], clip_keys(manifest)
            index = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
            missing = np.flatnonzero(known[index] != wanted) if len(known) else np.arange(len(wanted))
            if len(missing):
                raise UsageError(
                    f"{self.folder} does not hold {len(missing)} of the {len(manifest)} clips under {manifest.root} "
                    f"(e.g. {manifest.relative_path(int(missing[0]))!r}): it was packed from other data, or before "
                    f"these were added. {self._cure()}"
                )
            rows = order[index]
        self._check_fresh(manifest, rows)
        return rows

    def verify(self) -> list[int]:
        """Read every clip and return the numbers of the records whose samples do not match their checksum."""
        with self.open_samples() as file:
            return [
                number
                for number, clip in enumerate(self.clips)
                if zlib.crc32(read_at(file, 2 * int(clip["offset"]), 2 * int(clip["length"]) * self.channels))
                != clip["crc"]
            ]

    def open_samples(self) -> IO[bytes]:
        """Open samples.i16 for reading.

        Raises:
            UsageError: it is gone.
        """
        try:
            return (self.folder / SAMPLES).open("rb", buffering=0)
        except OSError as error:
            raise self.damaged(f"{SAMPLES}: {error.strerror}") from error

    def _check_fresh(self, manifest: Manifest, rows: npt.NDArray[np.int64]) -> None:
        """Compare the size, and if the modification time differs the content, of each file with those at packing time.

        Files copied without their times are read once; the new times are saved if the folder is writable.
        """
        sizes, crcs = self.clips["size"][rows], self.clips["file_crc"][rows]
        known = self._times()
        compared, changed = 0, []
        unsure = np.arange(len(manifest))
        if (spans := manifest.spans) is not None:  # few shards: one stat each
            times = np.array([mtime if size >= 0 else -2 for size, mtime in map(file_status, spans.files)], np.int64)
            unsure = np.flatnonzero((spans.size != sizes) | (times[spans.file] != known[rows]))
        for row in unsure.tolist():
            file = manifest.file(row)
            try:
                size, mtime = file_status(file)
                fresh = size >= 0 and size == sizes[row]
                if fresh and mtime != known[rows[row]]:
                    if not compared:
                        _log.info(
                            "files under %s have other times than when they were packed into %s: comparing their "
                            "content", manifest.root, self.folder,
                        )  # fmt: skip
                    compared += 1
                    fresh = file_crc(file, size, mtime) == crcs[row]
                    known[rows[row]] = mtime
            except OSError:
                fresh = False
            if not fresh:
                changed.append(row)
        if compared and not changed:
            with contextlib.suppress(OSError), atomic_write(self.folder / TIMES, "wb") as out:
                np.save(out, known)
        if changed:
            raise UsageError(
                f"{self.folder} is stale: {len(changed)} files under {manifest.root} have changed since they were "
                f"packed (e.g. {manifest.relative_path(changed[0])!r}). {self._cure()}"
            )

    def _times(self) -> npt.NDArray[np.int64]:
        """Return the modification times at which each clip's file is known to have the packed content."""
        try:
            times = np.load(self.folder / TIMES, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return self.clips["mtime"].copy()
        return times if times.shape == self.clips.shape else self.clips["mtime"].copy()

    def _about(self) -> dict[str, Any]:
        path = self.folder / ABOUT
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self.folder} holds no cache (it lacks {ABOUT}); name another folder, or remove this one and run "
                "gafx pack"
            ) from None
        except (OSError, ValueError) as error:
            raise self.damaged(f"{ABOUT}: {error}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UsageError(
                f"{self.folder} was written in another format than {FORMAT}, which this version reads. {self._cure()}"
            )
        needed = {"sample_rate", "channels", "fingerprint", "clips", "clips_digest", "bytes", "unreadable"}
        if missing := needed - about.keys():
            raise self.damaged(f"{ABOUT} lacks {', '.join(sorted(missing))}")
        return about

    def damaged(self, reason: str) -> UsageError:
        """Return the error of a damaged cache, with its cure."""
        return UsageError(f"the cache in {self.folder} is damaged ({reason}). {self._cure()}")

    def _cure(self) -> str:
        return "Pack again: gafx pack --overwrite, or remove that folder"


class CacheReader:
    """Reads segments of a manifest's clips from a cache.

    Args:
        cache: the cache that contains them.
        manifest: rows are its rows.

    Raises:
        UsageError: see `Cache.rows`.
    """

    def __init__(self, cache: Cache, manifest: Manifest):
        self._cache = cache
        self.sample_rate, self.channels = cache.sample_rate, cache.channels
        rows = cache.rows(manifest)
        self._offset, self._length, self._scale = (cache.clips[name][rows] for name in ("offset", "length", "scale"))
        self._begin = np.rint(manifest.start * cache.sample_rate).astype(np.int64)
        self._source_rate = manifest.sample_rate
        bad = np.flatnonzero(np.isin(rows, list(cache.unreadable)))
        self.unreadable = {int(row): cache.unreadable[int(rows[row])] for row in bad}
        self._file = cache.open_samples()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the file, which another process opens itself."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = self._cache.open_samples()

    def read(self, row: int, start: int, length: int) -> Samples:
        """See `gafx.data.readers.Reader.read`."""
        import torch

        if row in self.unreadable:
            raise UnreadableAudio(self.unreadable[row])
        up, _ = rate_ratio(int(self._source_rate[row]), self.sample_rate)
        begin = int(self._begin[row])
        first = (start + begin) // up * up - begin // up * up
        offset, stored = int(self._offset[row]), int(self._length[row])
        if first >= stored:
            raise UnreadableAudio(f"ends before {(start + begin) / self.sample_rate:.2f} s")
        length = min(length, stored - first)
        channels = [read_at(self._file, 2 * (offset + n * stored + first), 2 * length) for n in range(self.channels)]
        if len(channels[-1]) < 2 * length:
            raise self._cache.damaged(f"{SAMPLES} ends before clip {row}: it was cut short after it was opened")
        segment = torch.frombuffer(bytearray().join(channels), dtype=torch.int16).view(self.channels, length)
        # torch converts at twice numpy's speed; in place, because a second array would cost more than the product.
        return segment.float().mul_(float(self._scale[row])).numpy()
