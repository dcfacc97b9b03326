"""`gafx classical`: classical models on handcrafted features, tuned, compared, pictured and saved."""

import argparse
import os
from pathlib import Path

from gafx.commands.options import add_data, add_option, check_fractions, check_least, read_options
from gafx.config import DataConfig
from gafx.data.protocols import PROTOCOLS, Protocol
from gafx.errors import require
from gafx.process import print_made
from gafx.registry import SOURCES

SUMMARY = "tune and compare classical models on handcrafted features of music"
DESCRIPTION = (
    "Fit k-NN, SVM, random forest, logistic regression, naive Bayes, XGBoost, soft voting and stacking to features of "
    "librosa (chroma, RMS, spectral shape, flux, zero crossings, harmonic and percussive parts, tempo, MFCC) of short "
    "windows. Settings are chosen by grid search in five inner folds over the recordings of each training part. Every "
    "recording is tested once by models that were fitted on others; then each model is fitted on all of them and saved "
    "for gafx predict. Prints the table and the page, which has pictures of the features. Features are cached in "
    "OUTPUT/features."
)
_DATA = ("protocol", "folds", "split_seed", "max_unreadable")
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
        help="track (default) keeps the windows of a track together; random splits them one by one, so that windows of a "
        "track are on both sides and accuracy is inflated; both: one table with the difference",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="output folder (default outputs/classical-DATA)")
    parser.add_argument("--seed", type=int, default=0, help="seed of inner folds and models (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes (default: one a core)")  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument("--protocol", help=f"{', '.join(PROTOCOLS)} (default: official folds or parts, otherwise kfold)")
    data.add_argument("--folds", type=int, help="folds of kfold (default 5, at most one per recording)")
    data.add_argument("--split-seed", type=int, help="seed of the split (default 0)")
    data.add_argument("--max-unreadable", type=float, default=0.05, metavar="FRACTION",
                      help="more unreadable files than this are an error (default 0.05)")  # fmt: skip
    add_option(data)


def run(parsed: argparse.Namespace) -> None:
    """Tune and test, and print the table and the page's path."""
    check_least(parsed, seed=0, split_seed=0, folds=2, jobs=1)
    check_fractions(parsed, "max_unreadable")
    SOURCES.check_name(parsed.data)
    if parsed.protocol is not None:
        Protocol.parse(parsed.protocol, "--protocol")
    packages = ("librosa", "sklearn", "skops", "shap", "umap", "accelerate", "jinja2")
    for package in (*packages, *(["xgboost"] if "xgboost" in parsed.models else [])):
        require(package, "gafx classical")  # before the features are computed
    from gafx.studies.classical.page import table, write_classical
    from gafx.studies.classical.run import ClassicalConfig, run_classical

    asked = {key: getattr(parsed, key) for key in _DATA if getattr(parsed, key) is not None}
    data = DataConfig(**{
        "name": parsed.data, "root": str(parsed.root), "protocol": "", "options": read_options(parsed), **asked
    })  # fmt: skip
    config = ClassicalConfig(
        tuple(parsed.models), parsed.seconds, parsed.features, parsed.split, parsed.seed, parsed.jobs
    )
    folder = parsed.output or Path("outputs", f"classical-{parsed.data}")
    done = run_classical(data, folder, config, asked_folds=parsed.folds is not None)
    page = write_classical(done)
    print_made(f"{table(done)}\npage: {page}\nmodels: {folder / 'models'} (gafx predict FILE --model "
               f"{folder / 'models' / done.best})")  # fmt: skip
