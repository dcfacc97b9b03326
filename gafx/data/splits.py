"""Drawing the parts of a protocol (`gafx.data.protocols`). A group, i.e. a recording, is never in two parts.

Whole groups are drawn, so fractions are met as closely as the sizes of the groups allow. The drawing is our own rather
than a library's, so that a split stays the same when the library changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gafx.data.manifest import SPLITS, Manifest
from gafx.data.protocols import Protocol
from gafx.errors import UsageError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of a manifest, ascending; `val` is empty where the protocol has no validation part."""

    train: Rows
    val: Rows
    test: Rows


def default_protocol(manifest: Manifest) -> str:
    """Return `official` where the data set has published folds or parts, else `kfold`."""
    has_own = bool((manifest.fold >= 0).any() or (manifest.split >= 0).any())
    return "official" if has_own and manifest.published is None else "kfold"


def split(
    manifest: Manifest,
    protocol: str,
    *,
    fold: int = 1,
    folds: int = 5,
    seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    train_clips: int | None = None,
    labels: bool = True,
    every_class: bool = True,
) -> Split:
    """Divide a manifest's rows into training, validation and test rows.

    Args:
        manifest: the data set.
        protocol: name of a protocol.
        fold: which fold is tested, counted from 1 (`kfold`, `official` with folds).
        folds: number of folds (`kfold`).
        seed: of the random draw.
        test_fraction: of the clips of each class (`paper`).
        val_fraction: of the training clips of each class (`*_val`).
        train_clips: number of training clips to keep, as equally many of each class as there are, drawn by `seed`. A
            smaller number keeps a part of what a larger one keeps. None keeps all.
        labels: whether labels are learned; if not, one class is enough.
        every_class: whether each class needs a training clip; of many tags a rare one may be absent.

    Raises:
        UsageError: the data set has no such fold or part, fewer than two classes, or a class is left without training
            clips.
    """
    kind = Protocol.parse(protocol, "protocol")
    if len(manifest) == 0:
        raise UsageError(f"no usable clip under {manifest.root}")
    if labels and not manifest.classes:
        raise UsageError(
            f"no clip under {manifest.root} has a label: correct the label column, or use an objective without labels "
            "(objective=mel_regression)"
        )
    negatives = not every_class and bool((manifest.labels.lengths() == 0).any())
    if len(manifest.classes) < 2 and labels and not negatives:
        raise UsageError(
            f"{manifest.root} holds a single class ({manifest.classes[0]!r}), a classifier needs at least two: add a "
            "folder or a label for each further class, or clips without any label and objective=tag"
        )
    everything = np.arange(len(manifest))
    val = np.zeros(0, np.int64)
    if kind.scheme == "paper":
        test = _draw(manifest, everything, test_fraction, seed, "test")
    elif kind.scheme == "kfold":
        kind.check_fold(fold, folds)
        test = _deal(manifest, folds, seed)[fold - 1]
    elif kind.scheme == "official":
        test, val = _official(manifest, fold)
    else:
        everything, test, val = _published(manifest, kind, fold)
    if not kind.has_validation:
        val = val[:0]  # the data set's own validation part trains where nothing is selected
    train = np.setdiff1d(everything, np.concatenate([test, val]))
    if kind.draws_validation and not len(val):
        val = _draw(manifest, train, val_fraction, seed, "validation")
        train = np.setdiff1d(train, val)
        if not len(val):
            raise UsageError(
                f"protocol {protocol!r} leaves no validation clip: {len(train)} training clips are too few for "
                f"data.val_fraction={val_fraction}; raise it, add recordings, or use {kind.scheme!r} (no selection)"
            )
    if train_clips is not None:
        train = _keep(manifest, train, train_clips, seed)
    parts = Split(train=train, val=val, test=test)
    _check(manifest, parts, protocol, every_class=labels and every_class)
    return parts


@dataclass(frozen=True)
class _Groups:
    """Distinct groups among some rows: id, label (of the first clip) and number of clips of each."""

    ids: Rows
    labels: Rows
    clips: Rows

    @classmethod
    def of(cls, manifest: Manifest, rows: Rows) -> "_Groups":
        ids, first, clips = np.unique(manifest.group[rows], return_index=True, return_counts=True)
        return cls(ids, manifest.first_label()[rows][first], clips)

    def shuffled(self, rng: np.random.Generator) -> Iterator[Rows]:
        """Yield the positions of each class's groups, in random order."""
        for label in np.unique(self.labels):
            yield rng.permutation(np.flatnonzero(self.labels == label))


def _draw(manifest: Manifest, rows: Rows, fraction: float, seed: int, purpose: str) -> Rows:
    """Draw whole groups with about `fraction` of each class's clips; return their rows."""
    groups = _Groups.of(manifest, rows)
    drawn: list[int] = []
    for members in groups.shuffled(np.random.default_rng([seed, sum(purpose.encode())])):
        wanted = fraction * groups.clips[members].sum()
        taken = 0
        for member in members[:-1]:  # the last group of a class always stays for training
            if taken + groups.clips[member] / 2 <= wanted:
                taken += groups.clips[member]
                drawn.append(groups.ids[member])
    return rows[np.isin(manifest.group[rows], drawn)]


def _keep(manifest: Manifest, rows: Rows, count: int, seed: int) -> Rows:
    """Return `count` of `rows`, ascending: one of each class in turn, each class in random order."""
    if count > len(rows):
        raise UsageError(f"data.train_clips={count}, but the training part has {len(rows)} clips; null keeps them all")
    order = rows[np.random.default_rng([seed, *b"train_clips"]).permutation(len(rows))]
    label = manifest.first_label()[order]
    if count < (classes := len(np.unique(label))):
        raise UsageError(
            f"data.train_clips={count} leaves classes without a clip: there are {classes}, keep at least that"
        )
    turn = np.zeros(len(order), np.int64)
    for one in np.unique(label):
        turn[label == one] = np.arange((label == one).sum())
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def _deal(manifest: Manifest, folds: int, seed: int) -> list[Rows]:
    """Divide all rows into `folds` stratified folds.

    Each class's groups, shuffled and sorted by size, go one by one to the fold with fewest of its clips.
    """
    groups = _Groups.of(manifest, np.arange(len(manifest)))
    if len(groups.ids) < folds:
        raise UsageError(f"data.folds={folds} is more than the number of recordings ({len(groups.ids)})")
    fold_of = np.zeros(len(groups.ids), np.int64)
    total = np.zeros(folds, np.int64)
    for members in groups.shuffled(np.random.default_rng([seed, folds])):
        of_class = np.zeros(folds, np.int64)
        for member in members[np.argsort(-groups.clips[members], kind="stable")]:
            chosen = np.lexsort((total, of_class))[0]
            fold_of[member] = chosen
            of_class[chosen] += groups.clips[member]
            total[chosen] += groups.clips[member]
    return [np.flatnonzero(np.isin(manifest.group, groups.ids[fold_of == number])) for number in range(folds)]


def _published(manifest: Manifest, protocol: Protocol, fold: int) -> tuple[Rows, Rows, Rows]:
    """Return the rows of all parts in the `split` column, and those of its test and validation part."""
    published = manifest.published
    if published is None or published.protocol != protocol.name:
        raise UsageError(
            f"protocol {protocol.name!r} is a published split of GTZAN (data=gtzan); for the data under "
            f"{manifest.root} use paper, kfold or official"
        )
    protocol.check_fold(fold, 1)
    if missing := published.missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"protocol {protocol.name!r} needs the whole collection, and {len(missing)} of its tracks are missing (or, "
            f"of those for validation and test, unreadable) under {manifest.root} ({named}): complete the copy, with "
            "all ten genres, or use paper or kfold, which work with any part of it"
        )
    return np.flatnonzero(manifest.split >= 0), *_parts(manifest)


def _parts(manifest: Manifest) -> tuple[Rows, Rows]:
    """Return the rows of the test and the validation part in the `split` column."""
    test, val = (np.flatnonzero(manifest.split == SPLITS.index(part)) for part in ("test", "val"))
    return test, val


def _official(manifest: Manifest, fold: int) -> tuple[Rows, Rows]:
    """Return test and validation rows (possibly none) of the data set's own parts or folds."""
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
        test, val = _parts(manifest)
        if not len(test):
            raise UsageError(
                f"{manifest.root} names parts but no clip is in 'test'; protocols paper and kfold need no parts (paper "
                "tests a fraction of the clips, data.test_fraction, which may be small where nothing is to be tested)"
            )
        if fold != 1:
            raise UsageError(f"data.fold={fold}: {manifest.root} has official parts, not folds; leave data.fold at 1")
        return test, val
    official = manifest.official_folds()
    if not official:
        raise UsageError(f"{manifest.root} has no official folds or parts; use data.protocol=paper or kfold")
    if fold not in official:
        raise UsageError(f"data.fold={fold} is not one of the official folds {official}")
    return np.flatnonzero(manifest.fold == fold), np.zeros(0, np.int64)


def _check(manifest: Manifest, parts: Split, protocol: str, *, every_class: bool) -> None:
    """Refuse an empty test part, a group in two parts, and a class without a training clip."""
    if not len(parts.test):
        raise UsageError(
            f"protocol {protocol!r} leaves no test clip: {len(manifest)} clips in {len(np.unique(manifest.group))} "
            "recordings are too few; add recordings or raise data.test_fraction"
        )
    groups, times = np.unique(
        np.concatenate([np.unique(manifest.group[rows]) for rows in (parts.train, parts.val, parts.test)]),
        return_counts=True,
    )
    shared = groups[times > 1]
    if len(shared):
        row = int(np.flatnonzero(manifest.group == shared[0])[0])
        raise UsageError(
            f"{len(shared)} recordings have clips on both sides of protocol {protocol!r} (one of them: "
            f"{manifest.relative_path(row)!r}); correct the split, fold or group column"
        )
    trained = np.unique(manifest.labels.take(parts.train).values)
    missing = [manifest.classes[c] for c in range(len(manifest.classes)) if c not in trained]
    if missing and every_class and not manifest.multi_label:
        named = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(
            f"no training clip is left for {named} under protocol {protocol!r}; add recordings of it, remove the "
            "class, or, where clips may have any number of labels, use objective=tag"
        )
