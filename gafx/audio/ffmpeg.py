"""Decode what libsndfile does not read (m4a, aac, wma, webm, the sound of videos) with FFmpeg, through PyAV.

Only files that the user names come here, never those of data sets. FFmpeg reads from the opened file and is told the
format (`gafx.audio.formats`), so that no file's content or name makes it open anything else.

The samples that an encoder adds before and after the sound are dropped where the container tells their number: in mp4
and m4a (edit list, durations of packets) and in webm (Opus). Other containers do not say: raw AAC, for one, begins with
the encoder's delay. Times count from the first sample of the sound, also where a video begins earlier.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from gafx.audio.decode import CONVERT, Samples, check_header, check_values, mix_channels, scale
from gafx.audio.formats import Container
from gafx.audio.integrity import AnyFile, promised_size, size_of
from gafx.errors import UnreadableAudio, UsageError, first_line, require

# Frames held back until it is known where the sound ends; a decoder's delay is one or two.
_HELD = 4
# Edit lists are written in milliseconds or 600ths of a second, packets in samples.
_EDIT_STEP = 1 / 500
# Seconds that may be missing: lengths in headers are rounded, and a video's tracks need not end together.
_TOLERANCE = 0.5
# Formats whose headers hold no length: FFmpeg estimates it from the bit rate.
_NO_LENGTH = ("aac", "mp3", "ac3", "eac3", "dts", "amr", "mpeg", "mpegts", "flv", "rm")


def header_seconds(raw: AnyFile, container: Container) -> float:
    """Return the duration in a file's header, 0 where it has none; some headers hold an estimate."""
    with _opened(raw, container) as (file, stream):
        if stream.duration:
            return float(stream.duration * stream.time_base)
        return (file.duration or 0) / 1e6


def blocks(raw: AnyFile, container: Container, channels: int | None, seconds: float) -> Iterator[tuple[int, Samples]]:
    """Decode the sound of a file from beginning to end, in blocks of about `seconds`.

    Yields:
        Rate in Hz and float32 `(samples, channels)`, as `gafx.audio.decode.blocks`.

    Raises:
        UnreadableAudio: PyAV is not installed, there is no sound, the file is damaged, or (after its last block) it
            ends before the length in its header.
    """
    if container.demuxer == "avi" and (promised_size(raw, "AVI") or 0) > size_of(raw):
        raise UnreadableAudio("is truncated: it holds fewer bytes than its header promises")
    with _opened(raw, container) as (file, stream):
        held: list[Samples] = []
        have = rate = 0
        for rate, samples in _decoded(file, stream, container):
            check_values(samples)
            held.append(mix_channels(samples, channels))
            have += len(samples)
            if have >= seconds * rate:
                yield rate, np.concatenate(held)
                held, have = [], 0
        if held:
            yield rate, np.concatenate(held)


@contextmanager
def _opened(raw: AnyFile, container: Container) -> Iterator[tuple[Any, Any]]:
    """FFmpeg's view of a file and of its sound; errors become `UnreadableAudio`."""
    try:
        av = require("av", container.name)
    except UsageError as error:
        raise UnreadableAudio(f"cannot be decoded: {error}, or convert it, say with `{CONVERT}`") from error
    raw.seek(0)
    try:
        # Tags in other encodings are none of our business, and no address is ever opened.
        with av.open(
            raw, format=container.demuxer, metadata_errors="ignore", options={"protocol_whitelist": "none"}
        ) as file:
            stream = file.streams.best("audio")
            if stream is None:
                raise UnreadableAudio("has no sound (a video without an audio track)")
            yield file, stream
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnreadableAudio(f"cannot be decoded (it is {container.name}, damaged or truncated: {reason})") from error


def _decoded(file: Any, stream: Any, container: Container) -> Iterator[tuple[int, Samples]]:
    """Rate and `(samples, channels)` of each frame, without the samples that the encoder added at the end."""
    form: tuple[int, int] | None = None
    frames: deque[tuple[int, Samples]] = deque()  # start in units of the stream's time base
    begin = end = position = 0  # of the sound, in these units; and seconds of the last packet of any stream
    exact = container.demuxer == "mov"
    count, last = 0, Fraction(0)
    for packet in file.demux():
        if packet.pts is not None:
            last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            raise UnreadableAudio(f"is damaged at {float(last):.2f} s")
        if packet.pts is not None:
            exact = exact and bool(packet.duration)
            end = max(end, packet.pts + (packet.duration or 0))
        for frame in packet.decode():
            found = (frame.sample_rate, len(frame.layout.channels))
            if form is None:
                check_header(*found)
                form, begin = found, frame.pts or 0
                exact = exact and frame.pts is not None and (stream.time_base * found[0]).denominator == 1
            elif found != form:
                raise UnreadableAudio(f"changes its sampling rate or channels at {float(last):.2f} s")
            samples = _samples(frame)
            count += len(samples)
            frames.append((frame.pts or 0, samples))
            if len(frames) > _HELD:
                yield form[0], frames.popleft()[1]
    if form is None:
        raise UnreadableAudio("has no sound: nothing of its audio track can be decoded")
    rate, step = form[0], stream.time_base
    if exact and stream.duration and (end - begin - stream.duration) * step > _EDIT_STEP:
        end = begin + stream.duration  # cut within the last packet by an edit list
    for position, samples in frames:
        keep = round((end - position) * step * rate) if exact else len(samples)
        if keep > 0:
            yield rate, samples[:keep]
    if container.demuxer not in _NO_LENGTH:
        _check_length(file, stream, count / rate, (end - begin) * step, last)


def _check_length(file: Any, stream: Any, decoded: float, sound: Fraction, last: Fraction) -> None:
    """Raise `UnreadableAudio` where seconds are missing at the end or within a file.

    Args:
        file, stream: after the last packet.
        decoded: seconds of samples.
        sound: seconds between the beginning of the first and the end of the last packet of the sound.
        last: end of the last packet of all streams.
    """
    if stream.duration:
        promised, found = float(stream.duration * stream.time_base), float(sound)
    else:
        promised, found = (file.duration or 0) / 1e6, float(last) - (file.start_time or 0) / 1e6
    if found < promised - _TOLERANCE:
        raise UnreadableAudio(f"is truncated: its header promises {promised:.2f} s, it holds {found:.2f} s")
    if decoded < 0.99 * float(sound) - _TOLERANCE:
        raise UnreadableAudio(
            f"has gaps: {decoded:.2f} of {float(sound):.2f} s can be decoded (damaged, or recorded with pauses): "
            f"convert it, say with `{CONVERT}`"
        )


def _samples(frame: Any) -> Samples:
    """`(samples, channels)` float32 of a decoded frame; integers are divided by their full scale."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, len(frame.layout.channels))
    return scale(values)
