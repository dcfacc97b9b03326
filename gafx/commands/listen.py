"""`gafx listen`: label the microphone, or raw PCM on standard input, while it comes."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from io import BufferedReader
from typing import TYPE_CHECKING, Any, cast

from gafx.commands.options import add_device, add_model, add_precision, add_silence, check_least
from gafx.commands.predict import TOP, add_labels
from gafx.errors import UsageError
from gafx.process import check_output_open
from gafx.report.format import clock, fraction, latency, plural, printable, text_table
from gafx.saving.catalogue import DEFAULT, default_model

if TYPE_CHECKING:
    from gafx.deploy.stream import StreamWindow

DESCRIPTION = (
    "Label a stream window by window: each line is written as soon as the window's last sample has come. Without an "
    "argument it listens to the microphone (pip install 'gafx[listen]'); Ctrl-C ends it. With - it reads raw PCM from "
    "standard input: ffmpeg -i SOURCE -f s16le -ar 16000 -ac 1 - | gafx listen - --rate 16000 --channels 1. The "
    "windows and probabilities are those of gafx predict --over-time. The latency, from the arrival of a window's last "
    "sample to its answer, is reported at the end, and so is sound that was lost because computing took too long."
)
_FORMATS = {"s16le": "int16", "s32le": "int32", "u8": "uint8", "f32le": "float32"}
# Beginnings of files, which are no raw PCM.
_FILES = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\x1aE\xdf\xa3")
_READ_SECONDS = 0.05
# Latencies of which the median is taken, of the latest windows: an endless stream must not fill the memory.
_KEPT = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "source", nargs="?", choices=["-"], metavar="-", help="raw PCM from standard input (default: the microphone)"
    )
    add_model(
        parser,
        help="run folder, model folder, hub id owner/name, or a name of gafx list --pretrained (default: "
        f"{DEFAULT}, once it is in the cache)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, metavar="N", help=f"labels per window (default {TOP}, with --jsonl all: 0)")
    parser.add_argument("--jsonl", action="store_true", help="one JSON object per line and window")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="window length (default: the model's)")
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--hop", type=float, metavar="SECONDS", help="time between two windows (default: half a window)")
    step.add_argument("--overlap", type=float, metavar="X", help="the same as fraction of a window (default 0.5)")
    parser.add_argument("--seconds", type=float, metavar="X", help="end after this much sound (default: never)")
    parser.add_argument(
        "--rate",
        type=int,
        metavar="HZ",
        help="sampling rate (default: the microphone's; of standard input the model's)",
    )
    parser.add_argument(
        "--channels", type=int, metavar="N", help="channels (default: 1; of standard input, interleaved, the model's)"
    )
    parser.add_argument(
        "--format", choices=[*_FORMATS], default="s16le", help="samples of standard input, as ffmpeg calls them (s16le)"
    )
    parser.add_argument("--input-device", metavar="NAME", help="microphone: its number or a part of its name")
    parser.add_argument("--list-devices", action="store_true", help="list the microphones and end")
    add_labels(parser)
    add_silence(parser)
    add_device(parser)
    add_precision(parser)


def run(parsed: argparse.Namespace) -> None:
    """Label until the stream ends, or until Ctrl-C."""
    check_least(parsed, top=0, rate=1, channels=1)
    check_output_open()
    if parsed.seconds is not None and not parsed.seconds > 0:
        raise UsageError(f"--seconds {parsed.seconds:g} must be above 0")
    if parsed.list_devices:
        _list_devices()
        return
    if parsed.source and parsed.input_device:
        raise UsageError("--input-device chooses a microphone, and - is standard input: leave one out")
    if parsed.source and sys.stdin.isatty():
        raise UsageError("standard input is the terminal: pipe raw PCM into gafx listen -, or leave - out to record")
    from gafx.deploy.labels import parse_labels
    from gafx.deploy.predict import choose
    from gafx.deploy.stream import ChunkReader, answers, single, stream_layout

    model = single(parsed.model or default_model())
    layout = stream_layout(model, overlap=parsed.overlap, hop_seconds=parsed.hop, window_seconds=parsed.window)
    labels = None if parsed.labels is None else parse_labels(parsed.labels, model.classes)
    choice = choose(model, labels, parsed.threshold)
    source = _Pipe(parsed, layout.sample_rate, layout.channels) if parsed.source else _microphone(parsed)
    kind = _FORMATS[parsed.format] if parsed.source else "int16"
    print(
        f"{printable(source.name)}: {source.sample_rate} Hz, {plural(source.channels, 'channel')}; a window of "
        f"{layout.window / layout.sample_rate:.3g} s every {layout.hop / layout.sample_rate:.3g} s",
        file=sys.stderr,
    )  # fmt: skip
    measured = _Measured()
    width = source.channels * ChunkReader(source.channels, kind).dtype.itemsize
    limit = None if parsed.seconds is None else round(parsed.seconds * source.sample_rate) * width
    counted = _Limited(limit)
    interrupted = False
    try:
        with source:
            for start, blocks in source.pieces():
                read = ChunkReader(source.channels, kind)
                for window in answers(
                    model, counted(blocks), source.sample_rate, layout, read, silence=parsed.silence, choice=choice,
                    threshold=parsed.threshold, device=parsed.device, precision=parsed.precision,
                ):  # fmt: skip
                    measured.add(window)
                    _write(start, window, parsed, min(0.1, layout.hop / layout.sample_rate))
                if counted.is_over:
                    break
    except KeyboardInterrupt:  # a microphone has no other end
        interrupted = bool(parsed.source)
    _summarise(measured, source, counted.bytes / width / source.sample_rate)
    if interrupted:
        raise KeyboardInterrupt


class _Pipe(AbstractContextManager["_Pipe"]):
    """Raw PCM on standard input, with the interface of `gafx.deploy.microphone.Microphone`."""

    name = "standard input"
    dropped = overflows = 0
    dropped_seconds = 0.0

    def __init__(self, parsed: argparse.Namespace, sample_rate: int, channels: int):
        from gafx.audio.decode import check_rate

        self.sample_rate, self.channels = check_rate(parsed.rate or sample_rate), parsed.channels or channels

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""

    def pieces(self) -> Iterator[tuple[float, Iterator[tuple[float, bytes]]]]:
        yield 0.0, self._blocks()

    def _blocks(self) -> Iterator[tuple[float, bytes]]:
        # At most this much at once, so that a source faster than the sound's own time is timed by window too.
        most = max(1, round(_READ_SECONDS * self.sample_rate)) * self.channels * 4
        first, stdin = True, cast(BufferedReader, sys.stdin.buffer)
        while content := stdin.read1(most):
            moment = time.perf_counter()
            if first and (content.startswith(_FILES) or content[4:8] == b"ftyp"):
                raise UsageError(
                    "standard input begins like a file of sound, and raw PCM is wanted: gafx predict labels files; for "
                    "a stream, ffmpeg -i - -f s16le -ar 16000 -ac 1 - | gafx listen - --rate 16000 --channels 1"
                )
            first = False
            yield moment, content


def _microphone(parsed: argparse.Namespace) -> Any:
    from gafx.deploy.microphone import Microphone

    if parsed.format != "s16le":
        raise UsageError(f"--format {parsed.format} is of standard input (gafx listen -): a microphone needs none")
    return Microphone(parsed.input_device, parsed.rate, parsed.channels)


class _Limited:
    """Blocks up to a number of bytes over all pieces; counts them."""

    def __init__(self, limit: int | None):
        self.limit, self.bytes = limit, 0

    @property
    def is_over(self) -> bool:
        return self.limit is not None and self.bytes >= self.limit

    def __call__(self, blocks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
        for moment, content in blocks:
            content = content if self.limit is None else content[: self.limit - self.bytes]
            self.bytes += len(content)
            yield moment, content
            if self.is_over:
                return


class _Measured:
    """Latency and time of computing of the windows."""

    def __init__(self) -> None:
        self.windows, self.computing, self.longest = 0, 0.0, 0.0
        self.latencies: deque[float] = deque(maxlen=_KEPT)

    def add(self, window: "StreamWindow") -> None:
        self.windows += 1
        self.computing += window.computing
        self.longest = max(self.longest, window.latency)
        self.latencies.append(window.latency)


def _write(offset: float, window: "StreamWindow", parsed: argparse.Namespace, step: float) -> None:
    """Write one window, whose piece of the recording begins `offset` seconds after the first sample.

    `step`: of the times, see `clock`.
    """
    from gafx.deploy.writers import answer, json_line

    window = replace(window, start=offset + window.start, end=offset + window.end)
    top = (None if parsed.jsonl else TOP) if parsed.top is None else parsed.top or None
    if parsed.jsonl:
        line = json_line(window.to_dict(top), sys.stdout)
    else:
        text = answer(window.label, window.classes, window.probabilities, window.level, top)
        line = f"{clock(window.start, step):>8} to {clock(window.end, step):<8}  {text}"
    print(line, flush=True)


def _summarise(measured: _Measured, source: Any, seconds: float) -> None:
    """Report the latency, and what was lost; nothing but an error where not one window came."""
    from statistics import median

    if not measured.windows:
        raise UsageError(
            f"no window: {source.name} ended before its first sample"
            if not seconds
            else f"no window: the sound was ended after {seconds:.1f} s, before the first one"
        )
    share = measured.computing / seconds
    print(
        f"{plural(measured.windows, 'window')}, {clock(seconds, 0.1)} of sound; latency from a window's last sample to "
        f"its answer: median {latency(median(measured.latencies))}, at most {latency(measured.longest)}; "
        f"computing took {fraction(share)} of the sound's time",
        file=sys.stderr,
    )
    cure = "choose a longer --hop, or a faster --device"
    if source.dropped or source.overflows:
        lost = []
        if source.dropped:
            lost.append(
                f"{plural(source.dropped, 'block')} ({source.dropped_seconds:.1f} s) because computing did not keep up"
            )
        if source.overflows:
            lost.append(f"{plural(source.overflows, 'time')} an unknown amount in the sound system")
        print(
            f"sound was lost: {' and '.join(lost)}; windows end before a gap and begin again after it; {cure}",
            file=sys.stderr,
        )
    elif share > 1:
        print(f"computing did not keep up with the sound: the source had to wait; {cure}", file=sys.stderr)


def _list_devices() -> None:
    from gafx.deploy.microphone import devices

    rows = [
        [str(number), printable(name), str(channels), f"{rate} Hz", "default" if is_default else ""]
        for number, name, channels, rate, is_default in devices()
    ]
    if not rows:
        raise UsageError("there is no microphone: connect one, or pipe raw PCM to gafx listen -")
    print(text_table(["number", "name", "channels", "rate", ""], rows))
