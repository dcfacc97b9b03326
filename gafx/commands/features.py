"""`gafx features`: maps, embeddings or codes of audio files."""

import argparse
from pathlib import Path
from typing import Literal

from gafx.commands.options import add_model, check_model
from gafx.commands.predict import add_computing, add_files, bar, computing, end_with, find
from gafx.errors import UsageError
from gafx.process import print_made

DESCRIPTION = (
    "Compute embeddings, maps or codes of every window of every file. npy: a folder with one array (windows, ...) per "
    "file and index.csv; parquet: one file with one row per window. Memory does not grow with the length of a file. A "
    "file that cannot be read is listed in the index and at the end, and the status is 1."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_files(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    add_model(source)
    source.add_argument("--frontend", metavar="NAME", help="an untrained front-end by its name, e.g. mel")
    parser.add_argument(
        "--what",
        choices=["embeddings", "maps", "codes"],
        help="default: embeddings of a model, maps of a front-end; codes: integers, of a front-end with a codec (vq)",
    )
    parser.add_argument("--format", choices=["npy", "parquet"], help="default: by the suffix of --output")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="a folder (npy) or a file (parquet)")
    parser.add_argument("--pool", action="store_true", help="one embedding per file: the mean over its windows")
    parser.add_argument("--overlap", type=float, default=0.0, help="overlap of windows, fraction of a window (0)")
    add_computing(parser)


def run(parsed: argparse.Namespace) -> None:
    """Write the features and print their path."""
    what: Literal["embeddings", "maps", "codes"] = parsed.what or ("maps" if parsed.frontend else "embeddings")
    form = parsed.format or ("parquet" if parsed.output.suffix == ".parquet" else "npy")
    if parsed.pool and what != "embeddings":
        raise UsageError(f"--pool is for embeddings: {what} of different lengths cannot be averaged")
    if form == "npy" and parsed.output.is_file():
        raise UsageError(f"--output {parsed.output} is a file: npy needs a folder, with one array per audio file")
    from gafx.outputs import Outputs

    Outputs().claim(parsed.output / "index.csv" if form == "npy" else parsed.output, "--output")
    if parsed.model:
        check_model(parsed.model)
    from gafx.deploy.features import Extractor, write_npy, write_parquet
    from gafx.loading import load
    from gafx.model import create_frontend

    source = create_frontend(parsed.frontend) if parsed.frontend else load(parsed.model)
    whole, files = find(parsed)
    with bar(files, what) as progress:
        extractor = Extractor(source, what, overlap=parsed.overlap, progress=progress, **computing(parsed))
        write = write_npy if form == "npy" else write_parquet
        errors = write(extractor, whole, parsed.output, pool=parsed.pool, shard=parsed.shard)
    print_made(parsed.output)
    end_with(errors, extractor.notes)
