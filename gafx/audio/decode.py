"""Decode audio files to samples at their own rate with libsndfile; the content of the files is not trusted.

Seeks are exact in wav, flac, ogg and au; in an mp3 they reach the right sample, but the decoder needs a run-up (see
`_RUN_UP`). After a seek back, or from the end, some decoders (Opus) give other samples than on the way through. So a
decoder reads one segment, or all of a file without a seek, and another one checks its length.

A file may also be part of another file (`Span`) or in memory (`Encoded`). It is then copied into a file in memory, so
that decoder and checks see an ordinary file; this costs about a microsecond per kilobyte, a tenth of decoding. Samples
that are decoded already (`Wave`) take the same path as those of a file: scaled, checked and mixed block by block.

Only regular files that begin like one of the formats reach the decoder, headers must be plausible, `whole_length`
checks that the end of the file exists, and memory grows with the samples decoded, not with the length that a header
claims. Every error becomes `UnreadableAudio`.
"""

import errno
import io
import operator
import os
import re
import stat
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from gafx.audio.formats import CONTAINER_BYTES, CONTAINERS, NAMES, Container, ffmpeg_container, ffmpeg_fallback
from gafx.audio.integrity import (
    AnyFile,
    after_tags,
    flac_starts,
    mp3_parts,
    mp3_runs,
    ogg_has_end,
    ogg_last_page,
    ogg_links,
    promised_size,
    size_of,
    xing_frames,
)
from gafx.audio.quiet_mpg123 import without_messages
from gafx.audio.repair import View, flac_samples, recovered, repaired, wav_recordings, wav_rest
from gafx.errors import UnreadableAudio, UsageError
from gafx.process import occupy_standard_streams

Samples = npt.NDArray[np.float32]
AnyPath = str | bytes | os.PathLike[str]


@dataclass(frozen=True)
class Span:
    """An audio file inside another file, e.g. a shard: `size` bytes from byte `offset` on."""

    path: AnyPath
    offset: int
    size: int


@dataclass(frozen=True)
class Encoded:
    """The bytes of an audio file, in any object with a buffer: bytes, memoryview, pyarrow.Buffer."""

    content: Any
    name: str = ""


@dataclass(frozen=True, eq=False)
class Wave:
    """Samples in memory, which are never changed.

    Attributes:
        samples: `(samples, channels)`: floats in [-1, 1], or PCM as int16, int32 or uint8, scaled as in a file.
        sample_rate: in Hz.
        name: of the clip in results.

    Raises:
        UsageError: a sampling rate or number of channels that no recording has, or samples of another type.
    """

    samples: npt.NDArray[Any]
    sample_rate: int
    name: str = ""

    def __post_init__(self) -> None:
        check_rate(self.sample_rate)
        kind, channels = self.samples.dtype, self.samples.shape[1]
        if kind.kind != "f" and kind.str[1:] not in FULL_SCALE:
            cure = "array.astype('float32') / 32768 for values of 16 bits" if kind.kind in "iu" else "as float32"
            raise UsageError(
                f"the samples are {kind}: give floats in [-1, 1] ({cure}), or PCM as int16, int32 or uint8, whose "
                "full scale is known"
            )
        if not 1 <= channels <= _MOST_CHANNELS:
            raise UsageError(
                f"a clip of {channels} channels and {len(self.samples)} samples: at most {_MOST_CHANNELS} channels are "
                "read; if the axes are exchanged, transpose the array to (batch, channels, samples)"
            )


AudioFile = AnyPath | Span | Encoded
AudioSource = AudioFile | Wave

# Samples decoded and dropped before a segment of an mp3: a frame may use bits of many earlier frames, and until the
# decoder has read those its output is wrong by up to full scale. In 2,250 random seeks at 8 to 320 kbit/s all errors
# ended within 30,000 samples. Opus predicts from earlier samples too; its errors are much smaller.
_RUN_UP = 32768
# Lossy decoders and hot float mixes overshoot full scale by some decibels; integers saved as floats by thousands.
_LOUDEST = 8.0
# Values decoded at a time, 16 MiB as float32: ten seconds in stereo are one block. Channels are mixed block by block.
_BLOCK = 2**22
_SMALL = 2**13
# Samples by which an mp3 may be shorter than its header says: a few frames.
_MP3_SLACK = 4 * 1152
# What a header may claim. The widest real files come from 768 kHz converters and 64-channel MADI recorders.
_LOWEST_RATE, _HIGHEST_RATE, _MOST_CHANNELS = 1_000, 768_000, 64
# Bytes by which the size in the header of uncompressed samples may be too large: encoders that count the header, or
# pad to an even size that they do not write.
_SIZE_ERROR = 44
# Frames by which the number in an mp3's header may be off: encoders count the header's frame or not.
_FRAMES_OFF = 2
# Full scale of integer samples by type, as in `numpy.dtype.str` without the byte order.
FULL_SCALE = {"i2": 2**15, "i4": 2**31, "u1": 2**7}
# How files of the formats begin. Without this check libsndfile would play anything named `.au`, header or not.
_BEGINNING = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|fLaC|OggS|\.snd|dns\.|ID3|\xff[\xe0-\xff]", re.DOTALL)
_NO_MP3 = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b".snd", b"dns.", b"FORM", b"caff", b"riff")
CONVERT = "ffmpeg -i FILE NEW.flac"
# The only format of libsndfile's that means it has found no header.
_NO_FORMAT = "RAW"


def mix_channels(samples: Samples, channels: int | None) -> Samples:
    """`(samples, any)` -> `(samples, channels)`: unchanged if it has that many or for None, else the mean, repeated."""
    have = samples.shape[1]
    if channels is None or have == channels:
        return samples
    mean = samples[:, :1].copy()
    for channel in range(1, have):  # numpy's mean over so short an axis takes twenty times as long
        mean += samples[:, channel : channel + 1]
    mean /= np.float32(have)
    return mean if channels == 1 else np.repeat(mean, channels, axis=1)


def check_rate(sample_rate: object) -> int:
    """Return a sampling rate in Hz as an integer.

    Raises:
        UsageError: it is no whole number, or none that a recording has.
    """
    try:
        if isinstance(sample_rate, bool):
            raise TypeError
        rate = operator.index(sample_rate)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or not float(sample_rate).is_integer():
            raise UsageError(f"sample_rate={sample_rate!r} must be a whole number of Hz, e.g. 44100") from None
        rate = int(float(sample_rate))
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise UsageError(f"sample_rate={rate} Hz must be {_LOWEST_RATE:,} to {_HIGHEST_RATE:,}, e.g. 44100")
    return rate


def open_audio(path: AudioFile) -> AnyFile:
    """Open an audio file, a span of a file or bytes in memory, without decoding anything.

    Raises:
        UnreadableAudio: there is no such regular file or span, it is empty or cannot be read.
    """
    raw = _open(path)
    try:
        return repaired(raw, owns=True)
    except OSError as error:  # a bad sector, a network drive that is gone, a file of /proc
        raw.close()
        raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


def _open(path: AudioFile) -> io.FileIO:
    if isinstance(path, Encoded):
        return _in_memory(memoryview(path.content))
    if not isinstance(path, Span):
        return _open_file(path)
    with _open_file(path.path) as file:
        end = os.fstat(file.fileno()).st_size
        if path.offset < 0 or path.size < 0 or path.offset + path.size > end:
            raise UnreadableAudio(f"is beyond the end of its shard, which has {end} bytes: it has changed")
        try:
            file.seek(path.offset)
            return _in_memory(memoryview(file.read(path.size)))
        except OSError as error:
            raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


def _in_memory(content: memoryview) -> io.FileIO:
    """Return a file with this content that can be opened by its name: in memory on Linux, else a temporary file."""
    if not content.nbytes:
        raise UnreadableAudio("is empty (0 bytes)")
    occupy_standard_streams()
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
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
    """A file that is deleted when it is closed."""

    def close(self) -> None:
        is_open = not self.closed
        super().close()
        if is_open:
            os.unlink(self.name)


def _open_file(path: AnyPath) -> io.FileIO:
    """Open a regular file; reading anything else can block forever (a pipe) or have effects (a device)."""
    name = os.fsencode(path)  # soundfile refuses text that is not valid UTF-8, which file names can be
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
def decoder(raw: AnyFile, *, any_format: bool = False) -> Iterator[soundfile.SoundFile]:
    """Open the decoder of a file of a known format with a plausible header; its errors become `UnreadableAudio`.

    Args:
        raw: from `open_audio`.
        any_format: accept whatever libsndfile plays, e.g. aiff, caf and w64, for files chosen by the user.
    """
    beginning = _beginning(raw)
    with _quiet(_is_mp3(beginning)), _decoder(raw, any_format, beginning) as file:
        yield file


def container_of(raw: AnyFile, beginning: bytes | None = None) -> Container | None:
    """Return the format of a file that FFmpeg has to read, `None` where libsndfile does.

    Args:
        raw: from `open_audio`.
        beginning: its first `CONTAINER_BYTES` bytes, if they have been read.

    Raises:
        UnreadableAudio: the file cannot be read at all.
    """
    beginning = _beginning(raw) if beginning is None else beginning
    try:
        if beginning.startswith(b"ID3"):  # a tag, after which an mp3 or aac begins
            raw.seek(after_tags(raw))
            found = ffmpeg_container(raw.read(CONTAINER_BYTES) or b"")
            return found if found and found.demuxer == "aac" else None
        return ffmpeg_container(beginning)
    except OSError as error:
        raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


def blocks(
    path: AudioSource, channels: int | None, seconds: float, *, any_format: bool = False,
    note: Callable[[str], object] | None = None,
) -> Generator[tuple[int, Samples], None, None]:  # fmt: skip
    """Decode a file, or samples in memory, from beginning to end in blocks of at most `seconds`.

    With `any_format`, files that libsndfile does not read are decoded by `gafx.audio.ffmpeg`.

    Args:
        path: audio file, span of a file, bytes or samples in memory.
        channels: of the samples returned; None for those of the file.
        seconds: length of a block.
        any_format: accept whatever libsndfile plays.
        note: where a file is damaged, incomplete or joined of several, read what can be read, and call this with what
            is doubtful; without it such a file is an error.

    Yields:
        The recording's rate in Hz and float32 `(samples, channels)`.

    Raises:
        UnreadableAudio: before the first block for errors that `whole_length` finds, later for those of decoding.
    """
    if isinstance(path, Wave):
        yield from _wave_blocks(path, channels, seconds)
        return
    with open_audio(path) as raw:
        if any_format and (container := container_of(raw)):
            yield from _ffmpeg_blocks(raw, container, channels, seconds, note)
            return
        try:
            # Another decoder than the one that reads: its state after a seek to the end and back is not the same.
            with decoder(raw, any_format=any_format) as file:
                frames = whole_length(file, raw)
        except UnreadableAudio as error:
            if note is None:
                raise
            yield from _readable(raw, channels, seconds, any_format, error, note)
            return
        yield from _sequential(raw, channels, seconds, any_format, frames, note)


def _readable(
    raw: AnyFile,
    channels: int | None,
    seconds: float,
    any_format: bool,
    reason: UnreadableAudio,
    note: Callable[[str], object],
) -> Iterator[tuple[int, Samples]]:
    """Blocks of what can be read of a file that is refused for a reason; that reason is raised if there is nothing."""
    try:
        parts = recovered(raw)
    except OSError as error:
        raise reason from error
    read, lost = 0.0, 0
    for part in parts:
        try:
            for rate, samples in _sequential(part, channels, seconds, any_format, None, note):
                read += len(samples) / rate
                yield rate, samples
        except NoSound:
            raise
        except UnreadableAudio:
            lost += 1
    if not read:
        container = ffmpeg_fallback(_beginning(raw)) if any_format else None
        try:
            if container is not None:
                for rate, samples in _ffmpeg_blocks(raw, container, channels, seconds, note):
                    read += len(samples) / rate
                    yield rate, samples
        except NoSound:
            raise
        except UnreadableAudio as error:
            raise reason from error
        if not read:
            raise reason
        note(f"{reason}; FFmpeg read {read:.2f} s of it")
        return
    note(f"{reason}; {read:.2f} s of it were read" + (f", {lost} of {len(parts)} parts not" if lost else ""))


def _ffmpeg_blocks(
    raw: AnyFile, container: Container, channels: int | None, seconds: float, note: Callable[[str], object] | None
) -> Iterator[tuple[int, Samples]]:
    from gafx.audio import ffmpeg  # which uses this module

    read = 0.0
    try:
        for rate, samples in ffmpeg.blocks(raw, container, channels, seconds):
            read += len(samples) / rate
            yield rate, samples
    except NoSound:
        raise
    except UnreadableAudio as error:
        if note is None or not read:
            raise
        note(f"{error}; {read:.2f} s of it were read")


def _sequential(
    raw: AnyFile, channels: int | None, seconds: float, any_format: bool, frames: int | None,
    note: Callable[[str], object] | None,
) -> Iterator[tuple[int, Samples]]:  # fmt: skip
    """Decode from the beginning without a seek, after which some decoders give other samples.

    Args:
        raw: from `open_audio`.
        channels, seconds, any_format, note: as of `blocks`.
        frames: length; None if unknown: whatever can be decoded is returned then, without a note.
    """
    beginning = _beginning(raw)
    is_mp3 = _is_mp3(beginning)
    with ExitStack() as stack:
        # Quiet during single calls only: the consumer of the blocks may write to standard error itself.
        with _quiet(is_mp3):
            file = stack.enter_context(_decoder(raw, any_format, beginning, sequential=True))
        step = max(1, min(round(seconds * file.samplerate), _BLOCK // file.channels))
        least = step if note is None else min(step, _SMALL)  # what is lost where decoding fails
        integers = file.subtype == "PCM_16"
        done, ended = 0, False
        while not ended and (frames is None or done < frames):
            parts, wanted = [], step if frames is None else min(step, frames - done)
            failure = None
            while wanted and not ended:
                try:
                    with _quiet(is_mp3):
                        # 16-bit PCM read as integers is about five times faster than libsndfile's own conversion.
                        samples = file.read(min(least, wanted), "int16" if integers else "float32", always_2d=True)
                except soundfile.SoundFileError as error:
                    if note is None:
                        raise
                    samples, failure = np.zeros((0, file.channels), np.float32), error
                ended = len(samples) < min(least, wanted)
                samples = scale(samples) if integers and not failure else samples
                check_values(samples)
                parts.append(mix_channels(samples, channels))
                wanted, done = wanted - len(samples), done + len(samples)
            block = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if len(block):
                yield file.samplerate, block
        if frames is not None and file.can_seek and done < frames - (_MP3_SLACK if file.format == "MP3" else 0):
            reason = f"is damaged or truncated: nothing can be decoded after {done / file.samplerate:.2f} s"
            if note is None or not done:
                raise UnreadableAudio(reason)
            note(f"{reason} of {frames / file.samplerate:.2f} s")


def _wave_blocks(wave: Wave, channels: int | None, seconds: float) -> Iterator[tuple[int, Samples]]:
    if not len(wave.samples):
        raise UnreadableAudio("holds no samples")
    step = max(1, round(seconds * wave.sample_rate))
    for start in range(0, len(wave.samples), step):
        samples = scale(wave.samples[start : start + step])
        check_values(samples)
        yield wave.sample_rate, mix_channels(samples, channels)


def scale(samples: npt.NDArray[Any]) -> Samples:
    """Samples of any type as float32, integers divided by their full scale; libsndfile gives the same bits."""
    full_scale = FULL_SCALE.get(samples.dtype.str[1:])
    if full_scale is None:
        with np.errstate(over="ignore"):  # of float64: found as infinite
            return samples.astype(np.float32, copy=False)
    scaled = samples.astype(np.float32)
    if samples.dtype.kind == "u":
        scaled -= np.float32(full_scale)
    scaled *= np.float32(1 / full_scale)
    return scaled


def _is_mp3(beginning: bytes) -> bool:
    """Whether libmpg123 may decode a file: an mp3 may begin with anything."""
    return beginning[:4] not in _NO_MP3


def _quiet(is_mp3: bool) -> AbstractContextManager[None]:
    """Suppress libmpg123's messages."""
    return without_messages() if is_mp3 else nullcontext()


def _beginning(raw: AnyFile) -> bytes:
    try:
        raw.seek(0)
        return raw.read(CONTAINER_BYTES) or b""
    except OSError as error:  # a bad sector, a network drive that is gone, a file of /proc
        raise UnreadableAudio(f"cannot be read ({error.strerror})") from error


class _File(soundfile.SoundFile):
    """A file whose reads are not followed by a seek to where they ended, in which most formats decode again."""

    format = cached_property(lambda self: soundfile.SoundFile.format.fget(self))
    subtype = cached_property(lambda self: soundfile.SoundFile.subtype.fget(self))

    @property
    def can_seek(self) -> bool:
        return bool(super().seekable())

    def seekable(self) -> bool:
        """Asked by soundfile before and after every read."""
        return False


@contextmanager
def _decoder(raw: AnyFile, any_format: bool, beginning: bytes, *, sequential: bool = False) -> Iterator[Any]:
    # An mp3 may begin with other bytes: libsndfile lets its mp3 decoder search any file named `.mp3`.
    # The same rule as in `blocks`: what is accepted here (of uploads, say) never reaches FFmpeg there.
    if container := container_of(raw, beginning):
        raise UnreadableAudio(f"cannot be decoded (it is {container.name}): convert it, say with `{CONVERT}`")
    if beginning.startswith(b"MThd"):
        raise UnreadableAudio("is a MIDI file, which holds notes and no sound: give it a sound first")
    if not (any_format or _BEGINNING.match(beginning) or getattr(raw, "name", b"").lower().endswith(b".mp3")):
        raise UnreadableAudio(f"cannot be decoded (it does not begin like {NAMES})")
    name = getattr(raw, "name", None)  # a view has none: libsndfile reads through it
    source = os.fsdecode(name) if name is not None and os.name == "nt" else name
    if isinstance(raw, View):
        source = raw.reopened()
    try:
        with _File(source) as file:
            if file.format == _NO_FORMAT if any_format else file.format not in CONTAINERS:
                raise UnreadableAudio(f"cannot be decoded (it is {file.format}, not {NAMES})")
            check_header(file.samplerate, file.channels)
            if file.frames <= 0:
                raise UnreadableAudio("holds no samples")
            if sequential:
                yield file
                return
            if file.frames >= 2**62:  # unknown to libsndfile
                raise UnreadableAudio(f"does not say how long it is: convert it, say with `{CONVERT}`")
            if not (any_format or file.can_seek):
                raise UnreadableAudio("does not allow seeking")
            if file.subtype == "VORBIS":
                # With damaged codebooks libsndfile reads nothing, but a seek would crash the process. Then back:
                # after a read, it miscounts when it seeks forward by less than two seconds.
                if not len(file.read(1, dtype="float32")):
                    raise UnreadableAudio("cannot be decoded (its vorbis headers are damaged)")
                file.seek(0)
            yield file
    except (soundfile.SoundFileError, OSError) as error:
        text = getattr(error, "error_string", None) or str(error)
        if "does not exist" in text:  # libsndfile's message for an mp3 without a single frame
            text = "it holds no audio frame"
        _refuse_joined(len(wav_recordings(raw)), is_wav=True)
        raise UnreadableAudio(f"cannot be decoded ({str(text).strip().rstrip('.')})") from error


def check_header(sample_rate: int, channels: int) -> None:
    """Raise `UnreadableAudio` for a sampling rate in Hz or a number of channels that no real file has."""
    if not _LOWEST_RATE <= sample_rate <= _HIGHEST_RATE:
        raise UnreadableAudio(f"claims a sampling rate of {sample_rate} Hz, not {_LOWEST_RATE:,} to {_HIGHEST_RATE:,}")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise UnreadableAudio(f"claims {channels} channels, not 1 to {_MOST_CHANNELS}")


def decode(file: soundfile.SoundFile, raw: AnyFile, start: int, frames: int, channels: int) -> Samples:
    """Decode frames `start` to `start + frames`, or to the end of the file, mixed to `(frames, channels)`."""
    start = min(start, file.frames)
    frames = min(frames, file.frames - start)
    if frames == 0:
        return np.zeros((0, channels), np.float32)
    try:
        return _read(file, start, frames, channels, _run_up(file, raw, start))
    except soundfile.SoundFileError:
        if file.format != "MP3":
            raise
        # Its length may be a guess (see `whole_length`), and a tag after its real end looks like damage.
        end = _playable_length(file)
        if not start < end < start + frames:
            raise
        return _read(file, start, end - start, channels, _run_up(file, raw, start))


def _run_up(file: soundfile.SoundFile, raw: AnyFile, start: int) -> int | None:
    """Return how many frames to decode and drop before `start`; `None` where seeks are exact for any block size."""
    if file.format == "MP3" or file.subtype == "OPUS":
        return min(start, _RUN_UP)
    if file.subtype == "VORBIS":
        # libsndfile counts back from the end of a page to find a sample, but the last page ends before its packets do:
        # a seek into it ends up to some hundred samples late. So decoding starts in the page before.
        return max(0, start - max(0, file.frames - ogg_last_page(raw)))
    return None


def _read(file: soundfile.SoundFile, start: int, frames: int, channels: int, run_up: int | None) -> Samples:
    mp3, integers = file.format == "MP3", file.subtype == "PCM_16"
    # One read for run-up and segment.
    block = _BLOCK // file.channels if run_up is None else run_up + frames
    run_up = run_up or 0
    parts, position, end = [], start - run_up, start + frames
    if file.seek(position) != position:
        raise UnreadableAudio(f"is damaged or truncated: nothing can be decoded at {start / file.samplerate:.2f} s")
    while position < end:
        wanted = min(block, end - position)
        # 16-bit PCM read as integers is about five times faster than libsndfile's own conversion to float.
        samples = file.read(wanted, dtype="int16" if integers else "float32", always_2d=True)
        position += len(samples)
        if len(samples) < wanted and not mp3:
            raise UnreadableAudio(f"is damaged or truncated: nothing follows {position / file.samplerate:.2f} s")
        if integers:
            samples = scale(samples)
        else:
            samples = samples[run_up:]
            check_values(samples)
        parts.append(mix_channels(samples, channels))
        if mp3:
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class NoSound(UnreadableAudio):
    """Samples that no sound has: an error of the whole file, however it is read."""


def check_values(samples: Samples) -> None:
    """Raise `NoSound` for samples that are not finite or far above full scale."""
    low, high = float(samples.min(initial=0)), float(samples.max(initial=0))  # NaN, if there is one
    if not (isfinite(low) and isfinite(high)):
        raise NoSound("holds NaN or infinite samples")
    if (peak := max(-low, high)) > _LOUDEST:
        raise NoSound(f"peaks at {peak:g} where full scale is 1: scale its samples to [-1, 1]")


def whole_length(file: soundfile.SoundFile, raw: AnyFile) -> int:
    """Return the number of frames of a file, verified where its header may be wrong.

    Raises:
        UnreadableAudio: sound is missing, or would not be read: the file is truncated or damaged, or holds more than
            its first header says.
    """
    frames: int = file.frames
    if not file.can_seek:
        return frames
    if file.format == "MP3":
        return _whole_mp3(file, raw)
    size, promised = size_of(raw), promised_size(raw, file.format)
    recordings = 1
    if file.format == "OGG":
        recordings = len(ogg_links(raw))
        if recordings < 2 and not ogg_has_end(raw):
            raise UnreadableAudio("is truncated: its last page is not complete")
    elif file.format == "FLAC":
        recordings, real = len(flac_starts(raw)), flac_samples(raw)
        if recordings < 2 and real > frames + file.samplerate // 10:
            raise UnreadableAudio(
                f"has a header for {frames} samples, and {real} of them: `{CONVERT}` writes another header"
            )
    elif file.format == "AU" and promised is not None:
        _refuse_rest(size - promised, (size - promised) / max(1, promised) * frames / file.samplerate)
    elif file.format in ("WAV", "WAVEX", "RF64"):
        recordings = len(wav_recordings(raw))
        if recordings == 1:
            _refuse_rest(*wav_rest(raw))
    _refuse_joined(recordings, is_wav=file.format in ("WAV", "WAVEX", "RF64"))
    # Uncompressed samples follow from the size; of a compressed file the last sample must be decodable.
    plain = file.format != "FLAC" and file.subtype.startswith(("PCM", "FLOAT", "DOUBLE"))
    if promised is not None and promised > size + (_SIZE_ERROR if plain else 0):
        raise UnreadableAudio(f"is truncated: its header promises {promised} bytes, it holds {size}")
    if not plain and not _plays(file, frames - 1):
        raise UnreadableAudio(f"is truncated or damaged: the last of its {frames} samples cannot be decoded")
    return frames


def _refuse_rest(size: int, seconds: float) -> None:
    if seconds >= 1:
        raise UnreadableAudio(
            f"goes on after the size in its header: {size} bytes follow, or {seconds:.2f} s if they are samples; if "
            "so, convert it, say with `ffmpeg -ignore_length 1 -i FILE NEW.flac`, and if not, cut them off"
        )


def _refuse_joined(recordings: int, *, is_wav: bool = False) -> None:
    if recordings > 1:
        raise UnreadableAudio(
            f"holds {recordings} recordings, one after the other, and a data set would read the first alone: "
            + ("split it before each `RIFF`" if is_wav else f"if their rates are equal, `{CONVERT}` makes one of them")
        )


def _whole_mp3(file: soundfile.SoundFile, raw: AnyFile) -> int:
    """`whole_length` of an mp3.

    Without a Xing header libsndfile guesses the length from the size and the first frame; embedded pictures and
    variable bit rates mislead it by a factor of three and more. With one it believes it. It reads no further than that.
    """
    frames: int = file.frames
    size, promised = size_of(raw), promised_size(raw, "MP3")
    runs, fraction = mp3_runs(raw)
    if promised is None and fraction < 0.05:  # the decoder finds something to play in most files
        raise UnreadableAudio("cannot be decoded (hardly any audio frame among other bytes)")
    if promised is not None and promised > size and not _plays(file, frames - 1):
        raise UnreadableAudio(f"is truncated: its header promises {promised} bytes, it holds {size}")
    parts = mp3_parts(runs)
    _refuse_joined(len(parts))
    whole = parts[0] if parts else []
    if len(whole) > 1:
        seconds = whole[0].samples / file.samplerate
        raise UnreadableAudio(
            f"holds {whole[1].start - whole[0].end} bytes at {seconds:.2f} s that are no audio, which end the sound or "
            f"shift it: convert it, say with `{CONVERT}`"
        )
    if promised is None:
        length, real = _playable_length(file), sum(run.samples for run in whole)
        if real > length + file.samplerate:
            raise UnreadableAudio(
                f"lacks the Xing header that gives its length: {length / file.samplerate:.1f} of "
                f"{real / file.samplerate:.1f} s would be read; `ffmpeg -i FILE -c copy NEW` adds one"
            )
        return length
    expected = xing_frames(raw, whole[0]) if whole and whole[0].header else None
    if expected is not None and abs(whole[0].frames - 1 - expected) > _FRAMES_OFF:
        raise UnreadableAudio(
            f"has a header for {expected} frames, and {whole[0].frames - 1} of them: "
            "`ffmpeg -i FILE -c copy NEW` writes another"
        )
    # The header may be wrong: no byte holds more than 24 samples.
    if (promised > size or frames > 24 * size) and not _plays(file, frames - 1):
        raise UnreadableAudio(f"is truncated or damaged: the last of its {frames} samples cannot be decoded")
    return frames


def _playable_length(file: soundfile.SoundFile) -> int:
    """Return the number of frames up to the last one that can be decoded, found by bisection."""
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
