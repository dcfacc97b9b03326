"""ESC-10 and ESC-50: environmental sounds, clips of 5 s, five official folds (Piczak, 2015).

Two layouts are read. ESC-10 as its repository has it: `001 - Dog bark/FOLD-SOURCE-TAKE.ogg`. ESC-50 (which contains
ESC-10): `audio/FOLD-SOURCE-TAKE-TARGET.wav` and `meta/esc50.csv`. Clips cut from one source recording are one group.
"""

import csv
import re
from pathlib import Path
from typing import Literal

from gafx.data.download.fetch import fetch_url
from gafx.data.download.install import install, tree_digest
from gafx.data.manifest import Manifest, Skipped, make_manifest
from gafx.data.sources.base import audio_files, downloadable, probe_all, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES

ARCHIVE = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
# What the 2,000 audio files hash to (`tree_digest`), from their MD5 sums in soundata 0.1.3 (BSD-3-Clause): the archive
# itself is packed anew by its server and has no checksum that lasts.
AUDIO_DIGEST = "73a735268bb6515d0da95bd84444e6e7762864674e0c422c2de11c12bdadf394"
HOW = (
    "data.download=true fetches ESC-50 (600 MB) into a new folder. Or download it "
    "(https://github.com/karolpiczak/ESC-50, archive master.zip) so that <root>/meta/esc50.csv and "
    "<root>/audio/1-100032-A-0.wav exist, or ESC-10 (https://github.com/karolpiczak/ESC-10) so that "
    "<root>/001 - Dog bark/1-100032-A.ogg exists"
)
_CLIP = re.compile(r"(\d+)-(\d+)-([A-Z]+)(?:-(\d+))?\.\w+")


def download(root: Path) -> None:
    """Fetch ESC-50 from its author's repository into `root`, if it is not there."""
    install(root, lambda folder: fetch_url(ARCHIVE, folder / "master.zip"), check=_check_esc50)


@SOURCES.register
@downloadable(download)
def esc(root: Path | None, /, *, subset: Literal["all", "esc10"] = "all") -> Manifest:
    """Read ESC-10 or ESC-50.

    Args:
        root: the data set's folder, in either layout.
        subset: `esc10` takes the ten classes of ESC-10 out of ESC-50.

    Raises:
        UsageError: missing root, or neither layout found in it.
    """
    root = require_root(root, HOW)
    skipped: list[Skipped] = []
    if (root / "meta" / "esc50.csv").is_file():
        rows = _esc50(root, subset)
    else:
        rows, skipped = _esc10(root)
    if not rows:
        raise UsageError(f"{root} holds neither ESC-10's class folders nor ESC-50's meta/esc50.csv. {HOW}")
    rows.sort()
    kept, infos, unreadable = probe_all(root, [path for path, *_ in rows])
    classes = sorted({row[1] for row in rows})
    rows = [rows[i] for i in kept]
    return make_manifest(
        root,
        classes,
        [path for path, *_ in rows],
        [[classes.index(label)] for _, label, _, _ in rows],
        [info.seconds for info in infos],
        [info.sample_rate for info in infos],
        groups=[source for *_, source in rows],
        folds=[fold for _, _, fold, _ in rows],
        skipped=[*skipped, *unreadable],
    )


def _esc10(root: Path) -> tuple[list[tuple[str, str, int, str]], list[Skipped]]:
    """(path, class, fold, source recording) of each clip, and audio files whose names are no clip's."""
    rows, skipped = [], []
    for folder in sorted(root.iterdir()):
        label = re.fullmatch(r"\d{3} - (.+)", folder.name)
        if not (label and folder.is_dir()):
            continue
        for path in audio_files(folder):
            clip = _CLIP.fullmatch(Path(path).name)
            where = f"{folder.name}/{path}"
            if clip:
                rows.append((where, label[1], int(clip[1]), clip[2]))
            else:
                skipped.append(Skipped(where, "is not named FOLD-SOURCE-TAKE as ESC-10's clips are"))
    return rows, skipped


def _check_esc50(root: Path) -> None:
    """Raise `UsageError` unless the audio files are those of the published data set, byte for byte."""
    if not (root / "meta" / "esc50.csv").is_file():
        raise UsageError(f"{ARCHIVE} holds no meta/esc50.csv: its publisher has changed it. {HOW}")
    found = tree_digest(root, [path for path, *_ in _esc50(root, "all")])
    if found != AUDIO_DIGEST:
        raise UsageError(
            f"the audio files of {ARCHIVE} are not those of ESC-50 as they are known (digest {found} instead of "
            f"{AUDIO_DIGEST}): fetch it by hand and look at what has changed. {HOW}"
        )


def _esc50(root: Path, subset: str) -> list[tuple[str, str, int, str]]:
    path = root / "meta" / "esc50.csv"
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        needed = {"filename", "fold", "category", "src_file", "esc10"}
        if missing := needed - set(table.fieldnames or ()):
            raise UsageError(f"{path} lacks the columns {sorted(missing)}. {HOW}")
        return [
            (f"audio/{row['filename']}", row["category"].replace("_", " "), int(row["fold"]), row["src_file"])
            for row in table
            if subset == "all" or row["esc10"].strip().lower() == "true"
        ]
