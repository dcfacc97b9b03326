"""`gafx leaks`: copies among the clips of a data set, or across the parts of a split."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.commands.options import add_data, add_option, check_fractions, option_name, read_options
from gafx.config import DataConfig
from gafx.data.protocols import PROTOCOLS
from gafx.errors import UsageError
from gafx.process import check_output_open
from gafx.report.format import plural

if TYPE_CHECKING:
    from gafx.data.manifest import Manifest

DESCRIPTION = (
    "Without --protocol, list all pairs of clips of which one is a copy of the other or of an excerpt of it: the same "
    "bytes, or the same fingerprint, independent of format, level and start. With --protocol, list the copies across "
    "the parts of that split, as every training run does. Fingerprints are cached in --outputs for the runs that are "
    "written there. docs/leaks.md lists what is found and what is not."
)
_SPLIT_KEYS = ("fold", "folds", "split_seed", "test_fraction", "val_fraction")
_COLUMNS = ("parts", "kind", "first", "second", "error", "seconds", "offset", "labels", "one_recording", "semitones")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_data(parser)
    add_option(parser)
    parser.add_argument("--protocol", choices=PROTOCOLS, help="search across the parts of this split")
    for name in _SPLIT_KEYS:
        default = getattr(DataConfig, name)
        parser.add_argument(
            option_name(name), type=type(default), default=default, metavar="X", help=f"as data.{name} ({default})"
        )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the runs (default: outputs)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print the pairs of copies as CSV")


def run(parsed: argparse.Namespace) -> None:
    """Search, and print the copies."""
    from gafx.data.leaks.check import FOLDER, find_leaks, list_copies
    from gafx.data.leaks.describe import describe_check, describe_pair
    from gafx.data.sources.base import load_manifest
    from gafx.data.splits import split

    check_fractions(parsed, "test_fraction", "val_fraction")
    check_output_open()
    manifest = load_manifest(parsed.data, parsed.root, download=False, **read_options(parsed))
    if not len(manifest):
        raise UsageError(f"no usable clip under {manifest.root}")
    cache = parsed.outputs.expanduser() / FOLDER
    _print_size(manifest)
    if parsed.protocol is None:
        record: dict[str, Any] = list_copies(manifest, cache=cache)
        text = [record["words"], *(f"  {describe_pair(pair)}" for pair in record["listed"])]
    else:
        parts = split(
            manifest, parsed.protocol, fold=parsed.fold, folds=parsed.folds, seed=parsed.split_seed,
            test_fraction=parsed.test_fraction, val_fraction=parsed.val_fraction, labels=False,
        )  # fmt: skip
        record = find_leaks(manifest, parts, cache=cache, most_hours=float("inf"), most_listed=None).as_dict()
        text = describe_check(record, examples=None)
    if parsed.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    elif parsed.csv:
        _print_csv(record["listed"])
    else:
        print("\n".join(text))


def _print_size(manifest: "Manifest") -> None:
    skipped = f", {plural(len(manifest.skipped), 'file')} skipped" if manifest.skipped else ""
    total = float(manifest.duration.sum())
    amount = f"{total:,.0f} tokens" if manifest.scheme else f"{total / 3600:,.1f} hours of audio"
    print(f"{plural(len(manifest), 'clip')}, {amount}{skipped}", file=sys.stderr, flush=True)


def _print_csv(pairs: list[dict[str, Any]]) -> None:
    import csv

    table = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    table.writeheader()
    for pair in pairs:
        table.writerow({**pair, "parts": " ".join(pair["parts"]), "labels": " / ".join(pair["labels"])})
