"""Cut-outs: the audio of segments of one label, copied exactly."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from gafx.audio.decode import Samples, blocks, decoder, open_audio, whole_length
from gafx.deploy.files import free_name
from gafx.deploy.predict import Prediction, Segment
from gafx.errors import UnreadableAudio
from gafx.io import atomic_path

Array = npt.NDArray[Any]

# Integer samples that a FLAC file keeps as they are. Everything else is copied as 32-bit float.
_INTEGER_BITS = {"PCM_S8": 16, "PCM_U8": 16, "PCM_16": 16, "PCM_24": 24}
_MAX_FLAC_CHANNELS, _MAX_FLAC_RATE = 8, 655_350
_MAX_WAV_BYTES = 2**31
# Names that Windows keeps for devices.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_MAX_FOLDER_BYTES = 100
_BLOCK_SECONDS = 30.0


class Cutter:
    """Copies of the merged segments of files, in a folder for each label.

    A cut-out has the sampling rate and channels of its source, and its samples: FLAC for integer sources of up to 24
    bits, else WAV of 32-bit floats, which hold what lossy formats and FFmpeg decode to (32-bit integers and 64-bit
    floats are rounded), and the parts of a doubtful file. Existing files are never replaced.

    Args:
        folder: for the labels' folders; they are created with their first cut-out.
        classes: labels, see `Prediction.classes`.
    """

    def __init__(self, folder: Path, classes: Sequence[str]):
        self.folder, self.count = folder, 0
        taken: set[str] = set()
        self.names = {label: free_name(safe_name(label) + ".x", "", taken) for label in classes}
        self.taken: dict[str, set[str]] = {label: set() for label in classes}

    def cut(self, found: Prediction) -> list[Path]:
        """Write the cut-outs of a file and return their paths; the file is read once more, in blocks.

        Args:
            found: of `predict_files(..., over_time=True)`.

        Raises:
            UnreadableAudio: the file has changed since it was labelled, or its rate or channels change within it.
            OSError: there is no room, or no right to write.
        """
        wanted = found.labelled(merge=True)
        if not wanted:
            return []
        written = []
        bits = _integer_bits(found.file)
        with closing(_Source(found.file)) as source:
            for segment, label, _ in wanted:
                start, end = (round(time * source.sample_rate) for time in (segment.start, segment.end))
                # The length at the model's rate may be rounded.
                last = found.seconds is not None and segment.end >= found.seconds
                if start < end or last:
                    written.append(self._write(found.file, segment, label, source, start, None if last else end, bits))
                    self.count += 1
        return written

    def _write(
        self, file: str, segment: Segment, label: str, source: "_Source", start: int, end: int | None, bits: int | None
    ) -> Path:
        channels, rate = source.channels, source.sample_rate
        flac = bits is not None and channels <= _MAX_FLAC_CHANNELS and rate <= _MAX_FLAC_RATE
        large = (segment.end - segment.start + 1) * rate * channels * 4 > _MAX_WAV_BYTES
        folder = self.folder / self.names[label]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f"_{segment.start:09.3f}-{segment.end:09.3f}" + (".flac" if flac else ".wav")
        path = _reserve(folder, file, suffix, self.taken[label])
        try:
            with (
                atomic_path(path) as part,
                soundfile.SoundFile(
                    part, "w", samplerate=rate, channels=channels,
                    format="FLAC" if flac else "RF64" if large else "WAV", subtype=f"PCM_{bits}" if bits else "FLOAT",
                ) as out,
            ):  # fmt: skip
                for block in source.between(start, end):
                    out.write(_integers(block, bits) if bits else block)
        except BaseException as error:
            path.unlink(missing_ok=True)  # the empty file that reserved the name
            if isinstance(error, soundfile.SoundFileError):
                raise OSError(f"cannot be cut ({error})") from error
            raise
        return path


class _Source:
    """Samples of a file at its own rate and with its channels, taken in order; as labelled, so doubtful files too."""

    def __init__(self, file: str):
        self._blocks = blocks(file, None, _BLOCK_SECONDS, any_format=True, note=lambda _: None)
        self.sample_rate, self._block = next(self._blocks, (0, np.zeros((0, 1), np.float32)))
        self.channels, self._base = self._block.shape[1], 0
        if not self.sample_rate:
            raise UnreadableAudio("holds no samples")

    def close(self) -> None:
        self._blocks.close()

    def between(self, start: int, end: int | None) -> Iterator[Samples]:
        """Blocks `(any, channels)` of samples `start` to `end`, or to the file's; `start` is at least the `end` before.

        Raises:
            UnreadableAudio: the file ends before, or its rate or channels change.
        """
        begin = start
        while end is None or start < end:
            while self._base + len(self._block) <= start:
                rate, following = next(self._blocks, (0, self._block[:0]))
                if not rate and (end is not None or start == begin):
                    raise UnreadableAudio("has changed since it was labelled: it is shorter")
                if not rate:
                    return
                if (rate, following.shape[1]) != (self.sample_rate, self.channels):
                    raise UnreadableAudio("is joined of recordings with different sampling rates or channels")
                self._base, self._block = self._base + len(self._block), following
            part = self._block[start - self._base : None if end is None else end - self._base]
            yield part
            start += len(part)


def safe_name(label: str) -> str:
    """A label as the name of a folder on any system: separators and control characters become `_`."""
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]', "_", label).strip(" .")
    name = name.encode()[:_MAX_FOLDER_BYTES].decode(errors="ignore").rstrip(" .")
    return f"_{name}" if not name or _RESERVED.match(name) else name


def _reserve(folder: Path, file: str, suffix: str, taken: set[str]) -> Path:
    """Create an empty file under a name that no file has."""
    while True:
        path = folder / free_name(file, suffix, taken)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path


def _integer_bits(file: str) -> int | None:
    try:
        with open_audio(os.fspath(file)) as raw, decoder(raw, any_format=True) as opened:
            whole_length(opened, raw)
            return _INTEGER_BITS.get(opened.subtype)
    except UnreadableAudio:  # FFmpeg decodes it; or it is doubtful, and its parts may have several types
        return None


def _integers(samples: Samples, bits: int) -> Array:
    """The integers that libsndfile divided by full scale; writing floats would scale by one less."""
    whole = np.rint(samples * np.float32(2 ** (bits - 1)))
    return whole.astype(np.int16) if bits == 16 else whole.astype(np.int32) << 8
