"""`gafx pictures`: maps, filters, gradients and embeddings of a trained run on one page."""

import argparse
from pathlib import Path

from gafx.commands.options import add_device, add_moved_root, check_least
from gafx.process import print_made

DESCRIPTION = (
    "Read the test part of each run's own protocol and fold and write one page per run, RUN/pictures.html: maps next "
    "to their mel spectrograms with the gradients of the predicted class, frequency responses of the first layer "
    "ordered by centre frequency, embeddings by PCA, t-SNE and UMAP (pip install 'gafx[pictures]'), and the "
    "correlation of features. Prints the pages' paths."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="clips plotted with their maps (default 4)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pages (default: each run's own)")
    add_moved_root(parser)
    add_device(parser)


def run(parsed: argparse.Namespace) -> None:
    """Draw, and print the pages."""
    check_least(parsed, clips=0)
    from gafx.studies.pictures.page import picture_runs

    for page in picture_runs(
        parsed.runs, clips=parsed.clips, output=parsed.output, root=parsed.root, device=parsed.device
    ):
        print_made(page)
