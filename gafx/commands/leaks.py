"""`gafx leaks`: copies among the clips of a data set, or across the parts of a split."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.commands.options import read_options
from gafx.config import DataConfig
from gafx.data.protocols import PROTOCOLS
from gafx.errors import UsageError
from gafx.registry import SOURCES

if TYPE_CHECKING:
    from gafx.data.manifest import Manifest

SUMMARY = "find clips that are copies of each other, in a data set or across the parts of a split"
DESCRIPTION = (
    "Without --protocol, list all pairs of clips of which one is a copy of the other or of a part of it: the same "
    "bytes, or the same sound by its fingerprint, whatever its format, level and begin. With --protocol, list what has "
    "clips in several parts of that split, as every run does. Fingerprints are kept below --outputs for the runs that "
    "write there. docs/leaks.md says what is found and what is not."
)
_COLUMNS = ("parts", "kind", "first", "second", "error", "seconds", "offset", "labels", "one_recording")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", help=f"data set: {', '.join(SOURCES.names())}")
    parser.add_argument("root", type=Path, help="where it lies")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="as data.options.KEY=VALUE")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="look across the parts of this split")
    for name in ("fold", "folds", "split_seed"):
        default = getattr(DataConfig, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, metavar="N", help=f"as data.{name} ({default})"
        )
    for name in ("test_fraction", "val_fraction"):
        default = getattr(DataConfig, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=default, metavar="X", help=f"as data.{name} ({default})"
        )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the runs (default: outputs)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all that was found as JSON")
    form.add_argument("--csv", action="store_true", help="print the pairs of copies as CSV")


def run(parsed: argparse.Namespace) -> None:
    """Look, and print what was found."""
    from gafx.data.leaks.check import FOLDER, find_leaks, list_copies
    from gafx.data.leaks.describe import lines, pair_words
    from gafx.data.sources.base import load_manifest
    from gafx.data.splits import split

    for name in ("test_fraction", "val_fraction"):
        if not 0 <= getattr(parsed, name) <= 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(parsed, name)} must lie between 0 and 1")
    manifest = load_manifest(parsed.data, parsed.root, download=False, **read_options(parsed.option))
    if not len(manifest):
        raise UsageError(f"no usable clip under {manifest.root}")
    kept = parsed.outputs.expanduser() / FOLDER
    _say_what_is_read(manifest)
    if parsed.protocol is None:
        record: dict[str, Any] = list_copies(manifest, cache=kept)
        said = [record["words"], *(f"  {pair_words(pair)}" for pair in record["listed"])]
    else:
        parts = split(
            manifest, parsed.protocol, fold=parsed.fold, folds=parsed.folds, seed=parsed.split_seed,
            test_fraction=parsed.test_fraction, val_fraction=parsed.val_fraction, labels=False,
        )  # fmt: skip
        record = find_leaks(manifest, parts, cache=kept, most_hours=float("inf"), most_listed=None).as_dict()
        said = lines(record, examples=None)
    if parsed.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    elif parsed.csv:
        _print_csv(record["listed"])
    else:
        print("\n".join(said))


def _say_what_is_read(manifest: "Manifest") -> None:
    skipped = f", {len(manifest.skipped):,} files skipped" if manifest.skipped else ""
    hours = float(manifest.duration.sum()) / 3600
    print(f"{len(manifest):,} clips, {hours:,.1f} hours of sound{skipped}", file=sys.stderr, flush=True)


def _print_csv(pairs: list[dict[str, Any]]) -> None:
    import csv

    table = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    table.writeheader()
    for pair in pairs:
        table.writerow({**pair, "parts": " ".join(pair["parts"]), "labels": " / ".join(pair["labels"])})
