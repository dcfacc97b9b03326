"""Is pretraining worth it? A front-end pretrained under both objectives, fine-tuned with and without, one budget.

Per seed: `tag` and `mel_regression` on AudioSet (or a stand-in: `python tests/audioset_standin.py ROOT --balanced 600
--evaluation 200`), then on ESC-10 (fold 1 of the official folds) and on the synthetic set (protocol paper) the same
fine-tuning from each start: random, either pretrained front-end, or the tagging run's front-end and classifier.

    python benchmarks/pretraining.py --audioset ROOT --esc ROOT --synthetic ROOT --output outputs/pretraining

Runs that are finished are not repeated, and one that was broken off continues: give the command again. Every recipe was
fixed beforehand; nothing is chosen on test clips.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLIM = ["frontend=gafx_r_slim", "classifier=ast_slim", "classifier.pretrained=false"]
# Six epochs of 8 crops of 2 s: 426 steps on the stand-in. The recipe of the
# fine-tuning is esc10_frontends'.
PRETRAIN = [
    "data.segment_seconds=2.0", "batch_size=8", "epochs=6", "optim.name=adamw", "optim.lr=1e-3",
    "optim.weight_decay=0.05", "optim.warmup_steps=50", "optim.schedule=cosine", "optim.clip_norm=1.0",
    "optim.ema_decay=0.99",
]  # fmt: skip
STARTS = ("random", "mel_regression", "tag", "tag, classifier too")


def main() -> None:
    """Train what is missing, evaluate, and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("audioset", "esc", "synthetic"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("outputs/pretraining"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--max-unreadable", type=float, default=0.05, help="a stand-in may hold more broken files")
    asked = parser.parse_args()
    pretrained: dict[str, list[dict]] = {}
    tuned: dict[tuple[str, str], list[dict]] = {}
    for seed in asked.seeds:
        runs = {}
        for objective, experiment in (("tag", "audioset_tag"), ("mel_regression", "audioset_mel")):
            runs[objective] = train(
                asked, f"pretrain-{objective}", f"experiment={experiment}", *SLIM, *PRETRAIN, f"seed={seed}",
                f"data.root={asked.audioset}", f"data.max_unreadable={asked.max_unreadable}",
            )  # fmt: skip
            pretrained.setdefault(objective, []).append(evaluate(runs[objective]))
        from_start = {
            "random": [],
            "mel_regression": [f"frontend.pretrained={runs['mel_regression']}"],
            "tag": [f"frontend.pretrained={runs['tag']}"],
            "tag, classifier too": [f"{part}.pretrained={runs['tag']}" for part in ("frontend", "classifier")],
        }
        for data, root in (("esc", asked.esc), ("synthetic", asked.synthetic)):
            for start in asked.starts:
                name = f"{data}-{start.replace(', ', '-').replace(' ', '-')}"
                run = train(
                    asked, name, "experiment=esc10_frontends", f"data={data}", *SLIM, *from_start[start],
                    f"data.root={root}", f"seed={seed}",
                )  # fmt: skip
                tuned.setdefault((start, data), []).append(evaluate(run))
    print_tables(pretrained, tuned, asked)


def train(asked: argparse.Namespace, name: str, *overrides: str) -> Path:
    """Train a run, or find it finished; its folder."""
    command = [
        sys.executable, str(ROOT / "train.py"), *overrides, f"name={name}", f"output_dir={asked.output.resolve()}",
        "workers=0",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def evaluate(run: Path) -> dict:
    """The result of a run on its test part."""
    if not (run / "result.json").is_file():
        command = [sys.executable, str(ROOT / "evaluate.py"), str(run), "workers=0", "max_unreadable=1.0", "pictures=2"]
        subprocess.run(command, stdout=sys.stderr, check=True)
    return json.loads((run / "result.json").read_text())


def print_tables(pretrained: dict, tuned: dict, asked: argparse.Namespace) -> None:
    """Pretraining's own scores, then fine-tuning's: mean and deviation over seeds, and each seed's value."""
    print(f"\nPretraining, on the evaluation part, seeds {', '.join(map(str, asked.seeds))}:\n")
    for objective, results in pretrained.items():
        for name in results[0]["scores"]["track"]:
            values = [result["scores"]["track"][name]["value"] for result in results]
            print(
                f"- {objective}: {name} {', '.join(f'{value:.4f}' for value in values)} ({results[0]['tracks']} clips)"
            )
    datas = list(dict.fromkeys(data for _, data in tuned))
    firsts = [tuned[asked.starts[0], data][0] for data in datas]
    heads = [f"{first['data']}, protocol {first['protocol']}, {first['tracks']} tracks" for first in firsts]
    print("\n| start | " + " | ".join(f"{head}: accuracy | macro-F1" for head in heads) + " |")
    print("|---|" + "---|---|" * len(datas))
    for start in asked.starts:
        cells = []
        for data in datas:
            for metric in ("accuracy", "macro_f1"):
                values = [100 * result["scores"]["track"][metric]["value"] for result in tuned[start, data]]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                each = ", ".join(f"{value:.1f}" for value in values)
                cells.append(f"{statistics.mean(values):.1f}{spread} ({each})")
        print(f"| {start} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
