"""`gafx generate`: write music with a model that was trained on MIDI."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.commands.options import add_device, add_model, add_moved_root, model_name, option_name
from gafx.errors import UsageError, require
from gafx.process import print_made

if TYPE_CHECKING:
    from gafx.deploy.generate import Composer, Piece, Walk
    from gafx.deploy.render import Wave
    from gafx.deploy.songs import Heard

DESCRIPTION = (
    "Write songs as MIDI files, with an index.json and a page of their piano rolls. A song depends on the model, the "
    "seed, its number and the settings, not on how many are written. --continue writes continuations of a song, "
    "--between decodes the points between two songs in the latent space of a VAE. --wav plays the songs by the "
    "built-in instruments, and --predict asks a model of audio what it hears in them."
)
TEST = "test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, "model")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--continue", dest="prompt", metavar="MIDI", help="a song to continue")
    source.add_argument(
        "--between", nargs=2, metavar=("MIDI", "MIDI"), help="walk from one song to the other in the latent space"
    )
    parser.add_argument("--number", type=int, metavar="N", help="songs (default 8)")
    parser.add_argument("--steps", type=int, metavar="N", help="points of --between, both ends among them (default 7)")
    parser.add_argument("--path", choices=["spherical", "linear"], help="way of --between (default: spherical)")
    parser.add_argument(
        "--temperature", type=float, metavar="T",
        help="divisor of the logits (default 0.9; of --between 0: greedy, the most likely token each time)",
    )  # fmt: skip
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="P",
        help="draw from the smallest set of tokens with this probability together (default 0.95; 1: from all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the songs (default 0)")
    parser.add_argument(
        "--length", type=int, metavar="N", help="most tokens to draw (default: those of a clip in training)"
    )
    parser.add_argument(
        "--tempo", type=float, default=120.0, metavar="BPM", help="quarter notes per minute (default 120)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("songs"), metavar="DIR", help="output folder (default songs)"
    )
    parser.add_argument(
        "--wav", action="store_true", help="write a wav file of each song, too, and players on the page"
    )
    parser.add_argument(
        "--soundfont", metavar="FILE", help="play by FluidSynth with this file (.sf2), where it is installed"
    )
    parser.add_argument(
        "--predict", metavar="MODEL", help="a model of audio, as of gafx predict: what it hears in the songs"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="MIDI",
        help="with --predict: real songs, heard beside them: files, folders, or test for those of the run's test part",
    )
    add_moved_root(parser)
    add_device(parser)


def run(parsed: argparse.Namespace) -> None:
    """Write the songs, and print their table and the page's path."""
    _check(parsed)
    require("symusic", "gafx generate")
    require("jinja2", "gafx generate")
    from gafx.deploy.generate import Composer, find_midi
    from gafx.deploy.render import render
    from gafx.deploy.songs import check_folder, write_songs

    check_folder(parsed.output)
    real = [] if not parsed.compare else _test_part(parsed) if parsed.compare == [TEST] else find_midi(parsed.compare)
    listener = _listener(parsed)
    composer = Composer(parsed.model, device=parsed.device)
    with _as_options():
        pieces, walk, settings = _write(parsed, composer)
    waves = []
    if parsed.wav or listener is not None:
        waves = [render(piece.song, soundfont=parsed.soundfont) for piece in pieces]
    heard = None if listener is None else _hear(parsed, listener, composer, pieces, waves, real)
    sound = {"instruments": parsed.soundfont or "built-in"} if waves else {}
    print_made(
        write_songs(
            parsed.output, pieces, model=model_name(parsed.model), scheme=composer.tokenizer.scheme,
            settings={**settings, **sound}, waves=waves if parsed.wav else [], walk=walk, heard=heard,
        )
    )  # fmt: skip


def _write(parsed: argparse.Namespace, composer: "Composer") -> tuple["list[Piece]", "Walk | None", dict[str, Any]]:
    """The pieces, the walk if they are one, and the settings for the record."""
    options = {key: getattr(parsed, key) for key in ("top_p", "seed", "length", "tempo")}
    options["temperature"] = (0.0 if parsed.between else 0.9) if parsed.temperature is None else parsed.temperature
    record = {**options, "length": parsed.length or composer.context}
    if parsed.between:
        own: dict[str, Any] = {"steps": 7 if parsed.steps is None else parsed.steps, "path": parsed.path or "spherical"}
        with _bar(own["steps"]) as progress:
            first, second = parsed.between
            walk = composer.between(first, second, **own, **options, progress=progress)
        return walk.pieces, walk, {"between": parsed.between, **own, **record}
    number = 8 if parsed.number is None else parsed.number
    with _bar(number) as progress:
        pieces = composer.pieces(number, **options, prompt=parsed.prompt, progress=progress)
    return pieces, None, {"number": number, **({"continue": parsed.prompt} if parsed.prompt else {}), **record}


@contextmanager
def _as_options() -> Iterator[None]:
    """Name the options of the command in the message of a `UsageError`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"^(\w+)=", lambda found: f"{option_name(found[1])} ", str(error))) from error


def _check(parsed: argparse.Namespace) -> None:
    if parsed.between and parsed.number is not None:
        raise UsageError("--number is of new songs: of --between the number is --steps")
    if not parsed.between and (parsed.steps is not None or parsed.path is not None):
        raise UsageError(
            f"{'--steps' if parsed.steps is not None else '--path'} is of a walk: name its ends with --between"
        )
    if parsed.compare and not parsed.predict:
        raise UsageError("--compare is of what a model hears: name the model with --predict")
    if parsed.soundfont and not (parsed.wav or parsed.predict):
        raise UsageError("--soundfont plays the songs: it needs --wav or --predict")


def _test_part(parsed: argparse.Namespace) -> list[Path]:
    """The files of the test part of the run."""
    from gafx.config import EvaluateConfig
    from gafx.evaluation.runs import open_part, open_run

    _, clips = open_part(open_run(Path(parsed.model)), EvaluateConfig(root=parsed.root))
    rows = dict.fromkeys(clips.segments.row.tolist())
    return [clips.manifest.root / clips.manifest.relative_path(row) for row in rows]


def _listener(parsed: argparse.Namespace) -> Any:
    if parsed.predict is None:
        return None
    from gafx.deploy.predict import probabilities

    return probabilities(parsed.predict)


def _hear(
    parsed: argparse.Namespace, listener: Any, composer: "Composer", pieces: "list[Piece]", waves: "list[Wave]",
    real: list[Path],
) -> "Heard":  # fmt: skip
    """What the model hears in the songs, and in as many real ones, evenly spaced among those that are given."""
    import numpy as np

    from gafx.deploy.generate import heard
    from gafx.deploy.render import SAMPLE_RATE, render
    from gafx.deploy.songs import Heard

    classes, generated = heard(waves, listener, SAMPLE_RATE)
    name = model_name(parsed.predict)
    if not real:
        return Heard(name, classes, generated)
    chosen = [
        real[place] for place in np.unique(np.linspace(0, len(real) - 1, min(len(real), len(pieces))).astype(int))
    ]
    length = max(len(piece.tokens) for piece in pieces)
    songs = [composer.tokenizer.decode(composer.encode(composer.read(path))[:length], parsed.tempo) for path in chosen]
    _, probabilities = heard([render(song, soundfont=parsed.soundfont) for song in songs], listener, SAMPLE_RATE)
    return Heard(name, classes, generated, probabilities, tuple(map(str, chosen)))


def _bar(total: int) -> Any:
    """A progress bar over songs, called with a number of finished ones."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __call__(self, count: int) -> None:
            self.update(count)

    return Bar(total=total, desc="writing", unit="song", disable=not sys.stderr.isatty())
