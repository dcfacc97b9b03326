"""AudioSet's own lists: the classes, the ontology, and the segments of its three parts.

Two million lines are read in one pass into flat arrays, without a Python object per line.
"""

import csv
import json
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import Ragged
from gafx.data.sources._csv import open_csv, table_rows
from gafx.errors import UsageError

PARTS = ("balanced_train", "unbalanced_train", "eval")
CLASSES, ONTOLOGY = "class_labels_indices.csv", "ontology.json"
WHERE = "AudioSet's publisher offers it at https://research.google.com/audioset/download.html"
_LINE = re.compile(rb'\s*([\w-]{11})\s*,\s*([0-9.]+)\s*,\s*([0-9.]+)\s*,\s*("[^"]+"|[^",\s]+)\s*')


@dataclass(frozen=True)
class Segments:
    """The listed segments, one per row, part by part in their order.

    Attributes:
        id: YouTube id, `S11`.
        part: index into `PARTS`.
        start, end: seconds into the video.
        labels: indices into the class list.
    """

    id: npt.NDArray[np.bytes_]
    part: npt.NDArray[np.int8]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    labels: Ragged

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: npt.NDArray[np.int64]) -> "Segments":
        """Return the segments of these rows."""
        return Segments(self.id[rows], self.part[rows], self.start[rows], self.end[rows], self.labels.take(rows))


class Notes(list[str]):
    """Notes on a data set."""

    def add(self, chosen: npt.NDArray[np.bool_], ids: npt.NDArray[np.bytes_], text: str) -> None:
        """Add `text` unless no entry is chosen.

        Args:
            chosen: of each entry.
            ids: video id of each entry.
            text: with `{count}` for the number of chosen entries and `{example}` for the id of the first.
        """
        if chosen.any():
            self.append(text.format(count=f"{chosen.sum():,}", example=ids[chosen.argmax()].decode(errors="replace")))


def is_first(*keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which entries of sorted columns differ from the entry before in any column; the first one does."""
    first = np.ones(len(keys[0]), bool)
    first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return first


def find_list(root: Path, name: str) -> Path | None:
    """Return the path of the list `name` in `root` or in one of its folders (`csv`, `metadata`, ...), else None."""
    if (root / name).is_file():
        return root / name
    with os.scandir(root) as entries:
        folders = sorted(entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return next((Path(folder) / name for folder in folders if (Path(folder) / name).is_file()), None)


def segments_list(part: str) -> str:
    """Return the name of the CSV of one of `PARTS`."""
    return f"{part}_segments.csv"


def class_list(root: Path, notes: list[str] | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes in their order: mids (`/m/09x0r`) and names.

    Without `class_labels_indices.csv` they are the mids in the CSVs under `root`, in the order of `ontology.json`,
    which differs from the publisher's.

    Args:
        root: the data set's folder.
        notes: is extended where the list's encoding is a guess.

    Raises:
        UsageError: neither file exists, or one of them is malformed.
    """
    if path := find_list(root, CLASSES):
        entries = _class_indices(path, [] if notes is None else notes)
    elif path := find_list(root, ONTOLOGY):
        nodes = _ontology(path)
        there = [part for part in PARTS if find_list(root, segments_list(part))]
        used = np.unique(read_segments(root, there, [node["id"] for node in nodes]).labels.values).tolist()
        entries = [(nodes[number]["id"], nodes[number]["name"]) for number in used]
    else:
        raise UsageError(
            f"{root} holds neither {CLASSES} nor {ONTOLOGY}, of which one must say which classes there are. {WHERE}"
        )
    mids, names = [mid for mid, _ in entries], [name for _, name in entries]
    if twice := sorted({mid for mid in mids if mids.count(mid) > 1}):
        raise UsageError(f"{path} lists {twice[0]!r} twice; correct it. {WHERE}")
    return tuple(mids), tuple(
        f"{name} ({mid})" if names.count(name) > 1 else name for mid, name in zip(mids, names, strict=True)
    )


def _class_indices(path: Path, notes: list[str]) -> list[tuple[str, str]]:
    file, delimiter = open_csv(path, notes)
    with file:
        table = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        if lacking := {"index", "mid", "display_name"} - {name.strip() for name in table.fieldnames or ()}:
            raise UsageError(f"{path} lacks the columns {sorted(lacking)}. {WHERE}")
        entries = {}
        try:
            for row in table_rows(table, path):
                number, mid, name = (row[column].strip() for column in ("index", "mid", "display_name"))
                if int(number) in entries:
                    raise ValueError(f"index {number} occurs twice")
                entries[int(number)] = (mid, name)
        except UsageError:
            raise
        except (ValueError, AttributeError, KeyError) as error:
            raise UsageError(f"{path}, line {table.line_num}: {error}. {WHERE}") from None
    if sorted(entries) != list(range(len(entries))) or not entries:
        raise UsageError(f"{path}: its {len(entries)} indices do not count from 0 without a gap; correct it. {WHERE}")
    return [entries[number] for number in range(len(entries))]


def _ontology(path: Path) -> list[dict[str, Any]]:
    try:
        nodes = json.loads(path.read_text(encoding="utf-8-sig"))
        for node in nodes:
            if not (isinstance(node["id"], str) and isinstance(node["name"], str)):
                raise TypeError(f"id {node['id']!r} and name {node['name']!r} must be text")
            node["child_ids"] = [str(child) for child in node["child_ids"]]
    except KeyError as error:
        raise UsageError(f"{path} is not AudioSet's ontology: an entry lacks {error}. {WHERE}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is not AudioSet's ontology ({error}). {WHERE}") from None
    return nodes


def class_ancestors(root: Path, mids: Sequence[str]) -> list[list[int]]:
    """Return, for each class, the indices of its ancestors in `ontology.json` at any distance.

    Raises:
        UsageError: the file is missing or malformed.
    """
    path = find_list(root, ONTOLOGY)
    if path is None:
        raise UsageError(
            f"data.options.ancestors=true needs {ONTOLOGY}, which is not under {root}; {WHERE} (github.com/audioset/"
            "ontology). Put it into the folder of the CSV files, or leave the option out"
        )
    parents: dict[str, list[str]] = {}
    for node in _ontology(path):
        for child in node["child_ids"]:
            parents.setdefault(child, []).append(node["id"])
    number = {mid: index for index, mid in enumerate(mids)}
    above = []
    for mid in mids:
        seen, rest = {mid}, list(parents.get(mid, ()))
        while rest:
            if (current := rest.pop()) not in seen:
                seen.add(current)
                rest += parents.get(current, ())
        above.append(sorted(number[other] for other in seen if other != mid and other in number))
    return above


def with_ancestors(labels: Ragged, above: Sequence[Sequence[int]]) -> Ragged:
    """Return each entry's labels followed by their ancestors (`class_ancestors`), each once."""
    table = Ragged.of(above, np.int32)
    rows = np.repeat(np.arange(len(labels)), labels.lengths())
    added = table.take(labels.values.astype(np.int64))
    return Ragged.distinct(
        np.concatenate([rows, np.repeat(rows, added.lengths())]),
        np.concatenate([labels.values, added.values]),
        len(labels),
    )


def read_segments(root: Path, parts: Iterable[str], mids: Sequence[str]) -> Segments:
    """Read the segments in the CSVs of some parts.

    Args:
        root: the data set's folder.
        parts: of `PARTS`, in the order of the returned rows.
        mids: the classes (`class_list`).

    Raises:
        UsageError: a CSV is missing, a line is malformed or has a label that is not one of the classes.
    """
    numbers = {mid.encode(): index for index, mid in enumerate(mids)}
    ids, starts, ends, values, counts = bytearray(), array("d"), array("d"), array("i"), array("i")
    sizes, chosen = [], []
    for part in parts:
        path = find_list(root, segments_list(part))
        if path is None:
            raise UsageError(f"{root} holds no {segments_list(part)}, in itself or in a folder in it. {WHERE}")
        before = len(counts)
        with path.open("rb") as file:
            for position, line in enumerate(file, 1):
                found = _LINE.fullmatch(line)
                try:
                    if found is None:
                        if _is_header(line, first=len(counts) == before):
                            continue
                        raise ValueError
                    key, start, end, cell = found.groups()
                    labels = [numbers[mid.strip()] for mid in cell.strip(b'"').split(b",")]
                    begin, stop = float(start), float(end)
                    if not begin < stop:
                        raise ValueError
                except (ValueError, KeyError):
                    raise UsageError(f"{path}, line {position}: {_fault(line, numbers)}") from None
                ids += key
                starts.append(begin)
                ends.append(stop)
                values.extend(labels if len(labels) == 1 else dict.fromkeys(labels))
                counts.append(len(labels) if len(labels) == 1 else len(dict.fromkeys(labels)))
        sizes.append(len(counts) - before)
        chosen.append(PARTS.index(part))
    return Segments(
        np.frombuffer(bytes(ids), "S11"),
        np.repeat(np.array(chosen, np.int8), sizes),
        np.array(starts),
        np.array(ends),
        Ragged(
            np.array(values, np.int32), np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
        ),
    )


def presence_notes(segments: Segments, here: npt.NDArray[np.bool_]) -> list[str]:
    """Return a note per part with the number of its clips."""
    notes = []
    for number in np.unique(segments.part).tolist():
        rows = np.flatnonzero(segments.part == number)
        lost = rows[~here[rows]]
        text = f"{PARTS[number]}: {len(rows) - len(lost):,} of {len(rows):,} listed clips are here"
        if len(lost):
            named = ", ".join(f"{segments.id[row].decode()} at {segments.start[row]:g} s" for row in lost[:2])
            text += f", {len(lost):,} missing (e.g. {named})"
        notes.append(text)
    return notes


def _is_header(line: bytes, *, first: bool) -> bool:
    """Return whether a line is a comment, empty, or a header before the first segment."""
    text = line.removeprefix(b"\xef\xbb\xbf").strip()
    return not text or text.startswith(b"#") or (first and text.lower().startswith(b"ytid"))


def _fault(line: bytes, numbers: dict[bytes, int]) -> str:
    """Return the reason why a line is malformed."""
    text = line.decode(errors="replace").strip()
    cells = [cell.strip() for cell in text.split(",", 3)]
    form = 'a line is YTID, start_seconds, end_seconds, "labels"'
    if len(cells) < 4:
        return f"{text[:80]!r} has {len(cells)} of four fields; {form}"
    key, start, end, labels = cells
    if not re.fullmatch(r"[\w-]{11}", key, re.ASCII):
        return f"{key[:40]!r} is no YouTube id (11 letters, digits, - or _); {form}"
    for name, cell in (("start", start), ("end", end)):
        if not re.fullmatch(r"\d+\.?\d*|\.\d+", cell):
            return f"{name} {cell[:40]!r} is no number of seconds; {form}"
    if not float(start) < float(end):
        return f"the segment ends at {end} s, not after its start at {start} s"
    unknown = [mid.strip() for mid in labels.strip('"').split(",") if mid.strip().encode() not in numbers]
    if labels.count('"') not in (0, 2) or labels.strip('"').count('"') or not labels.strip('"'):
        return f"its labels are {labels[:80]!r}; {form}"
    if unknown:
        return (
            f"label {unknown[0]!r} is none of the {len(numbers)} classes of {CLASSES} (or, without it, {ONTOLOGY}); "
            "the lists must be of one edition"
        )
    return f"{text[:80]!r} cannot be read; {form}"
