"""Files whose headers are wrong or that hold several recordings, as virtual files that libsndfile reads.

`repaired` needs a few bytes of a file and is applied to every file, in data sets too: sizes that were never written
into the header, samples in several chunks, an mp3 inside a wav, FLAC inside ogg. `recovered` reads all of a file. It is
for labelling alone: recordings that were joined are separated, bytes that are no audio are left out.

No file is copied: a `View` strings together pieces of the file and bytes that replace others.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from gafx.audio.integrity import (
    MOST_CHUNKS,
    RAW_NAME,
    UNKNOWN_SIZE,
    AnyFile,
    Run,
    bytes_at,
    flac_starts,
    mp3_frame,
    mp3_parts,
    mp3_runs,
    ogg_links,
    size_of,
    xing_offset,
)

Piece = bytes | tuple[int, int]

# Formats of a wav's samples that are an mp3 or mp2.
_MPEG_TAGS = (0x50, 0x55)
_LARGEST_PAGE = 65_307  # bytes, of an ogg
_TAIL = 2**17  # bytes that hold the last frame of any FLAC
_LARGEST_BIT_RATE = 14  # index of the highest: a frame of it has room for the header


class View(io.RawIOBase):
    """A file of pieces of another file and of bytes.

    Args:
        raw: the other file.
        pieces: bytes, or offset and size of a part of `raw`.
        owns: close `raw`, too, when this is closed.
    """

    def __init__(self, raw: AnyFile, pieces: Sequence[Piece], *, owns: bool = False):
        self.raw, self.owns, self.at = raw, owns, 0
        self.pieces = [piece for piece in pieces if (len(piece) if isinstance(piece, bytes) else piece[1]) > 0]
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] for piece in self.pieces]
        self.starts = [0, *accumulate(sizes)]

    def reopened(self) -> "View":
        """The same file with a position of its own, which ends with this one."""
        return View(self.raw, self.pieces)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.starts[-1])[whence])
        return self.at

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(target) and self.at < self.starts[-1]:
            number = bisect_right(self.starts, self.at) - 1
            piece, inside = self.pieces[number], self.at - self.starts[number]
            wanted = min(len(target) - done, self.starts[number + 1] - self.at)
            if isinstance(piece, bytes):
                found = piece[inside : inside + wanted]
            else:
                found = self._read(piece[0] + inside, wanted)
            target[done : done + len(found)] = found
            done, self.at = done + len(found), self.at + len(found)
            if not found:
                break
        return done

    def _read(self, offset: int, count: int) -> bytes:
        try:
            return bytes_at(self.raw, offset, count)
        except OSError:  # libsndfile's calls pass no exception on: it finds the end there, and the file is refused
            return b""

    def close(self) -> None:
        if self.owns and not self.closed:
            self.raw.close()
        super().close()


def repaired(raw: AnyFile, *, owns: bool = False) -> AnyFile:
    """Return a file as libsndfile reads it: `raw` itself, or a view of it.

    Args:
        raw: the file.
        owns: a view closes `raw` when it is closed.
    """
    head = bytes_at(raw, 0, 64)
    pieces: list[Piece] | None = None
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        pieces = _repaired_wav(raw)
    elif head.startswith(b"fLaC"):
        pieces = _repaired_flac(raw)
    elif head.startswith(b"OggS") and head[28:33] == b"\x7fFLAC":
        pieces = _unwrapped_flac(raw)
    elif head.startswith(b"OggS") and head[28:36] == b"OpusHead":
        pieces = _ended_opus(raw)
    elif head[:4] in (b".snd", b"dns.") and head[8:12] == bytes(4):
        pieces = [head[:8], b"\xff" * 4, (12, size_of(raw) - 12)]
    if pieces is None and getattr(raw, "name", b"").lower().endswith(RAW_NAME):
        pieces = [(0, size_of(raw))]  # libsndfile takes a file of this name for samples without a header
    return raw if pieces is None else View(raw, pieces, owns=owns)


def recovered(raw: AnyFile) -> list[AnyFile]:
    """Separate the recordings in a file, and leave out what is no audio between them.

    Args:
        raw: from `gafx.audio.decode.open_audio`.

    Returns:
        files in order; `[raw]` where nothing can be done.
    """
    head = bytes_at(raw, 0, 64)
    if head.startswith(b"OggS"):
        return [repaired(View(raw, [(start, end - start)])) for start, end in _spans(ogg_links(raw), size_of(raw))]
    if head.startswith(b"fLaC") and len(flac_starts(raw)) == 1 and (pieces := _repaired_flac(raw, always=True)):
        return [View(raw, pieces)]
    if head[:4] in (b".snd", b"dns."):
        return [View(raw, [head[:8], b"\xff" * 4, (12, size_of(raw) - 12)])]
    if head.startswith(b"fLaC"):
        return [repaired(View(raw, [(start, end - start)])) for start, end in _spans(flac_starts(raw), size_of(raw))]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        joined = _joined_wav(raw)
        return [View(raw, pieces) for pieces in joined] if joined else [raw]
    parts = mp3_parts(mp3_runs(raw)[0])
    return [View(raw, _mp3_pieces(raw, part)) for part in parts] or [raw]


def _spans(starts: Sequence[int], end: int) -> Iterable[tuple[int, int]]:
    return zip(starts or [0], [*starts[1:], end], strict=True)


# --- wav --------------------------------------------------------------------------------------------------------------


class Wav(NamedTuple):
    """The chunks of one recording in a wav.

    Attributes:
        format: content of the chunk `fmt `.
        big_endian: whether its numbers are.
        spans: offset and size of the samples.
        is_usual: one chunk of samples, whose size is in the header.
        end: offset of the first byte that belongs to none of its chunks.
    """

    format: bytes
    big_endian: bool
    spans: list[tuple[int, int]]
    is_usual: bool
    end: int

    @property
    def bytes_per_second(self) -> int:
        return int(struct.unpack_from(">I" if self.big_endian else "<I", self.format.ljust(12, b"\0"), 8)[0])


def wav_recordings(raw: AnyFile) -> list[Wav]:
    """Return the recordings that follow each other in a wav."""
    found: list[Wav] = []
    at, size = 0, size_of(raw)
    while len(found) < MOST_CHUNKS and at < size and (one := _wav_at(raw, at, size)) is not None:
        found.append(one)
        at = one.end
    return found


def wav_rest(raw: AnyFile) -> tuple[int, float]:
    """Return how many bytes follow the last chunk of a wav, and how many seconds they would be as samples."""
    recordings = wav_recordings(raw)
    if not recordings:
        return 0, 0.0
    rest = size_of(raw) - recordings[-1].end
    return rest, rest / max(1, recordings[-1].bytes_per_second)


def _wav_at(raw: AnyFile, start: int, size: int) -> Wav | None:
    head = bytes_at(raw, start, 4096)
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:12] != b"WAVE":
        return None
    big_endian = head.startswith(b"RIFX")
    number = ">I" if big_endian else "<I"
    form, long_length, spans, is_usual = b"", None, [], True
    at = start + 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > size:
            break
        inside = at - start
        chunk = head[inside : inside + 24] if inside + 24 <= len(head) else bytes_at(raw, at, 24)
        if len(chunk) < 8 or not _is_name(chunk[:4]) or (chunk[:4] in (b"RIFF", b"RIFX", b"RF64")):
            break
        (length,) = struct.unpack_from(number, chunk, 4)
        content = at + 8
        if chunk.startswith(b"ds64") and len(chunk) == 24:
            (long_length,) = struct.unpack_from("<Q", chunk, 16)
        elif chunk.startswith(b"fmt "):
            form = form or bytes_at(raw, content, min(length, 64))
        elif chunk.startswith(b"data"):
            if long_length is not None and length == 2**32 - 1:
                length = long_length
            if length == 0 and size > content and not _is_chunk(raw, content, size, number):
                is_usual, length = False, size - content  # never written
            elif length >= UNKNOWN_SIZE and content + length > size:
                length = size - content
            spans.append((content, min(length, size - content)))
        elif content + length > size:
            break  # no chunk: what follows the samples only looks like one
        at = min(size, content + length + length % 2)
        if length % 2 and at < size and bytes_at(raw, at - 1, 4) == head[:4]:
            at -= 1  # joined without the byte that makes the size even
    if not form or not spans:
        return None
    return Wav(form, big_endian, spans, is_usual and len(spans) == 1, at)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and min(name) >= 32 and max(name) < 127


def _is_chunk(raw: AnyFile, at: int, size: int, number: str) -> bool:
    """Whether chunks follow that end where the file does, and no samples."""
    for _ in range(MOST_CHUNKS):
        chunk = bytes_at(raw, at, 8)
        if len(chunk) < 8:
            return True
        if not _is_name(chunk[:4]):
            return False
        at += 8 + struct.unpack_from(number, chunk, 4)[0]
        if at > size:
            return False
        at += at % 2
    return False


def _repaired_wav(raw: AnyFile) -> list[Piece] | None:
    recordings = wav_recordings(raw)
    if not recordings:
        return None
    first = recordings[0]
    tag = struct.unpack_from(">H" if first.big_endian else "<H", first.format.ljust(2, b"\0"))[0]
    if tag in _MPEG_TAGS and len(recordings) == 1:
        return list(first.spans)
    same = all((one.format, one.big_endian) == (first.format, first.big_endian) for one in recordings)
    if not same or (len(recordings) == 1 and first.is_usual):
        return None
    return _wav_pieces(first, [span for one in recordings for span in one.spans])


def _joined_wav(raw: AnyFile) -> list[list[Piece]]:
    """Pieces of each recording of a wav, the last one up to the end of the file where what follows is no chunk."""
    recordings = wav_recordings(raw)
    if not recordings:
        return []
    rest, seconds = wav_rest(raw)
    joined = [_wav_pieces(one, one.spans) for one in recordings]
    if seconds >= 1:
        joined[-1] = _wav_pieces(recordings[-1], [*recordings[-1].spans, (size_of(raw) - rest, rest)])
    return joined


def _wav_pieces(wav: Wav, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    order = ">" if wav.big_endian else "<"
    size = sum(length for _, length in spans)

    def chunk(name: bytes, length: int) -> bytes:
        return name + struct.pack(f"{order}I", min(length, 2**32 - 1))

    form = chunk(b"fmt ", len(wav.format)) + wav.format + bytes(len(wav.format) % 2)
    whole = chunk(b"RIFX" if wav.big_endian else b"RIFF", 4 + len(form) + 8 + size) + b"WAVE"
    return [whole + form + chunk(b"data", size), *spans]


# --- flac -------------------------------------------------------------------------------------------------------------


def _repaired_flac(raw: AnyFile, *, always: bool = False) -> list[Piece] | None:
    """Write the number of samples into a FLAC whose encoder could not go back to its header.

    Args:
        raw: the file.
        always: also where the header has another number.
    """
    head = bytes_at(raw, 0, 42)
    if len(head) < 42 or head[4] & 0x7F or (not always and (head[21] & 15 or any(head[22:26]))):
        return None
    total = flac_samples(raw)
    if not total:
        return None
    return [
        head[:21] + bytes([head[21] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF),
        (26, size_of(raw) - 26),
    ]


def flac_samples(raw: AnyFile) -> int:
    """Return the number of samples up to the end of the last frame of a FLAC, 0 if none is found."""
    head = bytes_at(raw, 0, 42)
    if len(head) < 42 or not head.startswith(b"fLaC"):
        return 0
    at = 4
    for _ in range(MOST_CHUNKS):
        block = bytes_at(raw, at, 4)
        if len(block) < 4:
            return 0
        at += 4 + int.from_bytes(block[1:], "big")
        if block[0] & 0x80:
            break
    first = bytes_at(raw, at, 16)
    if _flac_frame(first, first, 0) is None:
        return 0
    (fixed,) = struct.unpack_from(">H", head, 8)
    offset = max(at, size_of(raw) - _TAIL)
    tail = bytes_at(raw, offset, _TAIL)
    place = len(tail)
    while (place := tail.rfind(first[:2], 0, place)) >= 0:
        found = _flac_frame(tail[place : place + 16], first, fixed)
        if found is not None:
            return found if found < 2**36 else 0
    return 0


def _flac_frame(frame: bytes, first: bytes, fixed: int) -> int | None:
    """Number of samples up to the end of a frame, None if these bytes are no header of a frame like the first one."""
    if len(frame) < 6 or frame[0] != 0xFF or frame[1] & 0xFE != 0xF8:
        return None
    if frame[1] != first[1] or (frame[2] ^ first[2]) & 15 or (frame[3] ^ first[3]) & 15:
        return None
    length = next((count for count in range(8) if not frame[4] << count & 0x80), 8)  # as in UTF-8
    length = max(1, length)
    number = frame[4] & (0x7F >> (length if length > 1 else 0))
    for byte in frame[5 : 4 + length]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    at = 4 + length
    code = frame[2] >> 4
    if code == 0:
        return None
    if code in (6, 7):
        block = int.from_bytes(frame[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        block = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    if at >= len(frame) or _crc8(frame[:at]) != frame[at]:
        return None
    return (number if frame[1] & 1 else number * fixed) + block


def _crc8(content: bytes) -> int:
    check = 0
    for byte in content:
        check ^= byte
        for _ in range(8):
            check = check << 1 & 0xFF ^ (7 if check & 0x80 else 0)
    return check


def _unwrapped_flac(raw: AnyFile) -> list[Piece] | None:
    """The FLAC stream inside an ogg: its packets, which fill the pages of its stream, one after the other."""
    pieces: list[Piece] = [b"fLaC"]
    at, last, number = 0, 0, b""
    while len(page := bytes_at(raw, at, 27 + 255)) >= 27 and page.startswith(b"OggS"):
        body = at + 27 + page[26]
        length = sum(page[27 : 27 + page[26]])
        number = number or page[14:18]
        if page[5] & 2 and at and page[14:18] == number:
            return None  # another recording follows
        if page[14:18] == number:
            skip = 13 if len(pieces) == 1 else 0  # the mapping's own header and `fLaC`
            pieces.append((body + skip, length - skip))
            last = max(last, struct.unpack_from("<q", page, 6)[0])
        at = body + length
    if len(pieces) < 3:
        return None
    start, _ = pieces[1]
    info = bytes_at(raw, int(start), 38)
    if len(info) == 38 and not info[17] & 15 and not any(info[18:22]) and 0 < last < 2**36:
        pieces[1:2] = [
            info[:17],
            bytes([info[17] & 0xF0 | last >> 32]),
            struct.pack(">I", last & 0xFFFFFFFF),
            info[22:],
        ]
    return pieces


# --- opus -------------------------------------------------------------------------------------------------------------


def _ended_opus(raw: AnyFile) -> list[Piece] | None:
    """Mark the last page as such: without the mark libsndfile refuses one that ends within a packet."""
    size = size_of(raw)
    offset = max(0, size - _LARGEST_PAGE)
    tail = bytes_at(raw, offset, _LARGEST_PAGE)
    place = tail.rfind(b"OggS")
    page = bytearray(tail[place:]) if place >= 0 else bytearray()
    if len(page) < 27 or page[5] & 4:
        return None
    length = 27 + page[26] + sum(page[27 : 27 + page[26]])
    if len(page) < length:
        return None
    del page[length:]
    page[5] |= 4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", _ogg_check(page))
    start = offset + place
    return [(0, start), bytes(page), (start + length, size - start - length)]


@cache
def _ogg_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = value << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if value & 1 << 31 else 0)
        table.append(value)
    return tuple(table)


def _ogg_check(page: bytearray) -> int:
    table, check = _ogg_table(), 0
    for byte in page:
        check = check << 8 & 0xFFFFFFFF ^ table[check >> 24 ^ byte]
    return check


# --- mp3 --------------------------------------------------------------------------------------------------------------


def _mp3_pieces(raw: AnyFile, part: list[Run]) -> list[Piece]:
    """The frames of one recording, after a header that gives their number.

    Without it libsndfile would guess the length, and read no further than its guess.
    """
    spans: list[Piece] = [(run.start, run.end - run.start) for run in part]
    first = part[0]
    frames, size = sum(run.frames for run in part), sum(run.end - run.start for run in part)
    if first.is_layer_3:
        head = bytearray(bytes_at(raw, first.start, 4))
        if first.header:
            length = first.header
            head = bytearray(bytes_at(raw, first.start, length))
            spans[0] = (first.start + length, first.end - first.start - length)
            at = xing_offset(head)
            if at is not None and head[at + 7] & 3 == 3:
                struct.pack_into(">II", head, at + 8, frames - 1, size)
                return [bytes(head), *spans]
            frames, size = frames - 1, size - length  # of another kind: it is left out
            head = head[:4]
        head[1] |= 1  # no check
        head[2] = _LARGEST_BIT_RATE << 4 | head[2] & 12
        known = mp3_frame(head[1], head[2], head[3])
        assert known is not None
        body = head + bytes(known.length - 4)
        at = known.side_info
        body[at : at + 16] = b"Xing" + struct.pack(">III", 3, frames, size + known.length)
        return [bytes(body), *spans]
    return spans
