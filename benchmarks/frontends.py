"""Front-ends: speed, size and cost of each; GAFX-U against demucs' own forward pass.

    OMP_NUM_THREADS=2 python benchmarks/frontends.py table                 # every front-end, in Markdown
    OMP_NUM_THREADS=2 python benchmarks/frontends.py gafx_u --batch 4      # its map and HDemucs' own forward
    OMP_NUM_THREADS=1 python benchmarks/frontends.py gafx_r --seconds 2    # the paper's and its cheaper variants
    OMP_NUM_THREADS=1 python benchmarks/frontends.py fold --seconds 2 --batch 8   # batch norm folded or not, layouts

`table`: clips of --seconds, batches of --batch, forward in eval mode and forward + backward, in bf16 where the
processor computes in it, else float32. `gafx_u`: float32, 16 kHz stereo; memory is what a call adds to the loaded model
and input, and the peak of the whole process. `gafx_r` and `fold`: processor seconds of one process, alternatives
interleaved; ratios to the first of them are those of the same round, with their range.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from alternatives import Measured, measure

# What is compared: a name for the table, the arguments of `create_frontend`.
FRONTENDS: dict[str, dict[str, Any]] = {
    "mel": {"name": "mel"},
    "leaf": {"name": "leaf"},
    "gafx_r": {"name": "gafx_r"},
    "gafx_r, width 16": {"name": "gafx_r", "width": 16},
    "gafx_a": {"name": "gafx_a"},
    "gafx_a, width 16": {"name": "gafx_a", "width": 16},
    "gafx_u": {"name": "gafx_u"},
    "gafx_u, frozen": {"name": "gafx_u", "frozen": True},
    "gafx_u, width 16": {"name": "gafx_u", "width": 16},
    "fused (mel, gafx_r)": {"name": "fused"},
}


def frontend_call(
    arguments: dict[str, Any], seconds: float, batch: int, backward: bool, precision: str
) -> Callable[[], Any]:
    from gafx.model import create_frontend
    from gafx.nn.precision import autocast

    front = create_frontend(**arguments).train(backward)
    wave = torch.randn(batch, front.channels, round(seconds * front.sample_rate)) * 0.1
    learns = backward and any(p.requires_grad for p in front.parameters())

    def call() -> None:
        with torch.set_grad_enabled(learns), autocast(precision, wave.device):
            loss = front(wave).float().square().mean()
        if learns:
            loss.backward()

    return call


def demucs_call(kind: str, seconds: float, batch: int, backward: bool) -> Callable[[], Any]:
    from demucs.hdemucs import HDemucs

    from gafx.model import create_frontend

    torch.manual_seed(0)
    module: Callable[[torch.Tensor], torch.Tensor]
    if kind == "HDemucs":
        module = HDemucs(["drums", "bass", "other", "vocals"])
    else:
        module = create_frontend("gafx_u", checkpointing="checkpointing" in kind)
    wave = torch.randn(batch, 2, round(seconds * 16000)) * 0.1

    def call() -> None:
        with torch.set_grad_enabled(backward):
            loss = module(wave).square().mean()
        if backward:
            loss.backward()

    return call


def show_gafx_u(arguments: argparse.Namespace) -> None:
    for backward in (False, True):
        kinds = ["HDemucs", "GAFX-U", *(["GAFX-U, checkpointing"] if backward else [])]
        found = measure(
            {k: (demucs_call, (k, arguments.seconds, arguments.batch, backward)) for k in kinds}, arguments.rounds
        )
        print(f"{'forward + backward' if backward else 'forward'}, {arguments.batch} x {arguments.seconds:g} s")
        own = found["HDemucs"]
        for name, one in found.items():
            print(
                f"  {name:22} {one.seconds:8.2f} s ({one.seconds / own.seconds:.2f} x)  added {one.added:6.2f} GB "
                f"({one.added / own.added:.2f} x)  peak {one.peak:6.2f} GB",
                flush=True,
            )


def show_table(arguments: argparse.Namespace) -> None:
    from gafx.model import create_frontend
    from gafx.nn.flops import count_flops
    from gafx.nn.precision import resolve_precision

    precision = resolve_precision("auto", torch.device("cpu"))
    threads = torch.get_num_threads()
    print(f"{precision}, {arguments.batch} x {arguments.seconds:g} s, {threads} threads, median of {arguments.rounds}")
    print("| front-end | parameters | GFLOP a clip of 30 s | clips/s | clips/s, forward + backward | added GB |")
    print("|---|---|---|---|---|---|")
    for name, given in FRONTENDS.items():
        front = create_frontend(**given).eval()
        flops = count_flops(front, torch.zeros(1, front.channels, 30 * front.sample_rate))
        size = sum(p.numel() for p in front.parameters())
        del front
        speeds: list[Measured] = [
            measure(
                {name: (frontend_call, (given, arguments.seconds, arguments.batch, backward, precision))},
                arguments.rounds,
            )[name]
            for backward in (False, True)
        ]
        forward, both = (arguments.batch / one.seconds for one in speeds)
        print(
            f"| {name} | {size / 1e6:.2f} M | {flops / 1e9:.1f} | {forward:.2f} | {both:.2f} | {speeds[1].added:.2f} |",
            flush=True,
        )


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> Iterator[tuple[str, str]]:
    """Yield name and processor seconds of each call, with the ratio to the first one: medians and ranges."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if number:  # the first round warms up
                times[name].append(time.process_time() - begin)
    first = next(iter(times.values()))
    for name, own in times.items():
        ratios = [one / base for one, base in zip(own, first, strict=True)]
        yield (
            name,
            f"{statistics.median(own):.3f} s, {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )


def show_gafx_r(arguments: argparse.Namespace) -> None:
    from gafx.model import create_frontend
    from gafx.nn.flops import count_flops

    variants: dict[str, dict[str, Any]] = {
        "paper": {},
        "time_stride=2": {"time_stride": 2},
        "time_stride=4": {"time_stride": 4},
        "conv=separable": {"conv": "separable"},
        "conv=separable, time_stride=2": {"conv": "separable", "time_stride": 2},
    }
    variants = {name: {"name": "gafx_r", "width": arguments.width, **given} for name, given in variants.items()}
    rows = []
    for given in variants.values():
        front = create_frontend(**given).eval().to("meta")
        flops = count_flops(front, torch.zeros(1, 1, 30 * 22050, device="meta"))
        rows.append(f"{sum(p.numel() for p in front.parameters()) / 1e6:.2f} M | {flops / 1e9:.0f}")
    for precision in ("fp32", "bf16"):
        found = []
        for backward in (False, True):
            calls = {
                name: frontend_call(given, arguments.seconds, arguments.batch, backward, precision)
                for name, given in variants.items()
            }
            found.append([text for _, text in interleaved(calls, arguments.rounds)])
        print(f"{precision}, width {arguments.width}, {arguments.batch} x {arguments.seconds:g} s, {arguments.rounds}")
        print("| | parameters | GFLOP a clip of 30 s | forward | forward + backward |")
        print("|---|---|---|---|---|")
        for name, row, forward, both in zip(variants, rows, *found, strict=True):
            print(f"| `{name}` | {row} | {forward} | {both} |", flush=True)


def inference_call(
    given: dict[str, Any], fold: bool, channels_last: bool, precision: str, arguments: argparse.Namespace
) -> Callable[[], Any]:
    from gafx.model import create_frontend
    from gafx.nn.precision import autocast

    torch.manual_seed(0)
    front: Any = create_frontend(**given).eval()
    if not channels_last:
        front.to(memory_format=torch.contiguous_format)
    if not fold:  # a layer with a hook is not folded
        for part in front.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.register_forward_hook(lambda *_: None)
    wave = torch.randn(arguments.batch, 1, round(arguments.seconds * front.sample_rate)) * 0.1

    @torch.inference_mode()
    def call() -> None:
        with autocast(precision, wave.device):
            front(wave)

    return call


def show_fold(arguments: argparse.Namespace) -> None:
    given = {"name": "gafx_r", "width": arguments.width}
    for precision in ("fp32", "bf16"):
        calls = {
            f"{'channels last' if last else 'channels first'}, {'folded' if fold else 'batch norm apart'}":
            inference_call(given, fold, last, precision, arguments)
            for last in (True, False) for fold in (False, True)
        }  # fmt: skip
        print(f"{precision}, width {arguments.width}, {arguments.batch} x {arguments.seconds:g} s, {arguments.rounds}")
        for name, text in interleaved(calls, arguments.rounds):
            print(f"  {name:32} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "gafx_u", "gafx_r", "fold"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="of gafx_r and fold")
    arguments = parser.parse_args()
    shown = {"table": show_table, "gafx_u": show_gafx_u, "gafx_r": show_gafx_r, "fold": show_fold}
    shown[arguments.what](arguments)


if __name__ == "__main__":
    main()
