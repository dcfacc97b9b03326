"""MIDI files: `root/any/depth/file.mid` (mid, midi, kar, rmi), as sequences of tokens.

The vocabulary stands in the place of the classes (`Manifest.classes`), and no piece has a label. A piece is a clip of
one token a "second". docs/midi.md describes the two schemes of tokens.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from gafx.data.manifest import Manifest, Skipped, make_manifest
from gafx.data.sources.base import audio_files, group_name, require_root
from gafx.errors import UnreadableMidi, UsageError, require
from gafx.midi.read import NAMES, is_midi_name, read_midi
from gafx.midi.tokens import TOKEN_RATE, vocabulary_of, words
from gafx.registry import SOURCES
from gafx.report.format import plural, printable

HOW = f"It must hold MIDI files ({NAMES}), at any depth"


@SOURCES.register
def midi(
    root: Path | None,
    /,
    *,
    scheme: Literal["notes", "events"] = "events",
    group_pattern: str | None = None,
    min_notes: int = 16,
    min_count: int = 1,
) -> Manifest:
    """Read a folder of MIDI files.

    Files that cannot be read, or have too few notes, are left out, each with its reason; those that were read although
    something in them is wrong are in the notes.

    Args:
        root: folder of the files.
        scheme: of the tokens: `events` (time, pitch, duration, velocity, programs, drums) or `notes` (notes and chords
            in order of onset).
        group_pattern: regular expression that is searched in each relative path; its first group names what no split
            separates, e.g. `'^([^/_]+)_'` the performer of `Performer_Title.mid`. Default: each file.
        min_notes: pieces with fewer notes are left out.
        min_count: words of the scheme `notes` that occur less often in the whole set become `<unknown>`.

    Raises:
        UsageError: missing root, no MIDI file in it that can be used, a malformed pattern, or a missing package.
    """
    root = require_root(root, HOW)
    if min_notes < 1 or min_count < 1:
        raise UsageError(f"data.options.min_notes={min_notes} and min_count={min_count} must be at least 1")
    require("symusic", "data=midi")
    paths = list(audio_files(root, is_midi_name))
    if not paths:
        raise UsageError(f"data.root={str(root)!r} holds no MIDI file. {HOW}")
    groups = [group_name(path, group_pattern) or path for path in paths]
    kept: list[int] = []
    lengths: list[int] = []
    skipped: list[Skipped] = []
    repaired: list[str] = []
    counts: Counter[str] = Counter()
    for number, path in enumerate(tqdm(paths, desc="MIDI", unit="file", delay=3, disable=None)):
        try:
            song = read_midi(root / path)
            if len(song) < min_notes:
                raise UnreadableMidi(f"has {plural(len(song), 'note')}, fewer than data.options.min_notes={min_notes}")
        except UnreadableMidi as reason:
            skipped.append(Skipped(path, str(reason)))
            continue
        found = words(song, scheme)
        if not found:
            skipped.append(Skipped(path, "has drums alone, which scheme=notes leaves out"))
            continue
        counts.update(found)
        kept.append(number)
        lengths.append(len(found) + 1)  # `<end>`
        repaired += [f"{printable(path)} {'; '.join(song.repairs)}"] if song.repairs else []
    if not kept:
        reasons = "; ".join(f"{printable(clip.path)}: {clip.reason}" for clip in skipped[:3])
        raise UsageError(f"none of {plural(len(paths), 'MIDI file')} under {root} can be used ({reasons})")
    notes = [
        f"{plural(len(repaired), 'file')} read although something in them is wrong, e.g. {repaired[0]}"
    ] if repaired else []  # fmt: skip
    return make_manifest(
        root, vocabulary_of(counts, scheme, min_count), [paths[number] for number in kept], [[] for _ in kept],
        lengths, [TOKEN_RATE] * len(kept), groups=[groups[number] for number in kept], skipped=skipped, notes=notes,
    )  # fmt: skip
