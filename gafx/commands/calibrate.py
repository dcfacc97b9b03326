"""`gafx calibrate`: fit the temperature of a finished run that has none."""

import argparse
from pathlib import Path

from gafx.commands.options import add_batch_size, add_device, add_moved_root
from gafx.process import print_made

DESCRIPTION = (
    "Runs with a validation part (data.protocol=..._val, fault_filtered) fit a temperature when training ends. This "
    "does it for a run of an older version, and writes it into the run's model. Only the validation part is read; a "
    "run without one is refused."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="new folder for a copy of the model (default: change the run's)",
    )
    add_moved_root(parser)
    add_batch_size(parser, "segments")
    add_device(parser)


def run(parsed: argparse.Namespace) -> None:
    """Fit, write, and print what changed."""
    from gafx.config import EvaluateConfig, build
    from gafx.evaluation.calibrate import calibrate_run
    from gafx.saving.card import describe_calibration

    values = {"root": parsed.root, "batch_size": parsed.batch_size, "device": parsed.device}
    print_made(describe_calibration(calibrate_run(parsed.folder, build(EvaluateConfig, values), parsed.output)))
