"""`gafx fit`: a classifier of one's own labels on a frozen pretrained model, in seconds."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gafx.commands.options import (
    add_batch_size,
    add_device,
    add_model,
    add_split,
    check_least,
    check_model,
    keys_as_options,
    read_split,
)
from gafx.commands.predict import default_model
from gafx.config import DataConfig
from gafx.errors import require
from gafx.process import print_made
from gafx.registry import SOURCES
from gafx.report.format import duration, plural, printable
from gafx.saving.info import model_name

if TYPE_CHECKING:
    from gafx.fitting.run import Fit

DESCRIPTION = (
    "Fit logistic regression or a linear SVM on what a frozen model computes of a folder of classes, e.g. gafx fit "
    "my_music --model audioset-crnn. Every recording is tested once by a head that was fitted on other recordings; "
    "then a head is fitted on all of them and saved as a model that gafx predict, features, export and demo take. "
    "Prints the scores with their intervals, and the folder with model, report and predictions."
)
_LISTED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("root", metavar="FOLDER", help="folder of the data: by default one folder per class")
    add_model(parser, help="frozen model: a name of gafx list --pretrained, a run, a folder or a hub id owner/name "
                           "(default: audioset-crnn once it is in the cache)")  # fmt: skip
    parser.add_argument("--head", choices=["logistic", "svm"], default="logistic", help="default logistic")
    parser.add_argument(
        "--features", choices=["outputs", "embedding", "both"], default="both",
        help="what the head reads of the model: its logits, its embedding, or both (default)",
    )  # fmt: skip
    parser.add_argument(
        "--class-weights", choices=["none", "balanced"], default="none",
        help="balanced: each class counts alike, however many clips it has",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the inner folds (default 0)")
    parser.add_argument("--output", type=Path, help="output folder (default outputs/fit-FOLDER-MODEL)")
    add_batch_size(parser, "segments")
    add_device(parser)
    add_split(parser).add_argument(
        "--data", default="folder", help=f"data set: {', '.join(SOURCES.names())} (default folder)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Fit, and print the scores and the folder."""
    from gafx.data.sources.base import check_root

    check_least(parsed, seed=0, batch_size=1)
    data = read_split(parsed)
    source = parsed.model or default_model()
    with keys_as_options("--data", "FOLDER"):
        check_root(data.name, data.root)
    check_model(source)
    for package in ("sklearn", "accelerate", "jinja2"):
        require(package, "gafx fit")  # before the features are computed
    folder = parsed.output or Path("outputs", f"fit-{Path(parsed.root).resolve().name}-{model_name(source)}")
    with keys_as_options("--data", "FOLDER"):
        _fit(parsed, source, data, folder)


def _fit(parsed: argparse.Namespace, source: str, data: DataConfig, folder: Path) -> None:
    from gafx.fitting.run import FitConfig, fit_head
    from gafx.loading import load
    from gafx.nn.precision import pick_device
    from gafx.report.evaluation import write_reports

    model = load(source).to(pick_device(parsed.device))
    config = FitConfig(parsed.head, parsed.features, parsed.class_weights, parsed.seed, parsed.batch_size)
    found = fit_head(model, model_name(source), data, folder, config, asked_folds=parsed.folds is not None)
    print_made("\n".join([_data_line(found), write_reports([found.evaluation]), *_rest(found)]))


def _data_line(found: "Fit") -> str:
    result = found.result
    counts = ", ".join(f"{printable(label)} {count}" for label, count in found.clips.items())
    classes = plural(len(found.clips), "class", "classes")
    return f"{result.data}: {plural(sum(found.clips.values()), 'clip')} of {classes} ({counts})"


def _rest(found: "Fit") -> list[str]:
    """Lines below the table."""
    skipped = [f"  {printable(clip.path)}: {clip.reason}" for clip in found.result.skipped]
    more = [f"  and {len(skipped) - _LISTED} more"] if len(skipped) > _LISTED else []
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.seconds.items())
    return [
        *(["skipped:", *skipped[:_LISTED], *more] if skipped else []),
        *map(printable, found.notes),
        f"time: {times}",
        f"model: {found.folder / 'model'} (fitted on {found.fitted_on}; gafx predict FILE --model {found.folder})",
    ]
