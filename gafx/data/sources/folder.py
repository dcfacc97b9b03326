"""Your own audio: one folder per class, or a CSV.

Folders: `root/<class name>/any/depth/file.wav` (wav, flac, ogg, opus, mp3, au; upper or lower case).

CSV (`data.options.csv=list.csv`, relative to the root or absolute): a header line and the columns `path` (relative to
the root) and `label` (several labels separated by `;`), and optionally `split` (train, val, test), `fold` (from 1),
`group` (equal for clips of one recording, which are never separated), `start` and `duration` (seconds into the file),
`weight` (for `data.sampling=weighted`), `artist` (the leak check reports artists on both sides; use `group` to keep an
artist on one side). Columns are separated by commas or, where the header line has none, by semicolons or tabs. The
encoding is UTF-8, UTF-16, UTF-32 or, with a note, Windows-1252 (Excel).
"""

import csv as csv_format
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gafx.audio.formats import NAMES, is_audio_name
from gafx.data.manifest import SPLITS, Manifest, Skipped, make_manifest
from gafx.data.sources._csv import fold_number, open_csv, own_name, table_rows
from gafx.data.sources.base import audio_files, group_name, probe_all, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES, check_text
from gafx.report.format import plural, printable

HOW = (
    f"It must hold one folder a class (<root>/<class name>/any/depth/file.wav; {NAMES}), or, "
    "with data.options.csv=list.csv, a CSV with the columns path, label and, if wanted, split, fold, group"
)
_COLUMNS = ("path", "label", "split", "fold", "group", "start", "duration", "weight", "artist")
_SPLITS = {"": -1, **{part: number for number, part in enumerate(SPLITS)}, "valid": 1, "validation": 1}
_ALIASES = {"labels": "label", "filename": "path", "file": "path"}


@dataclass
class _Row:
    """A clip; the fields are the columns of a CSV."""

    path: str
    labels: list[str]
    split: int = -1
    fold: int = -1
    group: str | None = None
    start: float = 0.0
    duration: float | None = None
    weight: float = 1.0
    artist: str = ""


@SOURCES.register
def folder(root: Path | None, /, *, csv: str | None = None, group_pattern: str | None = None) -> Manifest:
    """Read a folder of classes, or the files that a CSV lists.

    Args:
        root: folder of the class folders; folder that the CSV's paths are relative to.
        csv: path of a CSV (see the module's text), relative to `root` or absolute.
        group_pattern: regular expression that is searched in each relative path; its first group names the recording,
            e.g. `'([^/]+)_part\\d+'` keeps `song_part1.wav` and `song_part2.wav` together. Default: each file is a
            recording.

    Raises:
        UsageError: missing root, no class folder, a class without files, a malformed CSV or pattern.
    """
    root = require_root(root, HOW)
    notes: list[str] = []
    rows = _class_folders(root) if csv is None else _merge(root, _csv_rows(root, csv, notes))
    notes += _loose_files(root) if csv is None else []
    kept, infos, skipped = probe_all(root, [row.path for row in rows])
    counts = Counter(label for row in rows for label in row.labels)
    rows, chosen = [rows[i] for i in kept], []
    for number, (row, info) in enumerate(zip(rows, infos, strict=True)):
        if row.start < info.seconds:
            chosen.append(number)
        else:
            skipped.append(Skipped(row.path, f"ends at {info.seconds:.2f} s, before its start at {row.start:.2f} s"))
    classes = sorted({label for row in rows for label in row.labels})
    # A link back to a folder above is no class: it is skipped and listed like a file.
    above = {root.resolve(), *root.resolve().parents}
    if lost := sorted(label for label in set(counts) - set(classes) if csv or (root / label).resolve() not in above):
        _check_lost(root, lost, counts, skipped, tags=any(len(row.labels) != 1 for row in rows))
        listed = ", ".join(f"{label!r} ({counts[label]:,} skipped)" for label in lost)
        notes.append(f"labels without a readable file are left out: {listed}")
    rows, infos = [rows[i] for i in chosen], [infos[i] for i in chosen]
    rest = [info.seconds - row.start for row, info in zip(rows, infos, strict=True)]
    return make_manifest(
        root,
        classes,
        [row.path for row in rows],
        [[classes.index(label) for label in row.labels] for row in rows],
        [min(row.duration or left, left) for row, left in zip(rows, rest, strict=True)],
        [info.sample_rate for info in infos],
        groups=_recordings(root, rows, group_pattern),
        starts=[row.start for row in rows],
        folds=[row.fold for row in rows],
        splits=[row.split for row in rows],
        weights=[row.weight for row in rows],
        artists=[row.artist for row in rows] if any(row.artist for row in rows) else None,
        skipped=skipped,
        notes=notes,
    )


def _check_lost(root: Path, lost: list[str], counts: Counter[str], skipped: list[Skipped], *, tags: bool) -> None:
    """Raise `UsageError` for a class of which no file is left: a classifier of fewer classes is another one.

    Of many tags, some may be of a few files only, and be lost with these.
    """
    if tags and len(lost) < len(counts):
        return
    reasons = "; ".join(f"{printable(clip.path)}: {clip.reason}" for clip in skipped[:3])
    raise UsageError(
        f"no file of {', '.join(f'{label!r} ({counts[label]:,} skipped)' for label in lost[:5])} under {root} can be "
        f"read ({reasons}): make these files readable, or remove the class"
    )


def _class_folders(root: Path) -> list[_Row]:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UsageError(f"data.root={str(root)!r} holds no class folder. {HOW}")
    for entry in folders:
        check_text(entry.name, f"the class folder {os.fsencode(entry.name)!r} under {root}")
    rows, empty = [], []
    for entry in folders:
        files = list(audio_files(entry))
        rows += [_Row(f"{entry.name}/{path}", [entry.name]) for path in files]
        if not files:
            empty.append(entry.name)
    if empty:
        raise UsageError(
            f"class folder without audio files under {root}: {', '.join(map(repr, empty))}. Put files of that class "
            f"into it ({NAMES}), or remove the folder"
        )
    return rows


def _loose_files(root: Path) -> list[str]:
    """Return a note on audio files that are in no class folder."""
    names = sorted(entry.name for entry in root.iterdir() if is_audio_name(entry.name) and not entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if not names:
        return []
    verbs = "is in no class folder and is" if len(names) == 1 else "are in no class folder and are"
    return [f"{plural(len(names), 'audio file')} {verbs} left out: {names[0]!r}" + ", ..." * (len(names) > 1)]


def _csv_rows(root: Path, csv: str, notes: list[str]) -> list[_Row]:
    path = root / Path(csv).expanduser()
    if not path.is_file():
        raise UsageError(f"data.options.csv={csv!r}: {path} does not exist. {HOW}")
    rows = []
    file, delimiter = open_csv(path, notes)
    with file:
        table = csv_format.DictReader(file, delimiter=delimiter)
        table.fieldnames = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in table.fieldnames or ()]
        if missing := {"path", "label"} - set(table.fieldnames):
            raise UsageError(f"{path} lacks the columns {sorted(missing)}; its header holds {list(table.fieldnames)}")
        for values in table_rows(table, path):
            cells = {name: (values.get(name) or "").strip() for name in _COLUMNS}
            labels = list(dict.fromkeys(label.strip() for label in cells["label"].split(";") if label.strip()))
            try:
                if not cells["path"]:
                    raise ValueError("the path is empty")
                if (split := _SPLITS.get(cells["split"].lower())) is None:
                    raise ValueError(f"split {cells['split']!r} is none of {', '.join(SPLITS)}")
                fold = fold_number(cells["fold"]) if cells["fold"] else -1
                start, duration = _number(cells["start"], "start"), _number(cells["duration"], "duration")
                weight = _number(cells["weight"], "weight")
                rows.append(
                    _Row(
                        own_name(root, cells["path"], file.encoding), labels,
                        split, fold, cells["group"] or None, start or 0.0, duration,
                        1.0 if weight is None else weight, cells["artist"],
                    )
                )  # fmt: skip
            except ValueError as error:
                raise UsageError(f"{path}, line {table.line_num}: {error}") from None
    if not rows:
        raise UsageError(f"{path} lists no file")
    return rows


def _merge(root: Path, rows: list[_Row]) -> list[_Row]:
    """Merge the rows of one segment into one clip with the labels of all of them."""
    merged: dict[tuple[Any, ...], _Row] = {}
    for row in rows:
        segment = (os.path.realpath(root / row.path), row.start, row.duration)
        first = merged.setdefault(segment, row)
        first.labels = list(dict.fromkeys([*first.labels, *row.labels]))
        for column in ("split", "fold"):
            if getattr(first, column) != getattr(row, column):
                raise UsageError(f"{row.path!r} is listed twice with different {column}s; correct the CSV")
    return list(merged.values())


def _recordings(root: Path, rows: list[_Row], pattern: str | None) -> list[int]:
    """Return a number for each row's recording: rows of one file, by whatever path, or of one group."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    files = ["file:" + os.path.realpath(root / row.path) for row in rows]
    for row, file in zip(rows, files, strict=True):
        if (name := _group(row, pattern)) is not None:
            parent[find(file)] = find("group:" + name)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(find(file), len(numbers)) for file in files]


def _number(text: str, name: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name} {text!r} must be a number of at least 0, with a decimal point")
    return value


def _group(row: _Row, pattern: str | None) -> str | None:
    """Return the recording's name in a row's column `group` or path, else `None`."""
    return row.group if row.group is not None else group_name(row.path, pattern)
