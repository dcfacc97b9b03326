"""`gafx pack`: a data set as a memory-mapped cache, or as Parquet shards."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gafx.commands.options import add_data, add_option, add_shard, check_fractions, check_least, read_options
from gafx.errors import UsageError
from gafx.process import print_made
from gafx.report.format import plural, size

if TYPE_CHECKING:
    from gafx.data.manifest import Manifest, Skipped

DESCRIPTION = (
    "Write every clip of a data set as int16 at one sampling rate into one flat file, which training reads with "
    "data.cache=OUT; or, with --shards, as Parquet shards in the layout of Hugging Face datasets, which training reads "
    "with data=shards data.root=OUT. An interrupted command resumes when it is given again. Prints the folder."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_data(parser)
    parser.add_argument(
        "out", type=Path, help="output folder: of the caches, one per rate and channel count, or of the shards"
    )
    parser.add_argument("--shards", choices=["flac", "opus"], help="write Parquet shards with audio in this codec")
    parser.add_argument("--rows-per-shard", type=int, metavar="N", help="default: as many as make 512 MB of samples")
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="default: the front-end's; with --shards each clip's own"
    )
    parser.add_argument("--channels", type=int, help="default: the front-end's; with --shards the clip's")
    parser.add_argument("--frontend", default="gafx_r", help="front-end that sets rate and channels (names: gafx list)")
    add_option(parser)
    add_shard(parser, "clips, or with --shards of the Parquet files")
    parser.add_argument("--workers", type=int, help="processes (default: one per processor)")
    parser.add_argument("--download", action="store_true", help="fetch the data set into root first if it is missing")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a stale or damaged cache, or one of other data"
    )
    parser.add_argument("--verify", action="store_true", help="compare the checksums of a finished cache")
    parser.add_argument("--max-unreadable", type=float, default=0.05, help="largest fraction of unreadable files")
    parser.add_argument("--strict", action="store_true", help="any unreadable file is an error")


def run(parsed: argparse.Namespace) -> None:
    """Pack, and print the folder."""
    from gafx.data.manifest import Skipped
    from gafx.data.packing.pack import pack
    from gafx.data.sources.base import load_manifest

    check_least(parsed, rate=1, channels=1, workers=1, rows_per_shard=1)
    check_fractions(parsed, "max_unreadable")
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
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **read_options(parsed))
    cache = pack(
        manifest, parsed.out, sample_rate=rate, channels=channels, workers=parsed.workers, overwrite=parsed.overwrite,
        shard=parsed.shard,
    )  # fmt: skip
    if parsed.verify and (damaged := cache.verify()):
        raise UsageError(
            f"{len(damaged)} of the {len(cache)} clips in {cache.folder} no longer have the checksum they were packed "
            f"with (e.g. clip {damaged[0]}); pack again with --overwrite"
        )
    left_out = parsed.shard.of(manifest.skipped)
    skipped = [*left_out, *(Skipped(entry["path"], entry["reason"]) for entry in cache.about["unreadable"])]
    print(
        f"{len(cache) - len(cache.unreadable)} clips at {rate} Hz, {plural(channels, 'channel')}, "
        f"{size((cache.folder / 'samples.i16').stat().st_size)}; {len(skipped)} unreadable"
        f"{':' if skipped else ''}",
        file=sys.stderr,
    )
    _report(manifest, skipped, len(cache) + len(left_out), parsed)
    print_made(cache.folder)


def _pack_shards(parsed: argparse.Namespace) -> None:
    from gafx.data.shards.write import write_shards
    from gafx.data.sources.base import load_manifest

    if parsed.verify:
        raise UsageError("--verify belongs to caches, not to --shards")
    manifest = load_manifest(parsed.data, parsed.root, download=parsed.download, **read_options(parsed))
    written = write_shards(
        manifest, parsed.out, codec=parsed.shards, sample_rate=parsed.rate, channels=parsed.channels,
        rows_per_shard=parsed.rows_per_shard, workers=parsed.workers, overwrite=parsed.overwrite, shard=parsed.shard,
    )  # fmt: skip
    changes = []
    if written.rounded and parsed.shards == "flac":
        changes.append(f"{written.rounded} rounded to the bits that are kept")
    if written.scaled:
        changes.append(f"{written.scaled} scaled down because they overshoot full scale (listed in shards.json)")
    print(
        f"{written.clips} clips in {written.shards} shards, {size(written.bytes)}"
        f"{''.join(f'; {change}' for change in changes)}; {len(written.unreadable)} unreadable"
        f"{':' if written.unreadable else ''}",
        file=sys.stderr,
    )
    _report(manifest, written.unreadable, written.clips + len(written.unreadable), parsed)
    print_made(written.folder)


def _report(manifest: "Manifest", skipped: "Sequence[Skipped]", total: int, parsed: argparse.Namespace) -> None:
    """List the files that could not be read, of `total` files.

    Raises:
        UsageError: they are too many.
    """
    from gafx.data.manifest import check_readable

    for clip in skipped:
        print("  {path}: {reason}".format(**clip.as_dict()), file=sys.stderr)
    check_readable(manifest, max_unreadable=parsed.max_unreadable, strict=parsed.strict, skipped=skipped, total=total)
