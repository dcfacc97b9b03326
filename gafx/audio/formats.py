"""Audio file formats: the list of file name extensions and what can be read.

Formats of `FORMATS` are read everywhere, with exact seeks and checks for truncation. `RARER` ones are whatever else
libsndfile decodes: `gafx predict`, `gafx features` and the demo read them, data sets do not. Files with an extension of
`NOT_READ` hold audio that libsndfile cannot decode. Extensions only select files in folders; a file's content decides
how it is decoded.
"""

import os


def _extensions(names: str) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names.split())


# Extensions of each format, the preferred format of several copies of a track first.
FORMATS: dict[str, tuple[str, ...]] = {
    "wav": _extensions("wav wave bwf rf64"),
    "flac": _extensions("flac"),
    "ogg": _extensions("ogg oga"),
    "opus": _extensions("opus"),
    "mp3": _extensions("mp3"),
    "au": _extensions("au snd"),
}
# libsndfile's names of their containers. The others stay out of data sets: that keeps downloaded files away from its
# parsers of two dozen rarer formats, and seeks in those are not known to be exact.
CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AU")
RARER = _extensions("aif aiff aifc caf w64 voc sph nist avr paf pvf svx 8svx ircam sf htk xi sd2 wve")
NOT_READ = _extensions(
    "m4a m4b m4r mp4 aac ac3 amr ape dff dsf dts gsm mka mkv mp1 mp2 mpc mpga oma ra rm shn spx tta weba webm wma wv "
    "3gp"
)

# For messages and pages: `wav, flac, ogg, opus, mp3 or au`.
NAMES = f"{', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}"
READ = tuple(extension for extensions in FORMATS.values() for extension in extensions)
_RANK = {extension: rank for rank, extensions in enumerate(FORMATS.values()) for extension in extensions}
_ALL = frozenset((*READ, *RARER, *NOT_READ))


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
    if extension(path) in RARER:
        return f"is of a format that gafx predict reads and data sets do not; convert it to {NAMES}"
    return f"is of a format that is not read; convert it to {NAMES}" if extension(path) in NOT_READ else None
