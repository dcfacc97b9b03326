"""UrbanSound8K: 8,732 city sounds of at most 4 s, ten classes, ten official folds (Salamon, Jacoby and Bello, 2014).

Layout: `<root>/audio/foldN/SOURCE-CLASS-OCCURRENCE-SLICE.wav` (or any other format that is read) and
`<root>/metadata/UrbanSound8K.csv`, or both one folder further down, in `<root>/UrbanSound8K`. The CSV says which clips
there are; its names are compared without their extension. Without it, folds and classes come from folders and names.
Clips cut from one Freesound recording (SOURCE) are one group. Of several formats of a clip the first readable one is
used. A copy may lack clips or folds.
"""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gafx.data.manifest import Manifest, Skipped, make_manifest
from gafx.data.sources._csv import fold_number, open_csv
from gafx.data.sources.base import audio_files, first_readable, probe_all, published, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES
from gafx.report.format import plural

CLASSES = ("air conditioner", "car horn", "children playing", "dog bark", "drilling", "engine idling", "gun shot",
           "jackhammer", "siren", "street music")  # fmt: skip
CLIPS, FOLDS = 8732, 10
TABLE = "metadata/UrbanSound8K.csv"
HOW = (
    "Get UrbanSound8K from https://urbansounddataset.weebly.com/urbansound8k.html (its publisher asks for a form to be "
    f"filled in) and unpack it so that <root>/audio/fold1/101415-3-0-2.wav and <root>/{TABLE} exist; without the CSV, "
    "folds and classes come from the folders and names"
)
_COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
_FOLDER = re.compile(r"fold([1-9]|10)")
_NUMBER = r"(0|[1-9]\d*)"  # without leading zeros: a clip has one name
_NAME = re.compile(rf"{_NUMBER}-(\d)-{_NUMBER}-{_NUMBER}", re.ASCII)


class _Clip(NamedTuple):
    """One clip by the numbers in its path; clips sort by them."""

    fold: int
    source: int
    label: int
    occurrence: int
    slice: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self[1:]))


@SOURCES.register
@published
def urbansound8k(root: Path | None, /) -> Manifest:
    """Read UrbanSound8K, or the part of it that exists under `root`.

    Args:
        root: folder of `audio` and `metadata`, or the one above it.

    Raises:
        UsageError: missing root, no clip, a malformed CSV, or one that contradicts the names or folders of the clips.
    """
    root = require_root(root, HOW)
    root = next((folder for folder in (root, root / "UrbanSound8K") if (folder / "audio").is_dir()), root)
    if not (root / "audio").is_dir():
        raise UsageError(f"data.root={str(root)!r} holds no folder audio. {HOW}")
    paths, skipped = _clips(root)
    if not paths:
        raise UsageError(f"{root / 'audio'} holds no clip of UrbanSound8K. {HOW}")
    notes: list[str] = []
    listed = _table(root / TABLE, paths, notes) if (root / TABLE).is_file() else None
    if listed is not None:
        for clip in [clip for clip in paths if clip not in listed]:
            skipped += [Skipped(path, f"is not listed in {TABLE}") for path in paths.pop(clip)]
        if not paths:
            raise UsageError(f"{root / TABLE} lists none of the clips under {root / 'audio'}. {HOW}")
    classes = [name for label, name in enumerate(CLASSES) if any(clip.label == label for clip in paths)]
    # Clips in the order of their numbers, whatever their format: splits are drawn by position.
    clips = {f"fold{clip.fold}/{clip.name}": clip for clip in sorted(paths)}
    found, lost = first_readable(root, {key: paths[clip] for key, clip in clips.items()})
    kept = [clips[key] for key in found]
    return make_manifest(
        root,
        classes,
        [path for path, _ in found.values()],
        [[classes.index(CLASSES[clip.label])] for clip in kept],
        [info.seconds for _, info in found.values()],
        [info.sample_rate for _, info in found.values()],
        groups=[clip.source for clip in kept],
        folds=[clip.fold for clip in kept],
        skipped=[*skipped, *lost.values()],
        missing=len(listed.difference(paths)) if listed else 0,
        notes=[*notes, *_notes(paths, listed)],
    )


def _clips(root: Path) -> tuple[dict[_Clip, list[str]], list[Skipped]]:
    """Return the paths of each clip's copies, and the audio files that are not named as clips are."""
    paths: dict[_Clip, list[str]] = {}
    others = []
    for path in audio_files(root / "audio"):
        where = Path("audio", path)
        folder, name = _FOLDER.fullmatch(where.parent.name), _NAME.fullmatch(where.stem)
        if folder and name and len(where.parts) == 3:
            paths.setdefault(_Clip(int(folder[1]), *map(int, name.groups())), []).append(str(where))
        else:
            others.append(str(where))
    # Among the others may be folders that cannot be opened: those have a reason of their own.
    readable, _, skipped = probe_all(root, others)
    reason = f"is not named audio/fold1 to fold{FOLDS}/SOURCE-CLASS-OCCURRENCE-SLICE as UrbanSound8K's clips are"
    return paths, [*skipped, *(Skipped(others[i], reason) for i in readable)]


def _table(path: Path, paths: Mapping[_Clip, Sequence[str]], notes: list[str]) -> set[_Clip]:
    """Return the clips that the CSV lists, after comparing them with the files in `paths`.

    Raises:
        UsageError: a missing column, or a row that is malformed or contradicts itself, its clip's name or its folder.
    """
    there: dict[str, list[_Clip]] = {}
    for clip in paths:
        there.setdefault(clip.name, []).append(clip)
    listed: dict[str, _Clip] = {}
    file, delimiter = open_csv(path, notes)
    with file:
        table = csv.DictReader(file, delimiter=delimiter)
        try:
            if lacking := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
                raise ValueError(f"lacks the columns {', '.join(lacking)}")
            for row in table:
                clip = _listed_clip({name: (row[name] or "").strip() for name in _COLUMNS})
                if clip.name in listed:
                    raise ValueError(f"{clip.name} is listed a second time")
                listed[clip.name] = clip
                for other in there.get(clip.name, ()):
                    if other != clip:
                        raise ValueError(f"{clip.name} is in fold {clip.fold}, but its file is {paths[other][0]}")
        except (ValueError, csv.Error) as error:
            raise UsageError(
                f"{path}, line {table.line_num}: {error}. Correct it, or remove the CSV: folds and classes then come "
                "from folders and names"
            ) from None
    return set(listed.values())


def _listed_clip(row: Mapping[str, str]) -> _Clip:
    """Return the clip of a row of the CSV; raise `ValueError` where the row's columns do not agree."""
    name = _NAME.fullmatch(Path(row["slice_file_name"]).stem)
    if name is None:
        raise ValueError(f"slice_file_name {row['slice_file_name']!r} is not SOURCE-CLASS-OCCURRENCE-SLICE.wav")
    fold = 0
    with suppress(ValueError):
        fold = fold_number(row["fold"])
    if fold not in range(1, FOLDS + 1):
        raise ValueError(f"fold {row['fold']!r} of {name[0]} is none of 1 to {FOLDS}")
    clip = _Clip(fold, *map(int, name.groups()))
    expected = {"fsID": str(clip.source), "classID": str(clip.label), "class": CLASSES[clip.label]}
    for column, value in expected.items():
        if row[column].replace("_", " ") != value:
            raise ValueError(f"{column} {row[column]!r} contradicts the name {name[0]}, which says {value!r}")
    return clip


def _notes(clips: Collection[_Clip], listed: set[_Clip] | None) -> list[str]:
    """Return what a copy lacks, and recordings in several folds; nothing for the data set as it is published."""
    notes = []
    if listed is None:
        if len(clips) != CLIPS:
            notes.append(f"UrbanSound8K: {len(clips):,} of the {CLIPS:,} published clips are here, without {TABLE}")
    elif not len(clips) == len(listed) == CLIPS:
        missing = sorted(listed.difference(clips))
        text = f"UrbanSound8K: {len(clips):,} of {len(listed):,} listed clips are here"
        text += f", {len(missing):,} missing (e.g. fold{missing[0].fold}/{missing[0].name})" if missing else ""
        notes.append(text + (f"; {CLIPS:,} are published" if len(listed) != CLIPS else ""))
    folds = sorted({clip.fold for clip in clips})
    if len(folds) < FOLDS:
        notes.append(f"{len(folds)} of the {FOLDS} official folds are here: {', '.join(map(str, folds))}")
    if absent := [name for label, name in enumerate(CLASSES) if all(clip.label != label for clip in clips)]:
        notes.append(f"no clip of {', '.join(absent)} is here: the labels are the other {len(CLASSES) - len(absent)}")
    sources: dict[int, set[int]] = {}
    for clip in clips:
        sources.setdefault(clip.source, set()).add(clip.fold)
    if shared := [source for source, of in sorted(sources.items()) if len(of) > 1]:
        where = " and ".join(map(str, sorted(sources[shared[0]])))
        notes.append(
            f"{plural(len(shared), 'source recording')} in several folds, where UrbanSound8K has none (e.g. "
            f"{shared[0]} in {where}): protocol official refuses them"
        )
    return notes
