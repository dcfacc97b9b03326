"""The `gafx` command, and what train.py and evaluate.py share with it. Imports no torch before a command needs it."""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from gafx._version import __version__
from gafx.config import EvaluateConfig, TrainConfig
from gafx.errors import UsageError

# Modules of gafx.commands, in the order of `gafx --help`.
_COMMANDS = (
    "list", "synthesize", "pack", "leaks", "ablate", "probe", "pictures", "calibrate", "predict", "features", "export",
    "demo",
)  # fmt: skip
# Folders of configs/ that are no choices of train.py: tables of runs, and what launchers read.
_NO_GROUPS = ("ablation", "accelerate", "slurm")

# Commands that begin anew when they are given again.
_ONCE = ("calibrate", "predict", "features", "export", "demo")
_CONTINUES = "interrupted; given again, the command goes on: training at its last checkpoint, packing where it was"
_SMALLER = (
    "lower batch_size, or keep it and raise grad_accumulation; shorten data.segment_seconds; with gafx_u set "
    "frontend.checkpointing=true"
)

# How torch says it, for main memory and for a GPU's.
_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `gafx` command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in _ONCE:
        run_script(_command, words, interrupted="interrupted", smaller="lower --batch-size, or shorten --window")
    else:
        run_script(_command, words)


def run_script(
    command: Callable[[list[str]], None], arguments: list[str], *, interrupted: str = _CONTINUES,
    smaller: str = _SMALLER,
) -> None:  # fmt: skip
    """Run a command; a `UsageError` ends it with one sentence and status 2, an interruption with status 130.

    Args:
        command: what to run.
        arguments: its words.
        interrupted: what is said on Ctrl-C.
        smaller: what helps where memory does not suffice.
    """
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
        cure = "check that it exists, is writable and has room" if where else "make room on the disk and try again"
        print(f"error: {where}{error.strerror or error}; {cure}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        said = (str(error).splitlines() or ["main memory"])[0]
        print(
            f"error: out of memory ({said}); {smaller}", file=sys.stderr, flush=True,
        )  # fmt: skip
        if os.environ.get("WORLD_SIZE", "1") != "1":
            os._exit(1)
        sys.exit(1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)


def show_help(script: str, config_folder: Path) -> None:
    """Print what a script does, the choices of each group and every key with its default."""
    cls = TrainConfig if script == "train" else EvaluateConfig
    module = sys.modules["__main__"].__doc__ or ""
    print(module.strip(), end="\n\n")
    groups = [folder for folder in sorted(config_folder.iterdir()) if folder.is_dir()] if script == "train" else []
    for folder in groups:
        if folder.name in _NO_GROUPS:
            continue
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


def read_command(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a `gafx` command; `run` of the result is what carries it out."""
    parser = argparse.ArgumentParser(
        prog="gafx", description="End-to-end waveform deep learning: front-ends, AST, Accelerate."
    )
    parser.add_argument("--version", action="version", version=f"gafx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in _COMMANDS:
        module = import_module(f"gafx.commands.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=getattr(module, "DESCRIPTION", None))
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    # Overrides may stand before, between and behind the options; argparse takes only the first of these groups.
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest)):
        commands.choices[parsed.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _command(arguments: list[str]) -> None:
    parsed = read_command(arguments)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
