"""Front-ends: speed, size and cost of each; GAFX-U against demucs' own forward pass.

    OMP_NUM_THREADS=2 python benchmarks/frontends.py table                 # every front-end, in Markdown
    OMP_NUM_THREADS=2 python benchmarks/frontends.py gafx_u --batch 4      # its map and HDemucs' own forward

`table`: clips of --seconds, batches of --batch, forward in eval mode and forward + backward, in bf16 where the
processor computes in it, else float32. `gafx_u`: float32, 16 kHz stereo; memory is what a call adds to the loaded model
and input, and the peak of the whole process.
"""

import argparse
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "gafx_u"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    {"table": show_table, "gafx_u": show_gafx_u}[arguments.what](arguments)


if __name__ == "__main__":
    main()
