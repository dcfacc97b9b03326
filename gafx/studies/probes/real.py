"""`gafx probe DATA ROOT`: the field's standard probes on frozen embeddings of a real data set, under its protocol."""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gafx.config import DataConfig, TrainConfig, read_config, read_mapping
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.open import open_split
from gafx.data.protocols import Protocol
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, default_protocol
from gafx.errors import UsageError
from gafx.evaluation.runs import group_key
from gafx.stats.scores import Score, single_label_scores
from gafx.studies.probes.classifiers import NAMES, fit_predict
from gafx.studies.probes.embeddings import Embeddings, embed_tracks, reference_subject
from gafx.studies.probes.features import data_digest
from gafx.studies.probes.linear import Finding, flip_test, holm
from gafx.studies.probes.subjects import Subject, check_names

# Names under which everybody means the same recordings, so that another copy of the data shares them.
_PUBLISHED = ("gtzan", "esc", "fma", "audioset")


@dataclass(frozen=True)
class Entry:
    """One row of the table: a front-end or model, or the runs of one recipe on several folds.

    Attributes:
        name: of it.
        subjects: by fold for runs that were trained on these data; otherwise one under the key 0.
    """

    name: str
    said: str
    subjects: dict[int, Subject]


@dataclass(frozen=True)
class RealProbed:
    """What came of it: findings of every entry and reader, in that order within readers."""

    manifest: Manifest
    data: DataConfig
    folds: list[int]
    entries: list[Entry]
    findings: list[Finding]
    macro_f1: dict[tuple[str, str], Score]
    tested: dict[str, int]
    skipped: list[Skipped]
    seed: int


def training_config(subject: Subject) -> TrainConfig | None:
    """The configuration of the run that a model comes from, where its folder holds it."""
    assert subject.folder is not None
    for folder in (subject.folder, subject.folder.parent):
        if (folder / "config.yaml").is_file():
            return read_config(folder / "config.yaml")
    return None


def trained_here(subject: Subject, data: DataConfig, manifest: Manifest) -> TrainConfig | None:
    """The run's configuration if a model was trained on these very clips; None if it was trained on others.

    Raises:
        UsageError: it was, and nothing says on which of them; or on another copy of a published data set.
    """
    assert subject.folder is not None
    assert subject.model is not None
    assert subject.model.info is not None
    trained = subject.model.info.training
    config = training_config(subject)
    records = [path for path in (subject.folder / "run.json", subject.folder.parent / "run.json") if path.is_file()]
    known = read_mapping(records[0], "data")["data"].get("fingerprint") if records else None
    same = known == manifest.fingerprint()
    if same and config is not None:
        if config.data.group_by != "recording":
            raise UsageError(
                f"{subject.folder} was trained with data.group_by={config.data.group_by}, so it has heard segments of "
                "the tracks that would be tested; probe it on other data"
            )
        return config
    if same or (trained.get("data") == data.name and data.name in _PUBLISHED):
        why = "of which another copy lies here" if known and not same else "and does not say on which of its clips"
        raise UsageError(
            f"{subject.folder} was trained on {data.name!r}, {why}, so tracks that would be tested may have been "
            "trained on: name the run's folder (with config.yaml and run.json) and the data that it was trained on"
        )
    return None


def open_entries(
    subjects: Sequence[Subject], manifest: Manifest, data: DataConfig, asked: Sequence[str]
) -> tuple[list[Entry], DataConfig]:
    """Rows of the table, and the split that all of them are tested on.

    Runs that were trained on these data bring their protocol, and each is tested on its own fold alone.

    Args:
        subjects: front-ends and models.
        manifest: the data.
        data: the configuration asked for.
        asked: which of its keys the user named; these may not contradict the runs'.

    Raises:
        UsageError: they do, or the runs contradict each other.
    """
    entries: dict[str, Entry] = {}
    runs: list[tuple[Subject, TrainConfig]] = []
    for subject in subjects:
        config = trained_here(subject, data, manifest) if subject.model is not None else None
        if config is None:
            entries[subject.name] = Entry(subject.name, subject.said, {0: subject})
            continue
        # Runs of one recipe differ in their fold alone, and in the hash of it that ends their name.
        name = subject.name.rpartition("-")[0] or subject.name
        taken = name in {entry.name for key, entry in entries.items() if key != group_key(config)}
        entry = entries.setdefault(group_key(config), Entry(subject.name if taken else name, subject.said, {}))
        if config.data.fold in entry.subjects:
            raise UsageError(f"{subject.folder} and another run of {name} test the same fold; give one of them")
        entry.subjects[config.data.fold] = subject
        runs.append((subject, config))
    data = copy.deepcopy(data)
    for subject, config in runs:
        for key in ("protocol", "folds", "split_seed", "test_fraction", "val_fraction"):
            value = getattr(config.data, key)
            fixed = key in asked or subject is not runs[0][0]
            if fixed and getattr(data, key) != value:
                raise UsageError(
                    f"{subject.folder} was trained under data.{key}={value}, and the probe would be under "
                    f"{getattr(data, key)}: its training tracks would be tested; leave that out, or probe runs of one "
                    "protocol"
                )
            setattr(data, key, value)
    return list(entries.values()), data


def probe_real(
    subjects: Sequence[Subject],
    data: DataConfig,
    cache: Path,
    *,
    asked: Sequence[str] = (),
    seconds: float = 10.0,
    seed: int = 0,
    reference: bool = True,
) -> RealProbed:
    """Probe embeddings with every reader, on every fold of the protocol, pooled.

    Args:
        subjects: front-ends and models.
        data: data set and protocol; an empty protocol takes the default.
        cache: folder of the embeddings.
        asked: keys of `data` that the user named.
        seconds: segments of bare front-ends.
        seed: of inner folds.
        reference: whether MFCC statistics are probed too.

    Raises:
        UsageError: a model would be tested on tracks that it was trained on, or the data cannot be read or split.
    """
    check_names(subjects)
    manifest = load_manifest(data.name, data.root, download=data.download, **data.options)
    data.protocol = data.protocol or default_protocol(manifest)
    entries, data = open_entries(
        [*subjects, *([reference_subject()] if reference else [])], manifest, data, asked
    )  # fmt: skip
    splits = _open_splits(data, manifest)
    digest = data_digest(manifest)
    findings: list[Finding] = []
    macro_f1, tested, skipped = {}, {}, list(manifest.skipped)
    for entry in entries:
        begin = time.perf_counter()
        found = {fold: embed_tracks(subject, manifest, np.arange(len(manifest)), seconds, cache, digest)
                 for fold, subject in entry.subjects.items()}  # fmt: skip
        for embedded in found.values():
            skipped += [clip for clip in embedded.skipped if clip.path not in {s.path for s in skipped}]
        check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict, skipped=skipped)
        for reader in NAMES:
            finding, f1 = _probe(entry, reader, found, splits, manifest, seed)
            findings.append(finding)
            macro_f1[entry.name, reader], tested[entry.name] = f1, finding.tracks
        print(f"{entry.name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    order = [NAMES.index(finding.factor) for finding in findings]
    findings = [findings[i] for i in np.argsort(order, kind="stable")]
    return RealProbed(manifest, data, sorted(splits), entries, holm(findings), macro_f1, tested, skipped, seed)


def _open_splits(data: DataConfig, manifest: Manifest) -> dict[int, Split]:
    """The split of every fold of the protocol."""
    splits = {}
    for fold in Protocol.parse(data.protocol).folds(data.folds, manifest.official_folds) or [1]:
        config = copy.deepcopy(data)
        config.fold = fold
        splits[fold] = open_split(config, multi_label=False, objective="probe")[1]
    return splits


def _probe(
    entry: Entry,
    reader: str,
    found: dict[int, Embeddings],
    splits: dict[int, Split],
    manifest: Manifest,
    seed: int,
) -> tuple[Finding, Score]:
    """Pooled predictions of one reader over the folds that an entry may be tested on."""
    label, rows, predicted, featureless = manifest.first_label(), [], [], []
    for fold, parts in splits.items():
        embedded = found.get(0, found.get(fold))
        if embedded is None:
            continue
        place = {int(row): number for number, row in enumerate(embedded.row)}
        train, test = (np.array([row for row in side.tolist() if row in place], np.int64)
                       for side in (parts.train, parts.test))  # fmt: skip
        values = [embedded.values[[place[row] for row in side.tolist()]] for side in (train, test)]
        rows.append(test)
        predicted.append(fit_predict(reader, values[0], label[train], manifest.group[train], values[1], seed=seed))
        featureless.append(np.full(len(test), np.bincount(label[train]).argmax()))
    return _judge(entry, reader, np.concatenate(rows), np.concatenate(predicted), np.concatenate(featureless), manifest,
                  next(iter(found.values())).values.shape[1])  # fmt: skip


def _judge(
    entry: Entry,
    reader: str,
    rows: npt.NDArray[np.int64],
    predicted: npt.NDArray[Any],
    featureless: npt.NDArray[Any],
    manifest: Manifest,
    width: int,
) -> tuple[Finding, Score]:
    truth, group = manifest.first_label()[rows], manifest.group[rows]
    scores = single_label_scores(np.eye(len(manifest.classes))[predicted], truth, group)
    gain = (predicted == truth).astype(float) - (featureless == truth)
    _, number = np.unique(group, return_inverse=True)
    p = flip_test(np.bincount(number, gain))
    chance = float((featureless == truth).mean())
    finding = Finding(entry.name, reader, "accuracy", scores["accuracy"], chance, len(rows), len(rows), width, p)
    return finding, scores["macro_f1"]
