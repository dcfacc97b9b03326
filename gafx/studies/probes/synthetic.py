"""`gafx probe synthetic`: linear probes of the frozen maps of front-ends for the factors of the synthetic tracks."""

import logging
import time
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from gafx.config import read_mapping
from gafx.data.manifest import Manifest, check_readable
from gafx.data.sources.base import load_manifest
from gafx.data.sources.synthetic import SETTINGS
from gafx.errors import UsageError
from gafx.fitting.features import data_digest
from gafx.report.format import duration, plural
from gafx.studies.probes.factors import chord_segments, synthetic_factors
from gafx.studies.probes.features import map_features, resolves_beats
from gafx.studies.probes.findings import Described, Finding, Probed, holm
from gafx.studies.probes.linear import label_alone, probe
from gafx.studies.probes.subjects import Subject, check_names

# Unlike the seeds of training sets: a track is a pure function of (seed, genre, number).
SEED = 1000
ROOT = Path("data/synthetic-probe")
_KEYS = ("tracks", "seconds", "seed", "vary")
_log = logging.getLogger("gafx")


def open_probe_set(root: Path, **asked: object) -> tuple[Manifest, dict[str, Any]]:
    """Open the synthetic set under `root`, written first if it is missing; return it with its settings.

    Args:
        root: its folder.
        **asked: `tracks`, `seconds`, `seed`, `vary`; None takes the existing set's, or the default.
    """
    settings: dict[str, Any] = {"seed": SEED}
    if (root / SETTINGS).is_file():
        existing = read_mapping(root / SETTINGS, *_KEYS)
        settings = {key: existing[key] for key in _KEYS}
    settings |= {key: value for key, value in asked.items() if value is not None}
    manifest = load_manifest("synthetic", root, **settings)
    return manifest, read_mapping(root / SETTINGS, *_KEYS)


def check_not_trained_on(subject: Subject, seed: int) -> None:
    """Raise `UsageError` if a model was trained on synthetic tracks of this seed, or may have been."""
    info = subject.model.info if subject.model is not None else None
    if info is None or info.training.get("data") != "synthetic":
        return
    config = subject.run_file("config.yaml")
    if config is None:
        raise UsageError(
            f"{subject.folder} was trained on a synthetic set and does not say with which seed, so its tracks may be "
            "those of the probe: name the run's folder, whose config.yaml contains it"
        )
    if read_mapping(config, "data")["data"].get("options", {}).get("seed", 0) == seed:
        raise UsageError(
            f"{subject.folder} was trained on the synthetic set of seed {seed}, and tracks of one seed are the same in "
            f"every set that is long enough: probe it with another one, e.g. --set-seed "
            f"{SEED if seed != SEED else 2000} and another root"
        )


def probe_synthetic(
    manifest: Manifest, settings: dict[str, Any], subjects: Sequence[Subject], cache: Path, *, folds: int = 5,
    seed: int = 0,
) -> Probed:  # fmt: skip
    """Probe every subject for every factor, on the same tracks and folds.

    Args:
        manifest: a synthetic set.
        settings: that it was made with.
        subjects: front-ends.
        cache: folder of the features.
        folds: of the cross-validation.
        seed: of the folds.

    Raises:
        UsageError: a model that was trained on these tracks or has too few columns per second, too few tracks, or too
            many unreadable ones.
    """
    check_names(subjects)
    for subject in subjects:
        if not resolves_beats(subject.frontend):
            raise UsageError(
                f"{subject.name} has too few columns per second for probes of tempo and chords: leave it out, or probe "
                "it on other data (gafx probe DATA ROOT)"
            )
        check_not_trained_on(subject, int(settings["seed"]))
    if not 2 <= folds <= len(manifest) // 4:
        raise UsageError(
            f"--folds {folds}: at least 2, and at most {len(manifest) // 4} for the {len(manifest)} tracks under "
            f"{manifest.root}, so that each fold tests four"
        )
    segments, data, features = chord_segments(manifest), data_digest(manifest), []
    for subject in subjects:
        begin = time.perf_counter()
        features.append(map_features(subject, manifest, segments, cache, data))
        took = duration(time.perf_counter() - begin)
        _log.info("%s: maps of %s, %s", subject.name, plural(len(features[-1].row), "track"), took)
    skipped = list({clip.path: clip for found in features for clip in found.skipped}.values())
    skipped = [*manifest.skipped, *skipped]
    check_readable(manifest, max_unreadable=0.05, strict=False, skipped=skipped)
    shared = reduce(np.intersect1d, [found.row for found in features])
    genre = manifest.first_label()[shared]
    findings: list[Finding] = []
    alone: dict[str, Finding] = {}
    factors = synthetic_factors(manifest)
    for factor in factors:
        begin, target = time.perf_counter(), factor.take(shared)
        for subject, found in zip(subjects, features, strict=True):
            kept = np.isin(found.row[factor.take(found.row).track], shared)
            rows = getattr(found, factor.features)[kept]
            findings.append(probe(subject.name, target, rows, folds=folds, seed=seed))
        if factor.name != "genre":
            alone[factor.name] = label_alone(target, genre, folds=folds, seed=seed)
        took = duration(time.perf_counter() - begin)
        _log.info("%s: %s, %s", factor.name, plural(len(subjects), "probe"), took)
    chords = next(finding.rows for finding in findings if finding.question == "chord")
    return Probed(
        kind="synthetic",
        title="Linear probes of front-ends",
        tested=f"synthetic, seed {settings['seed']}, vary={settings['vary']}: {plural(len(shared), 'track')} of "
        f"{settings['seconds']:g} s, {plural(chords, 'chord')}; linear probes of frozen maps, {folds}-fold "
        f"cross-validation over tracks (seed {seed}), each track predicted once; 95 % intervals",
        subjects=[Described(s.name, s.description, details={"digest": s.digest}) for s in subjects],
        questions=[Described(f.name, f.description, details={"features": f.features}) for f in factors],
        findings=holm(findings),
        data={"name": "synthetic", **{key: settings[key] for key in _KEYS}, "fingerprint": manifest.fingerprint()},
        folds=list(range(1, folds + 1)),
        seed=seed,
        label_alone=alone,
        skipped=skipped,
    )
