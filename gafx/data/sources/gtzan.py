"""GTZAN: 1,000 tracks of 30 s, ten genres, 22.05 kHz mono (Tzanetakis and Cook, 2002).

Layout: `<root>/blues/blues.00000.wav` (or `.au`, or any other format that is read); `<root>` is the folder of the ten
genre folders or one above it (`genres`, `genres_original`, as in its archives). Tracks 00000 to 00099 of each genre.
One file, jazz.00054, is damaged or missing in most copies: it is skipped and reported like any unreadable file. Of
several formats of a track the first readable one is used.

Protocol `fault_filtered` is the published split without the known faults (repetitions, distortions, artists on both
sides; Sturm, 2013): 443 training, 197 validation and 290 test tracks, 70 left out. It needs the whole collection with
all validation and test tracks readable; `paper` and `kfold` work with any part of it.
"""

import re
from pathlib import Path

from gafx.data.download.hub_files import fetch_hub
from gafx.data.download.install import install
from gafx.data.manifest import Manifest, PublishedSplit, Skipped, make_manifest
from gafx.data.sources.base import audio_files, downloadable, first_readable, published, require_root
from gafx.errors import UsageError, did_you_mean
from gafx.registry import SOURCES

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
HOW = (
    "It must hold the ten genre folders of GTZAN (<root>/blues/blues.00000.wav or .au, ...), as the archives "
    "genres.tar.gz and genres_original unpack; data.download=true fetches it from the Hugging Face hub (marsyas/gtzan, "
    "1.2 GB) into a new folder"
)
HUB = ("marsyas/gtzan", "data/genres.tar.gz")
# Unreadable in most copies in wav format.
DAMAGED = "jazz.00054"
TRACKS = 100
# Folders of the genre folders in the archives.
_INSIDE = (".", "genres", "genres_original", "Data/genres_original")

# The fault-filtered split of Kereliuk, Sturm and Larsen (2015), as ranges of track numbers; also in torchaudio
# (torchaudio.datasets.gtzan, BSD-2-Clause), from which it was checked line by line.
FAULT_FILTERED = {
    "train": {
        "blues": "29-49,73-97",
        "classical": "30-33,43-48,50-67,80-99",
        "country": "19-26,28-29,65-99",
        "disco": "5,15-20,22-37,39-45,47,49,53-54,56-57,59,61,70,73-74,89",
        "hiphop": "2-25,28-29,31-38,41-42,55-61,77-80",
        "jazz": "0-1,11-24,41,47-72",
        "metal": "2-3,5,21,24,35,46-57,59-66,69,71-72,79-80,84,86,89-99",
        "pop": "2-9,11-12,16-20,23-29,31-36,38-42,44,46,49-50,80,97-99",
        "reggae": "0-2,4,6,9,11-12,14-32,42-45,49-51,54-60,63,69",
        "rock": "0-9,16-26,57-70,91-99",
    },
    "val": {
        "blues": "0-11,50-60",
        "classical": "0-10,68-76",
        "country": "0-7,9-18,27,41-42,45,49",
        "disco": "0,2-4,6-14,46,48,52,67-68,72,75,90,95",
        "hiphop": "81-98",
        "jazz": "2-10,25-32",
        "metal": "0-1,6-11,16-20,36-37,68,76-77,81-82",
        "pop": "10,53,55,58-62,81,83-86",
        "reggae": "61-62,70,72,74,76-78,85,92-99",
        "rock": "38,49-56,71-85",
    },
    "test": {
        "blues": "12-28,61-72,98-99",
        "classical": "11-29,34-41,49,77-79",
        "country": "30-40,43-44,46-48,50-51,53-64",
        "disco": "1,21,58,62-66,69,76-88,91-94,96-97,99",
        "hiphop": "0,26-27,30,40,43-45,51-54,62-75,99",
        "jazz": "73-99",
        "metal": "12-15,22-23,25-33,38-39,67,70,73-75,78,83,85,87-88",
        "pop": "0-1,13-14,43,63-66,69-79,82,88-96",
        "reggae": "34-40,46-48,52-53,64-68,71,79,82-84,87-90",
        "rock": "10-15,27-37,39-48,86-90",
    },
}


def fault_filtered(part: str) -> list[str]:
    """Return the tracks (`blues.00012`) of a part (`train`, `val`, `test`) of the fault-filtered split, ascending."""
    tracks = []
    for genre, ranges in FAULT_FILTERED[part].items():
        for span in ranges.split(","):
            first, _, last = span.partition("-")
            tracks += [f"{genre}.{number:05d}" for number in range(int(first), int(last or first) + 1)]
    return tracks


def download(root: Path) -> None:
    """Download the collection from the hub into `root` unless it exists."""
    install(root, lambda folder: fetch_hub(*HUB, folder / "genres.tar.gz"), check=_genre_folder)


@SOURCES.register
@published
@downloadable(download)
def gtzan(root: Path | None, /, *, genres: list[str] | None = None) -> Manifest:
    """Read GTZAN, or the part of it that exists under `root`.

    Args:
        root: folder of the genre folders, or one above it.
        genres: use only these; default: all ten. Needed for incomplete copies.

    Raises:
        UsageError: missing root, no genre folder, a genre without a single track.
    """
    root = _genre_folder(require_root(root, HOW))
    chosen = _choose(genres)
    paths, skipped = _tracks(root, chosen)
    absent = [genre for genre in chosen if not any(track.startswith(f"{genre}.") for track in paths)]
    if absent:
        raise UsageError(
            f"no track of {', '.join(map(repr, absent))} under {root}. Complete the copy, or leave them out with "
            f"data.options.genres=[{','.join(genre for genre in chosen if genre not in absent)}]. {HOW}"
        )
    first, lost = first_readable(root, {name: paths[name] for name in sorted(paths)})
    names = list(first)
    skipped += lost.values()
    if DAMAGED not in paths and len(paths) == len(GENRES) * TRACKS - 1:
        skipped.append(Skipped(f"jazz/{DAMAGED}", "is missing from this copy, as from many others"))
    part_of = {name: part for part in FAULT_FILTERED for name in fault_filtered(part)}
    # Unreadable training tracks are skipped; without a validation or test track the split is not the published one.
    missing = [n for n, part in part_of.items() if n not in (first if part != "train" else paths) and n != DAMAGED]
    parts = list(FAULT_FILTERED)
    return make_manifest(
        root,
        chosen,
        [first[name][0] for name in names],
        [[chosen.index(name.partition(".")[0])] for name in names],
        [first[name][1].seconds for name in names],
        [first[name][1].sample_rate for name in names],
        groups=names,
        splits=[parts.index(part_of[name]) if name in part_of else -1 for name in names],
        published=PublishedSplit("fault_filtered", tuple(missing)),
        skipped=skipped,
    )


def _choose(genres: list[str] | None) -> tuple[str, ...]:
    if genres is None:
        return GENRES
    for genre in genres:
        if genre not in GENRES:
            hint = did_you_mean(genre, GENRES) or ";"
            raise UsageError(f"data.options.genres: unknown genre {genre!r}{hint} GTZAN has {', '.join(GENRES)}")
    return tuple(genre for genre in GENRES if genre in genres)


def _genre_folder(root: Path) -> Path:
    """Return the folder of the genre folders; raise `UsageError` if there is none."""
    for inside in _INSIDE:
        folder = root / inside
        if any((folder / genre).is_dir() for genre in GENRES):
            return folder if inside != "." else root
    raise UsageError(f"data.root={str(root)!r} holds no genre folder of GTZAN. {HOW}")


def _tracks(root: Path, genres: tuple[str, ...]) -> tuple[dict[str, list[str]], list[Skipped]]:
    """Return the paths of each track's copies by its name, and audio files that are not tracks."""
    paths: dict[str, list[str]] = {}
    skipped = []
    for genre in genres:
        for path in audio_files(root / genre) if (root / genre).is_dir() else ():
            name = re.fullmatch(rf"({genre}\.000\d\d)\.(\w+)", path)
            if name is None:
                reason = f"is not named as the tracks are ({genre}.00000 to {genre}.00099)"
                skipped.append(Skipped(f"{genre}/{path}", reason))
            else:
                paths.setdefault(name[1], []).append(f"{genre}/{path}")
    return paths, skipped
