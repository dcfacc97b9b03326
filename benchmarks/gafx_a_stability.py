"""Why the paper's GAFX-A had a loss of NaN (section 4.2.2), and whether ours has: docs/gafx_a.md holds the findings.

    python benchmarks/gafx_a_stability.py hypotheses --data ESC-10     # named causes, one by one, 200 steps each
    python benchmarks/gafx_a_stability.py grid --data ESC-10 --norms post --rates 5e-4 --precisions fp32,fp16
    python benchmarks/gafx_a_stability.py table --data ESC-10          # train.py by the paper's recipe, 80 epochs each

`--data` is the root of ESC-10 (official fold 1, its training part) or `synthetic`. Results are appended to a file of
JSON lines as they come; what is in it already is not run again. The Markdown table of everything asked for is printed
at the end.

`hypotheses` and `grid` train in a plain loop as it is commonly written: nothing is checked, clipped or skipped, so one
NaN in the weights stays; a cell ends after 20 such steps in a row and the rest counts as non-finite. The first step
that is not finite is repeated to find where it began. `fp16` is float16 autocast with loss scaling, `fp16-unscaled` the
same without, `half` float16 weights. On a CPU autocast to float16 takes 17 times as long as float32, so float16 is
emulated: inputs, weights and outputs of convolutions, matrix products and batch norms, and their gradients, are rounded
to float16 (and overflow at 65504), sums are float32 as in a GPU's units. `half` is real.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
FINITE_AGAIN = 20  # non-finite steps in a row after which a cell is given up


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the study."""

    norm: str = "post"  # of GAFX-A, or `r` for GAFX-R, which the paper could train
    rate: float = 5e-4
    warmup: int = 0
    precision: str = "fp32"  # fp32, bf16, fp16, fp16-unscaled, half
    wave: float = 1.0  # what the wave is multiplied by: 32768 is int16 taken as it is
    scale: float = 1.0  # what the network's output is multiplied by before the attention
    cnn: str = "batch"  # norms of the network: batch, none
    depth: int = 2
    attention: str = "fused"  # fused, softmax (explicit), exp (explicit, its largest value not subtracted), masked
    between: str = "clip"  # front-end to classifier: clip (gafx's), none, std, sqrt, log; see `Between`
    clips: str = "real"  # real, silent (the first clip of each batch is zeros)
    task: str = "classify"  # classify, spectrogram (section 4.2.3: BCE against a normalised log-mel)
    steps: int = 200
    seconds: float = 0.5
    width: int = 16
    batch: int = 4
    data: str = "esc"

    def name(self) -> str:
        """Describe the differences from the plain build."""
        parts = [{"r": "GAFX-R", "pre": "ours"}.get(self.norm, self.norm), f"{self.rate:g}", self.precision]
        parts += [f"warm-up {self.warmup}"] * bool(self.warmup)
        parts += [f"wave x {self.wave:g}"] * (self.wave != 1) + [f"map x {self.scale:g}"] * (self.scale != 1)
        parts += ["CNN without norms"] * (self.cnn == "none") + [f"depth {self.depth}"] * (self.depth != 2)
        parts += [f"attention {self.attention}"] * (self.attention != "fused")
        parts += [f"then {self.between}"] * (self.between != "clip") + ["a silent clip"] * (self.clips == "silent")
        parts += [self.task] * (self.task != "classify")
        return ", ".join(parts)


def hypotheses() -> dict[str, list[Cell]]:
    """The causes that were thought of, each with the runs that test it.

    A cause explains the paper only if GAFX-A fails under it and GAFX-R (`r`), which the paper trained, does not.
    """
    of = Cell
    return {
        "as built here": [
            *(of("pre", 5e-4, precision=p) for p in ("fp32", "bf16", "fp16", "fp16-unscaled")),
            of("pre", 5e-5), of("pre", 5e-3),
        ],
        "post-norm without warm-up": [
            *(of("post", rate) for rate in (5e-5, 5e-4, 5e-3)), of("post", 5e-3, depth=6),
            *(of("post", 5e-4, precision=p) for p in ("bf16", "fp16")),
        ],
        "no LayerNorm": [*(of("none", rate) for rate in (5e-5, 5e-4, 5e-3)), of("none", 5e-4, precision="fp16")],
        "float16 without loss scaling": [of(n, precision="fp16-unscaled") for n in ("post", "none")],
        "float16 weights, Adam's epsilon 1e-8": [of(n, precision="half", steps=10) for n in ("r", "post")],
        "int16 samples as they are": [
            of("none", wave=32768),
            *(of(n, precision="fp16", wave=32768) for n in ("r", "post", "pre")),
        ],
        "no BatchNorm in the network": [
            *(of(n, cnn="none") for n in ("post", "none")),
            *(of(n, cnn="none", wave=32768) for n in ("r", "post", "none", "pre")),
            *(of("none", cnn="none", attention="softmax", wave=w) for w in (1, 32768)),
            of("post", cnn="none", attention="softmax", wave=32768),
            *(of(n, precision="fp16", cnn="none", wave=32768) for n in ("r", "post", "pre")),
        ],
        "a loud map into the attention": [
            *(of(n, scale=1000) for n in ("post", "none", "pre")),
            *(of(n, precision="fp16", scale=1000) for n in ("r", "post", "none", "pre")),
        ],
        "float16 products Q K, explicit": [
            *(of(n, precision="fp16", attention="softmax", scale=30) for n in ("post", "none")),
            of("post", precision="fp16", attention="softmax", scale=1000),
        ],
        "softmax without its largest value": [
            *(of("post", precision=p, attention="exp") for p in ("fp32", "fp16")),
            *(of(n, attention="exp", scale=30) for n in ("post", "none")),
        ],
        "silent frames masked as padding": [
            *(of(n, attention="masked") for n in ("post", "none")), of("post", attention="masked", clips="silent"),
        ],
        "std of a constant map": [
            *(of("post", between=b, clips="silent") for b in ("std", "sqrt")),
            of("pre", clips="silent"),
        ],
        "logarithm of the map": [of(n, between="log") for n in ("r", "post", "none", "pre")],
        "no normalisation before the classifier": [of(n, between="none") for n in ("post", "none")],
        "BCE against a normalised spectrogram": [
            *(of(n, task="spectrogram") for n in ("r", "post", "none", "pre")),
            of("none", precision="fp16", task="spectrogram"),
        ],
    }  # fmt: skip


def grid(arguments: argparse.Namespace) -> list[Cell]:
    """Every combination of the lists on the command line."""
    axes = (
        arguments.norms,
        arguments.scales,
        arguments.between,
        arguments.rates,
        arguments.warmups,
        arguments.precisions,
    )
    return [
        Cell(norm=norm, scale=float(scale), between=between, rate=float(rate), warmup=int(warmup), precision=precision)
        for norm, scale, between, rate, warmup, precision in product(*(axis.split(",") for axis in axes))
    ]


# --- variants of the model --------------------------------------------------------------------------------------------


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.half().float()


class Rounding(nn.Module):
    """To float16 and back, values and gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return _Rounded.apply(x)


def emulate_float16(model: nn.Module) -> None:
    """Let float32 modules compute what float16 autocast would on a GPU, where LayerNorm and softmax are float32 too."""
    rounded = _Rounded.apply
    for module in list(model.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.utils.parametrize.register_parametrization(module, "weight", Rounding())
            module.register_forward_pre_hook(lambda _m, inputs: tuple(rounded(x) for x in inputs))
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, Scores, PlainSum)):
            module.register_forward_hook(lambda _m, _inputs, output: rounded(output))


class PlainSum(nn.Identity):
    """In the place of a LayerNorm that is not there: the sum before it stays float16."""


class Scores(nn.Module):
    """Q K^T / sqrt(d), a module so that the first overflow is found here."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.mT / query.shape[-1] ** 0.5


class Softmax(nn.Module):
    """Softmax written out; `safe` subtracts the largest value first."""

    def __init__(self, safe: bool):
        super().__init__()
        self.safe = safe

    def forward(self, scores: Tensor) -> Tensor:
        if self.safe:
            return scores.softmax(dim=-1)
        powers = scores.exp()
        return powers / powers.sum(dim=-1, keepdim=True)


class ExplicitAttention(nn.Module):
    """Attention as it was written before fused kernels, with the weights of a `SelfAttention`."""

    def __init__(self, fused: nn.Module, kind: str, rounds: bool):
        super().__init__()
        self.inward, self.outward, self.heads = fused.inward, fused.outward, fused.heads
        self.scores, self.softmax = Scores(), Softmax(safe=kind != "exp")
        # exp() of the float16 score, not of its float32 value, is what a hand-written softmax takes.
        self.rounds = rounds and kind == "exp"
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inward(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = self.scores(query, key)
        if self.mask is not None:
            scores = scores.masked_fill(self.mask[:, None, None], -math.inf)
        probabilities = _Rounded.apply(self.softmax(scores)) if self.rounds else self.softmax(scores)
        return self.outward((probabilities @ value).transpose(1, 2).flatten(2))


class Between(nn.Module):
    """Operation between front-end and classifier.

    `none`: nothing. `std`: (x - mean) / std, clip by clip. `sqrt`: the same with sqrt(mean square). `log`: the
    logarithm of the map as if it were a spectrogram, log(x + 1e-6), then gafx's normalisation.
    """

    def __init__(self, kind: str, norm: nn.Module):
        super().__init__()
        self.kind, self.norm = kind, norm

    def forward(self, feature_map: Tensor) -> Tensor:
        x = feature_map.float()
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        if self.kind == "std":
            return centred / x.std(dim=(1, 2, 3), keepdim=True)
        if self.kind == "sqrt":
            return centred / centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self.norm((x + 1e-6).log()) if self.kind == "log" else x


class Scaled(nn.Module):
    """A factor after the network."""

    def __init__(self, module: nn.Module, factor: float):
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.module(x)


class Halved(nn.Module):
    """To float16, after a norm that answers in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.half()


def build(cell: Cell, classes: int) -> nn.Module:
    """gafx's own model with the cell's changes put into it."""
    from gafx.model import create_model

    torch.manual_seed(0)
    frontend = {"name": "gafx_r"} if cell.norm == "r" else {"name": "gafx_a", "norm": cell.norm, "depth": cell.depth}
    model = create_model(
        {**frontend, "width": cell.width}, {"name": "ast", "size": "tiny", "depth": 2}, num_classes=classes,
        segment_seconds=cell.seconds,
    )  # fmt: skip
    if cell.cnn == "none":
        for module in list(model.frontend.resnet.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
    if cell.scale != 1:
        model.frontend.resnet = Scaled(model.frontend.resnet, cell.scale)
    for layer in getattr(model.frontend, "layers", ()):
        if cell.norm == "none":
            layer.norm1, layer.norm2 = PlainSum(), PlainSum()
        if cell.attention != "fused":
            layer.attention = ExplicitAttention(layer.attention, cell.attention, cell.precision.startswith("fp16"))
    if cell.between != "clip":
        model.map_norm = Between(cell.between, model.map_norm)
    if cell.precision.startswith("fp16"):
        emulate_float16(model)
    if cell.precision == "half":
        model.map_norm = nn.Sequential(model.map_norm, Halved())
        model.half()
    return model


# --- one run ----------------------------------------------------------------------------------------------------------


def load_batches(cell: Cell, root: str) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The same batches for every cell: `(batch, 1, samples)` and `(batch, classes)`; and the number of classes."""
    from gafx.config import TrainConfig
    from gafx.config import build as configure
    from gafx.data.batches import training_loader
    from gafx.data.open import open_reader, open_split
    from gafx.model import create_model
    from gafx.training import build

    protocol = "official" if cell.data == "esc" else "paper"
    data = {"name": cell.data, "root": root, "protocol": protocol, "segment_seconds": cell.seconds}
    config = configure(TrainConfig, {"data": data, "batch_size": cell.batch, "epochs": 10_000})
    manifest, parts = open_split(config.data, multi_label=False, objective="classify")
    model = create_model(
        {"name": "gafx_r", "width": 16}, {"name": "ast", "depth": 1}, num_classes=2, segment_seconds=cell.seconds
    )
    reader, _ = open_reader(config.data, manifest, sample_rate=22050, channels=1, build=False)
    clips = build.training_clips(config, manifest, parts.train, reader, model)
    order = build.training_order(config, clips, build.start_accelerator(config)[0])
    batches = []
    for batch in training_loader(clips, order, workers=0):
        batches.append((batch.wave, batch.target))
        if len(batches) == cell.steps:
            return batches, len(manifest.classes)
    raise AssertionError


def spectrogram(wave: Tensor) -> Tensor:
    """Log-mel on the front-end's grid with mean 0 and std 0.5 that AST gives its spectrograms."""
    from gafx.model import create_frontend

    with torch.no_grad():
        values = create_frontend("mel", form="grid").eval()(wave)
    return (values - values.mean()) / (2 * values.std())


def run(cell: Cell, batches: list[tuple[Tensor, Tensor]], classes: int) -> dict:
    """Train one cell and say how it went."""
    from gafx.frontends.base import FrontEnd
    from gafx.nn.frames import cut_frames
    from gafx.training.nonfinite import first_nonfinite

    model = build(cell, classes).train()
    explicit = [module for module in model.modules() if isinstance(module, ExplicitAttention)]
    frontend: FrontEnd = model.frontend
    if cell.task == "spectrogram":
        model = nn.ModuleDict({"frontend": frontend})
    optimizer = torch.optim.Adam(model.parameters(), lr=cell.rate)
    scaler = torch.amp.GradScaler("cpu", enabled=cell.precision == "fp16")
    entered = {"rms": 0.0, "largest": 0.0}

    def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        entered["rms"] = max(entered["rms"], x.square().mean().sqrt().item())
        entered["largest"] = max(entered["largest"], x.abs().max().item())

    watched = next(iter(getattr(frontend, "layers", ())), None)
    if watched is not None:
        watched.register_forward_pre_hook(watch)

    def loss_of(wave: Tensor, target: Tensor) -> Tensor:
        for attention in explicit if cell.attention == "masked" else ():
            attention.mask = (cut_frames(wave) == 0).all(dim=-1).squeeze(1)
        sounding = wave.half() if cell.precision == "half" else wave
        with torch.autocast("cpu", torch.bfloat16, enabled=cell.precision == "bf16"):
            output = frontend(cell.wave * sounding) if cell.task == "spectrogram" else model(cell.wave * sounding)
        if cell.task == "spectrogram":
            return nn.functional.binary_cross_entropy_with_logits(output.float(), spectrogram(wave))
        return nn.functional.cross_entropy(output.float(), target)

    losses, first, where, began, in_a_row = [], 0, "", time.perf_counter(), 0
    for step, (wave, target) in enumerate(batches[: cell.steps], start=1):
        if cell.clips == "silent":
            wave = torch.cat([torch.zeros_like(wave[:1]), wave[1:]])
        for group in optimizer.param_groups:
            group["lr"] = cell.rate * (min(1.0, step / cell.warmup) if cell.warmup else 1.0)
        optimizer.zero_grad()
        loss = loss_of(wave, target)
        scaler.scale(loss).backward()
        finite = math.isfinite(loss.item())
        if finite and not scaler.is_enabled():  # the scaler skips steps with infinite gradients: its daily business
            finite = all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        if not finite and not first:
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            first, where = step, first_nonfinite(model, lambda w=wave, t=target: loss_of(w, t))
            model.load_state_dict(kept)
            optimizer.zero_grad()
            scaler.scale(loss_of(wave, target)).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item() if finite else math.nan)
        in_a_row = 0 if finite else in_a_row + 1
        if in_a_row == FINITE_AGAIN:
            break
    bad = sum(math.isnan(loss) for loss in losses) + cell.steps - len(losses)
    losses += [math.nan] * (cell.steps - len(losses))
    tenth = max(1, cell.steps // 10)
    return {
        "first_tenth": mean(losses[:tenth]), "last_tenth": mean(losses[-tenth:]), "nonfinite_steps": bad,
        "first_nonfinite_step": first or None, "where": where.replace("parametrizations.", "").replace(".original", ""),
        "entered_rms": entered["rms"] if watched else None, "entered_largest": entered["largest"] if watched else None,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def mean(values: list[float]) -> float | None:
    """Mean of the finite ones, `None` where there is none."""
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else None


# --- the required table: train.py by the paper's recipe ---------------------------------------------------------------


def table(arguments: argparse.Namespace) -> Iterator[dict]:
    """Run train.py for {ours, plain} x {5e-5, 5e-4} x precisions; finished runs are read, unfinished ones resumed."""
    precisions = ["fp32", "bf16", *(["fp16"] if torch.cuda.is_available() else [])]
    data = ["data=esc", f"data.root={arguments.data}"] if arguments.data != "synthetic" else ["data=synthetic"]
    for norm, rate, precision in product(("pre", "post"), ("5e-5", "5e-4"), precisions):
        if arguments.only and arguments.only not in f"{norm} {rate} {precision}":
            continue
        command = [
            sys.executable, str(ROOT / "train.py"), *data, "frontend=gafx_a_slim", f"frontend.norm={norm}",
            "classifier=ast_slim", f"data.segment_seconds={arguments.seconds}", f"optim.lr={rate}",
            f"precision={precision}", f"epochs={arguments.epochs}", "stop_on_nonfinite=false", "tracking.log_steps=1",
            "keep_checkpoints=1", "workers=0", f"name=gafx_a-{norm}-{rate}-{precision}",
            f"data.cache={arguments.folder / 'cache'}", f"output_dir={arguments.folder}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        folder = Path(done.stdout.strip().splitlines()[-1])
        record = json.loads((folder / "run.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        losses = [math.nan if loss is None else loss for loss in losses]
        tenth = max(1, len(losses) // 10)
        yield {
            "run": folder.name, "norm": norm, "rate": rate, "precision": precision, "steps": len(losses),
            "first_tenth": mean(losses[:tenth]), "last_tenth": mean(losses[-tenth:]),
            "nonfinite_steps": record["nonfinite_steps"], "seconds": record["train_seconds"],
        }  # fmt: skip


# --- output -----------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.1e}"


def markdown(title: str, rows: list[tuple[Cell, dict]]) -> str:
    """A table of a group of cells."""
    lines = [
        f"### {title}\n",
        "| run | loss, first tenth | loss, last tenth | non-finite steps | first, and where | largest into attention |",
        "|---|---|---|---|---|---|",
    ]
    for cell, result in rows:
        first = f"step {result['first_nonfinite_step']}: {result['where']}" if result["first_nonfinite_step"] else "-"
        lines.append(
            f"| {cell.name()} | {number(result['first_tenth'])} | {number(result['last_tenth'])} | "
            f"{result['nonfinite_steps']} of {cell.steps} | {first} | {number(result['entered_largest'], 1)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["hypotheses", "grid", "table"])
    parser.add_argument("--data", default="synthetic", help="root of ESC-10, or `synthetic`")
    parser.add_argument("--folder", type=Path, default=Path("outputs/gafx_a_stability"), help="where results go")
    parser.add_argument("--only", default="", help="groups (hypotheses) or runs (table) whose name contains this")
    parser.add_argument("--steps", type=int, help="of a cell; default 200")
    parser.add_argument("--seconds", type=float, help="of a clip; default 0.5, in `table` 1")
    parser.add_argument("--width", type=int, help="of the network; default 16")
    parser.add_argument("--batch", type=int, help="clips a step; default 4")
    parser.add_argument("--epochs", type=int, default=80, help="of `table`")
    parser.add_argument("--norms", default="pre,post,none", help="of `grid`, as the following")
    parser.add_argument("--scales", default="1,30,1000")
    parser.add_argument("--between", default="clip,none")
    parser.add_argument("--rates", default="5e-5,5e-4,5e-3")
    parser.add_argument("--warmups", default="0,100")
    parser.add_argument("--precisions", default="fp32,bf16,fp16,fp16-unscaled")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.mode == "table":
        arguments.seconds = arguments.seconds or 1.0
        print("| build | rate | precision | loss, first tenth | loss, last tenth | non-finite steps |")
        print("|---|---|---|---|---|---|")
        for row in table(arguments):
            build_name = {"pre": "ours", "post": "plain"}[row["norm"]]
            losses = f"{number(row['first_tenth'])} | {number(row['last_tenth'])}"
            bad = f"{row['nonfinite_steps']} of {row['steps']}"
            print(f"| {build_name} | {row['rate']} | {row['precision']} | {losses} | {bad} |", flush=True)
        return
    groups = hypotheses() if arguments.mode == "hypotheses" else {"grid": grid(arguments)}
    changes = {key: value for key in ("seconds", "width", "batch") if (value := getattr(arguments, key)) is not None}
    changes["data"] = "synthetic" if arguments.data == "synthetic" else "esc"
    root = "data/synthetic" if arguments.data == "synthetic" else arguments.data
    path = arguments.folder / "cells.jsonl"
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = json.loads(line)
        results[Cell(**entry["cell"])] = entry["result"]
    loaded: dict[tuple, tuple] = {}
    for title, cells in groups.items():
        if arguments.only not in title:
            continue
        rows = []
        for cell in cells:
            steps = (
                min(cell.steps, arguments.steps) if arguments.steps and cell.precision == "half" else arguments.steps
            )
            cell = dataclasses.replace(cell, steps=steps or cell.steps, **changes)
            if cell not in results:
                key = (cell.data, cell.seconds, cell.batch)
                if key not in loaded or len(loaded[key][0]) < cell.steps:
                    loaded[key] = load_batches(cell, root)
                results[cell] = run(cell, *loaded[key])
                with path.open("a") as file:
                    file.write(json.dumps({"cell": dataclasses.asdict(cell), "result": results[cell]}) + "\n")
                print(f"{cell.name()}: {json.dumps(results[cell])}", file=sys.stderr, flush=True)
            rows.append((cell, results[cell]))
        print(markdown(title, rows), flush=True)


if __name__ == "__main__":
    main()
