"""Time and memory of training steps (forward + backward), alternatives interleaved in one run; medians.

    OMP_NUM_THREADS=2 python benchmarks/training_step.py frontend     # GAFX-R: precision, memory format
    OMP_NUM_THREADS=2 python benchmarks/training_step.py classifier   # AST: unfused and fused attention
    OMP_NUM_THREADS=2 python benchmarks/training_step.py model --width 64 --batch 4   # whole model, as trained

Each alternative runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(kind: str, settings: dict, arguments: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    from gafx.classifiers.ast import AST
    from gafx.model import create_frontend, create_model

    samples = round(arguments.seconds * 22050)
    if kind == "classifier":
        import timm.layers

        timm.layers.set_fused_attn(settings["fused"])
        frames = arguments.frames
        return AST((1, 128, frames), 10, size="tiny"), torch.randn(arguments.batch, 1, 128, frames)
    if kind == "frontend":
        module = create_frontend("gafx_r", width=arguments.width)
        if not settings["channels_last"]:
            module.to(memory_format=torch.contiguous_format)
            forward = module.resnet.forward

            def channels_first(frames: torch.Tensor) -> torch.Tensor:
                contiguous = torch.Tensor.contiguous
                torch.Tensor.contiguous = lambda self, **_: contiguous(self)  # type: ignore[method-assign]
                try:
                    return forward(frames)
                finally:
                    torch.Tensor.contiguous = contiguous  # type: ignore[method-assign]

            module.resnet.forward = channels_first
    else:
        frontend = {"name": "gafx_r", "width": arguments.width} if settings["frontend"] == "gafx_r" else "mel"
        module = create_model(
            frontend, {"name": "ast", "size": "small"}, num_classes=10, segment_seconds=arguments.seconds
        )
    return module, torch.randn(arguments.batch, 1, samples) * 0.1


def worker(kind: str, settings: dict, arguments: argparse.Namespace, connection) -> None:
    module, data = build(kind, settings, arguments)
    autocast = torch.autocast("cpu", DTYPES[settings["precision"]], enabled=settings["precision"] != "fp32")
    while connection.recv():
        begin = time.perf_counter()
        with autocast:
            loss = module(data).float().square().mean()
        loss.backward()
        connection.send((time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["frontend", "classifier", "model"])
    parser.add_argument("--width", type=int, default=16, help="of GAFX-R")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--frames", type=int, default=3296, help="of the classifier's map")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    alternatives = {
        "frontend": [{"precision": p, "channels_last": c} for p in DTYPES for c in (False, True)],
        "classifier": [
            {"precision": "fp32", "fused": False},
            {"precision": "fp32", "fused": True},
            {"precision": "bf16", "fused": True},
        ],
        "model": [{"precision": "bf16", "frontend": name} for name in ("mel", "gafx_r")],
    }[arguments.kind]
    context = multiprocessing.get_context("spawn")
    workers = []
    for settings in alternatives:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(arguments.kind, settings, arguments, theirs), daemon=True)
        process.start()
        workers.append((settings, ours))
    results: list[list[tuple[float, float]]] = [[] for _ in workers]
    for number in range(arguments.rounds + 1):
        for (_, connection), result in zip(workers, results, strict=True):
            connection.send(True)
            measured = connection.recv()
            if number:  # the first round warms up
                result.append(measured)
    print(
        f"{arguments.kind}, batch {arguments.batch}, {torch.get_num_threads()} threads, median of {arguments.rounds}:"
    )
    first = statistics.median(seconds for seconds, _ in results[0])
    for (settings, connection), result in zip(workers, results, strict=True):
        connection.send(False)
        seconds, memory = statistics.median(s for s, _ in result), max(m for _, m in result)
        name = ", ".join(f"{key}={value}" for key, value in settings.items())
        print(f"  {name:40} {1000 * seconds:8.0f} ms   {first / seconds:5.2f} x   peak {memory:5.2f} GiB")


if __name__ == "__main__":
    main()
