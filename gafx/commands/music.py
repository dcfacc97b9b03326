"""`gafx music`: compare models that write music."""

import argparse
import sys
from pathlib import Path

from gafx.commands.options import add_batch_size, add_device, add_moved_root, check_least
from gafx.errors import require
from gafx.process import print_made

DESCRIPTION = (
    "Compare finished runs of objective=likelihood of the same data, split and tokens, and an n-gram model of the same "
    "tokens: likelihood of the test part; overlap of the distributions of pitch classes, intervals, durations and note "
    "density of generated pieces with real ones; what is copied from the training part; repetition. Prints the tables "
    "and writes a page, e.g. gafx music outputs/midi_* --output outputs/music."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, or patterns")
    parser.add_argument("--number", type=int, default=50, metavar="N", help="pieces of each model (default 50)")
    parser.add_argument("--temperature", type=float, default=0.9, metavar="T", help="of these (default 0.9)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="of these (default 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of these (default 0)")
    parser.add_argument(
        "--length", type=int, metavar="N", help="most tokens of a piece (default: those of a clip in training)"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N",
        help="draws of the latent vector for the bound of a VAE; more are tighter (default: the run's)",
    )  # fmt: skip
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/music"), metavar="DIR", help="folder (default outputs/music)"
    )
    add_moved_root(parser)
    add_batch_size(parser, "windows")
    add_device(parser)


def run(parsed: argparse.Namespace) -> None:
    """Compare, and print the tables and the page's path."""
    check_least(parsed, number=2, length=2, samples=1, resamples=1, batch_size=1)
    for package in ("symusic", "jinja2", "accelerate"):
        require(package, "gafx music")
    from gafx.config import EvaluateConfig
    from gafx.outputs import Outputs
    from gafx.studies.music.evaluate import compare_music
    from gafx.studies.music.page import table, write_comparison
    from gafx.training.distributed import start_ranks

    Outputs().claim(parsed.output / "music.html", "--output")
    config = EvaluateConfig(
        batch_size=parsed.batch_size, workers=0, device=parsed.device, precision="fp32", root=parsed.root,
        resamples=parsed.resamples,
    )  # fmt: skip
    start_ranks(config.device)
    options = {key: getattr(parsed, key) for key in ("number", "temperature", "top_p", "seed", "length", "samples")}
    comparison = compare_music(
        parsed.runs, config, **options, progress=lambda what: print(what, file=sys.stderr, flush=True)
    )
    page = write_comparison(comparison, parsed.output)
    print_made(f"{table(comparison)}\npage: {page}")
