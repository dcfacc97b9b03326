"""`gafx probe`: simple classifiers on frozen front-ends."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gafx.commands.options import add_data, add_device, add_option, check_least, option_name, read_options
from gafx.errors import UsageError, require
from gafx.process import print_made
from gafx.registry import FRONTENDS, SOURCES

if TYPE_CHECKING:
    from gafx.studies.probes.findings import Probed
    from gafx.studies.probes.subjects import Subject

DESCRIPTION = (
    "`gafx probe synthetic` fits linear probes to the frozen maps of every front-end, for each factor of the synthetic "
    "tracks, and plots the scores with intervals next to the chance level. `gafx probe DATA ROOT` fits logistic "
    "regression, k-NN and an SVM to frozen embeddings under the data set's protocol. Front-ends have random weights "
    "(width 16 where they have one) unless --models names trained runs. Features are cached in OUTPUT/features. Prints "
    "the table and the page."
)
_SPLIT = ("protocol", "folds", "split_seed")  # keys of DataConfig that have an option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_data(parser, "folder of the data set (synthetic: default data/synthetic-probe, written if missing)", nargs="?")
    parser.add_argument(
        "--frontends", nargs="*", metavar="NAME[:KEY=VALUE,...]",
        help=f"default: {', '.join(_front_ends())} (synthetic: without handcrafted, which has no frames); none "
        "where --models is given",
    )  # fmt: skip
    parser.add_argument("--models", nargs="*", default=[], metavar="RUN", help="run folders or model folders")
    add_device(parser)
    parser.add_argument("--output", type=Path, help="output folder (default outputs/probe-DATA)")
    parser.add_argument("--folds", type=int, help="folds of the cross-validation (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random weights and of the inner folds")
    made = parser.add_argument_group("the synthetic set, written if root does not exist")
    made.add_argument("--tracks", type=int, help="tracks per genre (default 40)")
    made.add_argument("--seconds", type=float, help="length of a track, or of a segment of other data (default 10)")
    made.add_argument("--set-seed", type=int, help="seed of the set (default 1000; training sets have 0)")
    made.add_argument("--vary", help="factors that differ between genres (default all)")
    other = parser.add_argument_group("other data sets")
    other.add_argument("--protocol", help="default: that of the models trained on them, official folds, or kfold")
    other.add_argument("--split-seed", type=int, help="seed of the split (default 0)")
    add_option(other)


def run(parsed: argparse.Namespace) -> None:
    """Probe, and print the table and the page's path."""
    check_least(parsed, seed=0, split_seed=0, folds=2, tracks=1)
    SOURCES.check_name(parsed.data)
    require("sklearn", "gafx probe")  # before the features are computed
    folder = parsed.output or Path("outputs", f"probe-{parsed.data}")
    probed = (_synthetic if parsed.data == "synthetic" else _real)(parsed, folder / "features")
    from gafx.studies.probes.page import table, write_probed

    print_made(f"{table(probed)}\npage: {write_probed(probed, folder)}")


def _front_ends() -> list[str]:
    """Front-ends that read sounds."""
    return [name for name in FRONTENDS.names() if name != "tokens"]


def _subjects(parsed: argparse.Namespace) -> "list[Subject]":
    from gafx.evaluation.runs import expand
    from gafx.nn.precision import pick_device
    from gafx.studies.probes.subjects import random_subject, trained_subject

    names = parsed.frontends
    if names is None:
        names = [] if parsed.models else _front_ends()
    models = expand([Path(model) for model in parsed.models]) if parsed.models else []
    device = pick_device(parsed.device)
    subjects = [*(random_subject(name, parsed.seed) for name in names), *map(trained_subject, models)]
    return [subject.to(device) for subject in subjects]


def _synthetic(parsed: argparse.Namespace, cache: Path) -> "Probed":
    if parsed.option or parsed.protocol is not None or parsed.split_seed is not None:
        raise UsageError(
            "--option, --protocol and --split-seed are for other data sets; synthetic takes --tracks, --seconds, "
            "--set-seed, --vary and --folds"
        )
    from gafx.studies.probes.features import resolves_beats
    from gafx.studies.probes.synthetic import ROOT, open_probe_set, probe_synthetic

    subjects = _subjects(parsed)
    if parsed.frontends is None:
        subjects = [each for each in subjects if each.model is not None or resolves_beats(each.frontend)]
    manifest, settings = open_probe_set(
        parsed.root or ROOT, tracks=parsed.tracks, seconds=parsed.seconds, seed=parsed.set_seed, vary=parsed.vary
    )
    return probe_synthetic(manifest, settings, subjects, cache, folds=parsed.folds or 5, seed=parsed.seed)


def _real(parsed: argparse.Namespace, cache: Path) -> "Probed":
    if given := [name for name in ("tracks", "set_seed", "vary") if getattr(parsed, name) is not None]:
        raise UsageError(f"{option_name(given[0])} belongs to gafx probe synthetic, not to {parsed.data!r}")
    if parsed.seconds is not None and not 0.1 <= parsed.seconds <= 600:
        raise UsageError(f"--seconds {parsed.seconds} must be between 0.1 and 600, the length of a segment")
    from gafx.config import DataConfig
    from gafx.data.protocols import Protocol
    from gafx.studies.probes.real import probe_real

    if parsed.protocol is not None:
        Protocol.parse(parsed.protocol, "--protocol")
    asked = {key: getattr(parsed, key) for key in _SPLIT if getattr(parsed, key) is not None}
    root = None if parsed.root is None else str(parsed.root)
    values = {"name": parsed.data, "root": root, "options": read_options(parsed), "protocol": "", **asked}
    return probe_real(
        _subjects(parsed), DataConfig(**values), cache, asked=tuple(asked), seconds=parsed.seconds or 10.0,
        seed=parsed.seed,
    )  # fmt: skip
