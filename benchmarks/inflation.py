"""Inflation of scores by a random split of segments: same segments, models and recipe, split by track and by segment.

    python benchmarks/inflation.py GTZAN --output outputs/inflation --frontends mel gafx_r_slim

Every segment of 3 s is tested once in each arm, by a model of the fold that did not train on it. In one arm that model
did not train on the rest of its track either, in the other it did. Both arms are trained by train.py
(configs/experiment/inflation_*.yaml, fixed beforehand) and predicted by evaluate.py; a run that is finished is not
repeated. Handcrafted features with a support vector machine (benchmarks/classical.py; needs librosa) are the witness
that has no steps to choose, on five seeds of the split. Intervals and tests are over tracks, whose segments are not
independent of each other.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from gafx.compose import compose_train
from gafx.config import TrainConfig
from gafx.data.readers import FileReader
from gafx.data.segments import by_segment
from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.stats.compare import compare_correct
from gafx.stats.scores import mean_score

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("track", "segment")
SPLIT_SEEDS = (0, 1, 2, 3, 4)


def script(name: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} {' '.join(map(str, arguments))} failed (status {done.returncode})")
    return done.stdout


def network(frontend: str, root: Path, output: Path) -> tuple[dict[str, dict[tuple[str, str], bool]], str]:
    """For each arm whether each segment (file and first second) is labelled correctly, and what is said of the runs."""
    correct, said = {}, []
    for arm in ARMS:
        common = [f"experiment=inflation_{arm}", f"frontend={frontend}", f"data.root={root}", f"output_dir={output}"]
        config = compose_train(common, ROOT / "configs")
        runs = [
            Path(script("train.py", *common, f"data.fold={fold}", "workers=0").strip().splitlines()[-1])
            for fold in range(1, config.data.folds + 1)
        ]
        joint = output / f"evaluation-{arm}-{frontend}"
        print(script("evaluate.py", *runs, f"output={joint}", "workers=0", "pictures=0"))
        correct[arm] = read_segments(joint / "segments.csv")
        said.append(f"{config.max_steps} steps of {config.batch_size}, {config.data.folds} folds, seed {config.seed}")
    return correct, said[0]


def read_segments(path: Path) -> dict[tuple[str, str], bool]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["clip"], row["start_seconds"]): row["label"] == row["prediction"] for row in rows}


def describe_segments(config: TrainConfig, root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Handcrafted features of each segment, its label, and the row of its track in the manifest of whole tracks."""
    from classical import RATE, describe

    whole = load_manifest(config.data.name, root)
    segments = by_segment(whole, config.data.segment_seconds)
    reader = FileReader(segments, RATE, 1)
    length = round(config.data.segment_seconds * RATE)
    table = np.stack([describe(reader.read(row, 0, length)[0]) for row in range(len(segments))])
    names = {whole.relative_path(row): row for row in range(len(whole))}
    track = np.array([names[segments.relative_path(row)] for row in range(len(segments))])
    return table, segments.first_label(), track


def machine(
    config: TrainConfig, root: Path, table: np.ndarray, labels: np.ndarray, track: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """For each arm whether a support vector machine labels each segment correctly, on one seed's folds."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    whole = load_manifest(config.data.name, root)
    segments = by_segment(whole, config.data.segment_seconds)
    correct = {}
    for arm, manifest in zip(ARMS, (whole, segments), strict=True):
        predicted = np.full(len(segments), -1)
        for fold in range(1, config.data.folds + 1):
            parts = split(manifest, "kfold", fold=fold, folds=config.data.folds, seed=seed)
            number = track if arm == "track" else np.arange(len(segments))
            train, test = (np.isin(number, rows) for rows in (parts.train, parts.test))
            model = make_pipeline(StandardScaler(), SVC(C=10.0)).fit(table[train], labels[train])
            predicted[test] = model.predict(table[test])
        correct[arm] = predicted == labels
    return correct


def report(name: str, correct: dict[str, np.ndarray], track: np.ndarray) -> dict[str, object]:
    """Print and return both accuracies, and their difference, with intervals over tracks."""
    scores = {arm: mean_score(correct[arm].astype(float), track, resamples=2000) for arm in ARMS}
    paired = compare_correct(correct["segment"], correct["track"], track)
    words = [
        f"split by {arm} {100 * s.value:.1f} % ({100 * (s.low or 0):.1f} to {100 * (s.high or 0):.1f})"
        for arm, s in scores.items()
    ]
    print(
        f"{name}: {', '.join(words)}; inflation {100 * paired.difference:+.1f} points "
        f"({100 * (paired.low or 0):+.1f} to {100 * (paired.high or 0):+.1f}), p {paired.p_value:.2g}; "
        f"{paired.count} segments of {paired.groups} tracks; {paired.test}",
        flush=True,
    )
    return {"name": name, **{arm: scores[arm].as_dict() for arm in ARMS}, "inflation": paired.as_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of GTZAN or of a part of it")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--frontends", nargs="*", default=["mel"], help="none: the support vector machine alone")
    arguments = parser.parse_args()
    root = arguments.root.absolute()
    found = []
    config = compose_train(["experiment=inflation_track", f"data.root={root}"], ROOT / "configs")
    table, labels, track = describe_segments(config, root)
    for seed in SPLIT_SEEDS:
        correct = machine(config, root, table, labels, track, seed)
        found.append(
            report(f"handcrafted features + SVM, {config.data.folds} folds, split seed {seed}", correct, track)
        )
    for frontend in arguments.frontends:
        segments, how = network(frontend, root, arguments.output)
        keys = sorted(segments["segment"])
        if lacking := [key for key in keys if key not in segments["track"]]:
            sys.exit(f"{len(lacking)} segments were not tested when split by track, e.g. {lacking[0]}")
        _, number = np.unique([clip for clip, _ in keys], return_inverse=True)
        found.append(
            report(f"{frontend}, {how}", {arm: np.array([segments[arm][key] for key in keys]) for arm in ARMS}, number)
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "inflation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
