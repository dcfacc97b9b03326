"""Audio files with odd headers, made from usual ones."""

import struct


def two_chunks(wav):
    """A wav with a header of 44 bytes, its samples in two chunks with another between them."""
    half = (len(wav) - 44) // 4 * 2
    parts = [wav[44 : 44 + half], wav[44 + half :]]
    return wav[:36] + b"LIST\4\0\0\0INFO".join(b"data" + struct.pack("<I", len(part)) + part for part in parts)


def inside_wav(mp3, rate, tag=0x55):
    """A wav whose samples are an mp3."""
    form = struct.pack("<HHIIHH", tag, 1, rate, 8000, 1, 0)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(mp3))
    return b"RIFF" + struct.pack("<I", len(head) + len(mp3)) + head + mp3


def without_end(ogg):
    """An ogg whose last page is not marked as such."""
    content = bytearray(ogg)
    content[content.rindex(b"OggS") + 5] &= ~4
    repair_checksums(content)
    return bytes(content)


def without_total(flac):
    """A FLAC as of an encoder that writes to a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def zeroed(content, start, stop):
    """Content with zeros from byte `start` to `stop`."""
    return content[:start] + bytes(stop - start) + content[stop:]


def in_ogg(flac):
    """FLAC in ogg, after the mapping's description; frames of one packet, split among pages in any way."""
    blocks, at = [], 4
    while True:
        end = at + 4 + int.from_bytes(flac[at + 1 : at + 4], "big")
        blocks.append(flac[at:end])
        if flac[at] & 0x80:
            break
        at = end
    packets = [b"\x7fFLAC\1\0" + struct.pack(">H", len(blocks) - 1) + b"fLaC" + blocks[0], *blocks[1:]]
    rest = flac[end:]
    packets += [rest[start : start + 4000] for start in range(0, len(rest), 4000)]
    content = bytearray()
    for number, packet in enumerate(packets):
        table = [255] * (len(packet) // 255) + [len(packet) % 255]
        kind = 2 if number == 0 else 4 if number == len(packets) - 1 else 0
        total = int.from_bytes(flac[21:26], "big") & 2**36 - 1
        content += b"OggS\0" + struct.pack("<BqIII", kind, total if kind == 4 else 0, 7, number, 0)
        content += bytes([len(table), *table]) + packet
    repair_checksums(content)
    return bytes(content)


def repair_checksums(content: bytearray, number: int | None = None) -> None:
    """Write the right checksum, and if wanted another stream number, into the pages of an ogg."""
    at = content.find(b"OggS")
    while at >= 0 and at + 27 <= len(content):
        table = content[at + 27 : at + 27 + content[at + 26]]
        end = at + 27 + len(table) + sum(table)
        if number is not None:
            struct.pack_into("<I", content, at + 14, number)
        struct.pack_into("<I", content, at + 22, 0)
        check = 0
        for byte in content[at:end]:
            check = check << 8 & 0xFFFFFFFF ^ _OGG_TABLE[check >> 24 ^ byte]
        struct.pack_into("<I", content, at + 22, check)
        at = content.find(b"OggS", at + 27)


def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x04C11DB7 if value & 1 << 31 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_OGG_TABLE = _ogg_table()
