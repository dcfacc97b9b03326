"""`gafx probe synthetic`: what every front-end's map holds of the factors that the tracks were composed from."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gafx.config import read_mapping
from gafx.data.manifest import Manifest, Skipped, check_readable
from gafx.data.sources.base import load_manifest
from gafx.data.sources.synthetic import SETTINGS
from gafx.errors import UsageError
from gafx.studies.probes.factors import Factor, chord_segments, synthetic_factors
from gafx.studies.probes.features import Features, data_digest, map_features
from gafx.studies.probes.linear import Finding, holm, label_alone, probe
from gafx.studies.probes.subjects import Subject, check_names

# Far from the seeds of training sets: a track is a pure function of (seed, genre, number).
SEED = 1000
ROOT = Path("data/synthetic-probe")


@dataclass(frozen=True)
class Probed:
    """What came of it.

    Attributes:
        manifest: the tracks.
        settings: that the set was made with.
        subjects: who was asked, in order.
        factors: what was asked, in order, of the tracks that all could read.
        findings: one for every subject and factor, subjects within factors.
        genre_alone: for every factor but the genre, what knowing a track's genre and nothing else would score.
        folds: of the cross-validation.
        seed: of the folds.
        skipped: tracks that could not be read.
    """

    manifest: Manifest
    settings: dict[str, Any]
    subjects: list[Subject]
    factors: list[Factor]
    findings: list[Finding]
    genre_alone: dict[str, Finding]
    folds: int
    seed: int
    skipped: list[Skipped]


def open_probe_set(root: Path, **asked: object) -> tuple[Manifest, dict[str, Any]]:
    """The synthetic set under `root`, made first if it is not there, and the settings that it was made with.

    Args:
        root: where it lies or is to lie.
        **asked: `tracks`, `seconds`, `seed`, `vary`; None takes what is there, or the default.
    """
    settings: dict[str, Any] = {"seed": SEED}
    if (root / SETTINGS).is_file():
        there = read_mapping(root / SETTINGS, "tracks", "seconds", "seed", "vary")
        settings = {key: there[key] for key in ("tracks", "seconds", "seed", "vary")}
    settings |= {key: value for key, value in asked.items() if value is not None}
    manifest = load_manifest("synthetic", root, **settings)
    return manifest, read_mapping(root / SETTINGS, "tracks", "seconds", "seed", "vary")


def check_not_trained_on(subject: Subject, seed: int) -> None:
    """Raise `UsageError` if a model was trained on synthetic tracks of this seed, or if that cannot be told."""
    if subject.model is None or subject.folder is None:
        return
    assert subject.model.info is not None
    if subject.model.info.training.get("data") != "synthetic":
        return
    config = next((path for path in (subject.folder / "config.yaml", subject.folder.parent / "config.yaml")
                   if path.is_file()), None)  # fmt: skip
    if config is None:
        raise UsageError(
            f"{subject.folder} was trained on a synthetic set and does not say with which seed, so its tracks may be "
            "those of the probe: name the run's folder, whose config.yaml says it"
        )
    trained = read_mapping(config, "data")["data"].get("options", {}).get("seed", 0)
    if trained == seed:
        raise UsageError(
            f"{subject.folder} was trained on the synthetic set of seed {seed}, and tracks of one seed are the same in "
            f"every set that is long enough: probe it with another one, e.g. --seed {SEED if seed != SEED else 2000} "
            "and another root"
        )


def probe_synthetic(
    manifest: Manifest,
    settings: dict[str, Any],
    subjects: Sequence[Subject],
    cache: Path,
    *,
    folds: int = 5,
    seed: int = 0,
    max_unreadable: float = 0.05,
) -> Probed:
    """Probe every subject for every factor, on the same tracks and folds.

    Args:
        manifest: a synthetic set.
        settings: that it was made with.
        subjects: front-ends.
        cache: folder of the features.
        folds: of the cross-validation.
        seed: of the folds.
        max_unreadable: share of unreadable tracks that is an error.

    Raises:
        UsageError: a model that was trained on these tracks, too few tracks, or too many that cannot be read.
    """
    check_names(subjects)
    for subject in subjects:
        check_not_trained_on(subject, int(settings["seed"]))
    if not 2 <= folds <= len(manifest) // 4:
        raise UsageError(
            f"--folds {folds}: at least 2, and at most {len(manifest) // 4} for the {len(manifest)} tracks under "
            f"{manifest.root}, so that each fold tests four"
        )
    segments, data = chord_segments(manifest), data_digest(manifest)
    features: list[Features] = []
    for subject in subjects:
        begin = time.perf_counter()
        features.append(map_features(subject, manifest, segments, cache, data))
        print(f"{subject.name}: maps of {len(features[-1].row)} tracks, {time.perf_counter() - begin:.1f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    skipped = list({clip.path: clip for found in features for clip in found.skipped}.values())
    check_readable(manifest, max_unreadable=max_unreadable, strict=False, skipped=[*manifest.skipped, *skipped])
    shared = features[0].row
    for found in features[1:]:
        shared = np.intersect1d(shared, found.row)
    factors = synthetic_factors(manifest)
    findings = []
    for factor in factors:
        begin = time.perf_counter()
        asked = factor.take(shared)
        for subject, found in zip(subjects, features, strict=True):
            rows = getattr(found, factor.features)
            of_track = factor.take(found.row).track
            kept = np.isin(found.row[of_track], shared)
            findings.append(probe(subject.name, asked, rows[kept], folds=folds, seed=seed))
        seconds = time.perf_counter() - begin
        print(f"{factor.name}: {len(subjects)} probes, {seconds:.1f} s", file=sys.stderr, flush=True)
    asked_all = [factor.take(shared) for factor in factors]
    genre = manifest.first_label()[shared]
    alone = {f.name: label_alone(f, genre, folds=folds, seed=seed) for f in asked_all if f.name != "genre"}
    return Probed(
        manifest, settings, list(subjects), asked_all, holm(findings), alone, folds, seed,
        [*manifest.skipped, *skipped],
    )  # fmt: skip


def as_record(probed: Probed) -> dict[str, Any]:
    """Everything as JSON can hold it."""
    return json.loads(
        json.dumps(
            {
                "data": {
                    "name": "synthetic", **{k: probed.settings[k] for k in ("tracks", "seconds", "seed", "vary")},
                    "fingerprint": probed.manifest.fingerprint(),
                },
                "protocol": {"folds": probed.folds, "seed": probed.seed, "tests": len(probed.findings)},
                "frontends": [{"name": s.name, "said": s.said, "digest": s.digest} for s in probed.subjects],
                "factors": [{"name": f.name, "said": f.said, "features": f.features} for f in probed.factors],
                "findings": [_finding(finding) for finding in probed.findings],
                "genre_alone": {
                    name: {"score": f.kind, **f.score.as_dict()} for name, f in probed.genre_alone.items()
                },
                "skipped": [clip.as_dict() for clip in probed.skipped],
            }
        )
    )  # fmt: skip


def _finding(finding: Finding) -> dict[str, Any]:
    within = finding.within and {
        "value": finding.within[0].as_dict(), "chance": finding.within[1].as_dict()
    }  # fmt: skip
    return {
        "frontend": finding.subject, "factor": finding.factor, "score": finding.kind, **finding.score.as_dict(),
        "chance": finding.chance, "p": finding.p, "p_adjusted": finding.p_adjusted,
        "chance_alone_explains_it": finding.by_chance, "tracks": finding.tracks, "rows": finding.rows,
        "dimensions": finding.dimensions, "within_tolerance": within,
    }  # fmt: skip
