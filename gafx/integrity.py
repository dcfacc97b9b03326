"""Is an audio file whole? What its first and last bytes say, without a decoder.

libsndfile opens most truncated files without a word: of a wav or au it plays what is there, of an ogg it takes the last
page it finds for the end, and of an mp3 it believes the header.
"""

import io
import os
import re
import struct

# Lengths that nobody knew when the header was written (a stream, a pipe) stand as about 2**31 or 2**32 bytes.
_UNKNOWN = 2**31 - 2**16
# A wav has a handful of chunks before its samples; a hostile one has a hundred million empty ones.
_MOST_CHUNKS = 1000
# The Xing header of an mp3, with the number of frames and of bytes: encoders write `Info` where the bit rate is
# constant.
_XING = re.compile(rb"(?:Xing|Info)\0\0\0[\3\7\x0b\x0f].{4}(.{4})", re.DOTALL)


def promised_size(file: io.FileIO, format: str) -> int | None:
    """Bytes that a file must at least have by what its header says, `None` where the header does not say.

    Args:
        file: opened for reading.
        format: libsndfile's name: `WAV`, `WAVEX`, `RF64`, `AU` or `MP3`; of others nothing is known.
    """
    if format in ("WAV", "WAVEX", "RF64"):
        return _wav_size(file)
    if format == "AU":
        order = ">" if _bytes_at(file, 0, 4) == b".snd" else "<"
        start, length = struct.unpack(f"{order}II", _bytes_at(file, 4, 8))
        return start + length if length < _UNKNOWN else None
    return _mp3_size(file) if format == "MP3" else None


def ogg_has_end(file: io.FileIO) -> bool:
    """Whether an ogg's last page is complete and marked as the last; true where only a long tag lies near the end."""
    size = os.fstat(file.fileno()).st_size
    tail = _bytes_at(file, max(0, size - 2**16), 2**16)  # a page has at most 65,307 bytes
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if not page.startswith(b"OggS"):
        return True
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]]) and bool(page[5] & 4)


def _bytes_at(file: io.FileIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count) or b""


def _wav_size(file: io.FileIO) -> int | None:
    head = _bytes_at(file, 0, 4096)  # one read finds the samples of all but a few files
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


def _mp3_size(file: io.FileIO) -> int | None:
    start, head = 0, _bytes_at(file, 0, 512)
    while head.startswith(b"ID3") and len(head) >= 10:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 127
        start += 10 + size
        head = _bytes_at(file, start, 512)
    xing = _XING.search(head)
    return start + int.from_bytes(xing[1], "big") if xing else None
