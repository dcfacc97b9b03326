"""`gafx merge`: one output of the shards that several machines have written."""

import argparse
import sys
from pathlib import Path

from gafx.commands.options import check_least
from gafx.errors import UsageError
from gafx.process import print_made
from gafx.report.format import plural

DESCRIPTION = (
    "Join the outputs of all shards of one command into one, as the command writes it without --shard: CSV, JSON, JSON "
    "lines, folders of label tracks, features as npy or Parquet, packed caches and Parquet shards. Features, caches "
    "and Parquet shards say which shard they are, and all must be there; text is joined in the order given. A part "
    "that is truncated or of another model, and a file that is in two parts, are errors. The parts are kept."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="file or new folder to write")
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="outputs of the shards: part-{1..16}.jsonl")
    parser.add_argument(
        "--parts", type=int, dest="count", metavar="N",
        help="refuse any other number of parts: of text, a pattern such as part-* does not tell that one is missing",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> None:
    """Merge, and print the output's path."""
    from gafx.deploy.merge import merge

    check_least(parsed, count=1)
    if parsed.count not in (None, len(parsed.parts)):
        raise UsageError(
            f"--parts {parsed.count}: {plural(len(parsed.parts), 'part')} given; compute or name the others"
        )
    what, count = merge(parsed.parts, parsed.out)
    print(f"{plural(len(parsed.parts), 'part')} merged, {count:,} {what}", file=sys.stderr)
    print_made(parsed.out)
