"""Audio files to samples at their own rate, through libsndfile, with nothing in them trusted.

Seeks are exact on wav, flac, ogg and au; in an mp3 they land on the right sample, but the decoder needs a run-up (see
`_RUN_UP`).

What is read may also lie inside another file (`Span`) or in memory (`Encoded`). It is copied into a file in memory, so
that decoder and checks see a file as any other; that costs about a microsecond a kilobyte, where decoding takes ten.

Only regular files that begin like one of the formats reach the decoder, headers must be plausible, `whole_length` sees
to it that the file's end is there, and memory grows with what is decoded, not with what a header claims. Whatever is
wrong becomes `UnreadableAudio`.
"""

import errno
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from gafx.audio.integrity import mp3_frames, ogg_has_end, ogg_last_page, promised_size
from gafx.audio.quiet_mpg123 import occupy_standard_streams, without_remarks
from gafx.errors import UnreadableAudio

Samples = npt.NDArray[np.float32]
AnyPath = str | bytes | os.PathLike[str]


@dataclass(frozen=True)
class Span:
    """An audio file that lies inside another file, as in a shard: `size` bytes from byte `offset` on."""

    path: AnyPath
    offset: int
    size: int


@dataclass(frozen=True)
class Encoded:
    """The bytes of an audio file, in anything with a buffer: bytes, memoryview, pyarrow.Buffer."""

    content: Any


AudioFile = AnyPath | Span | Encoded

# Samples decoded and dropped before a segment of an mp3: a frame may borrow bits from many frames before it, and until
# the decoder has read those its output is wrong by up to full scale. Over 2,250 random seeks at 8 to 320 kbit/s nothing
# was wrong any more after 30,000 samples. Opus, too, predicts from what it has decoded; its errors are much smaller.
_RUN_UP = 32768
# Lossy decoders and hot float mixes overshoot full scale by some decibels; integers saved as floats by thousands.
_LOUDEST = 8.0
# Values decoded at a time, 16 MiB as float32: ten seconds in stereo are one block. Channels are mixed block by block.
_BLOCK = 2**22
# What a header may claim. The widest real files come from 768 kHz converters and 64-channel MADI recorders.
_LOWEST_RATE, _HIGHEST_RATE, _MOST_CHANNELS = 1_000, 768_000, 64
# How the formats begin, and libsndfile's names of them. This keeps what people download away from its parsers of two
# dozen rarer formats, and from its habit of playing anything that is named `.au` as sound without a header.
_BEGINNING = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|fLaC|OggS|\.snd|dns\.|ID3|\xff[\xe0-\xff]", re.DOTALL)
_NAMES = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AU")
_NO_MP3 = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b".snd", b"dns.", b"FORM", b"caff", b"riff")
# Of what libsndfile plays in other formats nothing but this says that it is no sound at all.
_NO_FORMAT = "RAW"


def mix_channels(samples: Samples, channels: int) -> Samples:
    """`(samples, any)` -> `(samples, channels)`: as it is if it fits, else the mean of all channels, repeated."""
    have = samples.shape[1]
    if have == channels:
        return samples
    mean = samples[:, :1].copy()
    for channel in range(1, have):  # numpy's mean over so short an axis takes twenty times as long
        mean += samples[:, channel : channel + 1]
    mean /= np.float32(have)
    return mean if channels == 1 else np.repeat(mean, channels, axis=1)


def open_audio(path: AudioFile) -> io.FileIO:
    """Open an audio file, wherever it lies. No decoder looks at it yet."""
    if isinstance(path, Encoded):
        return _in_memory(memoryview(path.content))
    if not isinstance(path, Span):
        return _open_file(path)
    with _open_file(path.path) as file:
        end = os.fstat(file.fileno()).st_size
        if path.offset < 0 or path.size < 0 or path.offset + path.size > end:
            raise UnreadableAudio(f"lies behind the end of its shard, which has {end} bytes: it has changed")
        try:
            return _in_memory(memoryview(os.pread(file.fileno(), path.size, path.offset)))
        except OSError as error:
            raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


def _in_memory(content: memoryview) -> io.FileIO:
    """A file with this content that has no name but can be opened by one."""
    if not content.nbytes:
        raise UnreadableAudio("is empty (0 bytes)")
    occupy_standard_streams()
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):  # Linux
        file = io.FileIO(os.memfd_create("audio"), "r+")
        file.name = b"/proc/self/fd/%d" % file.fileno()
    else:
        descriptor, name = tempfile.mkstemp()
        file = _Temporary(descriptor, "r+")
        file.name = os.fsencode(name)
    try:
        while content.nbytes:
            content = content[file.write(content) :]
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


class _Temporary(io.FileIO):
    """Its file goes with it."""

    def close(self) -> None:
        if not self.closed:
            os.unlink(self.name)
        super().close()


def _open_file(path: AnyPath) -> io.FileIO:
    """Open a regular file: anything else can wait forever (a pipe) or do things (a device)."""
    name = os.fsencode(path)  # soundfile refuses text that is no valid UTF-8, and file names need not be
    try:
        status = os.stat(name)
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            occupy_standard_streams()
            return io.FileIO(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableAudio("does not exist") from error
    except OSError as error:
        loop = error.errno == errno.ELOOP
        raise UnreadableAudio("is a link loop" if loop else f"cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise UnreadableAudio("cannot be opened (a zero byte in its name)") from error
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableAudio("is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableAudio("is not a regular file (but a pipe, a socket or a device)")
    raise UnreadableAudio("is empty (0 bytes)")


@contextmanager
def decoder(raw: io.FileIO, *, any_format: bool = False) -> Iterator[soundfile.SoundFile]:
    """A decoder of a file of a known format and a plausible header. While it is open, its errors are translated.

    Args:
        raw: from `open_audio`.
        any_format: whatever libsndfile plays, aiff, caf and w64 among them, for files that the user chose one by one.
    """
    with _quiet(raw), _decoder(raw, any_format) as file:
        yield file


def blocks(
    path: AudioFile, channels: int, seconds: float, *, any_format: bool = False
) -> Iterator[tuple[int, Samples]]:
    """Decode a file from begin to end: its rate in Hz and `(samples, channels)` of at most so many seconds, in turn.

    Raises:
        UnreadableAudio: before the first block what `whole_length` finds, later what only decoding shows.
    """
    with open_audio(path) as raw, ExitStack() as stack:
        # Quiet for the time of a call each: whoever reads the blocks has things of his own to say on standard error.
        with _quiet(raw):
            file = stack.enter_context(_decoder(raw, any_format))
            frames = whole_length(file, raw)
        step = max(1, round(seconds * file.samplerate))
        if not file.seekable():  # a telephone's codecs
            while len(samples := file.read(step, dtype="float32", always_2d=True)):
                _check_values(samples)
                yield file.samplerate, mix_channels(samples, channels)
            return
        for start in range(0, frames, step):
            with _quiet(raw):
                samples = decode(file, raw, start, min(step, frames - start), channels)
            yield file.samplerate, samples


def _quiet(raw: io.FileIO) -> AbstractContextManager[None]:
    """Hold libmpg123's remarks back where it may be asked: an mp3 may begin with anything."""
    return nullcontext() if _beginning(raw)[:4] in _NO_MP3 else without_remarks()


def _beginning(raw: io.FileIO) -> bytes:
    try:
        return os.pread(raw.fileno(), 12, 0)
    except OSError as error:  # a bad sector, a share that is gone, what only looks like a file
        raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


@contextmanager
def _decoder(raw: io.FileIO, any_format: bool) -> Iterator[soundfile.SoundFile]:
    # An mp3 may begin with rubbish: libsndfile lets its mp3 decoder search whatever is named `.mp3`.
    beginning = _beginning(raw)
    if beginning[4:8] == b"ftyp":
        raise UnreadableAudio("cannot be decoded (it is mp4 or m4a): convert it, say with `ffmpeg -i FILE NEW.flac`")
    if not (any_format or _BEGINNING.match(beginning) or raw.name.lower().endswith(b".mp3")):
        raise UnreadableAudio("cannot be decoded (it does not begin as wav, flac, ogg, opus, mp3 and au files do)")
    try:
        with soundfile.SoundFile(raw.name) as file:
            if file.format == _NO_FORMAT if any_format else file.format not in _NAMES:
                raise UnreadableAudio(f"cannot be decoded (it is {file.format}, not wav, flac, ogg, opus, mp3 or au)")
            if not _LOWEST_RATE <= file.samplerate <= _HIGHEST_RATE:
                raise UnreadableAudio(
                    f"claims a sampling rate of {file.samplerate} Hz, not {_LOWEST_RATE:,} to {_HIGHEST_RATE:,}"
                )
            if not 1 <= file.channels <= _MOST_CHANNELS:
                raise UnreadableAudio(f"claims {file.channels} channels, not 1 to {_MOST_CHANNELS}")
            if file.frames <= 0:
                raise UnreadableAudio("holds no samples")
            if file.frames >= 2**62:  # libsndfile's way of saying unknown
                raise UnreadableAudio("does not say how long it is (a recorded stream?): convert it, say with ffmpeg")
            if not (any_format or file.seekable()):
                raise UnreadableAudio("cannot be sought in")
            if file.subtype == "VORBIS":
                # Where the codebooks are damaged libsndfile reads nothing, but its seek ends the process. Back to the
                # start: after a read, it miscounts when it seeks forward by less than two seconds.
                if not len(file.read(1, dtype="float32")):
                    raise UnreadableAudio("cannot be decoded (its vorbis headers are damaged)")
                file.seek(0)
            yield file
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: its name ends in `.raw`
        text = getattr(error, "error_string", None) or str(error)
        if "does not exist" in text:  # what libsndfile says of an mp3 without a single frame
            text = "no sound is found in it"
        raise UnreadableAudio(f"cannot be decoded ({str(text).strip().rstrip('.')})") from error


def decode(file: soundfile.SoundFile, raw: io.FileIO, start: int, frames: int, channels: int) -> Samples:
    """Decode frames `start` to `start + frames`, or to the file's end, and mix them to `(frames, channels)`."""
    start = min(start, file.frames)
    frames = min(frames, file.frames - start)
    if frames == 0:
        return np.zeros((0, channels), np.float32)
    try:
        return _read(file, start, frames, channels, _run_up(file, raw, start))
    except soundfile.SoundFileError:
        if file.format != "MP3":
            raise
        # Its length may be a guess (see `whole_length`), and a tag behind its real end look like damage.
        end = _playable_length(file)
        if not start < end < start + frames:
            raise
        return _read(file, start, end - start, channels, _run_up(file, raw, start))


def _run_up(file: soundfile.SoundFile, raw: io.FileIO, start: int) -> int | None:
    """Frames to be decoded and dropped before `start`; `None` where seeks are exact in blocks of any size."""
    if file.format == "MP3" or file.subtype == "OPUS":
        return min(start, _RUN_UP)
    if file.subtype == "VORBIS":
        # libsndfile counts back from a page's end to find a sample, but the last page ends before its packets do: a
        # seek into it lands up to some hundred samples late. It is entered from the page before.
        return max(0, start - max(0, file.frames - ogg_last_page(raw)))
    return None


def _read(file: soundfile.SoundFile, start: int, frames: int, channels: int, run_up: int | None) -> Samples:
    mp3, integers = file.format == "MP3", file.subtype == "PCM_16"
    # One read for run-up and segment: soundfile seeks again after every read, which would undo the run-up.
    block = _BLOCK // file.channels if run_up is None else run_up + frames
    run_up = run_up or 0
    parts, position, end = [], start - run_up, start + frames
    if file.seek(position) != position:
        raise UnreadableAudio(f"is damaged or truncated: nothing can be found at {start / file.samplerate:.2f} s")
    while position < end:
        wanted = min(block, end - position)
        # 16-bit PCM read as integers is about five times faster than libsndfile's own conversion to float.
        samples = file.read(wanted, dtype="int16" if integers else "float32", always_2d=True)
        position += len(samples)
        if len(samples) < wanted and not mp3:
            raise UnreadableAudio(f"is damaged or truncated: nothing follows {position / file.samplerate:.2f} s")
        if integers:
            samples = samples.astype(np.float32)
            samples *= np.float32(1 / 32768)
        else:
            samples = samples[run_up:]
            _check_values(samples)
        parts.append(mix_channels(samples, channels))
        if mp3:
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_values(samples: Samples) -> None:
    low, high = float(samples.min(initial=0)), float(samples.max(initial=0))  # NaN, if there is one
    if not (isfinite(low) and isfinite(high)):
        raise UnreadableAudio("holds NaN or infinite samples")
    if (peak := max(-low, high)) > _LOUDEST:
        raise UnreadableAudio(f"peaks at {peak:g} where full scale is 1: scale its samples to [-1, 1]")


def whole_length(file: soundfile.SoundFile, raw: io.FileIO) -> int:
    """Frames of a file, looked for where its header may be wrong; a truncated file is refused."""
    frames: int = file.frames
    if not file.seekable():
        return frames
    size = os.fstat(raw.fileno()).st_size
    promised = promised_size(raw, file.format)
    if file.format == "OGG" and not ogg_has_end(raw):
        raise UnreadableAudio("is truncated: its last page is missing")
    if file.format == "MP3":
        # Without a Xing header libsndfile guesses the length from the size and the first frame; pictures and varying
        # bit rates mislead it by a factor of three and more. It reads no further than its guess.
        if promised is None:
            length = _playable_length(file)
            real, share = mp3_frames(raw)
            if share < 0.05:  # the decoder finds something to play in most files
                raise UnreadableAudio("cannot be decoded (hardly any sound among other bytes)")
            if real > length + file.samplerate:
                raise UnreadableAudio(
                    f"lacks the Xing header that says how long it is: {length / file.samplerate:.1f} of "
                    f"{real / file.samplerate:.1f} s would be read; `ffmpeg -i FILE -c copy NEW` adds one"
                )
            return length
        # A header may lie: no byte holds more than 24 samples.
        if (promised <= size and frames <= 24 * size) or _plays(file, frames - 1):
            return frames
    if promised is not None and promised > size:
        raise UnreadableAudio(f"is truncated: its header promises {promised} bytes, it holds {size}")
    # Plain samples are counted from the bytes that are there; a compressed file must show its last sample.
    plain = file.format != "FLAC" and file.subtype.startswith(("PCM", "FLOAT", "DOUBLE"))
    if not plain and not _plays(file, frames - 1):
        raise UnreadableAudio(f"is truncated or damaged: the last of its {frames} samples cannot be decoded")
    return frames


def _playable_length(file: soundfile.SoundFile) -> int:
    """Frames up to the last that can be decoded, found by halving."""
    low, high = 0, file.frames
    if _plays(file, high - 1):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _plays(file, middle) else (low, middle)
    return low + 1


def _plays(file: soundfile.SoundFile, frame: int) -> bool:
    try:
        return file.seek(frame) == frame and len(file.read(1, dtype="float32")) == 1
    except soundfile.SoundFileError:
        return False
