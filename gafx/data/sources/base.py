"""What the data sets share: looking at a folder, and at each audio file's header."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gafx.audio import FORMATS, AudioInfo, probe
from gafx.data.manifest import Manifest, Skipped
from gafx.errors import UnreadableAudio, UsageError
from gafx.registry import SOURCES

# Audio that people have and libsndfile does not read, or not exactly: listed as skipped rather than passed over.
_OTHER_FORMATS = (
    ".m4a",
    ".aac",
    ".mp4",
    ".wma",
    ".opus",
    ".aif",
    ".aiff",
    ".webm",
    ".amr",
    ".ape",
    ".wv",
    ".caf",
    ".mp2",
)


def load_manifest(name: str, root: str | Path | None, **options: object) -> Manifest:
    """Read the data set `name` under `root`.

    Args:
        name: registered data set, e.g. `folder`.
        root: where it lies; `None` only for data sets that make themselves.
        **options: the data set's own keywords.

    Raises:
        UsageError: unknown data set or option, missing root, nothing usable in it.
    """
    SOURCES.check_name(name)
    return SOURCES.get(name)(
        None if root is None else Path(root).expanduser(), **SOURCES.check(name, options, "data.options")
    )


def require_root(root: Path | None, how: str) -> Path:
    """Return `root` if it is a folder, else raise `UsageError` ending in `how`: what to get and how it must lie."""
    if root is None:
        raise UsageError(f"data.root is missing. {how}")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"data.root={str(root)!r} {what}. {how}")
    return root


def audio_files(folder: Path) -> Iterator[str]:
    """Sorted paths, relative to `folder`, of the audio files at any depth below it; link loops are not followed."""
    seen: set[tuple[int, int]] = set()

    def walk(directory: str) -> Iterator[str]:
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path)
            elif entry.name.lower().endswith((*FORMATS, *_OTHER_FORMATS)):
                yield os.path.relpath(entry.path, folder)

    yield from walk(str(folder))


def probe_all(root: Path, paths: Sequence[str]) -> tuple[list[int], list[AudioInfo], list[Skipped]]:
    """Read the headers of many files: positions of the readable ones, their headers, and the others with reasons."""

    def attempt(path: str) -> AudioInfo | str:
        if path.lower().endswith(_OTHER_FORMATS):
            return f"is of a format that is not read; convert it to one of {', '.join(FORMATS)}"
        try:
            return probe(os.path.join(root, path))
        except UnreadableAudio as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, paths))
    kept = [i for i, result in enumerate(results) if isinstance(result, AudioInfo)]
    infos = [result for result in results if isinstance(result, AudioInfo)]
    skipped = [Skipped(paths[i], result) for i, result in enumerate(results) if isinstance(result, str)]
    return kept, infos, skipped
