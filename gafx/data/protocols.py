"""Protocols: which clips train, which validate, which test. A group (one recording) is never on two sides.

`paper`         stratified share (80/20) by seed; no validation part (GAFX section 4.1.1)
`kfold`         stratified folds by seed; fold k is the test part
`official`      the data set's own folds or parts
`fault_filtered` GTZAN without its known faults: published training, validation and test parts, the rest left out
`*_val`         the first three with a validation part cut from the training groups by seed

Whole groups are dealt, so shares are met as closely as the groups' sizes allow. The dealing is our own rather than a
library's, so that a split stays the same when the library changes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import SPLITS, Manifest
from gafx.errors import UsageError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of a manifest, ascending; `val` is empty where the protocol has no validation part."""

    train: Rows
    val: Rows
    test: Rows


def split(
    manifest: Manifest,
    protocol: str,
    *,
    fold: int = 1,
    folds: int = 5,
    seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    labels: bool = True,
    every_class: bool = True,
) -> Split:
    """Divide a manifest's rows into training, validation and test rows.

    Args:
        manifest: the data set.
        protocol: `paper`, `kfold` or `official`, each also with `_val` appended, or `fault_filtered`.
        fold: which fold is tested, counted from 1 (`kfold`, `official` with folds).
        folds: number of folds (`kfold`).
        seed: of the shuffle.
        test_fraction: of the groups of each class (`paper`).
        val_fraction: of the training groups of each class (`*_val`).
        labels: whether labels are learned; if not, one class is enough.
        every_class: whether each class needs a training clip; of many tags a rare one may be absent.

    Raises:
        UsageError: the data set has no such fold or part, fewer than two classes, or a class is left without training
            clips.
    """
    if len(manifest) == 0:
        raise UsageError(f"no usable clip under {manifest.root}")
    if len(manifest.classes) < 2 and labels:
        raise UsageError(
            f"{manifest.root} holds a single class ({manifest.classes[0]!r}); a classifier needs at least two: add a "
            "folder (or a label) for each further class"
        )
    base = protocol.removesuffix("_val")
    if base == "paper":
        test = _draw(manifest, np.arange(len(manifest)), test_fraction, seed, "test")
        val = np.zeros(0, np.int64)
    elif base == "kfold":
        if not 1 <= fold <= folds:
            raise UsageError(f"data.fold={fold} must lie between 1 and data.folds={folds}")
        test = _deal(manifest, folds, seed)[fold - 1]
        val = np.zeros(0, np.int64)
    elif base == "official":
        test, val = _official(manifest, fold)
    elif protocol == "fault_filtered":
        parts = _published(manifest, protocol, fold)
        _check(manifest, parts, protocol, every_class=labels and every_class)
        return parts
    else:
        raise UsageError(
            f"unknown protocol {protocol!r}; choose paper, kfold or official, each also with _val, or fault_filtered"
        )
    rest = np.setdiff1d(np.arange(len(manifest)), np.concatenate([test, val]))
    if protocol.endswith("_val") and not len(val):
        val = _draw(manifest, rest, val_fraction, seed, "validation")
        rest = np.setdiff1d(rest, val)
        if not len(val):
            raise UsageError(
                f"protocol {protocol!r} leaves no validation clip: {len(rest)} training clips are too few for "
                f"data.val_fraction={val_fraction}; raise it, add recordings, or use {base!r}, which selects nothing"
            )
    elif len(val) and not protocol.endswith("_val"):
        # The data set's own validation part trains where the protocol asks for no selection.
        rest, val = np.union1d(rest, val), np.zeros(0, np.int64)
    parts = Split(train=rest, val=val, test=test)
    _check(manifest, parts, protocol, every_class=labels and every_class)
    return parts


def _groups(manifest: Manifest, rows: Rows) -> tuple[Rows, Rows, Rows]:
    """Distinct groups among `rows`: their ids, their label (of their first clip) and how many clips each has."""
    groups, first, counts = np.unique(manifest.group[rows], return_index=True, return_counts=True)
    return groups, manifest.first_label()[rows][first], counts


def _draw(manifest: Manifest, rows: Rows, share: float, seed: int, purpose: str) -> Rows:
    """Rows of whole groups, from each class about `share` of its clips, drawn by seed."""
    groups, labels, counts = _groups(manifest, rows)
    rng = np.random.default_rng([seed, sum(purpose.encode())])
    drawn = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        wanted = share * counts[members].sum()
        taken = 0
        for member in members[:-1]:  # the last group of a class always stays for training
            if taken + counts[member] / 2 <= wanted:
                taken += counts[member]
                drawn.append(groups[member])
    return rows[np.isin(manifest.group[rows], drawn)]


def _deal(manifest: Manifest, folds: int, seed: int) -> list[Rows]:
    """All rows in `folds` stratified folds.

    Each class's groups, shuffled, go one by one to the fold with fewest of its clips.
    """
    groups, labels, counts = _groups(manifest, np.arange(len(manifest)))
    if len(groups) < folds:
        raise UsageError(f"data.folds={folds} asks for more folds than there are recordings ({len(groups)})")
    rng = np.random.default_rng([seed, folds])
    fold_of = np.zeros(len(groups), np.int64)
    total = np.zeros(folds, np.int64)
    for label in np.unique(labels):
        of_class = np.zeros(folds, np.int64)
        members = rng.permutation(np.flatnonzero(labels == label))
        for member in members[np.argsort(-counts[members], kind="stable")]:
            chosen = np.lexsort((total, of_class))[0]
            fold_of[member] = chosen
            of_class[chosen] += counts[member]
            total[chosen] += counts[member]
    return [np.flatnonzero(np.isin(manifest.group, groups[fold_of == number])) for number in range(folds)]


def _published(manifest: Manifest, protocol: str, fold: int) -> Split:
    """The parts that the `split` column holds; clips in none of them are left out."""
    published = manifest.published
    if published is None or published.protocol != protocol:
        raise UsageError(
            f"protocol {protocol!r} is a published split of GTZAN (data=gtzan); for the data under {manifest.root} use "
            "paper, kfold or official"
        )
    if fold != 1:
        raise UsageError(f"data.fold={fold}: protocol {protocol!r} has parts, not folds; leave data.fold at 1")
    if missing := published.missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"protocol {protocol!r} needs the whole collection, and {len(missing)} of its tracks are missing (or, of "
            f"those for validation and test, unreadable) under {manifest.root} ({named}): complete the copy, with all "
            "ten genres, or use paper or kfold, which work with any part of it"
        )
    train, val, test = (np.flatnonzero(manifest.split == number) for number in range(len(SPLITS)))
    return Split(train=train, val=val, test=test)


def _official(manifest: Manifest, fold: int) -> tuple[Rows, Rows]:
    if manifest.published is not None:
        raise UsageError(
            f"the data under {manifest.root} have no official folds or parts; use data.protocol="
            f"{manifest.published.protocol} (published parts), paper or kfold"
        )
    for name, column in (("split", manifest.split), ("fold", manifest.fold)):
        blank = int((column < 0).sum())
        if 0 < blank < len(manifest):
            raise UsageError(
                f"{blank} of {len(manifest)} clips under {manifest.root} have no {name}: protocol 'official' does not "
                f"know where they belong; fill the {name} column, or empty it"
            )
    if (manifest.split >= 0).any():
        test, val = (np.flatnonzero(manifest.split == SPLITS.index(part)) for part in ("test", "val"))
        if not len(test):
            raise UsageError(
                f"{manifest.root} names parts but no clip is in 'test'; protocols paper and kfold need no parts (paper "
                "sets a share of the clips aside, data.test_fraction, which may be small where nothing is to be tested)"
            )
        if fold != 1:
            raise UsageError(f"data.fold={fold}: {manifest.root} has official parts, not folds; leave data.fold at 1")
        return test, val
    official = np.unique(manifest.fold[manifest.fold >= 0])
    if not len(official):
        raise UsageError(f"{manifest.root} has no official folds or parts; use data.protocol=paper or kfold")
    if fold not in official:
        raise UsageError(f"data.fold={fold} is not one of the official folds {official.tolist()}")
    return np.flatnonzero(manifest.fold == fold), np.zeros(0, np.int64)


def _check(manifest: Manifest, parts: Split, protocol: str, *, every_class: bool) -> None:
    if not len(parts.test):
        raise UsageError(
            f"protocol {protocol!r} leaves no test clip: {len(manifest)} clips in {len(np.unique(manifest.group))} "
            "recordings are too few; add recordings or raise data.test_fraction"
        )
    sides = [np.unique(manifest.group[rows]) for rows in (parts.train, parts.val, parts.test)]
    groups, times = np.unique(np.concatenate(sides), return_counts=True)
    shared = groups[times > 1]
    if len(shared):
        row = int(np.flatnonzero(manifest.group == shared[0])[0])
        raise UsageError(
            f"{len(shared)} recordings have clips on both sides of protocol {protocol!r} (one of them: "
            f"{manifest.relative_path(row)!r}); mend the split, fold or group column"
        )
    trained = np.unique(manifest.labels.take(parts.train).values)
    missing = [manifest.classes[c] for c in range(len(manifest.classes)) if c not in trained]
    if missing and every_class and not manifest.multi_label:
        named = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(
            f"no training clip is left for {named} under protocol {protocol!r}; add recordings of it, remove the "
            "class, or, where clips may have any number of labels, use objective=tag"
        )
