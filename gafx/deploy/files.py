"""Which files are meant: paths, folders, glob patterns, lists."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gafx.audio.formats import is_audio_name

_STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Found:
    """Files to label, in order, and how many others lie in the folders named."""

    files: list[str]
    passed_over: int = 0


def find_files(words: Sequence[str], listed: Iterable[bytes] = ()) -> Found:
    """Resolve files, folders, glob patterns, and `-` for a list.

    Folders give every file below them that is named like audio, sorted, also behind links to other folders, each folder
    once; files that are named one by one are taken whatever their names. What is not there stays in the list, for
    whoever reads it to say so. Each file comes once, by the first of the names that lead to it.

    Args:
        words: of the command line.
        listed: lines (or what is between zero bytes, as of `find -print0`) that `-` stands for: files, folders or
            patterns too.
    """
    files: dict[str, str] = {}  # by where they really lie
    passed_over = 0
    for word in words:
        for path in _lines(listed) if word == _STANDARD_INPUT else [word]:
            for match in _matches(path):
                audio, others = _below(match) if os.path.isdir(match) else ([match], 0)
                passed_over += others
                for file in audio or [match]:  # a folder without audio is told like a broken file
                    files.setdefault(os.path.realpath(file), file)
    return Found(list(files.values()), passed_over)


def _matches(path: str) -> list[str]:
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(os.path.expanduser(path), recursive=True)) or [path]


def _below(folder: str) -> tuple[list[str], int]:
    audio: list[str] = []
    others = 0
    seen: set[str] = set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link that leads back, or to what another name led to
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            # `._song.mp3` is what macOS leaves beside a file on foreign disks.
            if is_audio_name(name) and not name.startswith("._"):
                audio.append(os.path.join(directory, name))
            else:
                others += 1
    return sorted(audio), others


def _lines(listed: Iterable[bytes]) -> list[str]:
    content = b"".join(listed)
    if b"\0" in content:
        return [os.fsdecode(name) for name in content.split(b"\0") if name]
    return [os.fsdecode(line.rstrip(b"\r")) for line in content.split(b"\n") if line.strip()]
