"""The `gafx` command. Imports no torch before a command needs it."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from gafx._version import __version__
from gafx.errors import UsageError, did_you_mean, missing_package
from gafx.log import show_log
from gafx.process import output_fails, standard_streams, terminable

# Modules of gafx.commands and what `gafx --help` says about them, which needs none of them.
_COMMANDS = {
    "fit": "fit a classifier of your own labels on a frozen pretrained model, in seconds",
    "train": "train a front-end and a classifier together",
    "evaluate": "evaluate finished runs",
    "ablate": "train and evaluate every row of a table of runs, and write the table",
    "predict": "label audio files: the probability of each label, for the whole file and over time",
    "listen": "label the microphone, or raw sound on standard input, while it comes",
    "features": "write a model's embeddings, or a front-end's maps or codes, of files, as npy or Parquet",
    "calibrate": "fit a finished run's temperature on its validation part",
    "export": "write a trained model as ONNX or torch.export, checked against PyTorch",
    "demo": "try a model in the browser: drop a file or record; nothing is kept",
    "serve": "label uploads over HTTP: JSON answers with an OpenAPI page; nothing is kept",
    "list": "list front-ends, classifiers, objectives and data sets with their arguments",
    "synthesize": "write the built-in data set of synthetic music",
    "pack": "pack a data set for fast training: int16 at one sampling rate, memory-mapped; or as Parquet shards",
    "merge": "join what predict, features and pack have written with --shard on several machines",
    "leaks": "find clips that are copies of each other, in a data set or across the parts of a split",
    "probe": "probe frozen front-ends for tempo, key, chord, instrument, loudness and genre",
    "classical": "tune and compare classical models on handcrafted features of music",
    "pictures": "plot trained runs: maps, gradients, first-layer filters, embeddings, correlations",
}
# The others load models or weights, and take --offline.
_WITHOUT_MODELS = ("list", "synthesize", "pack", "merge", "leaks")
# Commands that start over when they are given again, and what to do where memory does not suffice for them.
_STARTS_OVER = (
    "fit", "classical", "predict", "listen", "features", "calibrate", "export", "demo", "serve", "merge",
)  # fmt: skip
_RESUMES = "interrupted; given again, the command resumes: training at its last checkpoint, packing where it stopped"
_LESS_MEMORY = (
    "lower batch_size, or keep it and raise grad_accumulation; shorten data.segment_seconds; set "
    "frontend.checkpointing=true for a front-end that has it"
)
# Torch's messages for main memory and for a GPU's.
_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory")
# Torch's messages for a worker process of a data loader that ended, not for an error in one.
_WORKER_ENDED = re.compile(r"DataLoader worker \(pid.*?\) .*")


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with text that is made only when it is shown."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        return super().format_help() + (self.more() if self.more else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a `gafx` command; a `UsageError` ends it with one sentence and status 2, a signal with 128 + its number.

    Args:
        arguments: of the command line after `gafx`; default: those of this process.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    starts_over = bool(argv) and argv[0] in _STARTS_OVER
    # Read by torch at its first allocation: large pages make bf16 training on a CPU up to a third faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Read by OpenMP when torch is imported. By its default a waiting thread keeps the processor, which on a busy
    # machine the thread that it waits for would need (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    show_log()
    with standard_streams(), terminable():
        _run(argv, starts_over)


def _run(argv: list[str], starts_over: bool) -> None:
    try:
        try:
            parsed = read_command(argv)
            parsed.run(parsed)
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UsageError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        _fail(str(missing_package(error, f"gafx {argv[0]}")), 2)
    except BrokenPipeError as error:
        # Of standard output (`gafx list | head`) it is no failure; of anything else it is.
        if not output_fails():
            _fail(f"{error.strerror}: what read the output or computed a part of it has ended", 2)
    except OSError as error:
        output_fails()
        where = f"{error.filename}: " if error.filename else ""
        cure = "check that it exists, is writable and has room" if where else "make room on the disk and try again"
        _fail(f"{where}{error.strerror or error}; {cure}", 2)
    except (MemoryError, RuntimeError) as error:
        if ended := _WORKER_ENDED.search(str(error)):
            cure = "most often memory has run out: give the command again with workers=0, or a smaller batch_size"
            _fail(f"a process that reads the data has ended ({ended[0].rstrip(' .')}); {cure}", 1)
        if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        reason = (str(error).splitlines() or ["main memory"])[0]
        cure = "lower --batch-size, or shorten --window" if starts_over else _LESS_MEMORY
        _fail(f"out of memory ({reason}); {cure}", 1)
    except KeyboardInterrupt as error:
        print("interrupted" if starts_over else _RESUMES, file=sys.stderr)
        sys.exit(128 + getattr(error, "signal", signal.SIGINT))


def _fail(message: str, status: int) -> None:
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    where = f" on rank {os.environ.get('RANK', '?')}" if several else ""
    print(f"error{where}: {message}", file=sys.stderr, flush=True)
    # Ranks that wait for this one must not be waited for: no orderly shutdown of the process group.
    if several:
        os._exit(status)
    sys.exit(status)


def read_command(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a `gafx` command; `run` of the result is the function that carries it out.

    Raises:
        UsageError: there is no such command; the message names the closest one.
        SystemExit: help was requested, or the arguments cannot be parsed.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        hint = did_you_mean(arguments[0], _COMMANDS) or ";"
        raise UsageError(f"unknown command {arguments[0]!r}{hint} choose one of: {', '.join(_COMMANDS)}")
    parser = _Parser(prog="gafx", description="End-to-end waveform deep learning: front-ends, AST, Accelerate.")
    parser.add_argument("--version", action="version", version=f"gafx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    asked = next((each for each in arguments if each in _COMMANDS), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == asked:
            _declare(name, command)
    # Overrides may come before, between and after the options; argparse takes only the first of these groups.
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "overrides") or any(item.startswith("-") for item in rest)):
        commands.choices[parsed.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _declare(name: str, command: _Parser) -> None:
    """Give the parser of a command its arguments; imports the command's module."""
    module = import_module(f"gafx.commands.{name}")
    command.description, command.more = getattr(module, "DESCRIPTION", None), getattr(module, "more_help", None)
    command.set_defaults(run=module.run)
    module.add_arguments(command)
    if name not in _WITHOUT_MODELS:
        import_module("gafx.commands.options").add_offline(command)


if __name__ == "__main__":
    main()
