"""`gafx calibrate`: make the shares of a run that is finished already honest."""

import argparse
from pathlib import Path

SUMMARY = "fit a finished run's temperature on its validation part"
DESCRIPTION = (
    "Runs with a validation part (data.protocol=..._val, fault_filtered) fit a temperature by themselves. This does it "
    "for one that was trained by an older version, and writes it into the run's model. The validation part alone is "
    "opened; a run without one is refused."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--root", help="where the data lie now, if not where they lay in training")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="segments computed at once (16)")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")


def run(parsed: argparse.Namespace) -> None:
    """Fit, write, and print what changed."""
    from gafx.config import EvaluateConfig, build
    from gafx.evaluation.calibrate import calibrate_run
    from gafx.saving.card import describe_calibration

    values = {"root": parsed.root, "batch_size": parsed.batch_size, "device": parsed.device}
    print(describe_calibration(calibrate_run(parsed.folder, build(EvaluateConfig, values))))
