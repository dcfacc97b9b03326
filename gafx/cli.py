"""The `gafx` command, and what train.py and evaluate.py share with it. Imports no torch before a command needs it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gafx
from gafx.config import EvaluateConfig, TrainConfig
from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, REQUIRED, SOURCES, Registry, type_name

_KINDS: dict[str, Registry] = {
    "frontends": FRONTENDS,
    "classifiers": CLASSIFIERS,
    "objectives": OBJECTIVES,
    "data": SOURCES,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `gafx` command."""
    run_script(_command, list(sys.argv[1:] if arguments is None else arguments))


def run_script(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command; a `UsageError` ends it with one sentence and status 2, an interruption with status 130."""
    # Read by torch at its first allocation: large pages make bf16 training on a CPU up to a third faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        command(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Ranks that wait for this one must not be waited for: no orderly shutdown of the process group.
        if os.environ.get("WORLD_SIZE", "1") != "1":
            os._exit(2)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror or error}; check that it exists, is writable and has room", file=sys.stderr
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "interrupted; a training run continues from its last checkpoint when its command is given again",
            file=sys.stderr,
        )
        sys.exit(130)


def show_help(script: str, config_folder: Path) -> None:
    """Print what a script does, the choices of each group and every key with its default."""
    cls = TrainConfig if script == "train" else EvaluateConfig
    module = sys.modules["__main__"].__doc__ or ""
    print(module.strip(), end="\n\n")
    groups = [folder for folder in sorted(config_folder.iterdir()) if folder.is_dir()] if script == "train" else []
    for folder in groups:
        print(f"{folder.name}=  {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}")
    print("\nkeys (key=value):")
    for key, default in _flatten(dataclasses.asdict(cls())).items():
        print(f"  {key} = {default}")
    if script == "train":
        print("\n`gafx list` shows the arguments of front-ends, classifiers, objectives and data sets.")


def _flatten(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat


def _command(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="gafx", description="End-to-end waveform deep learning: front-ends, AST, Accelerate."
    )
    parser.add_argument("--version", action="version", version=f"gafx {gafx.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    listing = commands.add_parser(
        "list", help="list front-ends, classifiers, objectives and data sets with their arguments"
    )
    listing.add_argument("kind", nargs="?", choices=sorted(_KINDS), help="only these")
    make = commands.add_parser("synthesize", help="make the built-in data set of synthetic music")
    make.add_argument("root", type=Path, help="folder to write to")
    make.add_argument("--tracks", type=int, default=40, help="tracks a genre (default 40)")
    make.add_argument("--seconds", type=float, default=10.0, help="length of a track (default 10)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument(
        "--vary", default="all", help="factors that differ between genres: all, rhythm, harmony, timbre, or one alone"
    )
    parsed = parser.parse_args(arguments)
    if parsed.command == "list":
        _list([parsed.kind] if parsed.kind else list(_KINDS))
    else:
        from gafx.data.sources.synthetic import synthesize

        synthesize(parsed.root, tracks=parsed.tracks, seconds=parsed.seconds, seed=parsed.seed, vary=parsed.vary)
        print(parsed.root)


def _list(kinds: list[str]) -> None:
    for kind in kinds:
        print(f"{kind}:")
        for name in _KINDS[kind].names():
            print(f"  {name}")
            for keyword in _KINDS[kind].keywords(name).values():
                default = "(required)" if keyword.default is REQUIRED else f"= {keyword.default}"
                print(f"    {keyword.name} {default}  ({type_name(keyword.annotation)})")


if __name__ == "__main__":
    main()
