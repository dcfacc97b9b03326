"""Shared by the data sets: finding audio files in folders and reading their headers."""

import inspect
import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gafx.audio.formats import extension, format_rank, is_audio_name, why_not_read
from gafx.audio.read import AudioInfo, probe
from gafx.data.manifest import Manifest, Skipped
from gafx.errors import UnreadableAudio, UsageError
from gafx.registry import SOURCES

_log = logging.getLogger("gafx")
Source = TypeVar("Source", bound=Callable[..., Manifest])


def downloadable(fetch: Callable[..., None]) -> Callable[[Source], Source]:
    """Decorate a source with `fetch(root)`, which downloads the data set into a folder that does not exist yet.

    Keyword-only arguments of `fetch` are passed the source's options of the same names.
    """

    def mark(source: Source) -> Source:
        source.download = fetch  # type: ignore[attr-defined]
        return source

    return mark


def published(source: Source) -> Source:
    """Decorate a source whose clips are the same in every copy, so that its name alone says what a model has heard."""
    source.published = True  # type: ignore[attr-defined]
    return source


def load_manifest(name: str, root: str | Path | None, *, download: bool = False, **options: object) -> Manifest:
    """Read the data set `name` under `root`.

    Args:
        name: registered data set, e.g. `folder`.
        root: its folder; `None` only for data sets that are generated.
        download: download it into `root` first if it is not there.
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
    manifest = source(folder, **arguments)
    return manifest if manifest.scheme else _note_look_alikes(_note_unread_formats(manifest))


def _note_look_alikes(manifest: Manifest) -> Manifest:
    """Add a note, and log it, for classes that print alike: NFC and NFD forms of one name, `1` and `1.0`.

    Zero-width characters (like all of category Cf), the kind and number of spaces, and upper and lower case make no
    difference.
    """
    forms: dict[object, list[str]] = {}
    for label in manifest.classes:
        shown = "".join(each for each in label if unicodedata.category(each) != "Cf")
        key: object = " ".join(unicodedata.normalize("NFKC", shown.casefold()).split())
        if key != "nan":  # which is a number, and not equal to itself
            with suppress(ValueError):
                key = float(str(key))
        forms.setdefault(key, []).append(label)
    notes = [
        "these are different classes and look alike or differ only in case: "
        + " and ".join(f"{label!r} ({' '.join(f'U+{ord(each):04X}' for each in label[:20])})" for label in same)
        + "; give them one name if they are one class"
        for same in forms.values()
        if len(same) > 1
    ]
    for note in notes:
        _log.warning("%s", note)
    return replace(manifest, notes=(*manifest.notes, *notes)) if notes else manifest


def _note_unread_formats(manifest: Manifest) -> Manifest:
    """Add a note with the number of skipped files in formats that data sets do not read."""
    unread = Counter(extension(clip.path) for clip in manifest.skipped if clip.reason == why_not_read(clip.path))
    if not unread:
        return manifest
    counts = ", ".join(f"{count:,} {name}" for name, count in unread.most_common())
    return replace(manifest, notes=(*manifest.notes, f"skipped, of formats that data sets do not read: {counts}"))


def require_root(root: Path | None, how: str) -> Path:
    """Return `root` if it is a folder, else raise `UsageError` ending in `how`, the expected content of the folder."""
    if root is None:
        raise UsageError(f"data.root is missing. {how}")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"data.root={str(root)!r} {what}. {how}")
    return root


def check_root(name: str, root: str | Path | None) -> None:
    """Raise what the source `name` raises for a missing folder; a source that generates its data needs none."""
    how = getattr(sys.modules[SOURCES.get(name).__module__], "HOW", None)
    if how is not None:
        require_root(None if root is None else Path(root).expanduser(), how)


def group_name(path: str, pattern: str | None) -> str | None:
    """Return what the first group of `data.options.group_pattern` finds in a path; `None` without pattern or find."""
    if pattern is None:
        return None
    try:
        found = re.search(pattern, path)
        return found[1] if found else None
    except (re.error, IndexError) as error:
        raise UsageError(
            f"data.options.group_pattern={pattern!r}: {error}; it needs one parenthesis around the recording's name"
        ) from None


def audio_files(folder: Path, named: Callable[[str], bool] = is_audio_name) -> Iterator[str]:
    """Return the sorted paths, relative to `folder`, of the files at any depth that are named like audio.

    Formats that are not read are included, and everything that may hide audio, so that `probe_all` can report why it is
    skipped: broken and circular links, folders that cannot be opened, folders named like audio that hold none, and
    links to folders that are read already. Each folder is read once, by its own name rather than a link's. Hidden files
    and folders are left out.

    Args:
        folder: to search.
        named: whether a file is named like one that is searched; default: like audio.
    """
    root = os.fspath(folder)
    found: list[str] = []
    holding: set[str] = set()  # folders with something listed in them, at any depth

    def note(path: str) -> None:
        found.append(path)
        while (path := os.path.dirname(path)) not in holding:
            holding.add(path)

    # The folders above, of the path as given and as resolved: a link to one would add all other classes to this one.
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
                audio = named(entry.name)
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
    """Read the headers of many files; return positions and headers of the readable ones, the others with reasons."""

    def attempt(path: str) -> AudioInfo | str:
        full = os.path.join(root, path)
        if (reason := why_not_read(path)) and not os.path.isdir(full):
            return reason
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


def first_readable(
    root: Path, copies: Mapping[str, Sequence[str]], refuse: Callable[[AudioInfo], str | None] = lambda info: None
) -> tuple[dict[str, tuple[str, AudioInfo]], dict[str, Skipped]]:
    """Choose one of several copies of each track: the first usable one in the order of `gafx.audio.formats.FORMATS`.

    Args:
        root: folder that the paths are relative to.
        copies: paths of the copies of each track, by its name.
        refuse: returns why a file with this header cannot be used, or `None`.

    Returns:
        Path and header of the tracks with a usable copy; of the others the first copy and the reason.
    """
    pairs = [(name, path) for name, paths in copies.items() for path in sorted(paths, key=format_rank)]
    kept, infos, unreadable = probe_all(root, [path for _, path in pairs])
    reasons = {clip.path: clip.reason for clip in unreadable}
    found: dict[str, tuple[str, AudioInfo]] = {}
    for index, info in zip(kept, infos, strict=True):
        name, path = pairs[index]
        if reason := refuse(info):
            reasons[path] = reason
        else:
            found.setdefault(name, (path, info))
    lost: dict[str, Skipped] = {}
    for name, path in pairs:
        if name not in found:
            lost.setdefault(name, Skipped(path, reasons[path]))
    return found, lost


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _why_no_folder(path: str) -> str:
    """Return why a folder is among the audio files."""
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
