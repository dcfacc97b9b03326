"""`gafx classical`: classical models on handcrafted features, tuned, compared, pictured and saved."""

import argparse
import os
from pathlib import Path

from gafx.commands.options import add_data, add_split, check_least, keys_as_options, read_split
from gafx.errors import require
from gafx.process import print_made

DESCRIPTION = (
    "Fit k-NN, SVM, random forest, logistic regression, naive Bayes, XGBoost, soft voting and stacking to features of "
    "librosa (chroma, RMS, spectral shape, flux, zero crossings, harmonic and percussive parts, tempo, MFCC) of short "
    "windows. Settings are chosen by grid search in five inner folds over the recordings of each training part. Every "
    "recording is tested once by models that were fitted on others; then each model is fitted on all of them and saved "
    "for gafx predict. Prints the table and the page, which has pictures of the features. Features are cached in "
    "OUTPUT/features."
)
MODELS = (
    "knn", "svm", "random_forest", "logistic_regression", "naive_bayes", "xgboost", "voting", "stacking",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_data(parser)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL",
                        help=f"default: {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window (default 3)")
    parser.add_argument(
        "--features", choices=["thesis", "full"], default="full",
        help="thesis: its 63; full (default): each chroma bin, contrast band and MFCC, deltas, medians",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=["track", "random", "both"], default="track",
        help="track (default) keeps the windows of a track together; random splits them one by one, so that windows of "
        "a track are on both sides and accuracy is inflated; both: one table with the difference",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="output folder (default outputs/classical-DATA)")
    parser.add_argument("--seed", type=int, default=0, help="seed of inner folds and models (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes (default: one a core)")  # fmt: skip
    add_split(parser)


def run(parsed: argparse.Namespace) -> None:
    """Tune and test, and print the table and the page's path."""
    check_least(parsed, seed=0, jobs=1)
    data = read_split(parsed)
    packages = ("librosa", "sklearn", "skops", "shap", "umap", "accelerate", "jinja2")
    for package in (*packages, *(["xgboost"] if "xgboost" in parsed.models else [])):
        require(package, "gafx classical")  # before the features are computed
    from gafx.studies.classical.page import table, write_classical
    from gafx.studies.classical.run import ClassicalConfig, run_classical

    config = ClassicalConfig(
        tuple(parsed.models), parsed.seconds, parsed.features, parsed.split, parsed.seed, parsed.jobs
    )
    folder = parsed.output or Path("outputs", f"classical-{parsed.data}")
    with keys_as_options("data", "root"):
        done = run_classical(data, folder, config, asked_folds=parsed.folds is not None)
    page = write_classical(done)
    print_made(f"{table(done)}\npage: {page}\nmodels: {folder / 'models'} (gafx predict FILE --model "
               f"{folder / 'models' / done.best})")  # fmt: skip
