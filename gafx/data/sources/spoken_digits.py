"""Free Spoken Digit Dataset: 3,000 recordings of the digits 0 to 9 by six speakers, 8 kHz (Jackson et al., 2016).

Layout: `<root>/recordings/DIGIT_SPEAKER_NUMBER.wav` (or any other format that is read); `<root>` may also be the folder
`recordings`. Every clip is a recording of its own. Of several formats of one the first readable one is used.

Protocol `official` holds speakers out: fold k tests the k-th speaker in alphabetical order. The data set's repository
describes another split, in which the numbers 0 to 4 of every speaker and digit are the test part: the same six speakers
are on both sides of it, as they are in `kfold` and `paper`, so that it does not measure new voices.
"""

import re
from pathlib import Path
from typing import NamedTuple

from gafx.data.manifest import Manifest, Skipped, make_manifest
from gafx.data.sources.base import audio_files, first_readable, probe_all, published, require_root
from gafx.errors import UsageError
from gafx.registry import SOURCES

HOW = (
    "Get the Free Spoken Digit Dataset from https://github.com/Jakobovski/free-spoken-digit-dataset so that "
    "<root>/recordings/0_george_0.wav exists"
)
_NAME = re.compile(r"(\d)_([^_]+)_(0|[1-9]\d*)", re.ASCII)


class _Clip(NamedTuple):
    """One recording by the parts of its name; recordings sort by them."""

    digit: str
    speaker: str
    number: int


@SOURCES.register
@published
def spoken_digits(root: Path | None, /) -> Manifest:
    """Read the Free Spoken Digit Dataset, or the part of it that exists under `root`.

    Args:
        root: folder of `recordings`, or `recordings` itself.

    Raises:
        UsageError: missing root, or no recording in it.
    """
    root = require_root(root, HOW)
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    paths: dict[_Clip, list[str]] = {}
    others = []
    for path in audio_files(folder):
        name = _NAME.fullmatch(Path(path).stem) if path == Path(path).name else None
        if name:
            paths.setdefault(_Clip(name[1], name[2], int(name[3])), []).append(path)
        else:
            others.append(path)
    if not paths:
        raise UsageError(f"data.root={str(root)!r} holds no recording named DIGIT_SPEAKER_NUMBER. {HOW}")
    # Among the others may be folders that cannot be opened: those have a reason of their own.
    readable, _, skipped = probe_all(folder, others)
    skipped += [Skipped(others[i], "is not named DIGIT_SPEAKER_NUMBER as the recordings are") for i in readable]
    digits, speakers = sorted({clip.digit for clip in paths}), sorted({clip.speaker for clip in paths})
    # In the order of their names' parts, whatever their format: splits are drawn by position.
    clips = {"_".join(map(str, clip)): clip for clip in sorted(paths)}
    found, lost = first_readable(folder, {key: paths[clip] for key, clip in clips.items()})
    kept = [clips[key] for key in found]
    holders = ", ".join(f"{fold} {speaker}" for fold, speaker in enumerate(speakers, 1))
    return make_manifest(
        folder,
        digits,
        [path for path, _ in found.values()],
        [[digits.index(clip.digit)] for clip in kept],
        [info.seconds for _, info in found.values()],
        [info.sample_rate for _, info in found.values()],
        folds=[speakers.index(clip.speaker) + 1 for clip in kept],
        skipped=[*skipped, *lost.values()],
        notes=[f"each official fold is one speaker: {holders}"],
    )
