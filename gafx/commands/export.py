"""`gafx export`: a trained model as a file that runs without gafx."""

import argparse
import sys
from pathlib import Path
from typing import Any

from gafx.commands.options import add_model, check_model
from gafx.errors import UsageError
from gafx.process import print_made
from gafx.report.format import plural, size

DESCRIPTION = (
    "Write a trained model as one file, waves in and calibrated probabilities out, and a JSON file that describes its "
    "inputs and outputs. The file is run and compared with the model; it is deleted where they differ by more than "
    "1e-4 (before --quantize). Prints the file's path. ONNX needs pip install 'gafx[export]'."
)
_FORMATS = ("onnx", "torch_export")
_QUANTIZATIONS = ("int8",)
# Seconds of a file that the check reads at most.
_MOST_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, "source")
    parser.add_argument("--format", choices=_FORMATS, default="onnx", help="default: onnx, which onnxruntime runs")
    parser.add_argument(
        "--quantize", choices=_QUANTIZATIONS,
        help="ONNX: the classifier's weight matrices in 8 bits, as model_int8.onnx: a smaller and faster file, whose "
        "largest difference on the files of --audio is printed",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the file (default: RUN/export)")
    parser.add_argument(
        "--audio", nargs="+", default=[], metavar="FILE", help="files for the check (default: a synthetic signal)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Export, and print the path; on standard error shapes, fixed sizes and the largest difference found."""
    check_model(parsed.source)
    from gafx.deploy.export import FORMATS, TOLERANCE, check_format, export
    from gafx.inference import Probabilities
    from gafx.loading import load

    check_format(parsed.format, parsed.quantize)
    model = Probabilities(load(parsed.source))
    info = model.info
    audio = [_read(file, info.sample_rate, info.channels, info.segment_seconds) for file in parsed.audio]
    folder = parsed.output or default_folder(parsed.source)
    name = f"model{FORMATS[parsed.format]}" if parsed.quantize is None else f"model_{parsed.quantize}.onnx"
    made = export(model, folder / name, format=parsed.format, audio=audio, quantize=parsed.quantize)
    rate, window = info.sample_rate, made.window_samples
    if made.fixed is None:
        length = f"{made.least_samples} to {window} samples ({made.least_samples / rate:.2f} to {window / rate:.2f} s)"
    else:
        length = f"fixed, {window} samples ({window / rate:.2f} s), since {made.fixed}"
    sizes = ", ".join(f"{batch} x {samples}" for batch, samples in made.checks)
    on = plural(len(audio), "file") if audio else "a synthetic signal"
    by = "onnxruntime" if parsed.format == "onnx" else "the loaded program"
    allowed = f"allowed {TOLERANCE:g}" if made.quantization is None else f"of {made.quantization} weights"
    for line in (
        f"wave: (batch, {info.channels}, samples) float32 at {rate} Hz; batch: any; length: {length}",
        f"probabilities: (batch, {len(info.classes)}) float32, "
        f"{'each row sums to 1' if model.sums_to_one else 'labels are independent'}, temperature {info.temperature:g}",
        f"checked with {by} on {on} ({sizes}): largest difference {made.difference:.1e}, {allowed}",
        f"{size(made.path.stat().st_size)}; inputs and outputs: {made.description}",
    ):
        print(line, file=sys.stderr)
    print_made(made.path)


def default_folder(source: str) -> Path:
    """Default folder of an export: in the run, next to a saved model, or in the working directory for one of the hub.

    It is never in a saved model's own folder: `GAFX.save` refuses to replace a folder with other files in it.
    """
    path = Path(source)
    if not path.exists():
        return Path(f"{path.name}-export")
    path = path.resolve()
    if not (path / "config.json").is_file():
        return path / "export"
    return path.parent / ("export" if path.name == "model" else f"{path.name}-export")


def _read(file: str, sample_rate: int, channels: int, window_seconds: float) -> Any:
    """Read the beginning of a file as float32 `(channels, samples)`."""
    import numpy as np

    from gafx.audio.read import stream
    from gafx.errors import UnreadableAudio

    most = round(max(_MOST_SECONDS, 2 * window_seconds) * sample_rate)
    blocks, samples = [], 0
    try:
        for block in stream(file, sample_rate=sample_rate, channels=channels, any_format=True):
            blocks.append(block)
            samples += block.shape[1]
            if samples >= most:
                break
    except UnreadableAudio as error:
        raise UsageError(f"--audio {file} {error}; name another file to check the model on") from error
    return np.concatenate(blocks, axis=1)[:, :most]
