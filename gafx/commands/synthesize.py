"""`gafx synthesize`: write the built-in data set."""

import argparse
from pathlib import Path

from gafx.process import print_made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("root", type=Path, help="folder to write to")
    parser.add_argument("--tracks", type=int, default=40, help="tracks per genre (default 40)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a track (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--vary", default="all", help="factors that differ between genres: all, rhythm, harmony, timbre, or one alone"
    )
    parser.add_argument("--midi", action="store_true", help="write the scores as MIDI files, for data=midi")


def run(parsed: argparse.Namespace) -> None:
    """Write it, and print its folder."""
    from gafx.data.sources.synthetic import synthesize

    synthesize(
        parsed.root, tracks=parsed.tracks, seconds=parsed.seconds, seed=parsed.seed, vary=parsed.vary, midi=parsed.midi
    )  # fmt: skip
    print_made(parsed.root)
