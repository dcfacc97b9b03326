"""`gafx pack`: a data set as a memory-mapped cache, or as Parquet shards."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gafx.commands.options import read_options
from gafx.errors import UsageError
from gafx.registry import SOURCES

if TYPE_CHECKING:
    from gafx.data.manifest import Manifest, Skipped

SUMMARY = "pack a data set for fast training: int16 at one sampling rate, memory-mapped; or as Parquet shards"
DESCRIPTION = (
    "Write every clip of a data set as int16 at one sampling rate into one flat file, which training reads with "
    "data.cache=OUT; or, with --shards, as Parquet shards in the layout of Hugging Face datasets, which training reads "
    "with data=shards data.root=OUT. An interrupted command continues where it stopped when it is given again. Prints "
    "the folder that it made."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", help=f"data set: {', '.join(SOURCES.names())}")
    parser.add_argument("root", type=Path, help="where it lies")
    parser.add_argument(
        "out", type=Path, help="folder to write to: of caches, one a rate and channel count, or of the shards"
    )
    parser.add_argument("--shards", choices=["flac", "opus"], help="write Parquet shards with the audio in this form")
    parser.add_argument("--rows-per-shard", type=int, metavar="N", help="default: what makes about 512 MB of samples")
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="default: the front-end's; with --shards each clip's own"
    )
    parser.add_argument("--channels", type=int, help="default: the front-end's; with --shards the clip's")
    parser.add_argument("--frontend", default="gafx_r", help="whose rate and channels to take (names: gafx list)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="as data.options.KEY=VALUE")
    parser.add_argument("--workers", type=int, help="processes (default: one a processor)")
    parser.add_argument("--download", action="store_true", help="fetch the data set into root first if it is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace a cache that is stale, damaged or foreign")
    parser.add_argument("--verify", action="store_true", help="also read a finished cache and compare its checksums")
    parser.add_argument("--max-unreadable", type=float, default=0.05, help="share of unreadable files that is an error")
    parser.add_argument("--strict", action="store_true", help="any unreadable file is an error")


def run(parsed: argparse.Namespace) -> None:
    """Pack, and print the folder."""
    from gafx.data.manifest import Skipped
    from gafx.data.packing.pack import pack
    from gafx.data.sources.base import load_manifest

    for name in ("rate", "channels", "workers", "rows_per_shard"):
        if (value := getattr(parsed, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if not 0 <= parsed.max_unreadable <= 1:
        raise UsageError(f"--max-unreadable {parsed.max_unreadable} must lie between 0 and 1")
    if parsed.shards is not None:
        _pack_shards(parsed)
        return
    if parsed.rows_per_shard is not None:
        raise UsageError("--rows-per-shard belongs to --shards flac or --shards opus")
    rate, channels = parsed.rate, parsed.channels
    if rate is None or channels is None:
        from gafx.model import create_frontend

        front_end = create_frontend(parsed.frontend)
        rate, channels = rate or front_end.sample_rate, channels or front_end.channels
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **read_options(parsed.option))
    cache = pack(
        manifest, parsed.out, sample_rate=rate, channels=channels, workers=parsed.workers, overwrite=parsed.overwrite
    )
    if parsed.verify and (damaged := cache.verify()):
        raise UsageError(
            f"{len(damaged)} of the {len(cache)} clips in {cache.folder} no longer have the checksum they were packed "
            f"with (e.g. clip {damaged[0]}); pack again with --overwrite"
        )
    skipped = [*manifest.skipped, *(Skipped(manifest.relative_path(row), why) for row, why in cache.unreadable.items())]
    print(
        f"{len(cache) - len(cache.unreadable)} clips at {rate} Hz, {channels} channel(s), "
        f"{(cache.folder / 'samples.i16').stat().st_size / 1e6:,.0f} MB; {len(skipped)} unreadable"
        f"{':' if skipped else ''}",
        file=sys.stderr,
    )
    _report(manifest, skipped, parsed)
    print(cache.folder)


def _pack_shards(parsed: argparse.Namespace) -> None:
    from gafx.data.shards.write import write_shards
    from gafx.data.sources.base import load_manifest

    if parsed.verify:
        raise UsageError("--verify belongs to caches, not to --shards")
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **read_options(parsed.option))
    written = write_shards(
        manifest, parsed.out, codec=parsed.shards, sample_rate=parsed.rate, channels=parsed.channels,
        rows_per_shard=parsed.rows_per_shard, workers=parsed.workers, overwrite=parsed.overwrite,
    )  # fmt: skip
    changes = []
    if written.rounded and parsed.shards == "flac":
        changes.append(f"{written.rounded} rounded to the bits that are kept")
    if written.scaled:
        changes.append(f"{written.scaled} scaled down because they overshoot full scale (listed in shards.json)")
    print(
        f"{written.clips} clips in {written.shards} shards, {written.bytes / 1e6:,.0f} MB"
        f"{''.join(f'; {change}' for change in changes)}; {len(written.unreadable)} unreadable"
        f"{':' if written.unreadable else ''}",
        file=sys.stderr,
    )
    _report(manifest, written.unreadable, parsed)
    print(written.folder)


def _report(manifest: "Manifest", skipped: "Sequence[Skipped]", parsed: argparse.Namespace) -> None:
    """List what could not be read, and refuse if it is too much."""
    from gafx.data.manifest import check_readable

    for clip in skipped:
        print("  {path}: {reason}".format(**clip.as_dict()), file=sys.stderr)
    check_readable(manifest, max_unreadable=parsed.max_unreadable, strict=parsed.strict, skipped=skipped)
