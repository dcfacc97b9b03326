"""Join the packed caches of the shards of a data set."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gafx.data.packing.cache import ABOUT, SAMPLES, Cache
from gafx.data.packing.pack import write_records
from gafx.data.sharding import merge_order
from gafx.errors import UsageError
from gafx.io import atomic_folder, digest, read_at


def cache_folders(part: Path) -> list[Path]:
    """The caches of a part: the folder itself, or those in it, one per rate and channel count."""
    if (part / ABOUT).is_file():
        return [part]
    return sorted(path.parent for path in part.glob(f"*/{ABOUT}"))


def merge_caches(parts: Sequence[Path], target: Path) -> int:
    """Write one cache with the clips of several, which has the bytes of one that was packed without shards.

    Every clip's samples are compared with their checksum while they are copied.

    Args:
        parts: folders of complete caches of one rate and channel count; those of shards in any order.
        target: folder of the cache to create; its parent must exist.

    Returns:
        number of clips.

    Raises:
        UsageError: a damaged cache, other rates or channels, a clip that is in two parts, a shard that is missing.
    """
    caches = [Cache(part) for part in parts]
    records: list[dict[str, Any]] = [
        {name: cache.about[name] for name in ("shard", "whole") if name in cache.about} for cache in caches
    ]
    order = merge_order(parts, records)
    caches = [caches[position] for position in order]
    first = caches[0]
    for cache in caches:
        if (cache.sample_rate, cache.channels) != (first.sample_rate, first.channels):
            raise UsageError(
                f"{cache.folder} has {cache.sample_rate} Hz and {cache.channels} channels, {first.folder} "
                f"{first.sample_rate} Hz and {first.channels}: pack all shards with the same --rate and --channels"
            )
    clips = np.concatenate([cache.clips for cache in caches])
    owner = np.repeat(np.arange(len(caches)), [len(cache) for cache in caches])
    sort = np.argsort(clips["key"], kind="stable")
    twice = np.flatnonzero(np.diff(clips["key"][sort]) == 0)
    if len(twice):
        one, other = (caches[owner[sort[twice[0] + step]]].folder for step in (0, 1))
        raise UsageError(f"{len(twice)} clips are in two parts, e.g. in {one} and {other}: name each part once")
    unreadable: list[dict[str, Any]] = []
    with atomic_folder(target, sync=True) as folder:
        begin = 0  # first clip of the cache
        with (folder / SAMPLES).open("wb") as out:
            for cache in caches:
                clips["offset"][begin : begin + len(cache)] += out.tell() // 2
                unreadable += [{**entry, "clip": entry["clip"] + begin} for entry in cache.about["unreadable"]]
                _copy(cache, out)
                begin += len(cache)
        whole = records[0].get("whole") or digest(*(cache.fingerprint for cache in caches))
        write_records(
            folder, clips, unreadable, sample_rate=first.sample_rate, channels=first.channels, fingerprint=whole
        )
    return len(clips)


def _copy(cache: Cache, out: Any) -> None:
    """Append a cache's samples, clip by clip."""
    offsets = [*(2 * cache.clips["offset"].astype(np.int64)).tolist(), cache.about["bytes"]]
    with cache.open_samples() as file:
        for number, clip in enumerate(cache.clips):
            content = read_at(file, offsets[number], offsets[number + 1] - offsets[number])
            used = content[: 2 * int(clip["length"]) * cache.channels]  # a clip that ended early leaves room
            if len(content) < offsets[number + 1] - offsets[number] or zlib.crc32(used) != clip["crc"]:
                raise cache.damaged(f"clip {number} does not have the checksum it was packed with")
            out.write(content)
