"""Join folders of Parquet shards that several machines have written with `--shard`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gafx.data.packing.cache import DIGEST
from gafx.data.packing.unfinished import write_last
from gafx.data.sharding import merge_order
from gafx.data.shards.write import ABOUT, complete, recorded
from gafx.errors import UsageError
from gafx.io import atomic_folder, file_digest


def merge_shards(parts: Sequence[Path], target: Path) -> int:
    """Copy the Parquet files of several folders into one, which is as if it had been written without shards.

    Every copy is compared with the checksum in `shards.json`.

    Args:
        parts: folders of `gafx pack --shards --shard`, in any order.
        target: folder to create; its parent must exist.

    Returns:
        number of clips.

    Raises:
        UsageError: an incomplete or damaged folder, one that is no shard, a shard that is missing.
    """
    abouts = []
    for part in parts:
        if (about := complete(part)) is None:
            raise UsageError(f"{part} is incomplete: give its gafx pack command again, which continues")
        if "shard" not in about:
            raise UsageError(
                f"{part} was written without --shard, and its files have the names of others: "
                "write the parts with gafx pack --shards ... --shard K/N"
            )
        abouts.append(about)
    order = merge_order(parts, [recorded(about) for about in abouts])
    ordered = [(parts[position], abouts[position]) for position in order]
    with atomic_folder(target, sync=True) as folder:
        for part, about in ordered:
            for shard in about["shards"]:
                copied = shutil.copyfile(part / shard["name"], folder / shard["name"])
                if file_digest(copied, DIGEST) != shard["digest"]:
                    raise UsageError(
                        f"{part / shard['name']} no longer has the checksum it was written with: write that part again "
                        "with --overwrite"
                    )
        write_last(folder / ABOUT, _joined([about for _, about in ordered]))
    return sum(about["clips"] for about in abouts)


def _joined(abouts: list[dict[str, Any]]) -> dict[str, Any]:
    """The `shards.json` of all: clips that the manifest skipped come first, then those that a shard could not read."""
    merged = {name: value for name, value in abouts[0].items() if name not in ("shard", "whole", "skipped")}
    if any(about["plan"] != merged["plan"] for about in abouts):  # other times of the files on other machines
        merged["plan"] = {**merged["plan"], "files": None}
    for name in ("clips", "rounded"):
        merged[name] = sum(about[name] for about in abouts)
    for name in ("shards", "scaled"):
        merged[name] = [entry for about in abouts for entry in about[name]]
    merged["unreadable"] = [
        *(entry for about in abouts for entry in about["unreadable"][: about["skipped"]]),
        *(entry for about in abouts for entry in about["unreadable"][about["skipped"] :]),
    ]
    return merged
