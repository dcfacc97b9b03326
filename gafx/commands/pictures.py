"""`gafx pictures`: a trained run's maps, filters, gradients and embeddings on one page."""

import argparse
from pathlib import Path

from gafx.errors import UsageError

SUMMARY = "picture trained runs: maps, gradients, first-layer filters, embeddings, correlations"
DESCRIPTION = (
    "Read the test part of each run's own protocol and fold and write one page a run, RUN/pictures.html: a few maps "
    "beside their mel spectrograms with the gradients of the predicted class, frequency responses of the first layer "
    "ordered by centre frequency, the embeddings by PCA, t-SNE and UMAP (pip install 'gafx[pictures]'), and how "
    "features correlate. Prints the pages' paths."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--clips", type=int, default=4, metavar="N", help="clips shown with their maps (default 4)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pages (default: each run's own)")
    parser.add_argument("--root", help="where the data lie now, if not where they lay in training")


def run(parsed: argparse.Namespace) -> None:
    """Draw, and print the pages."""
    if parsed.clips < 0:
        raise UsageError(f"--clips {parsed.clips} must be at least 0")
    from gafx.studies.pictures.page import picture_runs

    for page in picture_runs(parsed.runs, clips=parsed.clips, output=parsed.output, root=parsed.root):
        print(page)
