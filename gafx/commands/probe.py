"""`gafx probe`: what a simple classifier reads from frozen front-ends."""

import argparse
import sys
from pathlib import Path

from gafx.errors import UsageError
from gafx.registry import FRONTENDS

SUMMARY = "probe frozen front-ends: what their maps hold of tempo, key, chord, instrument, loudness, genre"
DESCRIPTION = (
    "`gafx probe synthetic` fits linear probes to the frozen maps of every front-end, for each factor that the "
    "synthetic tracks were composed from, and draws them side by side with intervals; what chance alone explains is "
    "shown as such. Front-ends are built at their start (width 16 where they have one) unless --models names trained "
    "runs. Features are cached in OUTPUT/features. Prints the table and the page."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", help="data set: synthetic")
    parser.add_argument(
        "root", type=Path, nargs="?", help="where it lies (synthetic: default data/synthetic-probe, made if not there)"
    )
    parser.add_argument(
        "--frontends", nargs="*", metavar="NAME[:KEY=VALUE,...]",
        help=f"default: {', '.join(FRONTENDS.names())}, or none where --models is given",
    )  # fmt: skip
    parser.add_argument("--models", nargs="*", default=[], metavar="RUN", help="folders of runs or of saved models")
    parser.add_argument("--output", type=Path, help="folder to write to (default outputs/probe-DATA)")
    parser.add_argument("--folds", type=int, help="of the cross-validation (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of random starts and folds")
    made = parser.add_argument_group("the synthetic set that is made if root does not exist")
    made.add_argument("--tracks", type=int, help="tracks a genre (default 40)")
    made.add_argument("--seconds", type=float, help="length of a track (default 10)")
    made.add_argument("--set-seed", type=int, help="of the set (default 1000; training sets have 0)")
    made.add_argument("--vary", help="factors that differ between genres (default all)")


def run(parsed: argparse.Namespace) -> None:
    """Probe, and print the table and the page's path."""
    if parsed.seed < 0:
        raise UsageError(f"--seed {parsed.seed} must be at least 0")
    if parsed.data != "synthetic":
        raise UsageError(f"{parsed.data!r}: only the synthetic set knows its factors; write gafx probe synthetic")
    from gafx.evaluation.probes.page import table, write_probed
    from gafx.evaluation.probes.subjects import random_subject, trained_subject
    from gafx.evaluation.probes.synthetic import ROOT, open_probe_set, probe_synthetic

    names = parsed.frontends
    if names is None:
        names = [] if parsed.models else FRONTENDS.names()
    subjects = [random_subject(name, parsed.seed) for name in names]
    subjects += [trained_subject(Path(model)) for model in parsed.models]
    manifest, settings = open_probe_set(
        parsed.root or ROOT, tracks=parsed.tracks, seconds=parsed.seconds, seed=parsed.set_seed, vary=parsed.vary
    )
    folder = parsed.output or Path("outputs/probe-synthetic")
    probed = probe_synthetic(
        manifest, settings, subjects, folder / "features", folds=5 if parsed.folds is None else parsed.folds,
        seed=parsed.seed,
    )  # fmt: skip
    page = write_probed(probed, folder)
    print(table(probed))
    print(f"page: {page}")
    sys.stdout.flush()
