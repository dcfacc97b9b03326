"""`gafx probe DATA ROOT`: standard classifiers of frozen embeddings of a data set, under its protocol."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gafx.config import DataConfig, TrainConfig, read_config, read_mapping
from gafx.data.manifest import Manifest, check_readable
from gafx.data.open import open_split
from gafx.data.protocols import Protocol
from gafx.data.sources.base import load_manifest
from gafx.data.splits import Split, default_protocol
from gafx.errors import UsageError
from gafx.evaluation.runs import group_key
from gafx.fitting.features import data_digest
from gafx.fitting.table import Table
from gafx.fitting.tune import fit_predict
from gafx.inference import Predictions
from gafx.registry import is_published
from gafx.report.format import duration, plural
from gafx.stats.scores import Array, confusion, macro_f1, single_label_scores
from gafx.studies.probes.embeddings import baseline_subject, embed_tracks
from gafx.studies.probes.findings import Described, Finding, Probed, flip_test, holm
from gafx.studies.probes.subjects import Subject, check_names

_SPLIT = ("protocol", "folds", "split_seed", "test_fraction", "val_fraction")
NAMES = ("logistic regression", "k-NN", "SVM")  # of `gafx.fitting.tune.METHODS`
_log = logging.getLogger("gafx")


@dataclass(frozen=True)
class Entry:
    """One row of the table: a front-end or model, or the runs of one configuration on several folds.

    Attributes:
        name: in the table.
        description: of the subject.
        subjects: by fold for runs that were trained on these data; otherwise one under the key 0.
    """

    name: str
    description: str
    subjects: dict[int, Subject]

    def describe(self, folds: list[int]) -> Described:
        """Text for the page; names the tested folds where they are not all."""
        own = sorted(self.subjects)
        listed = f" (fold{'s' if len(own) > 1 else ''} {', '.join(map(str, own))})"
        details = {"folds": [fold for fold in own if fold], "digests": [s.digest for s in self.subjects.values()]}
        return Described(self.name, self.description, "" if own in ([0], folds) else listed, details)


def trained_here(subject: Subject, data: DataConfig, manifest: Manifest) -> TrainConfig | None:
    """Return the run's configuration if a model was trained on these clips; None if it was trained on others.

    Raises:
        UsageError: it was, and it is not recorded on which of them; or on another copy of a published data set.
    """
    assert subject.model is not None
    assert subject.model.info is not None
    config, record = subject.run_file("config.yaml"), subject.run_file("run.json")
    known = read_mapping(record, "data")["data"].get("fingerprint") if record else None
    same = known == manifest.fingerprint()
    if same and config is not None:
        trained = read_config(config)
        if trained.data.group_by != "recording":
            raise UsageError(
                f"{subject.folder} was trained with data.group_by={trained.data.group_by}, so it was trained on "
                "segments of the tracks that would be tested; probe it on other data"
            )
        return trained
    if same or (subject.model.info.training.get("data") == data.name and is_published(data.name)):
        why = "of which this is another copy" if known and not same else "and does not say on which of its clips"
        raise UsageError(
            f"{subject.folder} was trained on {data.name!r}, {why}, so tracks that would be tested may have been "
            "trained on: name the run's folder (with config.yaml and run.json) and the data that it was trained on"
        )
    return None


def open_entries(
    subjects: Sequence[Subject], manifest: Manifest, data: DataConfig, asked: Sequence[str]
) -> tuple[list[Entry], DataConfig]:
    """Return the rows of the table, and the configuration of the split that all of them are tested on.

    Runs that were trained on these data set the protocol, and each is tested on its own fold alone.

    Args:
        subjects: front-ends and models.
        manifest: the data.
        data: the requested configuration.
        asked: keys of it that the user set; they must not contradict the runs'.

    Raises:
        UsageError: they do, or the runs contradict each other.
    """
    entries: dict[str, Entry] = {}
    runs: list[tuple[Subject, TrainConfig]] = []
    for subject in subjects:
        config = trained_here(subject, data, manifest) if subject.model is not None else None
        if config is None:
            entries[subject.name] = Entry(subject.name, subject.description, {0: subject})
            continue
        # Runs of one configuration differ in their fold alone, and in the id that ends their name.
        name = subject.name.rpartition("-")[0] or subject.name
        taken = name in {entry.name for key, entry in entries.items() if key != group_key(config)}
        entry = entries.setdefault(group_key(config), Entry(subject.name if taken else name, subject.description, {}))
        if config.data.fold in entry.subjects:
            raise UsageError(f"{subject.folder} and another run of {name} test the same fold; give one of them")
        entry.subjects[config.data.fold] = subject
        runs.append((subject, config))
    data = replace(data)
    for subject, config in runs:
        for key in _SPLIT:
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
    subjects: Sequence[Subject], data: DataConfig, cache: Path, *, asked: Sequence[str] = (), seconds: float = 10.0,
    seed: int = 0,
) -> Probed:  # fmt: skip
    """Probe embeddings, and MFCC statistics as a baseline, with every classifier on the pooled folds of the protocol.

    Args:
        subjects: front-ends and models.
        data: data set and protocol; an empty protocol takes the default.
        cache: folder of the embeddings.
        asked: keys of `data` that the user set.
        seconds: length of the segments of bare front-ends.
        seed: of inner folds.

    Raises:
        UsageError: a model would be tested on tracks that it was trained on, or the data cannot be read or split.
    """
    check_names(subjects)
    manifest = load_manifest(data.name, data.root, download=data.download, **data.options)
    data.protocol = data.protocol or default_protocol(manifest)
    entries, data = open_entries([*subjects, baseline_subject()], manifest, data, asked)
    splits, digest = _open_splits(data, manifest), data_digest(manifest)
    findings: dict[str, list[Finding]] = {name: [] for name in NAMES}
    skipped = {clip.path: clip for clip in manifest.skipped}
    for entry in entries:
        begin = time.perf_counter()
        found = {fold: embed_tracks(subject, manifest, np.arange(len(manifest)), seconds, cache, digest)
                 for fold, subject in entry.subjects.items()}  # fmt: skip
        skipped |= {clip.path: clip for embedded in found.values() for clip in embedded.skipped}
        check_readable(manifest, max_unreadable=data.max_unreadable, strict=data.strict, skipped=list(skipped.values()))
        for name in NAMES:
            findings[name].append(_probe(entry.name, name, found, splits, manifest, seed))
        _log.info("%s: %s", entry.name, duration(time.perf_counter() - begin))
    tracks = sorted({finding.tracks for finding in findings[NAMES[0]]})
    pooled = f", {len(splits)} folds pooled" if len(splits) > 1 else ""
    return Probed(
        kind="real",
        title=f"{data.name}: probes of frozen embeddings",
        tested=f"{data.name}, {Protocol.parse(data.protocol).label(data.split_seed)}{pooled}: "
        f"{' to '.join(map(str, dict.fromkeys((tracks[0], tracks[-1]))))} test tracks, "
        f"{plural(len(manifest.classes), 'class', 'classes')}; classifiers of scikit-learn on frozen embeddings, "
        "settings chosen on training tracks alone; 95 % intervals",
        subjects=[entry.describe(sorted(splits)) for entry in entries],
        questions=[Described(name, "") for name in NAMES],
        findings=holm([finding for own in findings.values() for finding in own]),
        data={"name": data.name, "fingerprint": manifest.fingerprint(), "classes": list(manifest.classes),
              **{key: getattr(data, key) for key in (*_SPLIT, "options")}},
        folds=sorted(splits), seed=seed, skipped=list(skipped.values()), notes=manifest.notes,
    )  # fmt: skip


def _open_splits(data: DataConfig, manifest: Manifest) -> dict[int, Split]:
    """Return the split of every fold of the protocol."""
    folds = Protocol.parse(data.protocol).folds(data.folds, manifest.official_folds) or [1]
    return {f: open_split(replace(data, fold=f), multi_label=False, objective="probe")[1] for f in folds}


def _probe(
    subject: str, name: str, found: dict[int, Predictions], splits: dict[int, Split], manifest: Manifest, seed: int
) -> Finding:
    """Pool one classifier's predictions over the folds on which an entry may be tested, and score them."""
    label: Array = manifest.first_label()
    rows, predicted, featureless = [], [], []
    for fold, parts in splits.items():
        embedded = found.get(0, found.get(fold))
        if embedded is None:
            continue
        table = Table.of(embedded, manifest)
        train, test = (table.take(table.rows_of(side)) for side in (parts.train, parts.test))
        rows.append(test.clip)
        predicted.append(fit_predict(name, train, test.values, seed=seed))
        featureless.append(np.full(len(test), np.bincount(train.label).argmax()))
    row, guess, plain = (np.concatenate(columns) for columns in (rows, predicted, featureless))
    truth, group, classes = label[row], manifest.group[row], len(manifest.classes)
    scores = single_label_scores(np.eye(classes)[guess], truth, group)
    right, chance = guess == truth, plain == truth
    return Finding(
        subject, name, "accuracy", scores["accuracy"], float(chance.mean()), len(row), len(row),
        next(iter(found.values())).values.shape[1], flip_test(right.astype(float) - chance, group),
        others={"macro_f1": (scores["macro_f1"], float(macro_f1(confusion(truth, plain, classes))))},
    )  # fmt: skip
