"""What the data sets share: looking at a folder, and at each audio file's header."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from gafx.audio.read import FORMATS, AudioInfo, probe
from gafx.data.manifest import Manifest, Skipped
from gafx.errors import UnreadableAudio, UsageError
from gafx.registry import SOURCES

# Audio that people have and libsndfile does not read, or not exactly: listed as skipped rather than passed over.
_OTHER_FORMATS = (
    ".m4a",
    ".aac",
    ".mp4",
    ".wma",
    ".aif",
    ".aiff",
    ".webm",
    ".amr",
    ".ape",
    ".wv",
    ".caf",
    ".mp2",
    ".oga",
    ".mka",
    ".mkv",
    ".w64",
    ".3gp",
)


Source = TypeVar("Source", bound=Callable[..., Manifest])


def downloadable(fetch: Callable[..., None]) -> Callable[[Source], Source]:
    """Decorator: `fetch(root)` makes a data set's folder from what its publisher offers; a no-op where it is there.

    Keyword-only arguments of `fetch` are the source's of the same names.
    """

    def mark(source: Source) -> Source:
        source.download = fetch  # type: ignore[attr-defined]
        return source

    return mark


def load_manifest(name: str, root: str | Path | None, *, download: bool = False, **options: object) -> Manifest:
    """Read the data set `name` under `root`.

    Args:
        name: registered data set, e.g. `folder`.
        root: where it lies; `None` only for data sets that make themselves.
        download: fetch it into `root` first if it is not there.
        **options: the data set's own keywords.

    Raises:
        UsageError: unknown data set or option, missing root, nothing usable in it; a download that fails, or that its
            publisher does not allow.
    """
    SOURCES.check_name(name)
    arguments = SOURCES.check(name, options, "data.options")
    source, folder = SOURCES.get(name), None if root is None else Path(root).expanduser()
    if download:
        fetch = getattr(source, "download", None)
        if fetch is None:
            able = [other for other in SOURCES.names() if hasattr(SOURCES.get(other), "download")]
            raise UsageError(f"data.download=true: {name!r} cannot be fetched; those that can: {', '.join(able)}")
        if folder is None:
            raise UsageError("data.download=true needs data.root: the folder that the data set is to be put into")
        needed = [p.name for p in inspect.signature(fetch).parameters.values() if p.kind is p.KEYWORD_ONLY]
        fetch(folder, **{name: arguments[name] for name in needed})
    return source(folder, **arguments)


def require_root(root: Path | None, how: str) -> Path:
    """Return `root` if it is a folder, else raise `UsageError` ending in `how`: what to get and how it must lie."""
    if root is None:
        raise UsageError(f"data.root is missing. {how}")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"data.root={str(root)!r} {what}. {how}")
    return root


def audio_files(folder: Path) -> Iterator[str]:
    """Sorted paths, relative to `folder`, of the audio files at any depth below it.

    What may hide audio is listed too, for `probe_all` to say why it is skipped: links that lead nowhere or in a circle,
    folders that cannot be opened, folders named like audio that hold none, and links to folders that are read already.
    Each folder is read once, under its own name rather than a link's.
    """
    root = os.fspath(folder)
    found: list[str] = []
    holding: set[str] = set()  # folders with something listed in them, at any depth

    def note(path: str) -> None:
        found.append(path)
        while (path := os.path.dirname(path)) not in holding:
            holding.add(path)

    # The folders above, by the path as it is written and as it is: a link back up would give this class all others.
    seen = {_identity(above) for above in {*Path(os.path.abspath(root)).parents, *Path(os.path.realpath(root)).parents}}
    named_like_audio: list[str] = []
    links = [root]
    while links:
        links.sort(reverse=True)
        folders = [links.pop()]
        while folders:  # no recursion: trees can be deep
            directory = folders.pop()
            try:
                identity = _identity(directory)
                entries = None if identity in seen else list(os.scandir(directory))
            except OSError:
                entries = None
            if entries is None:
                note(directory)
                continue
            seen.add(identity)
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                audio = entry.name.lower().endswith((*FORMATS, *_OTHER_FORMATS))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    named_like_audio += [entry.path] if audio else []
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    links.append(entry.path)
                elif audio or (entry.is_symlink() and "." not in entry.name and not os.path.exists(entry.path)):
                    note(entry.path)
    found += [path for path in named_like_audio if path not in holding]
    return iter(sorted((os.path.relpath(path, root) for path in found), key=lambda path: path.split(os.sep)))


def probe_all(root: Path, paths: Sequence[str]) -> tuple[list[int], list[AudioInfo], list[Skipped]]:
    """Read the headers of many files: positions of the readable ones, their headers, and the others with reasons."""

    def attempt(path: str) -> AudioInfo | str:
        full = os.path.join(root, path)
        if path.lower().endswith(_OTHER_FORMATS) and not os.path.isdir(full):
            return f"is of a format that is not read; convert it to one of {', '.join(FORMATS)}"
        try:
            return probe(full)
        except UnreadableAudio as error:
            return _why_no_folder(full) if os.path.isdir(full) else str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, paths))
    kept = [i for i, result in enumerate(results) if isinstance(result, AudioInfo)]
    infos = [result for result in results if isinstance(result, AudioInfo)]
    skipped = [Skipped(paths[i], result) for i, result in enumerate(results) if isinstance(result, str)]
    return kept, infos, skipped


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _why_no_folder(path: str) -> str:
    """Why a folder stands among the files."""
    path = os.path.normpath(path)
    if os.path.islink(path):
        inside, target = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
        if os.path.commonpath([inside, target]) == target:
            return "is a link back to a folder above it"
        return "is a link to a folder, and each folder is read once"
    try:
        os.scandir(path).close()
    except OSError as error:
        return f"is a folder that cannot be opened ({error.strerror})"
    return "is a folder"
