"""Intervals and paired tests checked by simulation: how often a 95 % interval holds the truth, how often a test errs.

    python benchmarks/intervals.py            # all, about ten minutes on one core
    python benchmarks/intervals.py wilson seeds paired five power segments scores macro_f1

Each cell is 2,000 simulated test sets (500 for the scores of rankings), drawn from models whose true scores are known.
Where what is counted has few values, the same is also computed by enumerating every outcome with its probability: what
falls outside 93 to 97 % there is the discreteness of counts and not the simulation, whose own 95 % interval around 95 %
is 94.0 to 95.9 %. Seeds were fixed beforehand. Tables are Markdown, on standard output.
"""

import argparse
from functools import cache

import numpy as np
from scipy.stats import binom, multinomial

from gafx.stats.compare import (
    compare_correct,
    compare_values,
    macro_f1,
    mcnemar,
    mean_average_precision,
    paired_interval,
)
from gafx.stats.scores import accuracy_score, class_scores, single_label_scores, wilson

SETS = 2000
SIZES, ACCURACIES = (70, 200), (0.5, 0.7, 0.9)
SEEDS = (1, 2, 3, 4, 5)
PLANTED = (0.0, 0.05, 0.1, 0.2)
LESS = 0.05  # fraction of tracks that the worse model alone gets right
CLASSES = 10


def table(header: list[str], rows: list[list[str]], title: str) -> None:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def holds(score: object, truth: float) -> bool:
    low, high = score.low, score.high  # type: ignore[attr-defined]
    return bool(low <= truth + 1e-12 and truth - 1e-12 <= high)


def check_wilson() -> None:
    rows = []
    for n in SIZES:
        for p in ACCURACIES:
            inside = np.array([holds(wilson(k, n), p) for k in range(n + 1)])
            drawn = np.random.default_rng(0).binomial(n, p, SETS)
            exact = float(binom.pmf(np.arange(n + 1), n, p)[inside].sum())
            rows.append([str(n), str(p), percent(inside[drawn].mean()), percent(exact)])
    table(["tracks", "true accuracy", "simulated", "enumerated"], rows, "Wilson's interval of one accuracy")


def draw_seeds(random: np.random.Generator, n: int, p: float, alike: float) -> np.ndarray:
    """`(3, n)`: three seeds; `alike` is the correlation of two seeds' answers on one track."""
    if alike:
        spread = (1 - alike) / alike
        own = random.beta(p * spread, (1 - p) * spread, n)
    else:
        own = np.full(n, p)
    return random.random((3, n)) < own


def check_seeds() -> None:
    rows = []
    for n in SIZES:
        for p in ACCURACIES:
            for alike in (0.0, 0.6):
                random = np.random.default_rng(0)
                sets = [draw_seeds(random, n, p, alike) for _ in range(SETS)]
                ours = np.mean([holds(accuracy_score(correct), p) for correct in sets])
                pooled = np.mean([holds(wilson(int(c.sum()), c.size), p) for c in sets])
                width = np.mean([s.high - s.low for s in map(accuracy_score, sets)])
                rows.append([str(n), str(p), str(alike), percent(ours), f"{100 * width:.1f}", percent(pooled)])
    header = ["tracks", "true accuracy", "correlation", "`accuracy_score`", "width, points", "three times the tracks"]
    table(header, rows, "Three seeds on the same tracks")


@cache
def outcome(more: int, less: int, n: int) -> tuple[float, float, float]:
    return (*paired_interval(more, less, n), mcnemar(more, less))


def enumerated(n: int, delta: float) -> tuple[float, float, float]:
    """Exact coverage of the paired interval, rejection rate of the test, and mean width."""
    fractions = [LESS + delta, LESS, 1 - delta - 2 * LESS]
    coverage = rejected = width = 0.0
    for more in range(n + 1):
        if binom.pmf(more, n, fractions[0]) < 1e-9:
            continue
        for less in range(n + 1 - more):
            weight = float(multinomial.pmf([more, less, n - more - less], n, fractions))
            if weight < 1e-9:
                continue
            low, high, p_value = outcome(more, less, n)
            coverage += weight * (low <= delta <= high)
            rejected += weight * (p_value < 0.05)
            width += weight * (high - low)
    return coverage, rejected, width


def check_paired() -> None:
    """The marginal accuracy plays no part: interval and test read the discordant tracks alone."""
    rows = []
    for n in SIZES:
        for delta in PLANTED:
            drawn = np.random.default_rng(0).multinomial(n, [LESS + delta, LESS, 1 - delta - 2 * LESS], SETS)
            found = [outcome(int(more), int(less), n) for more, less, _ in drawn]
            coverage = np.mean([low <= delta <= high for low, high, _ in found])
            rejected = np.mean([p < 0.05 for *_, p in found])
            exact = enumerated(n, delta)
            rows.append([
                str(n), f"{100 * delta:.0f}", percent(coverage), percent(exact[0]), f"{100 * exact[2]:.1f}",
                percent(rejected), percent(exact[1]),
            ])  # fmt: skip
    header = ["tracks", "planted, points", "interval holds it", "enumerated", "width", "p < 0.05", "enumerated"]
    table(header, rows, "The difference of two models (the worse alone right on 5 % of the tracks)")


def pair_of_models(random: np.random.Generator, n: int, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Two models' answers: 70 % and 70 % less `delta`, each alone right on `LESS` of the tracks or more."""
    fractions = [LESS + delta, LESS, 0.7 - LESS - delta]
    cell = random.choice(4, size=n, p=[*fractions, 1 - sum(fractions)])
    return (cell == 0) | (cell == 2), (cell == 1) | (cell == 2)


def check_five() -> None:
    rows = []
    for n in SIZES:
        for delta in PLANTED:
            found = []
            for seed in SEEDS:
                first, second = pair_of_models(np.random.default_rng(seed), n, delta)
                paired = compare_correct(first, second, np.arange(n))
                found.append(f"{100 * paired.difference:+.1f}, p {paired.p_value:.2g}")
            rows.append([str(n), f"{100 * delta:.0f}", *found])
    for n in SIZES:
        same = []
        for seed in SEEDS:
            first, _ = pair_of_models(np.random.default_rng(seed), n, 0.0)
            same.append(f"p {compare_correct(first, first, np.arange(n)).p_value:.2g}")
        rows.append([str(n), "same predictions", *same])
    table(["tracks", "planted, points", *(f"seed {seed}" for seed in SEEDS)], rows, "Five test sets, one by one")


def check_power() -> None:
    rows = []
    for delta in PLANTED[1:]:
        needed = next((n for n in range(20, 1001, 10) if enumerated(n, delta)[1] >= 0.8), None)
        rows.append([f"{100 * delta:.0f}", str(needed)])
    table(["planted, points", "tracks for 80 % power"], rows, "How many tracks a difference needs (enumerated)")


def check_segments() -> None:
    """Five segments a track that mostly agree: by recordings, and as if every segment were a track."""
    rows = []
    for n in SIZES:
        for delta in (0.0, 0.1):
            random = np.random.default_rng(0)
            held, found, naive = [], [], []
            groups = np.repeat(np.arange(n), 5)
            for _ in range(SETS):
                # What a track is like is shared by its segments four times in five.
                track = random.choice(3, size=n, p=[LESS + delta, LESS, 1 - delta - 2 * LESS])[groups]
                own = random.choice(3, size=5 * n, p=[LESS + delta, LESS, 1 - delta - 2 * LESS])
                cell = np.where(random.random(5 * n) < 0.8, track, own)
                first, second = cell != 1, cell != 0
                paired = compare_correct(first, second, groups)
                held.append(paired.low <= delta <= paired.high)
                found.append(paired.p_value < 0.05)
                naive.append(mcnemar(int((first & ~second).sum()), int((second & ~first).sum())) < 0.05)
            rows.append([str(n), f"{100 * delta:.0f}", *(percent(np.mean(x)) for x in (held, found, naive))])
    header = ["tracks", "planted, points", "interval holds it", "p < 0.05", "p < 0.05, segments taken for tracks"]
    table(header, rows, "Five segments a track (bootstrap and sign flips over tracks)")


def check_macro_f1() -> None:
    """Ten classes of equal size and unequal difficulty; errors fall on any other class."""
    rows = []
    for n in SIZES:
        for p in ACCURACIES:
            random = np.random.default_rng(0)
            right = np.clip(p + np.linspace(-0.1, 0.1, CLASSES), 0, 0.98)
            matrix = np.full((CLASSES, CLASSES), 1 / (CLASSES - 1)) * (1 - right)[:, None]
            np.fill_diagonal(matrix, right)
            target = float(np.mean(class_scores(matrix)[2]))
            truth = np.repeat(np.arange(CLASSES), n // CLASSES)
            held, values = [], []
            for _ in range(SETS):
                predicted = (random.random(n)[:, None] > np.cumsum(matrix[truth], axis=1)).sum(axis=1)
                score = single_label_scores(np.eye(CLASSES)[np.minimum(predicted, CLASSES - 1)], truth, np.arange(n))
                held.append(holds(score["macro_f1"], target))
                values.append(score["macro_f1"].value)
            off = f"{100 * (np.mean(values) - target):+.1f}"
            rows.append([str(n), str(p), percent(target), off, percent(np.mean(held))])
    header = ["tracks", "mean accuracy", "true macro-F1", "mean of what is measured, points off", "interval holds it"]
    table(header, rows, "Bootstrap interval of macro-F1, ten classes")


def check_scores(sets: int = 500, n: int = 200) -> None:
    """Paired bootstrap of ranking scores and macro-F1: models that are alike, and one with less noise."""
    rows = []
    for noise, words in ((1.0, "none"), (0.7, "less noise")):
        random = np.random.default_rng(0)
        found: dict[str, list[bool]] = {"mean average precision": [], "macro-F1": []}
        for _ in range(sets):
            targets = (random.random((n, CLASSES)) < 0.2).astype(float)
            shared = random.standard_normal((n, CLASSES))
            first, second = (
                2 * targets + shared + scale * random.standard_normal((n, CLASSES)) for scale in (noise, 1.0)
            )
            paired = compare_values(mean_average_precision(targets), first, second, np.arange(n), resamples=400)
            found["mean average precision"].append(paired.p_value < 0.05)
            truth = random.integers(0, CLASSES, n)
            answers = 2 * np.eye(CLASSES)[truth] + shared
            one, other = (
                (answers + scale * random.standard_normal((n, CLASSES))).argmax(axis=1) for scale in (noise, 1.0)
            )
            paired = compare_values(macro_f1(truth, CLASSES), one, other, np.arange(n), resamples=400)
            found["macro-F1"].append(paired.p_value < 0.05)
        rows += [[name, words, percent(np.mean(hits))] for name, hits in found.items()]
    table(["score", "difference", "p < 0.05"], rows, f"Paired bootstrap over {n} tracks, {sets} test sets")


CHECKS = {
    "wilson": check_wilson, "seeds": check_seeds, "paired": check_paired, "five": check_five, "power": check_power,
    "segments": check_segments, "scores": check_scores, "macro_f1": check_macro_f1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], help="which; default: all")
    for name in parser.parse_args().checks or CHECKS:
        CHECKS[name]()


if __name__ == "__main__":
    main()
