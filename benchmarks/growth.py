"""Time and memory of commands against the number of files: are they straight lines?

    OMP_NUM_THREADS=1 python benchmarks/growth.py --output growth.json
    python benchmarks/growth.py --from growth.json --picture docs/images/growth.svg

For each size a folder of synthesised clips of half a second in four classes is written: all different, except that one
in a hundred is a quieter copy of another clip and one in a hundred is cut off within its header. A CNN of few channels
on a log-mel of 32 bands is trained for two steps, so that what is measured is what gafx spends beside the model. Every
command is a process of its own; wall and processor seconds and the peak of resident memory are those of that process
and its children (of the largest of them). Sizes and commands take turns, `--rounds` times; medians are reported.

`evaluate` tests nine tenths of the clips, `report` is that part of it which writes report.html. `merge` joins two
shards of the CSV that `predict` writes. Processor seconds are fitted as a + b n, by least squares of relative errors.
`--from` takes several files, of which later ones replace the commands of earlier ones.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Parts that would make this process large are imported where they are used: Linux counts the memory of the process that
# starts a command as the command's.
RATE, CLASSES, SECONDS = 8000, 4, 0.5
FORMS = ("csv", "json", "jsonl")
GAFX = [sys.executable, "-m", "gafx.cli"]
ITSELF = [sys.executable, __file__]
COMMANDS = (
    *(f"predict --{kind}" for kind in FORMS), "features npy", "features parquet", "leaks", "evaluate", "report",
    "merge", "pack",
)  # fmt: skip
# In the picture; JSON costs what CSV does.
DRAWN = tuple(name for name in COMMANDS if not name.startswith("predict --json"))
Line = tuple[float, float]


def write_clips(root: Path, count: int, seconds: float) -> None:
    """Write clips `class 0/000000.wav`, ...: chirps in noise, some of them copies and some broken."""
    import soundfile

    samples = round(seconds * RATE)
    at = np.arange(samples) / RATE
    for number in range(CLASSES):
        (root / f"class {number}").mkdir(parents=True, exist_ok=True)
    wave = np.zeros(samples)
    for number in range(count):
        rng = np.random.default_rng(number)
        if number % 100 == 50:
            wave = wave / 2
        else:
            pitch, sweep, level = rng.uniform((200, -0.3, 0.05), (3500, 0.3, 0.15), (4, 3)).T[:, :, None]
            wave = (level * np.sin(2 * np.pi * pitch * at * (1 + sweep * at))).sum(axis=0)
            wave += 0.05 * rng.standard_normal(samples)
        path = root / f"class {number % CLASSES}" / f"{number:06d}.wav"
        soundfile.write(path, wave, RATE, subtype="PCM_16")
        if number % 100 == 99:
            path.write_bytes(path.read_bytes()[:20])


def train(root: Path, outputs: Path, seconds: float) -> str:
    """Train the model for two steps and return its run folder."""
    command = [
        *GAFX, "train", "data=folder", f"data.root={root}", "data.protocol=paper", "data.test_fraction=0.9",
        f"data.segment_seconds={seconds}", "data.leak_check=false", "data.max_unreadable=0.2", "frontend=mel",
        "frontend.n_mels=32", "classifier=cnn", "classifier.stem=8", "classifier.widths=[8,16]", "epochs=1",
        "max_steps=2", "workers=0", f"output_dir={outputs}",
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commands(folder: Path, files: Path, run: str, wanted: Sequence[str]) -> dict[str, list[str]]:
    """The measured commands by name; `report` is measured within `evaluate`."""
    made = folder / "made"
    predict = [*GAFX, "predict", str(files), "--model", run]
    features = [*GAFX, "features", str(files), "--model", run, "--output"]
    every = {
        **{f"predict --{kind}": [*predict, f"--{kind}", "--output", f"{made}.{kind}"] for kind in FORMS},
        "features npy": [*features, f"{made}.npy"],
        "features parquet": [*features, f"{made}.parquet"],
        "leaks": [*GAFX, "leaks", "folder", str(files), "--outputs", f"{made}.leaks", "--json"],
        "evaluate": [*ITSELF, "--evaluate", run, "workers=0"],
        "merge": [*GAFX, "merge", f"{made}.csv", f"{folder / 'shard'}-1.csv", f"{folder / 'shard'}-2.csv"],
        "pack": [*GAFX, "pack", "folder", str(files), f"{made}.pack", f"--rate={RATE}", "--channels=1", "--workers=1"],
    }  # fmt: skip
    if "report" in wanted:
        wanted = [*wanted, "evaluate"]
    if "merge" in wanted:
        for shard in ("1", "2"):
            shards = [*predict, "--csv", "--output", f"{folder / 'shard'}-{shard}.csv", "--shard", f"{shard}/2"]
            subprocess.run(shards, check=False, capture_output=True)
    return {name: command for name, command in every.items() if name in wanted}


def evaluate(arguments: list[str]) -> None:
    """`gafx evaluate`, with the time of its report on standard error."""
    from gafx import cli
    from gafx.report import evaluation

    write = evaluation.write_reports

    def timed(*given: Any) -> str:
        begin, cpu = time.perf_counter(), time.process_time()
        table = write(*given)
        print(json.dumps({"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}), file=sys.stderr)
        return table

    evaluation.write_reports = timed
    cli.main(["evaluate", *arguments])


def measure(command: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Run a command; return seconds, megabytes and the size of what it prints, and of the report if there is one."""
    for old in folder.glob("made.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
    said = (folder / "err").read_text()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1) or (process.returncode == 1 and "could not be read" not in said):
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"": {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss * unit / 1e6}}
    if "--evaluate" in command:
        report = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        page = Path(command[command.index("--evaluate") + 1], "report.html").stat().st_size
        found["report"] = {**report, "page_mb": page / 1e6}
    return found


def fit(sizes: Sequence[int], values: Sequence[float]) -> Line:
    """a and b of a + b n, neither below 0, with the least sum of squared relative errors."""
    n, y = np.array(sizes, float), np.array(values, float)
    best, _, *_ = np.linalg.lstsq(np.stack([1 / y, n / y], axis=1), np.ones(len(y)), rcond=None)
    if best.min() < 0:
        best = np.array([0.0, (n / y).sum() / ((n / y) ** 2).sum()]) if best[0] < 0 else np.array([y.mean(), 0.0])
    return float(best[0]), float(best[1])


def table(results: dict[str, Any]) -> str:
    """Markdown: per command the line of the time, the ratios to it, and the memory."""
    sizes = results["sizes"]
    lines = [
        f"| command | start, s | s per 1,000 files | {sizes[-1]:,} files: wall, CPU s | measured / line at "
        f"{', '.join(f'{size:,}' for size in sizes)} | peak MB at the same | MB per 1,000 files |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results["commands"].items():
        cpu = [found[str(size)]["cpu"] for size in sizes]
        start, slope = fit(sizes, cpu)
        ratios = ", ".join(f"{value / (start + slope * size):.2f}" for size, value in zip(sizes, cpu, strict=True))
        last = f"{found[str(sizes[-1])]['wall']:.1f}, {cpu[-1]:.1f}"
        cells = [name, f"{start:.2f}", f"{1000 * slope:.3g}", last, ratios]
        if "mb" in found[str(sizes[0])]:
            memory = [found[str(size)]["mb"] for size in sizes]
            growth = 1000 * (memory[-1] - memory[0]) / (sizes[-1] - sizes[0])
            cells += [", ".join(f"{value:.0f}" for value in memory), f"{growth:.2f}"]
        else:
            pages = ", ".join(f"{found[str(size)]['page_mb']:.2f}" for size in sizes)
            cells += [f"page: {pages}", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10000], help="numbers of files")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a clip")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--from", type=Path, nargs="+", dest="sources", help="measure nothing, show these results")
    parser.add_argument("--picture", type=Path, help="draw time and memory to this SVG file")
    parser.add_argument("--folder", type=Path, help="folder for the clips (default: a temporary one)")
    parser.add_argument("--evaluate", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.evaluate:
        evaluate(parsed.evaluate)
        return
    if parsed.make:
        write_clips(Path(parsed.make[0]), int(parsed.make[1]), float(parsed.make[2]))
        return
    if parsed.sources:
        read = [json.loads(path.read_text()) for path in parsed.sources]
        results = read[0] | {"commands": {name: each for one in read for name, each in one["commands"].items()}}
    else:
        with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
            results = measure_all(Path(folder), parsed.sizes, parsed.commands, parsed.rounds, parsed.seconds)
    if parsed.output:
        parsed.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{results['machine']}; medians of {results['rounds']}, clips of {results['seconds']:g} s")
    print(table(results))
    if parsed.picture:
        draw(results, parsed.picture)


def measure_all(
    folder: Path, sizes: Sequence[int], wanted: Sequence[str], rounds: int, seconds: float
) -> dict[str, Any]:
    """Medians by command, size and quantity."""
    planned: dict[int, dict[str, list[str]]] = {}
    for size in sizes:
        here = folder / str(size)
        subprocess.run([*ITSELF, "--make", str(here / "clips"), str(size), str(seconds)], check=True)
        planned[size] = commands(here, here / "clips", train(here / "clips", here / "runs", seconds), wanted)
    taken: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for _ in range(rounds):
        for size in sizes:
            for name, command in planned[size].items():
                for part, values in measure(command, folder / str(size)).items():
                    for quantity, value in values.items():
                        taken[part or name][str(size)][quantity].append(value)
                    print(part or name, size, values, file=sys.stderr, flush=True)
    medians = {
        name: {size: {key: statistics.median(each) for key, each in found.items()} for size, found in of_size.items()}
        for name, of_size in taken.items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)"
    return {"machine": machine, "rounds": rounds, "seconds": seconds, "sizes": list(sizes), "commands": medians}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw processor seconds with their fitted lines, and peak memory, over the number of files, on log-log axes."""
    from gafx.report import svg
    from gafx.report.html import write_figure

    sizes, drawn = results["sizes"], [name for name in DRAWN if name in results["commands"]]
    at = np.log10(sizes)
    parts = []
    for left, quantity, label in ((62, "cpu", "processor seconds"), (412, "mb", "peak memory in MB")):
        values = {
            name: [found[str(size)][quantity] for size in sizes]
            for name, found in results["commands"].items()
            if name in drawn and quantity in found[str(sizes[0])]
        }
        every = np.log10([value for each in values.values() for value in each])
        y_range = (np.floor(every.min() * 2) / 2, np.ceil(every.max() * 2) / 2)
        axes = svg.Axes(left, 14, 270, 250, (at[0] - 0.1, at[-1] + 0.1), y_range)
        bottom = axes.top + axes.height
        parts.append(svg.line(left, bottom, left + axes.width, bottom, "axis"))
        for size, x in zip(sizes, at, strict=True):
            parts.append(svg.text(axes.x(x), bottom + 16, f"{size:,}", "middle"))
        parts.append(svg.text(left + axes.width / 2, bottom + 34, "files", "middle", "name"))
        for power in range(-4, 7):
            for value in (10.0**power, 3 * 10.0**power):
                if axes.y_range[0] <= np.log10(value) <= axes.y_range[1]:
                    y = axes.y(np.log10(value))
                    parts.append(svg.line(left, y, left + axes.width, y, "grid"))
                    parts.append(svg.text(left - 6, y + 3.5, f"{value:,.10g}", "end"))
        x, y = left - 46, axes.top + axes.height / 2
        parts.append(svg.text(x, y, label, "middle", "name", f' transform="rotate(-90 {x} {y:.1f})"'))
        fine = np.logspace(at[0], at[-1], 60)
        for name, measured in values.items():
            colour = svg.model_colour(drawn.index(name))
            hint = f"{name}: {', '.join(f'{value:.3g}' for value in measured)}"
            if quantity == "cpu":
                start, slope = fit(sizes, measured)
                parts.append(axes.path(np.log10(fine), np.log10(start + slope * fine), f"--model: {colour}", hint))
            else:
                parts.append(axes.path(at, np.log10(measured), f"--model: {colour}", hint))
            for x, value in zip(at, np.log10(measured), strict=True):
                dot = f'cx="{axes.x(x):.1f}" cy="{axes.y(value):.1f}" r="3.5"'
                parts.append(f'<circle class="dot" {dot} style="--model: {colour}">{svg.title(hint)}</circle>')
    for number, name in enumerate(drawn):
        x, y = 702, 30 + 22 * number
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="4" style="--model: {svg.model_colour(number)}"/>')
        parts.append(svg.text(x + 10, y + 4, name, "start", "item"))
    label = "Processor seconds and peak memory of gafx commands over the number of files"
    lines = "Dots are medians; the lines of the seconds are a + b n, fitted to each command."
    write_figure(path, svg.picture(820, 310, "".join(parts), label), title=label, caption=lines)


if __name__ == "__main__":
    main()
