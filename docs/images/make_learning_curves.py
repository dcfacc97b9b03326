"""Draw accuracy against the number of training clips from a table of `gafx ablate learning_curves`, and print it.

python docs/images/make_learning_curves.py outputs/learning_curves-spoken_digits-official/table.csv OUTPUT.png
"""

import csv
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt

INK, QUIET = "#26324a", "#b9c0d4"
COLOURS = ("#26324a", "#3f51b5", "#00897b", "#e65100", "#8e24aa", "#757575")


def main(table: Path, output: Path) -> None:
    """Read the table's rows, draw one line with intervals for each front-end, and print a Markdown table."""
    curves: dict[str, dict[int, tuple[float, float, float]]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if not row["accuracy"]:
            continue
        label = re.sub(r",? ?(data\.)?train_clips=\d+", "", row["label"]).strip(" ,·")
        clips = int(re.search(r"data\.train_clips=(\d+)", row["row"] + row["label"])[1])
        values = tuple(100 * float(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
        curves.setdefault(label, {})[clips] = values
    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": QUIET, "axes.labelcolor": INK})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(figsize=(7.5, 4.2), dpi=110, layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        clips = sorted(points)
        middle, low, high = zip(*(points[count] for count in clips), strict=True)
        shifted = [count * 1.03 ** (number - (len(curves) - 1) / 2) for count in clips]  # intervals side by side
        errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        axes.errorbar(shifted, middle, errors, marker="o", capsize=3, color=COLOURS[number], label=label, linewidth=1.4)
    every = sorted({count for points in curves.values() for count in points})
    axes.set(xscale="log", xlabel="training clips", ylabel="accuracy in %", ylim=(0, 100))
    axes.set_xticks(every, [f"{count:,}" for count in every])
    axes.minorticks_off()
    axes.grid(axis="y", color=QUIET, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(output)
    print(f"| front-end | {' | '.join(f'{count:,} clips' for count in every)} |")
    print("|---|" + "---|" * len(every))
    for label, points in curves.items():
        cells = [
            f"{points[c][0]:.1f} % ({points[c][1]:.1f} to {points[c][2]:.1f})" if c in points else "" for c in every
        ]
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
