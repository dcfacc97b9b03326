"""FMA small and medium: clips of 30 s from the Free Music Archive, one genre per clip (Defferrard et al., 2017).

Small has 8,000 clips of eight balanced genres, medium 25,000 clips of sixteen unbalanced ones; small is a subset of
medium. `<root>` contains `fma_metadata/tracks.csv` (or `tracks.csv`) and `fma_small/000/000002.mp3`, `fma_medium/...`
as in the archives, or the numbered folders themselves. Other formats that are read are accepted too; of several copies
of a track the first readable one is used, in the order of `gafx.audio.formats.FORMATS`.

The official parts (protocol `official`; its validation part is used for training where nothing is selected, and for
selection under `official_val`) have disjoint artists, and so do `paper` and `kfold`: a group is an artist. If an artist
has clips in several official parts according to this copy's tracks.csv, the clips of each part are a group, and a note
says so: with one group for all of them the official parts would be refused.

A few clips of the published archives are faulty: without audio, or cut at the wrong position and about a second long.
They are skipped and listed like any unreadable file, the widely known ones (github.com/mdeff/fma, issues 8, 41 and 44)
marked as such.
"""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gafx.audio.read import AudioInfo
from gafx.data.manifest import SPLITS, Manifest, Skipped, make_manifest
from gafx.data.sources._csv import open_csv
from gafx.data.sources.base import audio_files, first_readable, published, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES

GENRES = {
    "small": ("Electronic", "Experimental", "Folk", "Hip-Hop", "Instrumental", "International", "Pop", "Rock"),
    "medium": ("Blues", "Classical", "Country", "Easy Listening", "Electronic", "Experimental", "Folk", "Hip-Hop",
               "Instrumental", "International", "Jazz", "Old-Time / Historic", "Pop", "Rock", "Soul-RnB", "Spoken"),
}  # fmt: skip
LISTED = {"small": 8000, "medium": 25000}
SECONDS = 30
# Tracks whose published clips have no audio, and those whose clips were cut at the wrong position (1.6, 0.5, 1.5 s).
WITHOUT_AUDIO = (99134, 108925, 133297)
CUT_SHORT = (98565, 98567, 98569)
HOW = (
    "It must hold fma_metadata/tracks.csv and fma_small/000/000002.mp3 (or fma_medium/...), as fma_metadata.zip and "
    "fma_small.zip (fma_medium.zip) unpack; https://github.com/mdeff/fma says where they are"
)
_PARTS = {"training": "train", "validation": "val", "test": "test"}
_CONTAINS = {"small": ("small",), "medium": ("small", "medium")}
# Folders with the clips of a subset; larger archives contain the smaller ones.
_FOLDERS = {"small": ("fma_small", "fma_medium", "fma_large"), "medium": ("fma_medium", "fma_large")}
_COLUMNS = {
    "split": ("set", "split"),
    "subset": ("set", "subset"),
    "genre": ("track", "genre_top"),
    "artist": ("artist", "id"),
}
_FAULT = " (a known fault of FMA)"


@dataclass(frozen=True)
class _Track:
    number: int
    part: str
    genre: str
    artist: str

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@SOURCES.register
@published
def fma(root: Path | None, /, *, subset: Literal["small", "medium"] = "small", min_seconds: float = 5.0) -> Manifest:
    """Read FMA small or medium, or the part of it that exists under `root`.

    Args:
        root: folder of the archives' folders, or of the numbered ones.
        subset: `small` or `medium` (which contains small).
        min_seconds: shorter clips are skipped; all should have 30 s. 0 keeps everything that is readable.

    Raises:
        UsageError: missing root or tracks.csv, a malformed tracks.csv, no clip, a negative `min_seconds`.
    """
    root = require_root(root, HOW)
    if not 0 <= min_seconds <= SECONDS:
        raise UsageError(f"data.options.min_seconds={min_seconds:g} must be between 0 and {SECONDS}")
    tracks, skipped, notes = _tracks(root, subset)
    paths, others = _clips(root, subset)
    there = {track.name: paths[track.name] for track in tracks if track.name in paths}
    absent = [track.name for track in tracks if track.name not in there]

    def refuse(info: AudioInfo) -> str | None:
        short = info.seconds < min_seconds
        return f"is {info.seconds:.1f} s long where FMA's clips have {SECONDS} s" if short else None

    found, lost = first_readable(root, there, refuse)
    if not there:
        raise UsageError(f"{root} holds no clip of FMA {subset}. {HOW}")
    known = [name for name in lost if int(name) in (*WITHOUT_AUDIO, *CUT_SHORT)]
    faulty = [Skipped(clip.path, clip.reason + (_FAULT if name in known else "")) for name, clip in lost.items()]
    presence = f"FMA {subset}: {len(there):,} of {len(tracks):,} listed clips are here"
    if absent:
        presence += f", {len(absent):,} missing (e.g. {', '.join(absent[:3])})"
    if (listed := len(tracks) + len(skipped)) != LISTED[subset]:
        presence += f"; {LISTED[subset]:,} are published, and tracks.csv here lists {listed:,}"
    notes.insert(0, presence)
    if faulty:
        text = f"{len(faulty):,} clips cannot be used" + (", known faults of FMA among them: " if known else "")
        notes.append(text + ", ".join(known))
    if unlisted := sorted(set(paths) - {track.name for track in tracks}):
        notes.append(f"{len(unlisted):,} clips are not of FMA {subset} and are ignored (e.g. {paths[unlisted[0]][0]})")
    if others:
        notes.append(f"{len(others):,} audio files are not named as FMA's clips are (e.g. {others[0]})")
    kept = [track for track in tracks if track.name in found]
    groups, shared = _groups(kept)
    if shared:
        notes.append(
            f"{len(shared):,} artists have clips in several official parts (e.g. artist {shared[0]}): protocol "
            "official does not keep them apart, and their clips of one part are a group"
        )
    genres = GENRES[subset]
    return make_manifest(
        root,
        genres,
        [found[track.name][0] for track in kept],
        [[genres.index(track.genre)] for track in kept],
        [found[track.name][1].seconds for track in kept],
        [found[track.name][1].sample_rate for track in kept],
        groups=groups,
        artists=[track.artist for track in kept],
        splits=[SPLITS.index(track.part) for track in kept],
        skipped=[*skipped, *faulty],
        missing=len(absent),
        notes=notes,
    )


def _tracks(root: Path, subset: str) -> tuple[list[_Track], list[Skipped], list[str]]:
    """Return the subset's tracks by number; the tracks without a genre, which are left out; and notes."""
    path = next((root / name for name in ("tracks.csv", "fma_metadata/tracks.csv") if (root / name).is_file()), None)
    if path is None:
        raise UsageError(f"{root} holds neither tracks.csv nor fma_metadata/tracks.csv. {HOW}")
    tracks, without = [], []
    notes: list[str] = []
    file, delimiter = open_csv(path, notes)
    with file:
        table = csv.reader(file, delimiter=delimiter)
        try:
            columns = _columns(path, next(table, []), next(table, []), next(table, []))
            for row in table:
                if not row:
                    continue
                cells = {name: row[column].strip() for name, column in columns.items()}
                if cells["subset"] not in _CONTAINS[subset]:
                    continue
                number = int(row[0])
                if cells["split"] not in _PARTS:
                    raise ValueError(f"split {cells['split']!r} of track {number} is none of {', '.join(_PARTS)}")
                if not cells["genre"]:
                    without.append(Skipped(f"{number:06d}", f"has no genre_top in {path.name}"))
                    continue
                if cells["genre"] not in GENRES[subset]:
                    raise ValueError(
                        f"genre_top {cells['genre']!r} of track {number} is none of FMA {subset}'s: "
                        f"{', '.join(GENRES[subset])}"
                    )
                # Tracks without an artist id are artists of their own.
                artist = cells["artist"] or f"track {number}"
                tracks.append(_Track(number, _PARTS[cells["split"]], cells["genre"], artist))
        except IndexError:
            raise UsageError(f"{path}, line {table.line_num}: has too few fields; is the file whole? {HOW}") from None
        except (ValueError, csv.Error) as error:
            raise UsageError(f"{path}, line {table.line_num}: {error}. {HOW}") from None
    if not tracks:
        raise UsageError(f"{path} lists no track of FMA {subset}. {HOW}")
    tracks.sort(key=lambda track: track.number)
    if without:
        notes.append(f"{len(without):,} tracks of FMA {subset} have no genre_top and are left out")
    return tracks, without, notes


def _columns(path: Path, above: list[str], below: list[str], index: list[str]) -> dict[str, int]:
    """Return the needed columns' positions by the two levels of the header; the third line only names the index."""
    columns = {pair: number for number, pair in enumerate(zip(above, below, strict=False))}
    lacking = [f"{pair[0]}/{pair[1]}" for pair in _COLUMNS.values() if pair not in columns]
    if lacking or index[:1] != ["track_id"]:
        what = f"lacks the columns {', '.join(lacking)}" if lacking else "has no third line that begins with track_id"
        raise UsageError(f"{path} {what}: it must be tracks.csv of fma_metadata.zip with its three header lines. {HOW}")
    return {name: columns[pair] for name, pair in _COLUMNS.items()}


def _clips(root: Path, subset: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the paths of each track's copies by its six digits, and audio files named otherwise."""
    inside = next((name for name in _FOLDERS[subset] if (root / name).is_dir()), None)
    if inside is None and not any(re.fullmatch(r"\d{3}", entry.name) for entry in root.iterdir()):
        raise UsageError(
            f"{root} holds none of the folders {', '.join(_FOLDERS[subset])}, nor FMA's numbered folders (000, 001, "
            f"...), of which one must hold the clips of FMA {subset}. {HOW}"
        )
    paths: dict[str, list[str]] = {}
    others = []
    for path in audio_files(root / (inside or ".")):
        name, full = Path(path).stem, os.path.join(inside or "", path)
        if re.fullmatch(r"\d{6}", name, re.ASCII):
            paths.setdefault(name, []).append(full)
        else:
            others.append(full)
    return paths, others


def _groups(tracks: list[_Track]) -> tuple[list[str], list[str]]:
    """Return each track's group, and the artists with clips in several official parts."""
    parts: dict[str, set[str]] = {}
    for track in tracks:
        parts.setdefault(track.artist, set()).add(track.part)
    shared = [artist for artist, of in parts.items() if len(of) > 1]
    split = set(shared)
    return [f"{t.artist} in {t.part}" if t.artist in split else t.artist for t in tracks], shared
