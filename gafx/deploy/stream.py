"""Label a stream (a microphone, a radio, a pipe) window by window while it comes."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from gafx.audio.decode import FULL_SCALE, check_rate, check_values, mix_channels, scale
from gafx.audio.level import SILENCE, check_silence, level
from gafx.audio.read import Samples, resample_blocks
from gafx.data.segments import OVERLAP
from gafx.deploy.inputs import to_numpy
from gafx.deploy.labels import Choice, Labels, fractions, label_of
from gafx.deploy.predict import DIGITS, Source, choose, layout_of, probabilities, ranked, runner
from gafx.deploy.windows import Array, Layout, Run
from gafx.errors import UnreadableAudio, UsageError
from gafx.report.format import plural

if TYPE_CHECKING:
    from gafx.deploy.exported import ExportedModel
    from gafx.inference import Probabilities

_log = logging.getLogger("gafx")
# Channels of a recording (7.1); more rows than that, and than columns, are samples in the wrong place.
_MOST_CHANNELS = 8


@dataclass(frozen=True)
class StreamWindow:
    """Label probabilities of one window of a stream.

    Attributes:
        start: seconds from the first sample of the stream.
        end: seconds from the first sample of the stream.
        classes: labels of the model, or the chosen ones.
        probabilities: `(classes,)`; None where it is silent.
        level: of its loudest 50 ms in dBFS, see `gafx.audio.level`.
        silent: whether the level is below that of silence: it then has no label.
        latency: seconds from the arrival of the chunk with the window's last sample to the answer.
        computing: seconds of these in which the window was computed.
        model_probabilities: `(classes,)` the model's own probabilities of chosen labels, before they are divided by
            their sum; None if no labels were chosen, and where `probabilities` is None.
        threshold: as of `gafx.deploy.predict.Prediction`.
    """

    start: float
    end: float
    classes: tuple[str, ...]
    probabilities: Array | None
    level: float
    silent: bool
    latency: float
    computing: float
    model_probabilities: Array | None = None
    threshold: float | None = None

    @property
    def label(self) -> str | None:
        """The most probable label, `none of these` below the threshold; None where it is silent."""
        if self.probabilities is None:
            return None
        return label_of(self.classes, self.probabilities, self.model_probabilities, self.threshold)

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` most probable labels (default: all) and their probabilities, largest first."""
        return [] if self.probabilities is None else ranked(self.classes, self.probabilities, count)

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """The window as JSON takes it, with the `top` most probable labels (default: all), largest first.

        A silent one has `"silent": true` instead; a `level_db` of None is that of a constant.
        """
        entry: dict[str, Any] = {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "latency": round(self.latency, 4),
        }
        entry |= {"silent": True} if self.silent else {"label": self.label, "probabilities": _rounded(self.top(top))}
        entry["level_db"] = round(self.level, 2) if math.isfinite(self.level) else None
        if self.model_probabilities is not None:
            entry["model_probabilities"] = _rounded(ranked(self.classes, self.model_probabilities, top))
        return entry


def _rounded(labels: list[tuple[str, float]]) -> dict[str, float]:
    return {label: round(value, DIGITS) for label, value in labels}


def stream(
    model: Source, chunks: Iterable[Any], sample_rate: float, *, channels: int = 1, dtype: str = "int16",
    overlap: float | None = None, hop_seconds: float | None = None, window_seconds: float | None = None,
    silence: float | None = SILENCE, labels: Labels | None = None, threshold: float | None = None,
    device: str = "auto", precision: str = "fp32",
) -> Iterator[StreamWindow]:  # fmt: skip
    """Label a stream; each window is answered as soon as its last sample has come.

    Windows and probabilities are those of a file with the same samples, `predict_files(..., over_time=True)`: a
    remainder at the end is the last window, moved back, and a stream shorter than a window is one window. They are
    equal to the bit with `batch_size=1` there; in larger batches, sums are rounded in another order (1e-6). Memory does
    not grow with the length of the stream.

    The resampler needs some samples after the last one of a window, 20 to 60 ms (0.12 s at 8 kHz), which the latency
    includes; at the model's own rate it needs none.

    Args:
        model: as for `predict`, but no ensemble; it is moved to the device and set to eval mode.
        chunks: pieces of any size, in order: arrays or tensors `(samples,)` or `(channels, samples)`, of floats in
            [-1, 1] or of int16, int32 or uint8, which are scaled; or bytes of PCM. Empty ones are skipped.
        sample_rate: of the stream in Hz; it is resampled to the model's.
        channels: of chunks of bytes, interleaved. Channels are mixed as those of files.
        dtype: of the samples in chunks of bytes: `int16`, `int32`, `uint8` or `float32`.
        overlap: of consecutive windows, as a fraction of a window in [0, 1); default 0.5, as for files.
        hop_seconds: distance of the starts of two windows, instead of `overlap`.
        window_seconds: length of a window; default: the length of the clips that the model was built for.
        silence: level in dBFS below which a window is `silent`; None for none.
        labels, threshold: as of `gafx.deploy.predict.predict_files`.
        device: `auto`, `cpu`, `cuda`, `cuda:<index>` or `mps`.
        precision: `fp32`, `bf16`, `fp16` or `auto`.

    Raises:
        UsageError: an argument out of range, before the first chunk; later, a chunk of another type or number of
            channels than the first, one that holds NaN, or samples that are not in [-1, 1].
    """
    if not isinstance(chunks, Iterable) or hasattr(chunks, "__array__") or isinstance(chunks, (str, bytes, bytearray)):
        raise UsageError(
            f"the chunks are a {type(chunks).__name__}: give a list or an iterator "
            "of arrays or bytes, [samples] for one; files are labelled by gafx.predict"
        )
    run = single(model)
    layout = stream_layout(run, overlap=overlap, hop_seconds=hop_seconds, window_seconds=window_seconds)
    read = ChunkReader(channels, dtype)
    arrived = ((time.perf_counter(), chunk) for chunk in chunks)
    return answers(
        run, arrived, check_rate(sample_rate), layout, read, silence=check_silence(silence),
        choice=choose(run, labels, threshold), threshold=threshold, device=device, precision=precision,
    )  # fmt: skip


def single(model: Source) -> "Probabilities | ExportedModel":
    """Calibrated probabilities of one model, which is loaded where it is a name.

    Raises:
        UsageError: no model there, one that predicts no labels, or an ensemble.
    """
    labels = probabilities(model)
    if hasattr(labels, "members"):
        raise UsageError("a stream is labelled by one model, not by an ensemble: give one")
    return labels


def stream_layout(
    model: "Probabilities | ExportedModel", *, overlap: float | None, hop_seconds: float | None,
    window_seconds: float | None,
) -> Layout:  # fmt: skip
    """The windows of a stream, by their overlap or by their hop.

    Raises:
        UsageError: both, or a value out of range. A hop above the length of a window would leave samples out.
    """
    if hop_seconds is None:
        overlap = OVERLAP if overlap is None else overlap
        return layout_of(model, overlap=overlap, window_seconds=window_seconds)
    layout = layout_of(model, window_seconds=window_seconds)
    if overlap is not None:
        raise UsageError(f"hop_seconds={hop_seconds:g} and overlap={overlap:g} say the same twice: give one of them")
    hop = round(hop_seconds * layout.sample_rate) if np.isfinite(hop_seconds) else 0
    if not 0 < hop <= layout.window:
        length = layout.window / layout.sample_rate
        raise UsageError(f"a hop of {hop_seconds:g} s must be above 0 and at most a window, {length:g} s")
    return replace(layout, hop=hop)


def answers(
    model: "Probabilities | ExportedModel", arrived: Iterable[tuple[float, Any]], sample_rate: int, layout: Layout,
    read: "ChunkReader", *, silence: float | None, choice: Choice | None, threshold: float | None, device: str,
    precision: str,
) -> Iterator[StreamWindow]:  # fmt: skip
    """Label a stream of chunks whose arrival was timed elsewhere; the work of `stream`.

    Args:
        model: gives the probabilities.
        arrived: `time.perf_counter()` at the arrival of each chunk, and the chunk.
        sample_rate: of the chunks in Hz.
        layout: of the windows.
        read: samples of the chunks.
        silence: level in dBFS below which a window is silent; None for none.
        choice, threshold: of labels, see `gafx.deploy.predict.choose`.
        device, precision: to compute on, and in.
    """
    run = runner(model, device, precision)
    return _answers(model.classes, arrived, sample_rate, layout, read, silence, choice, threshold, run)


def _answers(
    classes: tuple[str, ...], arrived: Iterable[tuple[float, Any]], sample_rate: int, layout: Layout,
    read: "ChunkReader", silence: float | None, choice: Choice | None, threshold: float | None, run: Run,
) -> Iterator[StreamWindow]:  # fmt: skip
    # Samples of the stream, at its own rate, up to the end of each chunk, and when it came.
    ends: deque[tuple[int, float]] = deque()
    came = total = 0

    def decoded() -> Iterator[tuple[int, Samples]]:
        nonlocal came
        for moment, chunk in arrived:
            samples = read(chunk)
            if len(samples):
                came += len(samples)
                ends.append((came, moment))
                yield sample_rate, mix_channels(samples, layout.channels)
        read.end()

    def counted(blocks: Iterable[Samples]) -> Iterator[Samples]:
        nonlocal total
        for block in blocks:
            total += block.shape[1]
            yield block

    resampled = resample_blocks(decoded(), layout.sample_rate, layout.channels)
    if (first := next(resampled, None)) is None:
        return
    for start, wave in layout.cut(counted(chain([first], resampled))):
        end = min(start + wave.shape[1], total)
        while len(ends) > 1 and ends[0][0] * layout.sample_rate < end * sample_rate:
            ends.popleft()
        begin = time.perf_counter()
        values = run(wave[None])[0].astype(np.float64)
        done = time.perf_counter()
        span = (start / layout.sample_rate, end / layout.sample_rate)
        if not np.isfinite(values).all():
            raise UsageError(
                f"the model's output from {span[0]:.2f} to {span[1]:.2f} s is not finite: try precision=fp32"
            )
        loudness = level(wave, layout.sample_rate)
        silent = silence is not None and loudness < silence
        own = choice.of_model(values) if choice and not silent else None
        yield StreamWindow(
            *span, choice.names if choice else classes, None if silent else values if own is None else fractions(own),
            loudness, silent, done - ends[0][1], done - begin, own, threshold,
        )  # fmt: skip


class ChunkReader:
    """Samples `(samples, channels)` of the chunks of one stream, all of the kind of the first.

    Args:
        channels: of chunks of bytes.
        dtype: of chunks of bytes.

    Raises:
        UsageError: an argument out of range; when called, a chunk that cannot be used.
    """

    def __init__(self, channels: int = 1, dtype: str = "int16"):
        kinds = [np.dtype(name).name for name in (*FULL_SCALE, "f4")]
        if dtype not in kinds:
            raise UsageError(f"dtype={dtype!r} must be one of {', '.join(kinds)}: the samples in chunks of bytes")
        if channels < 1:
            raise UsageError(f"channels={channels} must be at least 1")
        self.channels, self.dtype = channels, np.dtype(dtype).newbyteorder("<")
        self.count = 0
        self._rest = b""  # of a sample that the next chunk completes
        self._kind: tuple[str, int] | None = None

    def __call__(self, chunk: Any) -> Samples:
        try:
            samples = self._samples(chunk)
            check_values(samples)
        except UsageError as error:
            colon = "" if isinstance(error, UnreadableAudio) else ":"
            raise UsageError(f"chunk {self.count} of the stream{colon} {error}") from error
        self.count += 1
        return samples

    def end(self) -> None:
        """Log that bytes are left that are no whole sample: then rate, channels or type of the others are wrong too."""
        if self._rest:
            _log.warning(
                "the stream ended within a sample: %d of its %d bytes (%s, %s) were left over. Check the type of the "
                "samples and the number of channels; all labels may be wrong",
                len(self._rest), self.dtype.itemsize * self.channels, plural(self.channels, "channel"), self.dtype.name,
            )  # fmt: skip

    def _samples(self, chunk: Any) -> Samples:
        if isinstance(chunk, (bytes, bytearray, memoryview)):
            content = self._rest + bytes(chunk)
            whole = len(content) // (self.dtype.itemsize * self.channels) * self.dtype.itemsize * self.channels
            self._rest = content[whole:]
            values = np.frombuffer(content[:whole], self.dtype).reshape(-1, self.channels)
        else:
            values = _array(chunk)
        if not values.size:
            return np.zeros((0, 1), np.float32)
        if values.dtype.kind != "f" and values.dtype.str[1:] not in FULL_SCALE:
            cure = (
                "chunk.astype('float32') / 32768 for values of 16 bits" if values.dtype.kind in "iu" else "as float32"
            )
            raise UnreadableAudio(
                f"holds {values.dtype}: give floats in [-1, 1] ({cure}), or PCM as int16, int32 or uint8, whose full "
                "scale is known"
            )
        kind = (values.dtype.name, values.shape[1])
        if kind != (self._kind or kind):
            assert self._kind is not None
            raise UnreadableAudio(
                f"has {kind[1]} channel(s) of {kind[0]}, and those before have {self._kind[1]} of {self._kind[0]}: "
                "give all chunks of a stream in one form"
            )
        self._kind = kind
        return scale(values)


def _array(chunk: Any) -> np.ndarray:
    """`(samples, channels)` of an array or a tensor."""
    if not hasattr(chunk, "__array__"):
        raise UnreadableAudio(f"is a {type(chunk).__name__}: give an array, a tensor, or bytes of PCM")
    array = to_numpy(chunk)
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise UnreadableAudio(f"has the shape {array.shape}: give (samples,) or (channels, samples)")
    if array.shape[0] > max(_MOST_CHANNELS, array.shape[1]):
        raise UnreadableAudio(
            f"has the shape {array.shape}, which would be {array.shape[0]} channels: transpose it to (channels, "
            "samples)"
        )
    return array.T
