"""The audio files that a command names, and names of files made from them."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gafx.audio.formats import is_audio_name


@dataclass(frozen=True)
class Found:
    """Files in order, and the number of files in the folders without an audio extension."""

    files: list[str]
    passed_over: int = 0


def find_files(arguments: Sequence[str], listed: Iterable[bytes] = ()) -> Found:
    """Resolve files, folders, glob patterns, and `-` for a list.

    A folder gives all files below it that have an audio extension, and the folders that cannot be opened, whose reading
    gives the error; all are sorted. Links to other folders are followed, each folder is read once. Files that are named
    one by one are taken with any extension. A path that does not exist stays in the list: reading it gives the error.
    Each file occurs once, under the first of the names that lead to it.

    Args:
        arguments: arguments of the command line.
        listed: content of standard input, read for `-`: files, folders or patterns, one per line or separated by zero
            bytes (`find -print0`).
    """
    files: dict[str, str] = {}  # by real path
    passed_over = 0
    for argument in arguments:
        for path in _lines(listed) if argument == "-" else [argument]:
            for match in [path] if "\0" in path else _matches(path):
                audio, others = _below(match) if os.path.isdir(match) else ([match], 0)
                passed_over += others
                for file in audio or [match]:  # a folder without audio is reported like a broken file
                    # No file has a zero byte in its name: reading it gives the error.
                    files.setdefault(file if "\0" in file else os.path.realpath(file), file)
    return Found(list(files.values()), passed_over)


def free_name(file: str, suffix: str, taken: set[str]) -> str:
    """Name of a file made from an audio file: its stem and a suffix, with a number where that name is taken.

    Args:
        file: path of the audio file.
        suffix: with its dot.
        taken: names given before, in lower case; the new one is added.
    """
    # Short enough for a file system together with a number and the affixes of a temporary file.
    stem = os.fsdecode(os.fsencode(os.path.splitext(os.path.basename(os.path.normpath(file)))[0] or "file")[:200])
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name


def output_names(files: Iterable[str], suffix: str) -> dict[str, str]:
    """Names of the files made from audio files, see `free_name`, by the audio file.

    Given the whole list they are the same for every shard and for the unsharded command, whichever files can be read.
    """
    taken: set[str] = set()
    return {file: free_name(file, suffix, taken) for file in files}


def _matches(path: str) -> list[str]:
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(os.path.expanduser(path), recursive=True)) or [path]


def _below(folder: str) -> tuple[list[str], int]:
    audio: list[str] = []
    others = 0
    seen: set[str] = set()

    def keep(error: OSError) -> None:
        audio.append(os.fsdecode(error.filename or folder))

    for directory, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # reached before, under another name or through a loop of links
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        # macOS writes `._song.mp3` next to `song.mp3` on foreign file systems.
        found = [os.path.join(directory, n) for n in names if is_audio_name(n) and not n.startswith("._")]
        audio += found
        others += len(names) - len(found)
    return sorted(audio), others


def _lines(listed: Iterable[bytes]) -> list[str]:
    content = b"".join(listed)
    if b"\0" in content:
        return [os.fsdecode(name) for name in content.split(b"\0") if name]
    return [os.fsdecode(line.rstrip(b"\r")) for line in content.split(b"\n") if line.strip()]
