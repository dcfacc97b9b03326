"""Difficulty of `data=synthetic`: MFCC statistics and logistic regression, per `vary`, with a 95 % interval.

    python benchmarks/synthetic_difficulty.py --vary all rhythm harmony timbre

Protocol: `--tracks` tracks of each genre of `--seconds` s at 22.05 kHz; mean and std over time of 20 MFCC
(librosa's defaults); standardised; logistic regression; stratified k-fold, every track predicted once.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from gafx.studies.synth import GENRES, VARY, compose, render

SAMPLE_RATE = 22050


def track_statistics(job: tuple[str, int], seed: int, seconds: float, vary: str) -> tuple[np.ndarray, float]:
    """Mean and std of 20 MFCC of one track, (40,), and the seconds that making the track took."""
    import librosa

    start = time.perf_counter()
    wave = render(compose(*job, seed=seed, seconds=seconds, vary=vary), SAMPLE_RATE)
    made = time.perf_counter() - start
    mfcc = librosa.feature.mfcc(y=wave, sr=SAMPLE_RATE, n_mfcc=20)
    return np.concatenate([mfcc.mean(axis=1), mfcc.std(axis=1)]), made


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a fraction, 95 % by default."""
    fraction, width = correct / n, z * z / n
    middle = (fraction + width / 2.0) / (1.0 + width)
    half = z * np.sqrt(fraction * (1.0 - fraction) / n + width / (4.0 * n)) / (1.0 + width)
    return float(middle - half), float(middle + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vary", nargs="+", default=["all", "rhythm", "harmony", "timbre"], choices=tuple(VARY))
    parser.add_argument("--tracks", type=int, default=30, help="tracks per genre")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a track")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set and of the folds")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes that make tracks")
    parser.add_argument("--confusion", action="store_true", help="print which genre is taken for which")
    arguments = parser.parse_args()

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import confusion_matrix
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    jobs = [(genre, index) for genre in GENRES for index in range(arguments.tracks)]
    labels = np.repeat(np.arange(len(GENRES)), arguments.tracks)
    print(
        f"{len(jobs)} tracks ({arguments.tracks} x {len(GENRES)} genres) of {arguments.seconds:g} s, seed "
        f"{arguments.seed}; MFCC(20) mean and std, logistic regression, {arguments.folds}-fold; chance "
        f"{1 / len(GENRES):.1%}"
    )
    for vary in arguments.vary:
        measure = partial(track_statistics, seed=arguments.seed, seconds=arguments.seconds, vary=vary)
        if arguments.workers > 1:
            with ProcessPoolExecutor(arguments.workers) as pool:
                results = list(pool.map(measure, jobs, chunksize=8))
        else:
            results = [measure(job) for job in jobs]
        features = np.stack([statistics for statistics, _ in results])
        made = np.array([seconds for _, seconds in results])
        folds = StratifiedKFold(arguments.folds, shuffle=True, random_state=arguments.seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        predicted = cross_val_predict(model, features, labels, cv=folds)
        correct = int((predicted == labels).sum())
        low, high = wilson_interval(correct, len(labels))
        print(
            f"vary={vary:14s} accuracy {correct / len(labels):.1%} (95 % {low:.1%} to {high:.1%}, n={len(labels)}), "
            f"{np.median(made):.3f} s to make a track (median of one process)"
        )
        if arguments.confusion:
            print("  true \\ taken for " + " ".join(f"{genre[:4]:>4s}" for genre in GENRES))
            for genre, row in zip(GENRES, confusion_matrix(labels, predicted), strict=True):
                print(f"  {genre:16s}" + " ".join(f"{count:4d}" for count in row))


if __name__ == "__main__":
    main()
