"""Detect truncated audio files, and several recordings in one, from headers, pages and frames, without a decoder.

libsndfile opens most truncated files without an error: of a wav or au it plays the samples that are left, of an ogg it
takes the last page it finds for the end, and of an mp3 it trusts the header. Of joined recordings it plays the first.
"""

import io
import re
import struct
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

# A length unknown when the header was written (a stream, a pipe) is stored as about 2**31 or 2**32 bytes.
UNKNOWN_SIZE = 2**31 - 2**16
# A wav has a few chunks before its samples, an mp3 a tag or two; a malicious file may have millions of empty ones.
MOST_CHUNKS = 1000
# 255 packets of half the longest window.
_MOST_IN_A_PAGE = 255 * 4096
_BLOCK = 1 << 18  # bytes read at a time
_SEARCHED = 1 << 18  # bytes searched at a time: what the processor's cache holds
# The Xing header of an mp3, with the number of frames and of bytes: encoders write `Info` where the bit rate is
# constant.
_XING = re.compile(rb"(?:Xing|Info)\0\0\0[\3\7\x0b\x0f](.{4})(.{4})", re.DOTALL)
_HEADERS = (b"Xing", b"Info", b"VBRI")
# MPEG 1, 2 and 2.5: sampling rates in Hz, the right shift of the later two, and kbit/s by index: of MPEG 1 by layer, of
# the later two of layer I, and of layers II and III.
_RATES, _RATE_SHIFTS = (44100, 48000, 32000), {3: 0, 2: 1, 0: 2}
_BIT_RATES = {
    1: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_BIT_RATES_LATER = {
    1: (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Frames in a row that are no coincidence: random bytes look like a frame's header every few kilobytes.
_FEWEST_FRAMES = 4
# Bytes of a frame up to the end of the name of a Xing or VBRI header.
_HEADER_REACH = 40
# An ogg's page that begins a stream, and a FLAC's beginning with its first block.
_OGG_BEGINNING = re.compile(rb"OggS\0[\2\6]")
_FLAC_BEGINNING = re.compile(rb"fLaC[\0\x80]\0\0\x22")
RAW_NAME = b".raw"

AnyFile = io.RawIOBase


def promised_size(file: AnyFile, format: str) -> int | None:
    """Return the least size in bytes that a file must have by its header, `None` where the header does not tell.

    Args:
        file: opened for reading.
        format: libsndfile's name: `WAV`, `WAVEX`, `RF64`, `AU`, `MP3`, `AIFF`, `SVX`, `W64` or `CAF`, or `AVI`;
            `None` is returned for others.
    """
    if format in ("WAV", "WAVEX", "RF64"):
        return _wav_size(file)
    if format == "AU":
        order = ">" if bytes_at(file, 0, 4) == b".snd" else "<"
        start, length = struct.unpack(f"{order}II", bytes_at(file, 4, 8))
        return start + length if length < UNKNOWN_SIZE else None
    if format in ("AIFF", "SVX", "AVI"):
        (length,) = struct.unpack("<I" if format == "AVI" else ">I", bytes_at(file, 4, 4))
        return 8 + length if length < UNKNOWN_SIZE else None
    if format == "W64":
        (long_length,) = struct.unpack("<Q", bytes_at(file, 16, 8))
        return long_length if long_length < 2**62 else None
    if format == "CAF":
        return _caf_size(file)
    return _mp3_size(file) if format == "MP3" else None


def ogg_has_end(file: AnyFile) -> bool:
    """Return whether an ogg's last page is complete; true if only a long tag is near the end.

    The mark of the last page is no condition: recorders of streams never write it.
    """
    tail = bytes_at(file, max(0, size_of(file) - 2**16), 2**16)  # a page has at most 65,307 bytes
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not page.startswith(b"OggS"):
        return True
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def ogg_links(file: AnyFile) -> list[int]:
    """Return the offsets at which the recordings chained in an ogg begin; streams that begin together are one link."""
    links: list[int] = []
    following = -1
    for start in _matches(file, _OGG_BEGINNING, 6):
        if start != following:
            links.append(start)
        page = bytes_at(file, start, 27 + 255)
        following = start + 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) >= 27 else -1
    return links


def flac_starts(file: AnyFile) -> list[int]:
    """Return the offsets at which the recordings joined in a FLAC begin."""
    return list(_matches(file, _FLAC_BEGINNING, 8))


def _matches(file: AnyFile, pattern: "re.Pattern[bytes]", longest: int) -> Iterator[int]:
    """Offsets of a pattern in a file; it matches 5 to `longest` bytes, the first four of them literally."""
    # Searched by comparing numbers of four bytes, at a third of the time of a regular expression, in one buffer, since
    # the pages of new memory take longer than the search.
    buffer = np.zeros(min(_SEARCHED, size_of(file) + longest), np.uint8)
    name = np.frombuffer(pattern.pattern[:4], np.uint32)
    shifted = [buffer[shift : shift + (len(buffer) - shift) // 4 * 4].view(np.uint32) for shift in range(4)]
    offset = kept = 0  # of the buffer's beginning in the file, and bytes of the block before
    while True:
        file.seek(offset + kept)
        read = file.readinto(memoryview(buffer)[kept:])  # type: ignore[arg-type]
        if not read:
            return
        end = kept + read
        found = [view == name for view in shifted]
        places = [4 * np.flatnonzero(hits) + shift for shift, hits in enumerate(found) if hits.any()]
        for place in sorted(np.concatenate(places).tolist()) if places else ():
            if pattern.match(buffer, place, end):  # type: ignore[call-overload]
                yield offset + place
        kept = min(longest - 1, end)
        buffer[:kept] = buffer[end - kept : end].copy()
        offset += end - kept


def ogg_last_page(file: AnyFile) -> int:
    """Return the samples in the last page of an ogg, at the rate its pages count in; a page's maximum if none is found.

    A page stores the number of samples of the stream up to its end; the last page stores less than its packets hold if
    the audio ends within a packet.
    """
    size = size_of(file)
    tail = bytes_at(file, max(0, size - 2**17), 2**17)
    ends: list[int] = []
    at = len(tail)
    while len(ends) < 2 and (at := tail.rfind(b"OggS", 0, at)) >= 0:
        if len(tail) - at >= 14 and (end := struct.unpack_from("<q", tail, at + 6)[0]) >= 0:  # -1: no packet ends here
            ends.append(end)
    return min(ends[0] - ends[1], _MOST_IN_A_PAGE) if len(ends) == 2 and ends[0] > ends[1] else _MOST_IN_A_PAGE


class Frame(NamedTuple):
    """Header of a frame of an mp3.

    Attributes:
        samples: per channel.
        length: in bytes.
        form: what frames of one recording have in common: version and layer, sampling rate, mono or stereo.
        side_info: offset of a Xing header, 0 in layers that have none.
    """

    samples: int
    length: int
    form: tuple[int, int, bool]
    side_info: int


class Run(NamedTuple):
    """Frames of an mp3, one directly after the other.

    Attributes:
        start: offset of the first one.
        end: offset of the first byte after the last one, or the file's end.
        frames: their number, one with a Xing header included.
        samples: per channel, without those of a frame with a Xing header.
        form: as of `Frame`.
        header: bytes of the first frame if it holds a Xing or VBRI header, else 0.
    """

    start: int
    end: int
    frames: int
    samples: int
    form: tuple[int, int, bool]
    header: int

    @property
    def is_layer_3(self) -> bool:
        return self.form[0] & 6 == 2


@cache
def mp3_frame(kind: int, rates: int, mode: int) -> Frame | None:
    """Read the second to fourth byte of a frame's header (layers I to III); None if they are none."""
    shift, layer = _RATE_SHIFTS.get(kind >> 3 & 3), 4 - (kind >> 1 & 3)
    if kind & 0xE0 != 0xE0 or shift is None or layer == 4 or rates >> 4 in (0, 15) or rates & 12 == 12:
        return None
    samples = 384 if layer == 1 else 576 if layer == 3 and shift else 1152
    kbits = (_BIT_RATES_LATER[min(layer, 2)] if shift else _BIT_RATES[layer])[rates >> 4]
    slot = 4 if layer == 1 else 1
    length = (samples // 8 // slot * 1000 * kbits // (_RATES[rates >> 2 & 3] >> shift) + (rates >> 1 & 1)) * slot
    mono = mode & 0xC0 == 0xC0
    side_info = 0 if layer != 3 else 4 + ((9 if mono else 17) if shift else (17 if mono else 32))
    return Frame(samples, length, (kind & 0x1E, rates & 12, mono), side_info)


def mp3_runs(file: AnyFile) -> tuple[list[Run], float]:
    """Return the frames of an mp3 (layers I to III), and the fraction of its bytes that are frames.

    Frames are found from header to header; a few that follow neither the beginning nor each other are ignored, since
    random bytes look like a header every few kilobytes. A new run begins where other bytes lie between frames, where
    their form changes, and at a frame with a Xing header. Tags at the beginning are not counted as bytes.
    """
    runs: list[Run] = []
    begin = at = end_of_frame = after_tags(file)
    start = frames = samples = header = 0
    form: tuple[int, int, bool] | None = None

    def close() -> None:
        if form is not None and (frames >= _FEWEST_FRAMES or start == begin):
            runs.append(Run(start, min(end_of_frame, end), frames, samples, form, header))

    # Read in blocks, not mapped into memory: a mapped file that another process cuts short would end this one.
    block, base, end = b"", 0, size_of(file)
    while at <= end - 4:
        if not base <= at <= base + len(block) - _HEADER_REACH and base + len(block) < end:
            block, base = bytes_at(file, at, max(_BLOCK, _HEADER_REACH)), at
        inside = at - base
        if len(block) < inside + 4:
            break
        found = mp3_frame(block[inside + 1], block[inside + 2], block[inside + 3] & 0xC0)
        if block[inside] != 0xFF or found is None:
            place = block.find(b"\xff", inside + 1)
            at = base + (place if place >= 0 else len(block))
            continue
        place = inside + found.side_info
        is_header = found.side_info and (
            block[place : place + 4] in _HEADERS[:2] or block[inside + 36 : inside + 40] == _HEADERS[2]
        )
        if at != end_of_frame or found.form != form or is_header:
            close()
            start, frames, samples, header = at, 0, 0, found.length if is_header else 0
            form = found.form
        frames += 1
        samples += 0 if is_header else found.samples
        at = end_of_frame = at + found.length
    close()
    covered = sum(run.end - run.start for run in runs)
    return runs, covered / max(1, end - begin)


def mp3_parts(runs: list[Run]) -> list[list[Run]]:
    """Group the runs of frames by recording: another one begins with a Xing header or a change of the form."""
    parts: list[list[Run]] = []
    for run in runs:
        if parts and not run.header and run.form == parts[-1][-1].form:
            parts[-1].append(run)
        elif run.frames > bool(run.header):
            parts.append([run])
    return parts


def xing_offset(frame: bytes | bytearray) -> int | None:
    """Return the offset of a Xing header with the number of frames and of bytes, None if there is none."""
    found = _XING.search(frame)
    return found.start() if found else None


def xing_frames(file: AnyFile, run: Run) -> int | None:
    """Return the number of frames that the Xing header of a recording promises, None if it tells none."""
    found = _XING.search(bytes_at(file, run.start, run.header))
    return int.from_bytes(found[1], "big") if found else None


def size_of(file: AnyFile) -> int:
    """Return the size of a file in bytes."""
    return file.seek(0, io.SEEK_END)


def bytes_at(file: AnyFile, offset: int, count: int) -> bytes:
    """Read up to `count` bytes from an offset on."""
    file.seek(offset)
    return file.read(count) or b""


def _wav_size(file: AnyFile) -> int | None:
    head = bytes_at(file, 0, 4096)  # one read reaches the samples of almost all files
    number = ">I" if head.startswith(b"RIFX") else "<I"
    long_length, offset = None, 12
    for _ in range(MOST_CHUNKS):
        chunk = head[offset : offset + 24] if offset + 24 <= len(head) else bytes_at(file, offset, 24)
        if len(chunk) < 8:
            return None
        (length,) = struct.unpack_from(number, chunk, 4)
        if chunk.startswith(b"ds64") and len(chunk) == 24:  # RF64's lengths of 64 bits
            (long_length,) = struct.unpack_from("<Q", chunk, 16)
        if chunk.startswith(b"data"):
            if head.startswith(b"RF64") and length == 2**32 - 1 and long_length is not None:
                return offset + 8 + long_length if long_length < 2**62 else None
            return offset + 8 + length if length < UNKNOWN_SIZE else None
        offset += 8 + length + length % 2
    return None


def _caf_size(file: AnyFile) -> int | None:
    offset = 8
    for _ in range(MOST_CHUNKS):
        chunk = bytes_at(file, offset, 12)
        if len(chunk) < 12:
            return None
        (length,) = struct.unpack_from(">q", chunk, 4)
        if chunk.startswith(b"data") or length < 0:
            return offset + 12 + length if length >= 0 else None
        offset += 12 + length
    return None


def _mp3_size(file: AnyFile) -> int | None:
    start = after_tags(file)
    xing = _XING.search(bytes_at(file, start, 512))
    return start + int.from_bytes(xing[2], "big") if xing else None


def after_tags(file: AnyFile) -> int:
    """Return the offset of the first byte after the ID3 tags at the beginning of an mp3."""
    start, head = 0, bytes_at(file, 0, 10)
    for _ in range(MOST_CHUNKS):
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]  # seven bits a byte
        start += 10 + size
        head = bytes_at(file, start, 10)
    return start
