"""Acoustic fingerprints of clips, which identify a recording in any format; `gafx.data.leaks.copies` compares them.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002), section 4: a word of 32 bits per
frame. A bit is the sign of the change over time of the energy difference between two neighbouring bands, so that level
has no influence, and lossy coding changes few bits. The parameters differ from the paper's: 8 kHz, 33 bands from 300 to
3,400 Hz, energies smoothed over 0.3 s, a word every 20 ms, and the change over 80 ms instead of one step, since noise
(rain, sea waves) needs the longer one for stable bits.

Words of silent frames carry no information; a mask marks them. A digest of the file's bytes finds identical files.
Nothing here imports torch.
"""

import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gafx.audio.read import Samples, Span
from gafx.data.manifest import Manifest
from gafx.data.packing.cache import file_status
from gafx.data.readers import FileReader, Rows, clip_span
from gafx.errors import UnreadableAudio
from gafx.io import atomic_path, digest, file_digest

# Cached fingerprints depend on these constants; increment the version with any change to them.
VERSION = 1
RATE, WINDOW, HOP = 8000, 512, 160
LOWEST, HIGHEST, BANDS = 300.0, 3400.0, 33
SMOOTH, LAG = 15, 4  # frames
# Least number of words: a shorter clip is padded with silence, so that a click has a fingerprint too.
_LEAST_WORDS = 25
# A frame counts as silent this many dB below the loudest frame of its clip, and below this level in dB of full scale.
_FLOOR, _SILENCE = 50.0, -90.0
# Seconds read at a time, which bounds the memory. Whole seconds are whole steps of every rate ratio.
_BLOCK_SECONDS = 60


@dataclass(frozen=True)
class Prints:
    """Fingerprints of the clips of a manifest, concatenated.

    Attributes:
        first: `(clips + 1,)`: clip i has the words `first[i]` to `first[i + 1]`, one every `HOP` samples at `RATE`.
        words: `(words,)` uint32.
        sound: `(words,)`: whether the frame is not silent.
        digest: `(clips,)` uint64 of the file's bytes and the clip's position in the file; 0 where it was not read.
        unreadable: reasons of the clips (by row) that could not be read.
    """

    first: npt.NDArray[np.int64]
    words: npt.NDArray[np.uint32]
    sound: npt.NDArray[np.bool_]
    digest: npt.NDArray[np.uint64]
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.digest)

    def sounding(self) -> npt.NDArray[np.int64]:
        """Return `(clips,)`, the number of frames of each clip that are not silent."""
        total = np.concatenate([[0], np.cumsum(self.sound, dtype=np.int64)])
        return total[self.first[1:]] - total[self.first[:-1]]


# Words, sound and digest of a clip, and the reason why it could not be read.
_Made = tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_], int, str]


def fingerprint_clips(
    manifest: Manifest,
    rows: Rows,
    *,
    folder: Path | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Prints:
    """Compute the fingerprints of clips; those of other rows are empty or come from the cache.

    Args:
        manifest: the data set.
        rows: of the clips.
        folder: cache, with one file per data set. A clip whose file has changed in size or modification time is read
            again. If it cannot be written, nothing is cached.
        progress: called after each clip that was read.
    """
    path = folder and folder / f"{manifest.audio_fingerprint()}.npz"
    sizes, times = _statuses(manifest)
    known = _load(path, sizes, times) if path else _none(len(manifest))
    wanted = np.zeros(len(manifest), bool)
    wanted[rows] = True
    todo = np.flatnonzero(wanted & (known.digest == 0))
    if not len(todo):
        return known
    reader = FileReader(manifest, RATE, 1)

    def attempt(row: int) -> _Made:
        try:
            return *_words(_read_energies(reader, manifest, row)), _clip_digest(manifest, row), ""
        except (UnreadableAudio, OSError) as error:
            reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            return np.zeros(0, np.uint32), np.zeros(0, bool), 0, reason

    made: dict[int, _Made] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for row, clip in zip(todo.tolist(), pool.map(attempt, todo.tolist()), strict=True):
            made[row] = clip
            progress()
    prints = _merge(known, made)
    if path:
        _save(path, prints, sizes, times)
    return prints


def unread(manifest: Manifest, rows: Rows, folder: Path | None) -> Rows:
    """Return those of `rows` without a valid fingerprint in the cache `folder`."""
    if folder is None or not (path := folder / f"{manifest.audio_fingerprint()}.npz").is_file():
        return rows
    return rows[_load(path, *_statuses(manifest)).digest[rows] == 0]


def _read_energies(reader: FileReader, manifest: Manifest, row: int) -> npt.NDArray[np.float32]:
    """Compute the band energies of a whole clip, read in blocks."""
    begin, end = clip_span(manifest, row, RATE)
    block = _BLOCK_SECONDS * RATE
    parts = []
    for start in range(0, max(end - begin, 1), block):
        if start and end - begin - start < WINDOW:
            break  # covered by the block before
        parts.append(_energies(reader.read(row, start, block + WINDOW - HOP)[0], pad=not start))
    return np.concatenate(parts)


def _energies(wave: Samples, *, pad: bool = True) -> npt.NDArray[np.float32]:
    """`(samples,)` -> `(frames, bands)`: energies in Hann windows of 64 ms, one every 20 ms."""
    least = WINDOW + HOP * (_LEAST_WORDS + SMOOTH + LAG - 2)
    if pad and len(wave) < least:
        wave = np.pad(wave, (0, least - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    window, bands = _tables()
    return np.square(np.abs(np.fft.rfft(frames * window, axis=1)), dtype=np.float32) @ bands


@lru_cache(maxsize=1)
def _tables() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the window and `(bins, bands)`, the fraction of each bin that belongs to each band."""
    edges = np.geomspace(LOWEST, HIGHEST, BANDS + 1)
    width = RATE / WINDOW
    low = (np.arange(WINDOW // 2 + 1)[:, None] - 0.5) * width
    weights = (np.minimum(low + width, edges[1:]) - np.maximum(low, edges[:-1])) / width
    return np.hanning(WINDOW).astype(np.float32), np.clip(weights, 0, 1).astype(np.float32)


def _words(energies: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Compute the words from `(frames, bands)`, and which are not silent; each depends on about 0.44 s of audio."""
    weights = np.hanning(SMOOTH + 2)[1:-1].astype(np.float32)
    weights /= weights.sum()
    count = len(energies) - SMOOTH + 1
    smooth = np.zeros((count, BANDS), np.float32)
    for lag, weight in enumerate(weights):
        smooth += weight * energies[lag : lag + count]
    slope = smooth[:, :-1] - smooth[:, 1:]
    bits = slope[LAG:] > slope[:-LAG]
    words = np.packbits(bits, axis=1).view(">u4")[:, 0].astype(np.uint32)
    power = smooth.sum(axis=1)[LAG:]
    # Energy of a full-scale sine in such a window.
    full_scale = (WINDOW / 4) ** 2
    least = max(float(power.max()) * 10 ** (-_FLOOR / 10), full_scale * 10 ** (_SILENCE / 10))
    return words, power > least


def _clip_digest(manifest: Manifest, row: int) -> int:
    """Return a digest of the bytes of a clip's file and of the clip's position in it, never 0."""
    file = manifest.file(row)
    size, mtime = file_status(file)
    part = np.rint(np.array([manifest.start[row], manifest.duration[row]]) * 1e6).astype("<i8").tobytes()
    return int.from_bytes(bytes.fromhex(digest(_file_digest(file, size, mtime), part)), "little") or 1


@lru_cache(maxsize=256)  # clips of one file follow each other
def _file_digest(file: bytes | Span, size: int, mtime: int) -> bytes:
    path, offset = (file.path, file.offset) if isinstance(file, Span) else (file, 0)
    return bytes.fromhex(file_digest(path, "blake2b-16", offset=offset, size=max(size, 0)))


def _statuses(manifest: Manifest) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return size in bytes and modification time in nanoseconds of each clip's file."""
    found = np.array([file_status(manifest.file(row)) for row in range(len(manifest))], np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _none(clips: int) -> Prints:
    return Prints(np.zeros(clips + 1, np.int64), np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(clips, np.uint64))


def _merge(known: Prints, made: dict[int, _Made]) -> Prints:
    """Replace the fingerprints of some rows."""
    words, sound, digests = [], [], known.digest.copy()
    for row in range(len(known)):
        span = slice(known.first[row], known.first[row + 1])
        of_row, sound_of_row, digests[row], _ = made.get(row, (known.words[span], known.sound[span], digests[row], ""))
        words.append(of_row)
        sound.append(sound_of_row)
    first = np.concatenate([[0], np.cumsum([len(part) for part in words], dtype=np.int64)])
    unreadable = {row: reason for row, (*_, reason) in made.items() if reason}
    return Prints(first, np.concatenate(words), np.concatenate(sound), digests, unreadable)


def _load(path: Path, sizes: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> Prints:
    """Load cached fingerprints; clips whose files have changed, or all if the cache is damaged, get the digest 0."""
    clips = len(sizes)
    try:
        with np.load(path, allow_pickle=False) as kept:
            if int(kept["version"]) != VERSION or kept["digest"].shape != (clips,):
                return _none(clips)
            first, words, digest = kept["first"], kept["words"], kept["digest"]
            sound = np.unpackbits(kept["sound"], count=len(words)).astype(bool)
            changed = (kept["size"] != sizes) | (kept["time"] != times)
        if first.shape != (clips + 1,) or first[0] or first[-1] != len(words) or (np.diff(first) < 0).any():
            return _none(clips)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return _none(clips)
    return Prints(first, words, sound, np.where(changed, 0, digest).astype(np.uint64))


def _save(path: Path, prints: Prints, sizes: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> None:
    """Cache fingerprints, if the folder can be written; several runs may do so at the same time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part, part.open("wb") as out:
            np.savez(
                out, version=np.int64(VERSION), first=prints.first, words=prints.words,
                sound=np.packbits(prints.sound), digest=prints.digest, size=sizes, time=times,
            )  # fmt: skip
