"""`gafx predict`: label files of any length."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gafx.errors import UnreadableAudio, UsageError

if TYPE_CHECKING:
    from gafx.deploy.predict import Prediction
    from gafx.inference import Probabilities

SUMMARY = "label files: how much of each label a song holds, as a whole and over time"
DESCRIPTION = (
    "Label files of any length: each is cut into windows of the length that the model was trained on, and a file's "
    "share of a label is the mean over its windows. Of a model with one label a clip the shares sum to 100 %. They are "
    "calibrated where the run had a validation part (data.protocol=..._val, or `gafx calibrate RUN` afterwards). "
    "Reads what libsndfile plays: wav, flac, ogg, opus, mp3, au, aiff, caf, w64 and others. A file that cannot be read "
    "gets an `error` entry, and the command ends with status 1 after all others are labelled."
)
_TOP = 5
_NAMED_ERRORS = 10
# More headers than these are not read beforehand just to tell how long it will take.
_MOST_MEASURED = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_files(parser)
    parser.add_argument("--model", required=True, metavar="RUN", help="run folder, model folder, or hub id owner/name")
    parser.add_argument("--top", type=int, metavar="N", help="labels told (default 5 in the table, else all; 0 is all)")
    parser.add_argument(
        "--over-time",
        action="store_true",
        help="tell the shares of every window, too (a file's are held until it is done)",
    )
    form = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "one JSON array"), ("jsonl", "a JSON object a line, each as soon as its file is done"),
        ("csv", "a row a file, or with --over-time a row a window"),
    ):  # fmt: skip
        form.add_argument(f"--{name}", action="store_const", dest="form", const=name, help=what)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of standard output")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR",
        help="draw each file there as PNG: shares over time above waveform and map",
    )  # fmt: skip
    parser.add_argument("--overlap", type=float, default=0.5, help="share of a window that the next repeats (0.5)")
    add_computing(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """The files that a command is about."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="files, folders (all audio below), glob patterns, or - for a list of these on standard input",
    )  # fmt: skip


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Where and how a command computes windows."""
    parser.add_argument("--window", type=float, metavar="SECONDS", help="window length (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="windows computed at once (16)")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument(
        "--precision", choices=["fp32", "auto", "bf16", "fp16"], default="fp32",
        help="fp32 (default) gives what an exported model gives; auto is the fastest here",
    )  # fmt: skip
    parser.add_argument(
        "--readers", type=int, default=1, metavar="N", help="threads that read (1; for a GPU rather 4 or 8)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Label, and end with status 1 where a file could not be read."""
    if parsed.top is not None and parsed.top < 0:
        raise UsageError(f"--top {parsed.top} must be at least 0 (0: all labels)")
    if parsed.plot is not None and parsed.plot.exists() and not parsed.plot.is_dir():
        raise UsageError(f"--plot {parsed.plot} is a file: name a folder for the pictures")
    check_output(parsed.output)
    form = parsed.form or "table"
    top = (_TOP if form == "table" else None) if parsed.top is None else parsed.top or None
    from gafx.deploy.predict import predict_files, probabilities
    from gafx.deploy.writers import WRITERS

    model = probabilities(parsed.model)
    found = find(parsed)
    begin = time.perf_counter()
    errors: list[str] = []
    seconds = 0.0
    with (
        bar(found, "labelling") as progress,
        destination(parsed.output) as out,
        WRITERS[form](out, model.info.classes, files=found, top=top, over_time=parsed.over_time) as writer,
    ):
        drawn = _Plots(model, parsed.plot, progress) if parsed.plot else None
        for answer in predict_files(
            model, found, over_time=parsed.over_time or drawn is not None, overlap=parsed.overlap, progress=progress,
            **computing(parsed),
        ):  # fmt: skip
            seconds += answer.seconds or 0.0
            if answer.error is not None:
                errors.append(f"{answer.file}: {answer.error}")
            with progress.paused() if out is sys.stdout else nullcontext():
                writer.write(answer)
            if drawn is not None and answer.error is None:
                drawn.draw(answer)
    _tell(model, len(found) - len(errors), seconds, time.perf_counter() - begin)
    end_with(errors)


def find(parsed: argparse.Namespace) -> list[str]:
    """The files that the command's words mean; says how many others lie in the folders.

    Raises:
        UsageError: not one.
    """
    from gafx.deploy.files import find_files

    # Names that are no valid text are told with escapes, rather than not at all.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    found = find_files(parsed.files, sys.stdin.buffer if "-" in parsed.files else ())
    if not found.files:
        raise UsageError("no file: the list on standard input is empty")
    if found.passed_over:
        others = f"{found.passed_over} file{'s' if found.passed_over > 1 else ''}"
        print(f"passed over {others} not named like audio", file=sys.stderr)
    return found.files


def computing(parsed: argparse.Namespace) -> dict[str, Any]:
    """Options of `add_computing` as keyword arguments."""
    return {
        "window_seconds": parsed.window, "batch_size": parsed.batch_size, "device": parsed.device,
        "precision": parsed.precision, "readers": parsed.readers,
    }  # fmt: skip


def end_with(errors: list[str]) -> None:
    """Name the files that could not be read, and end with status 1 if there is one."""
    if not errors:
        return
    from gafx.deploy.words import shown

    plural = "s" if len(errors) > 1 else ""
    print(f"{len(errors)} file{plural} could not be read:", file=sys.stderr)
    for error in errors[:_NAMED_ERRORS]:
        print(f"  {shown(error)}", file=sys.stderr)
    if len(errors) > _NAMED_ERRORS:
        print(f"  and {len(errors) - _NAMED_ERRORS} more, each with its error in the output", file=sys.stderr)
    sys.exit(1)


class Progress:
    """A bar over the seconds of sound, on a terminal only; without one it does nothing."""

    def __init__(self, files: list[str], what: str):
        from tqdm import tqdm

        shown = sys.stderr.isatty()
        self.bar = tqdm(
            total=_length_of(files) if shown and len(files) <= _MOST_MEASURED else None, desc=what, unit="s",
            unit_scale=True, disable=not shown, smoothing=0.1,
        )  # fmt: skip

    def __call__(self, seconds: float) -> None:
        self.bar.update(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while a line is written above it."""
        if not self.bar.disable:
            self.bar.clear()
        yield
        if not self.bar.disable:
            self.bar.refresh()


@contextmanager
def bar(files: list[str], what: str) -> Iterator[Progress]:
    """A progress bar over files."""
    progress = Progress(files, what)
    try:
        yield progress
        if progress.bar.total:  # what remainders and broken files have left
            progress(max(0.0, progress.bar.total - progress.bar.n))
    finally:
        progress.bar.close()


def _length_of(files: list[str]) -> float | None:
    """Seconds of sound by what the headers say; broken files count as none."""
    from gafx.audio.read import header_seconds

    return sum(map(header_seconds, files)) or None


def check_output(path: Path | None) -> None:
    """Refuse what no file can be written to before anything is computed for it."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder: name a file in it")
    above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not above.is_dir():
        raise UsageError(f"--output {path}: {above} is a file, not a folder")


@contextmanager
def destination(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is written aside and renamed once it is whole.

    A link is followed; a pipe or a device is written to as it is.
    """
    if path is None:
        yield sys.stdout
        return
    path = Path(os.path.realpath(path))
    how: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    if path.exists() and not path.is_file():
        with path.open(**how) as out:
            yield out
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".gafx-{os.getpid()}.writing")
    try:
        with aside.open(**how) as out:
            yield out
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _tell(model: "Probabilities", files: int, seconds: float, took: float) -> None:
    from gafx.deploy.words import clock

    speed = f", {files / took:.1f} files/s, {seconds / took:.0f} times real time" if took > 0 and files else ""
    print(f"{files} file{'' if files == 1 else 's'} labelled, {clock(seconds)} of sound{speed}", file=sys.stderr)
    if files and not model.info.calibration:
        print(
            "the shares are not calibrated: the model has no temperature. Train under a protocol with a validation "
            "part (data.protocol=..._val), or, for such a run of an older version, gafx calibrate RUN",
            file=sys.stderr,
        )


class _Plots:
    """A picture a file, in one folder, no two of one name."""

    def __init__(self, model: "Probabilities", folder: Path, progress: Progress):
        self.model, self.folder, self.progress = model, folder, progress
        self.names: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, answer: "Prediction") -> None:
        from gafx.deploy.plot import draw, observe, write
        from gafx.deploy.words import free_name, shown

        try:
            observed = observe(self.model.model, answer.file, any_format=True)
            write(draw(answer, observed), self.folder / free_name(answer.file, ".png", self.names))
        except (UsageError, UnreadableAudio, OSError) as error:  # shorter than any map, gone since, no room
            with self.progress.paused():
                print(f"no picture of {shown(answer.file)}: it {error}", file=sys.stderr)
