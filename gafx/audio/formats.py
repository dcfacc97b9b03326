"""Audio file formats: the list of file name extensions and what can be read.

Formats of `FORMATS` are read everywhere, with exact seeks and checks for truncation. `RARER` ones are whatever else
libsndfile decodes: `gafx predict` and `gafx features` read them, data sets do not. `FFMPEG` ones (and the sound of
videos) are read by the same commands with the extra `formats` (PyAV, which contains FFmpeg). `NOT_READ` ones hold audio
that nothing here decodes. Extensions only select files in folders; a file's content decides how it is decoded.
"""

import os
import re
from dataclasses import dataclass


def _extensions(names: str) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names.split())


# Extensions of each format, the preferred format of several copies of a track first.
FORMATS: dict[str, tuple[str, ...]] = {
    "wav": _extensions("wav wave bwf rf64"),
    "flac": _extensions("flac"),
    "ogg": _extensions("ogg oga"),
    "opus": _extensions("opus"),
    "mp3": _extensions("mp3 mp2 mpga"),
    "au": _extensions("au snd"),
}
# libsndfile's names of their containers. The others stay out of data sets: that keeps downloaded files away from its
# parsers of two dozen rarer formats, and seeks in those are not known to be exact.
CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AU")
RARER = _extensions("aif aiff aifc caf w64 voc sph nist mp1 avr paf pvf svx 8svx ircam sf htk xi sd2 wve")
FFMPEG = _extensions(
    "m4a m4b m4r mp4 aac ac3 amr ape dff dsf dts mka mkv mpc oma ra rm shn spx tta weba webm wma wv 3gp"
)
NOT_READ = _extensions("gsm")


@dataclass(frozen=True)
class Container:
    """A file format that FFmpeg reads and libsndfile does not.

    Attributes:
        demuxer: FFmpeg's name of it.
        name: for messages.
    """

    demuxer: str
    name: str


# How these formats begin. FFmpeg is told the demuxer: it never guesses, so that no file can choose one that opens other
# files or addresses (a playlist).
_CONTAINERS = tuple(
    (pattern, Container(demuxer, name))
    for pattern, demuxer, name in (
        (rb"....(ftyp|moov|mdat|wide|free|skip)", "mov", "mp4 or m4a"),
        (rb"\x1aE\xdf\xa3", "matroska", "webm or mkv"),
        (rb"0&\xb2u\x8ef\xcf\x11", "asf", "wma or wmv"),
        (rb"\xff[\xf0\xf1\xf8\xf9]", "aac", "aac"),
        (rb"\x0bw...[\0-\x57]", "ac3", "ac3"),
        (rb"\x0bw...[\x58-\x87]", "eac3", "eac3"),
        (rb"\x7f\xfe\x80\x01", "dts", "dts"),
        (rb"#!AMR", "amr", "amr"),
        (rb"MAC ", "ape", "ape"),
        (rb"wvpk", "wv", "wv"),
        (rb"TTA1", "tta", "tta"),
        (rb"ajkg", "shn", "shn"),
        (rb"DSD ", "dsf", "dsf"),
        (rb"FRM8....DSD ", "iff", "dff"),
        (rb"MPCK", "mpc8", "mpc"),
        (rb"MP\+", "mpc", "mpc"),
        (rb"(ea3|EA3)", "oma", "oma"),
        (rb"\.(RMF|ra\xfd)", "rm", "rm or ra"),
        (rb"OggS.{24}(Speex|\x80theora)", "ogg", "spx or ogv"),
        (rb"RIFF....AVI ", "avi", "avi"),
        (rb"FLV\x01", "flv", "flv"),
        (rb"\x00\x00\x01\xba", "mpeg", "mpeg"),
        (rb"G.{187}G.{187}G", "mpegts", "mpeg-ts"),
    )
)  # fmt: skip
# One pattern of all: every file that is opened is compared with them.
_ANY_CONTAINER = re.compile(
    b"|".join(b"(?P<c%d>%s)" % (number, pattern) for number, (pattern, _) in enumerate(_CONTAINERS)), re.DOTALL
)
# FFmpeg's names of formats that both read, each with codecs of its own.
_BOTH = {
    b"RIFF": "wav", b"RF64": "wav", b"fLaC": "flac", b"OggS": "ogg", b".snd": "au", b"FORM": "aiff", b"caff": "caf",
    b"ID3": "mp3", b"\xff": "mp3",
}  # fmt: skip
# Bytes that the longest of the patterns needs.
CONTAINER_BYTES = 377

# For messages and pages: `wav, flac, ogg, opus, mp3 or au`.
NAMES = f"{', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}"
READ = tuple(extension for extensions in FORMATS.values() for extension in extensions)
_RANK = {extension: rank for rank, extensions in enumerate(FORMATS.values()) for extension in extensions}
_ALL = frozenset((*READ, *RARER, *FFMPEG, *NOT_READ))


def extension(path: str) -> str:
    """Return a path's extension in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def is_audio_name(path: str) -> bool:
    """Return whether a file is named like audio, whether it can be read or not."""
    return extension(path) in _ALL


def format_rank(path: str) -> int:
    """Return the position of a file's format in `FORMATS`; unknown ones come last. Sorts copies of a track."""
    return _RANK.get(extension(path), len(FORMATS))


def why_not_read(path: str) -> str | None:
    """Return why data sets do not read files with this extension, `None` where they do."""
    kind = extension(path)
    if kind in RARER:
        return f"is of a format that gafx predict reads and data sets do not; convert it to {NAMES}"
    if kind in FFMPEG:
        return (
            "is of a format that gafx predict reads with gafx[formats] and data sets do not, which keeps downloaded "
            f"files away from FFmpeg; convert it to {NAMES}"
        )
    return f"is of a format that is not read; convert it to {NAMES}" if kind in NOT_READ else None


def ffmpeg_fallback(beginning: bytes) -> Container | None:
    """Return the format of a file that libsndfile reads in general and failed to read, for FFmpeg to try."""
    demuxer = next((name for start, name in _BOTH.items() if beginning.startswith(start)), None)
    return Container(demuxer, demuxer) if demuxer else None


def ffmpeg_container(beginning: bytes) -> Container | None:
    """Return the format of a file that libsndfile does not read and FFmpeg does, `None` for all others.

    Args:
        beginning: the file's first `CONTAINER_BYTES` bytes, or all of it; fewer recognise fewer formats.
    """
    found = _ANY_CONTAINER.match(beginning)
    return _CONTAINERS[int(str(found.lastgroup)[1:])][1] if found else None
