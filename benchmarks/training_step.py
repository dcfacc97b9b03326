"""Time and memory of training steps (forward + backward), alternatives interleaved in one run; medians.

    OMP_NUM_THREADS=2 python benchmarks/training_step.py frontend     # GAFX-R: precision, memory format
    OMP_NUM_THREADS=2 python benchmarks/training_step.py classifier --frames 1024 3308   # AST: the authors' way, ours
    OMP_NUM_THREADS=2 python benchmarks/training_step.py model --width 64 --batch 4   # whole model, as trained
    OMP_NUM_THREADS=1 python benchmarks/training_step.py profile frontend=mel   # where the time of a step goes

`profile` trains with the given keys of `gafx train` on the built-in music, and prints processor time by stage of a step
(median of the steps after the first five, without a profiler) and by operator (torch.profiler, five further steps).

Of the others, each alternative runs in a separate process, so that its peak memory is its own. Two figures are
printed: the peak of the process, and its increase over what the process held before its first step, with libraries,
module and data loaded; ratios are of the latter, since the libraries are the same for all.
"""

import argparse
import functools
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import types
from pathlib import Path

import torch

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the gafx command does
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(kind: str, settings: dict, arguments: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    from gafx.classifiers.ast import AST
    from gafx.model import create_frontend, create_model

    samples = round(arguments.seconds * 22050)
    if kind == "classifier":
        frames = settings["frames"]
        classifier = AST((1, 128, frames), 10, size="tiny")
        if settings["form"] == "original":
            as_the_authors(classifier)
        return classifier, torch.randn(arguments.batch, 1, 128, frames)
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


def as_the_authors(classifier: torch.nn.Module) -> None:
    """Make an AST compute as the authors' code does: patches by convolution, attention as a matrix that is kept."""

    def tokens(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.patches(feature_map).flatten(2).transpose(1, 2)

    def attention(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    classifier._tokens = types.MethodType(tokens, classifier)
    for block in classifier.blocks:
        block.attn.forward = types.MethodType(attention, block.attn)


def held() -> float:
    """Memory that this process holds now, in GiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30


def worker(kind: str, settings: dict, arguments: argparse.Namespace, connection) -> None:
    module, data = build(kind, settings, arguments)
    autocast = torch.autocast("cpu", DTYPES[settings["precision"]], enabled=settings["precision"] != "fp32")
    before = held()
    while connection.recv():
        begin = time.perf_counter()
        with autocast:
            loss = module(data).float().square().mean()
        loss.backward()
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        connection.send((seconds, peak, peak - before))


def compare(kind: str, alternatives: list[dict], arguments: argparse.Namespace) -> None:
    """Run the alternatives, one step of each per round, and print medians; the first is the baseline."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for settings in alternatives:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(kind, settings, arguments, theirs), daemon=True)
        process.start()
        workers.append((settings, process, ours))
    results: list[list[tuple[float, float, float]]] = [[] for _ in workers]
    for number in range(arguments.rounds + 1):
        for (_, _, connection), result in zip(workers, results, strict=True):
            connection.send(True)
            measured = connection.recv()
            if number:  # the first round warms up
                result.append(measured)
    first: tuple[float, float] | None = None
    for (settings, process, connection), result in zip(workers, results, strict=True):
        connection.send(False)
        process.join()
        seconds = statistics.median(seconds for seconds, _, _ in result)
        _, peak, above = result[-1]  # a peak only grows
        first = first or (seconds, above)
        name = ", ".join(f"{key}={value}" for key, value in settings.items())
        print(
            f"  {name:46} {1000 * seconds:8.0f} ms   {first[0] / seconds:5.2f} x the speed   peak {peak:5.2f} GiB, "
            f"{above:5.2f} above the start   {above / first[1]:4.2f} x the memory"
        )


class Stages:
    """Processor seconds of all threads by stage, for each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = [{}]
        self._open: list[float] = []

    def enter(self) -> None:
        self._open.append(time.process_time())

    def leave(self, name: str) -> None:
        seconds = time.process_time() - self._open.pop()
        self.steps[-1][name] = self.steps[-1].get(name, 0.0) + seconds

    def wrap(self, owner: type, method: str, name: str) -> None:
        """Count what calls of a method take as stage `name`."""
        call = getattr(owner, method)

        @functools.wraps(call)
        def timed(*values: object, **keywords: object) -> object:
            self.enter()
            try:
                return call(*values, **keywords)
            finally:
                self.leave(name)

        setattr(owner, method, timed)


def profile(arguments: argparse.Namespace) -> None:
    """Train a run, and print where the processor time of a step goes."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from gafx.compose import compose_train
    from gafx.training.ema import EMA
    from gafx.training.learner import Learner
    from gafx.training.throughput import Throughput
    from gafx.training.trainer import Trainer

    stages, table = Stages(), None
    counted, profiled = arguments.rounds + 5, 5
    for owner, method, name in (
        (Throughput, "wait", "input"), (Learner, "remember_buffers", "copy of the buffers"),
        (Learner, "loss", "forward"), (Accelerator, "backward", "backward"),
        (Learner, "clip_grad_norm", "gradient norm"), (AcceleratedOptimizer, "step", "optimiser"),
        (AcceleratedOptimizer, "zero_grad", "optimiser"), (EMA, "update", "EMA"), (Trainer, "_log", "log"),
    ):  # fmt: skip
        stages.wrap(owner, method, name)

    class Profiled(Trainer):
        def _announce(self, step: int) -> None:
            model = self.objective.model
            print(f"{sum(p.numel() for p in model.parameters()):,} parameters, batch of {self.config.batch_size}, "
                  f"{self.precision}, {torch.get_num_threads()} threads, map {model.classifier.map_shape}")  # fmt: skip
            for part in ("frontend", "map_norm", "classifier"):
                module = getattr(model, part)
                module.register_forward_pre_hook(lambda *_: stages.enter())
                module.register_forward_hook(lambda *_, part=part: stages.leave(f"forward: {part}"))
            for row in range(len(self.manifest)):
                self.reader.read(row, 0, 1)  # small data sets are kept in memory from their first epoch on
            self.begin = time.process_time()

        def _checkpoint(self, step: int) -> None:
            """Not measured: epochs are much longer as a rule."""

        def _step(self, batches, lr: float, step: int) -> tuple[float, float]:
            nonlocal table
            if step == counted:
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
                self.profiler.__enter__()
            values = super()._step(batches, lr, step)
            if step == counted + profiled - 1:
                self.profiler.__exit__(None, None, None)
                table = self.profiler.key_averages()
            now = time.process_time()
            stages.steps[-1]["whole step"] = now - self.begin
            self.begin = now
            stages.steps.append({})
            return values

    with tempfile.TemporaryDirectory() as folder:
        keys = [
            "experiment=small_data", "data=synthetic", f"data.root={folder}/music", "data.options.tracks=10",
            "data.options.seconds=10.0", "data.leak_check=false", "workers=0",
            f"batch_size={arguments.batch}", f"data.segment_seconds={arguments.seconds}", "epochs=1000",
            "tracking.log_steps=20", f"output_dir={folder}", f"max_steps={counted + profiled}", *arguments.overrides,
        ]  # fmt: skip
        Profiled(compose_train(keys)).fit()
    steps = stages.steps[5:counted]
    whole = statistics.median(step["whole step"] for step in steps)
    print(f"{' '.join(arguments.overrides)}: {1000 * whole:.1f} ms of processor time a step, median of {len(steps)}")
    rows = {
        name: statistics.median(step.get(name, 0.0) for step in steps)
        for name in dict.fromkeys(name for step in steps for name in step)
    }
    parts = (name for name in rows if name != "whole step" and not name.startswith("forward: "))
    rows["other"] = whole - sum(rows[name] for name in parts)
    for name, seconds in rows.items():
        print(f"  {name:24} {1000 * seconds:9.2f} ms {100 * seconds / whole:6.1f} %")
    assert table is not None
    total = sum(row.self_cpu_time_total for row in table)
    print(f"operators by their own time, {profiled} steps:")
    for row in sorted(table, key=lambda row: -row.self_cpu_time_total)[: arguments.top]:
        milliseconds = row.self_cpu_time_total / 1000 / profiled
        print(f"  {row.key:44} {milliseconds:9.2f} ms {100 * row.self_cpu_time_total / total:6.1f} %"
              f" {row.count / profiled:8.0f} calls")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["frontend", "classifier", "model", "profile"])
    parser.add_argument("overrides", nargs="*", help="keys of gafx train (profile)")
    parser.add_argument("--width", type=int, default=16, help="of GAFX-R")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--frames", type=int, nargs="+", default=[1024, 3308], help="of the classifier's maps")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top", type=int, default=12, help="operators that are printed (profile)")
    arguments = parser.parse_args()
    if arguments.kind == "profile":
        return profile(arguments)
    groups = {
        "frontend": [[{"precision": p, "channels_last": c} for p in DTYPES for c in (False, True)]],
        "classifier": [
            [
                {"frames": frames, "precision": "fp32", "form": "original"},
                {"frames": frames, "precision": "fp32", "form": "gafx"},
                {"frames": frames, "precision": "bf16", "form": "gafx"},
            ]
            for frames in arguments.frames
        ],
        "model": [[{"precision": "bf16", "frontend": name} for name in ("mel", "gafx_r")]],
    }[arguments.kind]
    print(
        f"{arguments.kind}, batch {arguments.batch}, {torch.get_num_threads()} threads, median of {arguments.rounds}:"
    )
    for alternatives in groups:  # one group after another: the alternatives of a group are in memory together
        compare(arguments.kind, alternatives, arguments)


if __name__ == "__main__":
    main()
