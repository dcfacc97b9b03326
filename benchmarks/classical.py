"""The classical baseline: handcrafted features and a support vector machine, on the folds of the models.

    python benchmarks/classical.py esc ESC-10
    python benchmarks/classical.py gtzan GTZAN --protocol kfold --folds 7
    python benchmarks/classical.py spoken_digits DIGITS --fold 1 --train-clips 100 1000 0

MFCC (20) with deltas, spectral contrast, chroma, centroid, bandwidth, roll-off, flatness, zero crossings and RMS: mean,
std and median of each over a clip; standardised; RBF kernel, C = 10, fixed beforehand. Needs librosa.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import librosa
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from gafx.data.sources.base import load_manifest
from gafx.data.splits import split
from gafx.stats.scores import confusion, macro_f1, wilson

RATE = 22050
SHORTEST = 12 * 512  # samples: the deltas span nine frames


def features(path: bytes) -> np.ndarray:
    return describe(librosa.load(os.fsdecode(path), sr=RATE)[0])


def describe(wave: np.ndarray) -> np.ndarray:
    """`(samples,)` at `RATE` -> one row of features."""
    rate = RATE
    wave = np.resize(wave, max(len(wave), SHORTEST))  # shorter clips are repeated
    power = np.abs(librosa.stft(wave)) ** 2
    mel = librosa.power_to_db(librosa.feature.melspectrogram(S=power, sr=rate))
    mfcc = librosa.feature.mfcc(S=mel, sr=rate, n_mfcc=20)
    magnitude = np.sqrt(power)
    rows = np.concatenate(
        [
            mfcc,
            librosa.feature.delta(mfcc),
            librosa.feature.delta(mfcc, order=2),
            librosa.feature.spectral_contrast(S=magnitude, sr=rate),
            librosa.feature.chroma_stft(S=power, sr=rate),
            librosa.feature.spectral_centroid(S=magnitude, sr=rate),
            librosa.feature.spectral_bandwidth(S=magnitude, sr=rate),
            librosa.feature.spectral_rolloff(S=magnitude, sr=rate),
            librosa.feature.spectral_flatness(S=magnitude),
            librosa.feature.zero_crossing_rate(wave),
            librosa.feature.rms(S=magnitude),
        ]
    )
    return np.concatenate([rows.mean(axis=1), rows.std(axis=1), np.median(rows, axis=1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set, e.g. esc or folder")
    parser.add_argument("root", type=Path)
    parser.add_argument("--protocol", default="official", choices=["official", "kfold", "paper", "fault_filtered"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, help="test this fold alone")
    parser.add_argument("--train-clips", type=int, nargs="+", default=[0], help="as data.train_clips; 0: all")
    arguments = parser.parse_args()
    manifest = load_manifest(arguments.data, arguments.root)
    with ProcessPoolExecutor() as pool:
        table = np.stack(list(pool.map(features, [manifest.file(row) for row in range(len(manifest))], chunksize=8)))
    labels = manifest.first_label()
    has_folds = arguments.protocol in ("official", "kfold")
    chosen = [arguments.fold] if arguments.fold else list(range(1, arguments.folds + 1)) if has_folds else [1]
    for clips in arguments.train_clips:
        predicted = np.full(len(manifest), -1)
        for fold in chosen:
            parts = split(manifest, arguments.protocol, fold=fold, folds=arguments.folds, train_clips=clips or None)
            model = make_pipeline(StandardScaler(), SVC(C=10.0)).fit(table[parts.train], labels[parts.train])
            predicted[parts.test] = model.predict(table[parts.test])
        tested = predicted >= 0
        accuracy = wilson(int((predicted == labels)[tested].sum()), int(tested.sum()))
        f1 = macro_f1(confusion(labels[tested], predicted[tested], len(manifest.classes)))
        print(
            f"{arguments.data}, protocol {arguments.protocol}, fold {', '.join(map(str, chosen))}, "
            f"{clips or 'all'} training clips, {tested.sum()} tracks: handcrafted features + SVM accuracy "
            f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}, "
            f"{accuracy.interval}), macro-F1 {100 * float(f1):.1f} %"
        )


if __name__ == "__main__":
    main()
