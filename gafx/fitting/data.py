"""The data of a fit: read, copies joined, divided into the protocol's parts, checked for leaks, and noted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gafx.audio.level import SILENCE
from gafx.config import DataConfig, read_mapping
from gafx.data.leaks.check import FOLDER, MOST_HOURS, find_leaks, read_prints
from gafx.data.leaks.fingerprint import unread
from gafx.data.manifest import Manifest, check_readable
from gafx.data.protocols import Protocol
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, default_protocol, split
from gafx.errors import UsageError
from gafx.fitting.table import Table
from gafx.inference import Predictions
from gafx.io import check_writable
from gafx.report import format as fmt

_MAX_FOLDS = 5


def check_folder(folder: Path, wanted: Mapping[str, str | None], record: str) -> None:
    """Raise `UsageError` unless a folder can be written and is new, empty or of an earlier fit of the same.

    Args:
        folder: to write into.
        wanted: `root` of the data, and what else must be as in the record of an earlier fit.
        record: name of that file, which also states the fitted `model`.
    """
    cure = "name another folder for the model with --output"
    check_writable(folder, cure)
    root = wanted["root"]
    if root is not None and folder.resolve().is_relative_to(root):
        raise UsageError(f"{folder} is inside the data ({root}), where it would be read as a part of them: {cure}")
    if not folder.is_dir():
        return
    if not (folder / record).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.name not in ("features", FOLDER))
        if others:
            raise UsageError(f"{folder} holds other things ({', '.join(others[:3])}): {cure}")
        return
    known = read_mapping(folder / record)
    differs = [key for key, value in wanted.items() if key in known and known[key] != value]
    if differs:
        of = f"of {known['model']} on {known['root']}" + (" with other weights" if differs == ["weights"] else "")
        raise UsageError(f"{folder} holds a fit {of}, which would be replaced: {cure}, or remove it")


def open_data(
    data: DataConfig, seconds: float, cache: Path, *, asked_folds: bool, command: str = "gafx fit"
) -> tuple[Manifest, DataConfig, dict[int, Split]]:
    """Read a data set and divide it by each fold of its protocol.

    Where the parts are drawn, clips of the same bytes count as one recording. A class without a clip in the training
    part of a fold is accepted: a class of one recording cannot be on both sides.

    Args:
        data: data set and protocol; an empty protocol takes the default.
        seconds: length of a window.
        cache: folder of the fingerprints.
        asked_folds: whether the user chose `data.folds`; otherwise there are at most as many as recordings.
        command: for messages.

    Raises:
        UsageError: it cannot be read or split, or has clips with several labels.
    """
    manifest = load_manifest(data.name, data.root, download=data.download, **data.options)
    check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict)
    manifest.require_audio(command)
    if manifest.multi_label:
        row = int((manifest.labels.lengths() != 1).argmax())
        raise UsageError(
            f"{manifest.relative_path(row)!r} has {len(manifest.labels[row])} labels, and {command} takes exactly one "
            "a clip; use gafx train objective=tag"
        )
    data = replace(data, protocol=data.protocol or default_protocol(manifest), segment_seconds=seconds)
    protocol = Protocol.parse(data.protocol)
    if data.leak_check and protocol.draws_test:
        manifest = _join_copies(manifest, cache)
    if not asked_folds:
        data.folds = max(2, min(_MAX_FOLDS, len(np.unique(manifest.group))))
    folds = protocol.folds(data.folds, manifest.official_folds) or [1]
    splits = {
        fold: split(
            manifest, data.protocol, fold=fold, folds=data.folds, seed=data.split_seed,
            test_fraction=data.test_fraction, val_fraction=data.val_fraction, every_class=False,
        )
        for fold in folds
    }  # fmt: skip
    return manifest, data, splits


def _join_copies(manifest: Manifest, cache: Path) -> Manifest:
    """Give clips of the same bytes one group, so that no part separates them, and add a note on them.

    Audio is read only up to the leak check's number of hours; beyond it, that check says so.
    """
    rows = np.arange(len(manifest))
    if manifest.duration[unread(manifest, rows, cache)].sum() > 3600 * MOST_HOURS:
        return manifest
    prints = read_prints(manifest, rows, cache)
    rows = np.flatnonzero(prints.sounding() > 0)
    _, first, number = np.unique(prints.digest[rows], return_index=True, return_inverse=True)
    original = rows[first[number]]
    copies = np.flatnonzero(rows != original)
    if not len(copies):
        return manifest
    # Groups and contents are the nodes of a graph, clips its edges: what hangs together becomes one group.
    groups, group = np.unique(manifest.group, return_inverse=True)
    size = len(groups) + len(first)
    edges = coo_array((np.ones(len(rows)), (group[rows], len(groups) + number)), shape=(size, size))
    joined = connected_components(edges, directed=False)[1][: len(groups)]
    label = manifest.first_label()
    differ = np.flatnonzero(label[rows] != label[original])

    def pair(index: int) -> str:
        return f"e.g. {manifest.relative_path(original[index])} = {manifest.relative_path(rows[index])}"

    notes = [
        f"{fmt.plural(len(copies), 'clip')} {'has' if len(copies) == 1 else 'have'} the same bytes as another, "
        f"{pair(copies[0])}: copies count as one recording"
    ]
    if len(differ):
        notes.append(
            f"{fmt.plural(len(differ), 'copy', 'copies')} under another label, {pair(differ[0])}: one of the labels is "
            "wrong; remove that file"
        )
    return replace(manifest, group=joined[group].astype(np.int64), notes=(*manifest.notes, *notes))


def check_leaks(manifest: Manifest, splits: Mapping[int, Split], data: DataConfig, cache: Path) -> dict[int, Any]:
    """Return the record of the leak check for each fold; `None` where the check is turned off."""
    if not data.leak_check:
        return dict.fromkeys(splits)
    return {fold: find_leaks(manifest, parts, cache=cache).as_dict() for fold, parts in splits.items()}


def read_table(found: Predictions, manifest: Manifest, what: str) -> Table:
    """Build the table of features to fit on.

    Args:
        found: features of windows.
        manifest: the data set.
        what: the features are, for messages.

    Raises:
        UsageError: a value is not finite, or a class has no readable clip.
    """
    table = Table.of(found, manifest)
    if not np.isfinite(table.values).all():
        row = int(table.clip[~np.isfinite(table.values).all(axis=1)][0])
        raise UsageError(f"{what} for {manifest.relative_path(row)!r} is not finite: remove that file")
    empty = [label for number, label in enumerate(manifest.classes) if number not in table.label]
    if empty:
        raise UsageError(f"no clip of {', '.join(map(repr, empty))} can be read: repair or remove these folders")
    return table


def with_notes(
    manifest: Manifest, table: Table, level: npt.NDArray[Any], min_seconds: float, notes: Sequence[str] = ()
) -> tuple[Manifest, list[str]]:
    """Add notes on what a cross-validation cannot judge, and on clips without sound.

    Args:
        manifest: the data set.
        table: features of its clips.
        level: `(rows,)` in dBFS, of the table.
        min_seconds: shortest wave that the model accepts.
        notes: further ones.
    """
    notes = [*manifest.notes, *notes]
    recordings = [len(np.unique(table.group[table.label == number])) for number in range(table.classes)]
    single = [repr(label) for label, count in zip(manifest.classes, recordings, strict=True) if count == 1]
    if single:
        notes.append(
            f"{', '.join(single)}: one recording each, which cannot be on both sides of a fold: their clips count as "
            "errors wherever they are tested, and the saved model has learned them from that recording alone"
        )
    silent = np.setdiff1d(table.clip[level < SILENCE], table.clip[level >= SILENCE])
    short = np.unique(table.clip[manifest.duration[table.clip] < min_seconds])
    for clips, what in (
        (silent, f"silent (below {SILENCE:g} dBFS), for which gafx predict gives no label"),
        (short, f"shorter than the {1000 * min_seconds:.0f} ms that the model needs, and repeated up to that length"),
    ):
        if len(clips):
            notes.append(
                f"{fmt.plural(len(clips), 'clip')} {'is' if len(clips) == 1 else 'are'} {what}, e.g. "
                f"{manifest.relative_path(int(clips[0]))}: fitted and tested like the others"
            )
    return replace(manifest, notes=tuple(notes)), notes
