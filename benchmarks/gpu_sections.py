"""The sections of gpu.py: for each, a list of rows, and how a row is measured.

A row's `settings` are the keyword arguments of its function; its result depends on them and the machine alone.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import torch
from gpu_rows import CONFIGS, ROOT, ObservedTrainer, Row, Setup, Skip, reset_accelerate

import gafx
from gafx.compose import compose_evaluate, compose_train
from gafx.config import read_mapping
from gafx.memory import peak_memory, reset_peak_memory
from gafx.nn.flops import count_flops
from gafx.training.trainer import Trainer

# --- throughput -------------------------------------------------------------------------------------------------------

# Name -> (overrides, seconds of a clip, clips a step). 204,800 samples at 22.05 kHz are 1024 frames; 30 s is a track of
# GTZAN. The batches are meant to fit into 80 GB, and divide the 80 training tracks or their 240 segments of 10 s: a
# last batch of another size would be compiled again.
MODELS: dict[str, tuple[list[str], float, int]] = {
    "mel, 1024 frames": (["frontend=mel"], 204800 / 22050, 120),
    "mel, 3308 frames": (["frontend=mel"], 30.0, 40),
    "gafx_r, 10 s": (["frontend=gafx_r"], 10.0, 40),
    "gafx_r, 30 s": (["frontend=gafx_r"], 30.0, 16),
    "gafx_a, 30 s": (["frontend=gafx_a"], 30.0, 16),
    "gafx_u, frozen, 30 s": (["frontend=gafx_u", "frontend.frozen=true"], 30.0, 16),
    "gafx_u, 30 s": (["frontend=gafx_u"], 30.0, 8),
    "gafx_u, checkpointing, 30 s": (["frontend=gafx_u", "frontend.checkpointing=true"], 30.0, 8),
}


def throughput_rows(setup: Setup) -> list[Row]:
    """Every model in bf16 and fp16, eager and compiled."""
    rows = []
    orders = {("bf16", False): 10, ("fp16", False): 60, ("bf16", True): 70, ("fp16", True): 80}
    for (precision, compiled), order in orders.items():
        for name, (overrides, seconds, clips) in MODELS.items():
            settings = {
                "overrides": tiny(overrides) if setup.tiny else [*overrides, "classifier=ast_tiny"],
                "segment_seconds": 0.4 if setup.tiny else seconds, "batch_size": 2 if setup.tiny else clips,
                "max_steps": 2 if setup.tiny else None, "precision": precision, "compiled": compiled,
                "seconds": setup.seconds, "workers": 0 if setup.tiny else setup.workers, "peak": setup.peak,
            }  # fmt: skip
            label = f"{name}, {precision}, {'compiled' if compiled else 'eager'}"
            rows.append(Row("Throughput", label, 60 if compiled else 12, order, throughput, settings))
    return rows


def tiny(overrides: list[str]) -> list[str]:
    """The slim variant of a model with one block of AST-Tiny."""
    slim = [f"{o}_slim" if o.startswith("frontend=gafx_") else o for o in overrides]
    return [*slim, "classifier=ast_slim", "classifier.depth=1"]


def throughput(
    setup: Setup,
    *,
    overrides: list[str],
    segment_seconds: float,
    batch_size: int,
    max_steps: int | None,
    precision: str,
    compiled: bool,
    seconds: float,
    workers: int,
    peak: float,
) -> dict[str, Any]:
    """Clips per second of training steps with the loader, and their fraction of what `peak` TFLOP/s would allow.

    The rehearsal compiles without generating code, which takes minutes on a CPU.
    """
    check_precision(setup, precision)
    if compiled and setup.tiny and not setup.everything:
        raise Skip("compilation is rehearsed with --all only")
    flops = training_flops(tuple(overrides), segment_seconds, setup.device)
    crop = "random" if segment_seconds > 10 else "segments"  # several segments of a track: more steps an epoch
    reset_peak_memory(setup.device)  # and again after the warm-up
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")) if setup.tiny else nullcontext():
        figures = ObservedTrainer(
            [
                *setup.data(), *overrides, f"data.segment_seconds={segment_seconds}", f"data.crop={crop}",
                f"batch_size={batch_size}", f"precision={precision}", f"compile={str(compiled).lower()}",
                f"workers={workers}", "epochs=100000", f"max_steps={'null' if max_steps is None else max_steps}",
            ],
            seconds,
        ).observe()  # fmt: skip
    ceiling = peak * 1e12 / flops
    return {
        "clips_per_second": figures["clips_per_second"], "ceiling_clips_per_second": ceiling,
        "fraction_of_ceiling": figures["clips_per_second"] / ceiling, "training_gflop_per_clip": flops / 1e9,
        "peak_memory_gb": peak_memory(setup.device) / 1e9, "data_wait_fraction": figures["data_wait"],
        "seconds_per_step": figures["seconds_per_step"],
    }  # fmt: skip


def check_precision(setup: Setup, precision: str) -> None:
    """Raise `Skip` for a precision that the device does not have."""
    if precision == "fp16" and setup.device.type != "cuda":
        raise Skip("precision=fp16 needs a GPU")


@cache
def training_flops(overrides: tuple[str, ...], seconds: float, device: torch.device) -> float:
    """FLOPs of one clip in training: three forward passes of what is trained, one of a front-end that is not.

    Activations recomputed under checkpointing are not counted: they do not train faster.
    """
    config = compose_train(overrides, CONFIGS)
    model = gafx.create_model(config.frontend, config.classifier, num_classes=10, segment_seconds=seconds)
    model.eval().to(device)
    wave = torch.zeros(1, model.frontend.channels, round(seconds * model.frontend.sample_rate), device=device)
    total, front = count_flops(model, wave), count_flops(model.frontend, wave)
    trained = any(parameter.requires_grad for parameter in model.frontend.parameters())
    return 3 * total if trained else 3 * (total - front) + front


# --- losses against the CPU's -----------------------------------------------------------------------------------------


def loss_rows(setup: Setup) -> list[Row]:
    """20 steps of each model on both devices."""
    models = {"mel + AST": ["frontend=mel"], "gafx_r slim + AST": ["frontend=gafx_r_slim"]}
    settings = {"steps": 2 if setup.tiny else 20, "seconds": 0.4 if setup.tiny else 1.0, "tolerance": 2e-3}
    return [
        Row("Losses", name, 25, 20, losses, {"overrides": [*model, *tiny([])], **settings})
        for name, model in models.items()
    ]


def losses(setup: Setup, *, overrides: list[str], steps: int, seconds: float, tolerance: float) -> dict[str, Any]:
    """Train on the CPU and on the device in fp32 without TF32 and compare the losses step by step.

    Adam turns rounding into steps of the learning rate's size where a gradient is close to 0, so losses drift apart;
    the first step's gradient norm is compared as well.
    """
    found = {}
    for device in ("cpu", "auto"):
        with no_tf32():
            trainer = ObservedTrainer([
                *setup.data(), *overrides, f"data.segment_seconds={seconds}", "batch_size=8", "precision=fp32",
                "optim.warmup_steps=0", "epochs=100000", f"max_steps={steps}", "workers=0", f"device={device}",
            ])  # fmt: skip
            trainer.observe()
        found[device] = trainer
        reset_accelerate()
    return compare_losses(found["cpu"], found["auto"], tolerance)


def compare_losses(cpu: ObservedTrainer, other: ObservedTrainer, tolerance: float) -> dict[str, Any]:
    """Largest relative difference of the losses, and of the gradient norm in the first step."""
    differences = [abs(b - a) / abs(a) for a, b in zip(cpu.losses, other.losses, strict=True)]
    return {
        "steps": len(differences), "tolerance": tolerance, "largest_relative_difference": max(differences),
        "first_gradient_norm_difference": abs(other.norms[0] - cpu.norms[0]) / cpu.norms[0],
        "equal": all(difference <= tolerance for difference in differences),  # false for NaN
        "losses_cpu": cpu.losses, "losses": other.losses,
    }  # fmt: skip


@contextmanager
def no_tf32() -> Iterator[None]:
    """Compute fp32 matrix products and convolutions in full fp32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


# --- fp16 stability of GAFX-A -----------------------------------------------------------------------------------------


def stability_rows(setup: Setup) -> list[Row]:
    """gafx's GAFX-A and the plain reading of the paper (`norm=post`) at both learning rates."""
    return [
        Row(
            "GAFX-A in fp16", f"norm={norm}, learning rate {rate:g}", 20, 30, stability,
            {"norm": norm, "learning_rate": rate, "steps": 2 if setup.tiny else 300},
        )
        for norm in ("pre", "post") for rate in (5e-5, 5e-4)
    ]  # fmt: skip


def stability(setup: Setup, *, norm: str, learning_rate: float, steps: int) -> dict[str, Any]:
    """Train GAFX-A in fp16 (on a CPU in bf16) with Adam on 1 s crops, at a constant learning rate after 50 steps."""
    precision = "fp16" if setup.device.type == "cuda" else "bf16"
    model = tiny(["frontend=gafx_a"]) if setup.tiny else ["frontend=gafx_a", "classifier=ast_slim"]
    trainer = ObservedTrainer([
        *setup.data(), *model, f"frontend.norm={norm}", f"data.segment_seconds={0.4 if setup.tiny else 1.0}",
        "batch_size=8", f"precision={precision}", f"optim.lr={learning_rate}", "optim.warmup_steps=50",
        "optim.schedule=constant", "epochs=100000", f"max_steps={steps}", "workers=0",
    ])  # fmt: skip
    trainer.observe()
    tenth = max(1, len(trainer.losses) // 10)
    return {
        "precision": precision, "steps": len(trainer.losses),
        "nonfinite_losses": sum(not math.isfinite(loss) for loss in trainer.losses),
        "skipped_steps": trainer.skipped_steps, "first_tenth": sum(trainer.losses[:tenth]) / tenth,
        "last_tenth": sum(trainer.losses[-tenth:]) / tenth, "final_loss": trainer.losses[-1],
    }  # fmt: skip


# --- FSDP2 ------------------------------------------------------------------------------------------------------------


def fsdp_rows(setup: Setup) -> list[Row]:
    """The test of FSDP2 for this machine."""
    test = "test_two_sharded_processes_equal_one" if setup.tiny and setup.everything else "test_on_a_gpu"
    return [Row("FSDP2", "train, save, load, resume", 75, 40, fsdp, {"test": test}, needs_data=False)]


def fsdp(setup: Setup, *, test: str) -> dict[str, Any]:
    """Run a test of tests/test_fsdp.py: one process under torchrun with FSDP2 against one process without.

    The test trains, loads the saved model, compares its output, and resumes from a checkpoint.
    """
    report = setup.work / "fsdp.xml"
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}",
        f"{ROOT / 'tests' / 'test_fsdp.py'}::{test}",
    ]  # fmt: skip
    # A separate process group: torchrun's processes end with the test when it is stopped.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output = process.communicate()[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {process.returncode}: {output.strip()[-400:]}")
    case = ElementTree.parse(report).getroot().find(".//testcase")
    for outcome in case if case is not None else ():
        if outcome.tag == "skipped":
            raise Skip(f"{test}: {outcome.get('message')}")
        if outcome.tag in ("failure", "error"):
            raise RuntimeError(f"{test}: {outcome.get('message')}")
    return {"test": test, "passed": True}


# --- labelling --------------------------------------------------------------------------------------------------------


def labelling_rows(setup: Setup) -> list[Row]:
    """gafx.predict and transformers' pipeline, interleaved."""
    settings = {"files": 1, "rounds": 1} if setup.tiny else {"files": 120, "rounds": 3}
    return [Row("Labelling", "AST-Tiny", 60, 50, labelling, settings)]


def labelling(setup: Setup, *, files: int, rounds: int) -> dict[str, Any]:
    """See labelling.py; the files are cut from the synthetic tracks."""
    from labelling import compare, make_files

    folder = setup.work / "labelling"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    counts, rows = compare(make_files(setup.work / "synthetic", folder, files, 0), rounds, setup.device.type)
    return {**counts, "methods": rows}


# --- ESC-10 -----------------------------------------------------------------------------------------------------------


def esc10_rows(setup: Setup) -> list[Row]:
    """Fold 1 of ESC-10 by `experiment=esc10_scratch` (with its CNN) and GAFX-R at full width."""
    overrides = tiny(["frontend=gafx_r"]) if setup.tiny else ["frontend=gafx_r"]
    settings = {"overrides": overrides, "tiny": setup.tiny}
    return [Row("ESC-10", "gafx_r, fold 1", 120, 75, esc10, settings, needs_data=False)]


def esc10(setup: Setup, *, overrides: list[str], tiny: bool) -> dict[str, Any]:
    """Train and test; a run that was interrupted is resumed where `--work` keeps it."""
    if setup.esc10 is None:
        raise Skip("no data: name the root of ESC-10 by --esc10")
    from gafx.evaluation.evaluate import evaluate_runs

    config = compose_train(
        [
            "experiment=esc10_scratch", *overrides, f"data.root={setup.esc10.absolute()}", "data.fold=1",
            f"data.cache={setup.work / 'esc10-cache'}", f"output_dir={setup.work / 'esc10'}", "data.leak_check=false",
            f"workers={0 if tiny else setup.workers}", *(["max_steps=1", "data.segment_seconds=0.4"] if tiny else []),
        ],
        CONFIGS,
    )  # fmt: skip
    folder = Trainer(config).fit()
    reset_accelerate()
    evaluate_runs([folder], compose_evaluate(["workers=0"], CONFIGS))
    result, record = read_mapping(folder / "result.json", "scores"), read_mapping(folder / "run.json")
    accuracy = result["scores"]["track"]["accuracy"]
    return {
        "tracks": result["tracks"], "accuracy": accuracy, "macro_f1": result["scores"]["track"].get("macro_f1"),
        "steps": record["steps"], "train_seconds": record["train_seconds"],
        "precision": record["environment"]["precision"], "clips_per_second": record.get("clips_per_second"),
    }  # fmt: skip


SECTIONS: dict[str, Callable[[Setup], list[Row]]] = {
    "throughput": throughput_rows,
    "losses": loss_rows,
    "stability": stability_rows,
    "fsdp": fsdp_rows,
    "labelling": labelling_rows,
    "esc10": esc10_rows,
}
