"""`gafx predict`: label files of any length."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gafx.commands.options import (
    add_batch_size,
    add_device,
    add_model,
    add_precision,
    add_shard,
    add_silence,
    check_least,
)
from gafx.errors import UnreadableAudio, UsageError, require
from gafx.io import atomic_write
from gafx.process import check_output_open
from gafx.report.format import clock, plural, printable
from gafx.saving.catalogue import DEFAULT, default_model

if TYPE_CHECKING:
    from gafx.deploy.exported import ExportedModel
    from gafx.deploy.predict import Model, Prediction
    from gafx.deploy.writers import PerFile, Writer
    from gafx.inference import Probabilities
    from gafx.outputs import Outputs

DESCRIPTION = (
    "Label files of any length: each is cut into windows of the length that the model was trained on, and the "
    "probability of a label is the mean over the windows. With one label per clip the probabilities sum to 100 %. They "
    "are calibrated where the run had a validation part (data.protocol=..._val, or `gafx calibrate RUN` afterwards). "
    "Reads all formats of libsndfile: wav, flac, ogg, opus, mp3, au, aiff, caf, w64 and others; m4a, aac, wma, webm "
    "and the sound of videos with pip install 'gafx[formats]'. A file that cannot be read gets an `error` entry, a "
    "silent one no label, and the status is 1 after all others are labelled. Of one that is damaged, incomplete or "
    "joined of several, what can be read is labelled, with a `note`."
)
TOP = 5
_TRACKS = ("audacity", "raven")
_NAMED_ERRORS = 10
# With more files, the total length for the progress bar is not read from the headers beforehand.
_MAX_HEADERS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_files(parser)
    add_model(
        parser, action="append",
        help="run folder, model folder, hub id owner/name, a name of gafx list --pretrained, or the .onnx file of an "
        "exported model, which needs no PyTorch; repeat it to average "
        f"the probabilities of several models (default: {DEFAULT}, once it is in the cache)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, metavar="N", help="labels per file (default 5 in the table, else all: 0)")
    parser.add_argument("--over-time", action="store_true", help="also write the probabilities of every window")
    form = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "one JSON array"), ("jsonl", "one JSON object per line, written as soon as its file is done"),
        ("csv", "one row per file, or with --over-time per window"),
        ("audacity", "a label track of Audacity per file"), ("raven", "a selection table of Raven per file"),
    ):  # fmt: skip
        form.add_argument(f"--{name}", action="store_const", dest="form", const=name, help=what)
    parser.add_argument(
        "--merge", action="store_true", help="join neighbouring windows of the same label (with --over-time)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="write to this file instead of standard output; --audacity, --raven: to this folder, or NAME.txt",
    )  # fmt: skip
    parser.add_argument(
        "--segments", type=Path, metavar="DIR",
        help="copy the audio of merged windows into a folder per label, never over an existing file",
    )  # fmt: skip
    add_labels(parser)
    add_silence(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="DIR",
        help="plot each file as PNG: probabilities over time, waveform and map",
    )  # fmt: skip
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of windows, fraction of a window (0.5)")
    parser.add_argument(
        "--views", type=int, default=1, metavar="N",
        help="average each window over N circular shifts of it (default 1: none; N times the computation)",
    )  # fmt: skip
    add_computing(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Declare the audio files of a command."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE",
        help="files, folders (with subfolders), glob patterns, or - for a list of these on standard input",
    )  # fmt: skip
    add_shard(parser, "files")


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Declare the choice of labels."""
    parser.add_argument(
        "--labels", metavar="LIST",
        help='choose among these labels alone, as fractions: "Blues,hiphop=Hip hop music,voice=Speech+Singing"',
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, metavar="P",
        help="answer 'none of these' where the model's probability of every label is below P",
    )  # fmt: skip


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Declare how windows are computed."""
    parser.add_argument("--window", type=float, metavar="SECONDS", help="window length (default: the model's)")
    add_batch_size(parser, "windows")
    add_device(parser)
    add_precision(parser)
    parser.add_argument(
        "--readers", type=int, default=1, metavar="N", help="reader threads (default 1; with a GPU 4 or 8)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Label, and exit with status 1 where a file could not be read."""
    if parsed.top is not None and parsed.top < 0:
        raise UsageError(f"--top {parsed.top} must be at least 0 (0: all labels)")
    if parsed.plot is not None and parsed.plot.exists() and not parsed.plot.is_dir():
        raise UsageError(f"--plot {parsed.plot} is a file: name a folder for the plots")
    if parsed.plot is not None:
        require("matplotlib", "gafx predict --plot")
    if parsed.segments is not None and parsed.segments.exists() and not parsed.segments.is_dir():
        raise UsageError(f"--segments {parsed.segments} is a file: name a folder for the cut-outs")
    check_least(parsed, views=1)
    form = parsed.form or "table"
    from gafx.outputs import Outputs

    if parsed.output is None and form not in _TRACKS:
        check_output_open()
    if form not in _TRACKS and parsed.output is not None:
        Outputs().claim(parsed.output, "--output", announce=False)  # before any work
    top = (TOP if form == "table" else None) if parsed.top is None else parsed.top or None
    over_time = parsed.over_time or parsed.merge
    from gafx.deploy.exported import ExportedModel
    from gafx.deploy.labels import parse_labels
    from gafx.deploy.predict import predict_files, probabilities

    model = probabilities(parsed.model or default_model())
    if parsed.plot is not None and isinstance(model, ExportedModel):
        raise UsageError("--plot shows the map of the front-end, which an exported model does not give: name its run")
    labels = None if parsed.labels is None else parse_labels(parsed.labels, model.classes)
    classes = model.classes if labels is None else tuple(labels)
    whole, found = find(parsed)
    outputs = Outputs(whole)
    begin = time.perf_counter()
    errors: list[str] = []
    doubts: list[str] = []
    seconds, silent = 0.0, 0
    with (
        bar(found, "labelling") as progress,
        _writer(
            parsed,
            form,
            whole,
            outputs,
            classes,
            top=top,
            over_time=over_time,
            merge=parsed.merge,
            sample_rate=_rate(model),
        ) as (writer, on_screen),
    ):
        drawn = _Plots(model, parsed.plot, whole, outputs, progress) if parsed.plot else None
        cut = _CutOuts(parsed.segments, classes, progress) if parsed.segments else None
        for answer in predict_files(
            model, found, over_time=over_time or form in _TRACKS or drawn is not None or cut is not None,
            overlap=parsed.overlap, views=parsed.views, silence=parsed.silence, labels=labels,
            threshold=parsed.threshold, progress=progress, **computing(parsed),
        ):  # fmt: skip
            seconds += answer.seconds or 0.0
            silent += answer.silent
            if answer.error is not None:
                errors.append(f"{answer.file}: {answer.error}")
            if answer.note is not None:
                doubts.append(f"{answer.file}: {answer.note}")
            with progress.paused() if on_screen else nullcontext():
                writer.write(answer)
            if drawn is not None and answer.error is None:
                drawn.draw(answer)
            if cut is not None and answer.error is None:
                cut.write(answer)
    _summarise(model, len(found) - len(errors), seconds, time.perf_counter() - begin, parsed.views)
    if silent:
        print(f"{silent:,} of them silent (below {parsed.silence:g} dBFS), without a label", file=sys.stderr)
    if cut is not None:
        print(f"{plural(cut.cutter.count, 'cut-out')} written to {printable(parsed.segments)}", file=sys.stderr)
    end_with(errors, doubts)
    failed = [(each.failed, what) for each, what in ((drawn, "plotted"), (cut, "cut")) if each and each.failed]
    for count, what in failed:
        print(f"{plural(count, 'file')} could not be {what}", file=sys.stderr)
    if failed:
        sys.exit(1)


@contextmanager
def _writer(
    parsed: argparse.Namespace,
    form: str,
    files: list[str],
    outputs: "Outputs",
    classes: tuple[str, ...],
    **options: Any,
) -> Iterator[tuple["Writer | PerFile", bool]]:
    """The writer of the chosen format, and whether it writes to standard output.

    What depends on the other files (their number, names and width) depends on those of all shards.
    """
    from gafx.deploy.files import output_names
    from gafx.deploy.writers import WRITERS, PerFile

    path = parsed.output
    if form in _TRACKS:
        if path is None and len(files) > 1:
            raise UsageError(f"--{form} writes a file for each of the {len(files)} files: name a folder with --output")
        if path is not None and len(files) > 1 and path.suffix == ".txt" and not path.is_dir():
            raise UsageError(
                f"--output {path} is a file for one input, and --{form} writes one for each of the {len(files)} files: "
                "name a folder"
            )
        if path is not None and (len(files) > 1 or path.suffix != ".txt" or path.is_dir()):
            if path.exists() and not path.is_dir():
                raise UsageError(f"--output {path} is a file: name a folder for what --{form} writes")
            names = output_names(files, WRITERS[form].suffix)
            with PerFile(WRITERS[form], path, outputs, names, classes, **options) as tracks:
                yield tracks, False
            return
    if path is not None:
        outputs.claim(path, "--output")
    with destination(path) as out, WRITERS[form](out, classes, files=files, **options) as writer:
        yield writer, out is sys.stdout


def _rate(model: "Model") -> int:
    """The highest sampling rate at which a model hears the files."""
    return max(each.info.sample_rate for each in getattr(model, "members", [model]))


def find(parsed: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Find the files that the command names; log how many files of the folders are not audio.

    Returns:
        all files, and those of `--shard`.

    Raises:
        UsageError: there is none.
    """
    from gafx.deploy.files import find_files

    # File names that are no valid text are printed with escapes.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    found = find_files(parsed.files, sys.stdin.buffer if "-" in parsed.files else ())
    if not found.files:
        raise UsageError("no file: the list on standard input is empty")
    if found.passed_over:
        print(f"skipped {plural(found.passed_over, 'file')} without an audio extension", file=sys.stderr)
    files = parsed.shard.of(found.files)
    if parsed.shard.count > 1:
        print(f"shard {parsed.shard}: {len(files):,} of {plural(len(found.files), 'file')}", file=sys.stderr)
    return found.files, files


def computing(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_computing` as keyword arguments."""
    return {
        "window_seconds": parsed.window, "batch_size": parsed.batch_size, "device": parsed.device,
        "precision": parsed.precision, "readers": parsed.readers,
    }  # fmt: skip


def end_with(errors: list[str], doubts: list[str]) -> None:
    """List the files that are doubtful and those that could not be read, and exit with status 1 if there is an error.

    Args:
        errors: files that could not be read, each with its reason.
        doubts: files of which that was read which can be, each with its note.
    """
    _name_some(doubts, f"{plural(len(doubts), 'file')} doubtful, what can be read of them is used", "note")
    _name_some(errors, f"{plural(len(errors), 'file')} could not be read", "error")
    if errors:
        sys.exit(1)


def _name_some(files: list[str], heading: str, column: str) -> None:
    if files:
        print(f"{heading}:", file=sys.stderr)
    for file in files[:_NAMED_ERRORS]:
        print(f"  {printable(file)}", file=sys.stderr)
    if len(files) > _NAMED_ERRORS:
        print(f"  and {len(files) - _NAMED_ERRORS} more, each with its {column} in the output", file=sys.stderr)


class Progress:
    """Progress bar over seconds of audio; does nothing where standard error is no terminal."""

    def __init__(self, files: list[str], what: str):
        from tqdm import tqdm

        visible = sys.stderr.isatty()
        self.bar = tqdm(
            total=_length_of(files) if visible and len(files) <= _MAX_HEADERS else None, desc=what, unit="s",
            unit_scale=True, disable=not visible, smoothing=0.1,
        )  # fmt: skip

    def __call__(self, seconds: float) -> None:
        self.bar.update(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear the bar while a line is printed above it."""
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
        if progress.bar.total:  # remainders and files that cannot be decoded
            progress(max(0.0, progress.bar.total - progress.bar.n))
    finally:
        progress.bar.close()


def _length_of(files: list[str]) -> float | None:
    """Seconds of audio by the headers; `None` where none can be read."""
    from gafx.audio.read import header_seconds

    return sum(map(header_seconds, files)) or None


@contextmanager
def destination(path: Path | None) -> Iterator[IO[str]]:
    """Open standard output, or a file that is replaced atomically when the block ends.

    A link is followed; a pipe or a device is written to directly.
    """
    if path is None:
        yield sys.stdout
        return
    path = Path(os.path.realpath(path))
    form: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    special = path.exists() and not path.is_file()
    if not special:
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", **form) if special else atomic_write(path, **form) as out:
        yield out


def _summarise(model: "Model", files: int, seconds: float, took: float, views: int) -> None:
    names, models = getattr(model, "names", ["the model"]), getattr(model, "members", [model])
    members = dict(zip(names, models, strict=True))
    how = f", mean of {plural(len(members), 'model')}" if len(members) > 1 else ""
    how += f", mean over {plural(views, 'view')} (circular shifts) of each window" if views > 1 else ""
    speed = f", {files / took:.1f} files/s, {seconds / took:.0f} times real time" if took > 0 and files else ""
    print(f"{plural(files, 'file')} labelled, {clock(seconds)} of audio{speed}{how}", file=sys.stderr)
    without = {name: member for name, member in members.items() if not member.info.calibration}
    if files and without:
        what = f"{' and '.join(without)} {'has' if len(without) == 1 else 'have'} no temperature"
        cures = "; ".join(dict.fromkeys(map(_calibration_cure, without.values())))
        print(f"the probabilities are not calibrated: {what}. {cures}", file=sys.stderr)


def _calibration_cure(model: "Probabilities | ExportedModel") -> str:
    from gafx.deploy.exported import ExportedModel

    if isinstance(model, ExportedModel):
        return "Calibrate its run with gafx calibrate RUN, and export it again"
    info = model.info
    if not info.training:
        return "Those of a published model are as it was published"
    if "frozen model" in info.training:
        return "gafx fit needs more recordings of each class to fit one"
    return (
        "Train under a protocol with a validation part (data.protocol=..._val), or, for such a run of an older "
        "version, gafx calibrate RUN"
    )


class _Plots:
    """Plots of files in one folder, each under a unique name."""

    def __init__(
        self, model: "Model", folder: Path, files: list[str], outputs: "Outputs", progress: Progress
    ):  # fmt: skip
        from gafx.deploy.files import output_names

        # Of an ensemble the figure shows the map of the first model.
        self.model = getattr(model, "members", [model])[0]
        self.folder, self.outputs, self.progress = folder, outputs, progress
        self.names = output_names(files, ".png")
        self.failed = 0
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, answer: "Prediction") -> None:
        from gafx.deploy.plot import draw, observe, write

        if answer.silent:
            with self.progress.paused():
                print(f"{printable(answer.file)} is not plotted: it is silent", file=sys.stderr)
            return
        try:
            observed = observe(self.model.model, answer.file, any_format=True)
            path = self.outputs.claim(self.folder / self.names[answer.file], "--plot")
            write(draw(answer, observed), path)
        except (UsageError, OSError) as error:  # shorter than any map; gone since, no room
            self.failed += isinstance(error, (UnreadableAudio, OSError))
            with self.progress.paused():
                print(f"{printable(answer.file)} is not plotted: it {error}", file=sys.stderr)


class _CutOuts:
    """Cut-outs of files; those that cannot be written are named on standard error."""

    def __init__(self, folder: Path, classes: tuple[str, ...], progress: Progress):
        from gafx.deploy.cut_outs import Cutter

        self.cutter, self.progress, self.failed = Cutter(folder, classes), progress, 0

    def write(self, answer: "Prediction") -> None:
        try:
            self.cutter.cut(answer)
        except (UnreadableAudio, OSError) as error:  # gone since, no room
            self.failed += 1
            with self.progress.paused():
                print(f"{printable(answer.file)} is not cut: it {error}", file=sys.stderr)
