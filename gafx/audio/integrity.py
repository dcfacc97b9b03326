"""Detect truncated audio files from headers and last bytes, without a decoder.

libsndfile opens most truncated files without an error: of a wav or au it plays the samples that are left, of an ogg it
takes the last page it finds for the end, and of an mp3 it trusts the header.
"""

import io
import os
import re
import struct

# A length unknown when the header was written (a stream, a pipe) is stored as about 2**31 or 2**32 bytes.
_UNKNOWN = 2**31 - 2**16
# A wav has a few chunks before its samples, an mp3 a tag or two; a malicious file may have millions of empty ones.
_MOST_CHUNKS = 1000
# 255 packets of half the longest window.
_MOST_IN_A_PAGE = 255 * 4096
_BLOCK = 1 << 18  # bytes read at a time
# The Xing header of an mp3, with the number of frames and of bytes: encoders write `Info` where the bit rate is
# constant.
_XING = re.compile(rb"(?:Xing|Info)\0\0\0[\3\7\x0b\x0f].{4}(.{4})", re.DOTALL)
# Layer III of MPEG 1, 2 and 2.5: sampling rates in Hz, the right shift of the later two, and kbit/s by index.
_RATES, _RATE_SHIFTS = (44100, 48000, 32000), {0x18: 0, 0x10: 1, 0x00: 2}
_BIT_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def promised_size(file: io.FileIO, format: str) -> int | None:
    """Return the least size in bytes that a file must have by its header, `None` where the header does not tell.

    Args:
        file: opened for reading.
        format: libsndfile's name: `WAV`, `WAVEX`, `RF64`, `AU`, `MP3`, `AIFF`, `SVX`, `W64` or `CAF`, or `AVI`;
            `None` is returned for others.
    """
    if format in ("WAV", "WAVEX", "RF64"):
        return _wav_size(file)
    if format == "AU":
        order = ">" if _bytes_at(file, 0, 4) == b".snd" else "<"
        start, length = struct.unpack(f"{order}II", _bytes_at(file, 4, 8))
        return start + length if length < _UNKNOWN else None
    if format in ("AIFF", "SVX", "AVI"):
        (length,) = struct.unpack("<I" if format == "AVI" else ">I", _bytes_at(file, 4, 4))
        return 8 + length if length < _UNKNOWN else None
    if format == "W64":
        (long_length,) = struct.unpack("<Q", _bytes_at(file, 16, 8))
        return long_length if long_length < 2**62 else None
    if format == "CAF":
        return _caf_size(file)
    return _mp3_size(file) if format == "MP3" else None


def ogg_has_end(file: io.FileIO) -> bool:
    """Return whether an ogg's last page is complete and marked as last; true if only a long tag is near the end."""
    size = os.fstat(file.fileno()).st_size
    tail = _bytes_at(file, max(0, size - 2**16), 2**16)  # a page has at most 65,307 bytes
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not page.startswith(b"OggS"):
        return True
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]]) and bool(page[5] & 4)


def ogg_last_page(file: io.FileIO) -> int:
    """Return the samples in the last page of an ogg, at the rate its pages count in; a page's maximum if none is found.

    A page stores the number of samples of the stream up to its end; the last page stores less than its packets hold if
    the audio ends within a packet.
    """
    size = os.fstat(file.fileno()).st_size
    tail = _bytes_at(file, max(0, size - 2**17), 2**17)
    ends: list[int] = []
    at = len(tail)
    while len(ends) < 2 and (at := tail.rfind(b"OggS", 0, at)) >= 0:
        if len(tail) - at >= 14 and (end := struct.unpack_from("<q", tail, at + 6)[0]) >= 0:  # -1: no packet ends here
            ends.append(end)
    return min(ends[0] - ends[1], _MOST_IN_A_PAGE) if len(ends) == 2 and ends[0] > ends[1] else _MOST_IN_A_PAGE


def mp3_frames(file: io.FileIO) -> tuple[int, float]:
    """Return the number of samples in the frames of an mp3, and the fraction of its bytes that are frames.

    Frames (of layer III) are counted from header to header; one that neither begins the file nor follows another is
    ignored, since random bytes look like a header every few kilobytes. Tags at the beginning are not counted as bytes.
    """
    samples, covered, start = 0, 0, after_tags(file)
    at = end_of_frame = start
    # Read in blocks, not mapped into memory: a mapped file that another process cuts short would end this one.
    block, base, end = b"", 0, os.fstat(file.fileno()).st_size
    while at <= end - 4:
        if not base <= at <= base + len(block) - 4:
            block, base = _bytes_at(file, at, _BLOCK), at
            if len(block) < 4:
                break
        marker, kind, rates = block[at - base], block[at - base + 1], block[at - base + 2]
        shift = _RATE_SHIFTS.get(kind & 0x18)
        if marker != 0xFF or kind & 0xE6 != 0xE2 or shift is None or rates >> 4 in (0, 15) or rates & 12 == 12:
            found = block.find(b"\xff", at - base + 1)
            at = base + (found if found >= 0 else len(block))
            continue
        frame = 1152 if shift == 0 else 576
        bits_per_second = 1000 * (_BIT_RATES_1 if shift == 0 else _BIT_RATES_2)[rates >> 4]
        length = frame // 8 * bits_per_second // (_RATES[rates >> 2 & 3] >> shift) + (rates >> 1 & 1)
        if at == end_of_frame:
            samples, covered = samples + frame, covered + length
        at = end_of_frame = at + length
    return samples, covered / max(1, end - start)


def _bytes_at(file: io.FileIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count) or b""


def _wav_size(file: io.FileIO) -> int | None:
    head = _bytes_at(file, 0, 4096)  # one read reaches the samples of almost all files
    number = ">I" if head.startswith(b"RIFX") else "<I"
    long_length, offset = None, 12
    for _ in range(_MOST_CHUNKS):
        chunk = head[offset : offset + 24] if offset + 24 <= len(head) else _bytes_at(file, offset, 24)
        if len(chunk) < 8:
            return None
        (length,) = struct.unpack_from(number, chunk, 4)
        if chunk.startswith(b"ds64") and len(chunk) == 24:  # RF64's lengths of 64 bits
            (long_length,) = struct.unpack_from("<Q", chunk, 16)
        if chunk.startswith(b"data"):
            if head.startswith(b"RF64") and length == 2**32 - 1 and long_length is not None:
                return offset + 8 + long_length if long_length < 2**62 else None
            return offset + 8 + length if length < _UNKNOWN else None
        offset += 8 + length + length % 2
    return None


def _caf_size(file: io.FileIO) -> int | None:
    offset = 8
    for _ in range(_MOST_CHUNKS):
        chunk = _bytes_at(file, offset, 12)
        if len(chunk) < 12:
            return None
        (length,) = struct.unpack_from(">q", chunk, 4)
        if chunk.startswith(b"data") or length < 0:
            return offset + 12 + length if length >= 0 else None
        offset += 12 + length
    return None


def _mp3_size(file: io.FileIO) -> int | None:
    start = after_tags(file)
    xing = _XING.search(_bytes_at(file, start, 512))
    return start + int.from_bytes(xing[1], "big") if xing else None


def after_tags(file: io.FileIO) -> int:
    """Return the offset of the first byte after the ID3 tags at the beginning of an mp3."""
    start, head = 0, _bytes_at(file, 0, 10)
    for _ in range(_MOST_CHUNKS):
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]  # seven bits a byte
        start += 10 + size
        head = _bytes_at(file, start, 10)
    return start
