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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import torch
from gpu_rows import CONFIGS, ROOT, ObservedTrainer, Row, Setup, Skip, reset_accelerate

import gafx
from gafx.audio.read import read_segment
from gafx.compose import compose_evaluate, compose_train
from gafx.config import read_mapping
from gafx.deploy.files import find_files
from gafx.deploy.windows import on_device
from gafx.memory import peak_memory, reset_peak_memory
from gafx.nn.flops import count_flops
from gafx.training.trainer import Trainer

# --- throughput -------------------------------------------------------------------------------------------------------

# Name -> (overrides, seconds of a clip, clips a step); the classifier is AST-Tiny where none is named. 204,800 samples
# at 22.05 kHz are 1024 frames; 30 s is a track of GTZAN. The batches are meant to fit into 80 GB, and divide the 80
# training tracks or their segments (240 of 10 s, 480 of 5 s): a last batch of another size would be compiled again.
MODELS: dict[str, tuple[list[str], float, int]] = {
    "mel, 1024 frames": (["frontend=mel"], 204800 / 22050, 120),
    "mel, 3308 frames": (["frontend=mel"], 30.0, 40),
    "mel64 + cnn, 5 s": (["frontend=mel64", "classifier=cnn"], 5.0, 160),
    "gabor + cnn, 5 s": (["frontend=gabor", "classifier=cnn"], 5.0, 160),
    "gafx_r, 10 s": (["frontend=gafx_r"], 10.0, 40),
    "gafx_r, 30 s": (["frontend=gafx_r"], 30.0, 16),
    "gafx_a, 30 s": (["frontend=gafx_a"], 30.0, 16),
    "gafx_u, frozen, 30 s": (["frontend=gafx_u", "frontend.frozen=true"], 30.0, 16),
    "gafx_u, 30 s": (["frontend=gafx_u"], 30.0, 8),
    "gafx_u, checkpointing, 30 s": (["frontend=gafx_u", "frontend.checkpointing=true"], 30.0, 8),
    "mel_librosa + crnn, 10 s": (["frontend=mel_librosa", "classifier=crnn"], 10.0, 120),
    "leaf, 10 s": (["frontend=leaf"], 10.0, 40),
    "mel_jukebox + bert, masked, 10 s": (["frontend=mel_jukebox", "classifier=bert", "objective=masked"], 10.0, 16),
    "vq + cnn, codec, 1 s": (["frontend=vq", "classifier=cnn", "objective=codec"], 1.0, 40),
}
# Compiled before the others: what `compile=true` gains for a transformer, a large and a small convolutional network.
COMPILED_FIRST = ("mel, 1024 frames", "gafx_r, 10 s", "gabor + cnn, 5 s")


def throughput_rows(setup: Setup) -> list[Row]:
    """Every model in bf16 and fp16; in bf16 also compiled, unless the objective bypasses the compiled forward pass."""
    rows = []
    for name, (overrides, seconds, clips) in MODELS.items():
        pretrains = any(override.startswith("objective=") for override in overrides)
        for precision, compiled in (("bf16", False), ("fp16", False), *([] if pretrains else [("bf16", True)])):
            settings = {
                "overrides": tiny(overrides) if setup.tiny else full(overrides),
                "segment_seconds": 0.4 if setup.tiny else seconds, "batch_size": 2 if setup.tiny else clips,
                "max_steps": 2 if setup.tiny else None, "precision": precision, "compiled": compiled,
                "seconds": setup.seconds, "workers": 0 if setup.tiny else setup.workers, "peak": setup.peak,
            }  # fmt: skip
            label = f"{name}, {precision}, {'compiled' if compiled else 'eager'}"
            order = {"fp16": 80, "bf16": 10}[precision] if not compiled else 60 if name in COMPILED_FIRST else 90
            rows.append(Row("Throughput", label, 45 if compiled else 9, order, throughput, settings))
    return rows


# What makes other parts small, for the rehearsal and for steps that are computed on the CPU as well.
SMALLER = {
    "classifier=bert": ["classifier.width=24", "classifier.depth=1"],
    "frontend=leaf": ["frontend.n_filters=40"],
    "frontend=vq": ["frontend.codec_width=8", "frontend.codec_depth=1", "frontend.num_codes=64"],
}


def full(overrides: list[str]) -> list[str]:
    """A model with AST-Tiny where no classifier is named."""
    return overrides if names_classifier(overrides) else [*overrides, "classifier=ast_tiny"]


def tiny(overrides: list[str]) -> list[str]:
    """The slim variant of a model; one block of AST-Tiny where no classifier is named."""
    slim = [f"{o}_slim" if o.startswith("frontend=gafx_") and not o.endswith("_slim") else o for o in overrides]
    slim += [more for part, found in SMALLER.items() if part in overrides for more in found]
    return slim if names_classifier(overrides) else [*slim, "classifier=ast_slim", "classifier.depth=1"]


def names_classifier(overrides: list[str]) -> bool:
    return any(override.startswith("classifier=") for override in overrides)


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
    """Clips per second of training steps with the loader, and their fraction of what `peak` TFLOP/s would allow."""
    check_precision(setup, precision)
    check_compiled(setup, compiled)
    flops = training_flops(tuple(overrides), segment_seconds, setup.device)
    crop = "random" if segment_seconds > 10 else "segments"  # several segments of a track: more steps an epoch
    reset_peak_memory(setup.device)  # and again after the warm-up
    with without_code(setup):
        figures = ObservedTrainer(
            [
                *setup.data(), *overrides, f"data.segment_seconds={segment_seconds}", f"data.crop={crop}",
                f"batch_size={batch_size}", f"precision={precision}", f"compile={str(compiled).lower()}",
                f"workers={workers}", "epochs=100000", f"max_steps={'null' if max_steps is None else max_steps}",
            ],
            seconds,
        ).observe()  # fmt: skip
    counted = {}
    if flops is not None:
        ceiling = peak * 1e12 / flops
        counted = {
            "ceiling_clips_per_second": ceiling, "fraction_of_ceiling": figures["clips_per_second"] / ceiling,
            "training_gflop_per_clip": flops / 1e9,
        }  # fmt: skip
    return {
        "clips_per_second": figures["clips_per_second"], **counted,
        "peak_memory_gb": peak_memory(setup.device) / 1e9, "data_wait_fraction": figures["data_wait"],
        "seconds_per_step": figures["seconds_per_step"],
    }  # fmt: skip


def check_precision(setup: Setup, precision: str) -> None:
    """Raise `Skip` for a precision that the device does not have."""
    if precision == "fp16" and setup.device.type != "cuda":
        raise Skip("precision=fp16 needs a GPU")


def check_compiled(setup: Setup, compiled: bool) -> None:
    """Raise `Skip` for compilation in a rehearsal, unless that was asked for: it takes minutes on a CPU."""
    if compiled and setup.tiny and not setup.everything:
        raise Skip("compilation is rehearsed with --all only")


def without_code(setup: Setup) -> AbstractContextManager[object]:
    """In the rehearsal `torch.compile` traces and generates no code."""
    return patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")) if setup.tiny else nullcontext()


@cache
def training_flops(overrides: tuple[str, ...], seconds: float, device: torch.device) -> float | None:
    """FLOPs of one clip in training: three forward passes of what is trained, one of a front-end that is not.

    Activations recomputed under checkpointing are not counted: they do not train faster. None for a codec, whose
    decoder is no part of the model.
    """
    config = compose_train(overrides, CONFIGS)
    if config.objective["name"] == "codec":
        return None
    model = gafx.create_model(config.frontend, config.classifier, num_classes=10, segment_seconds=seconds)
    model.eval().to(device)
    wave = torch.zeros(1, model.frontend.channels, round(seconds * model.frontend.sample_rate), device=device)
    total, front = count_flops(model, wave), count_flops(model.frontend, wave)
    trained = any(parameter.requires_grad for parameter in model.frontend.parameters())
    return 3 * total if trained else 3 * (total - front) + front


# --- losses against the CPU's -----------------------------------------------------------------------------------------


# Name -> overrides. Devices draw other random numbers, so what is drawn on the device is off: dropout, and codes that
# restart.
COMPARED: dict[str, list[str]] = {
    "mel + AST": ["frontend=mel"],
    "gafx_r slim + AST": ["frontend=gafx_r"],
    **{
        f"{frontend} + {classifier}": [f"frontend={frontend}", f"classifier={classifier}", "classifier.dropout=0"]
        for frontend, classifier in (("mel64", "cnn"), ("gabor", "cnn"), ("leaf", "cnn"), ("mel_librosa", "crnn"))
    },
    "mel_jukebox + bert, masked": [
        "frontend=mel_jukebox", "classifier=bert", "classifier.dropout=0", "objective=masked",
    ],
    "vq + cnn, codec": ["frontend=vq", "classifier=cnn", "objective=codec", "frontend.restart_below=0"],
}  # fmt: skip


def loss_rows(setup: Setup) -> list[Row]:
    """20 steps of each model on both devices, 5 of the codec (slow on a CPU); two also compiled on the device."""
    rows = []
    for name, overrides in COMPARED.items():
        steps = 2 if setup.tiny else 5 if "objective=codec" in overrides else 20
        settings = {"steps": steps, "seconds": 0.4 if setup.tiny else 1.0, "tolerance": 2e-3}
        for compiled in (False, True) if name in ("mel64 + cnn", "gabor + cnn") else (False,):
            label, cost, order = (f"{name}, compiled", 35, 50) if compiled else (name, 9, 20)
            given = {"overrides": tiny(overrides), "compiled": compiled, **settings}
            rows.append(Row("Losses", label, cost, order, losses, given))
    return rows


def losses(
    setup: Setup, *, overrides: list[str], compiled: bool, steps: int, seconds: float, tolerance: float
) -> dict[str, Any]:
    """Train on the CPU and on the device in fp32 without TF32 and compare the losses step by step.

    Adam turns rounding into steps of the learning rate's size where a gradient is close to 0, so losses drift apart;
    the first step's gradient norm is compared as well.
    """
    check_compiled(setup, compiled)
    found = {}
    for device in ("cpu", "auto"):
        with no_tf32(), without_code(setup):
            trainer = ObservedTrainer([
                *setup.data(), *overrides, f"data.segment_seconds={seconds}", "batch_size=8", "precision=fp32",
                "optim.warmup_steps=0", "epochs=100000", f"max_steps={steps}", "workers=0", f"device={device}",
                f"compile={str(compiled and device == 'auto').lower()}",
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


# --- predictions against the CPU's ------------------------------------------------------------------------------------


def prediction_rows(setup: Setup) -> list[Row]:
    """Each model of the throughput section once, in full size; without codes, which flip where two are equally near."""
    rows, seen = [], set()
    for name, (overrides, _, _) in MODELS.items():
        model = tiny(overrides) if setup.tiny else full(overrides)
        parts = tuple(part for part in model if part.startswith(("frontend=", "classifier=")))
        if parts in seen or "frontend=vq" in model:
            continue
        seen.add(parts)
        settings = {"overrides": model, "seconds": 0.4 if setup.tiny else 2.0, "clips": 8, "tolerance": 1e-4}
        rows.append(Row("Predictions", name.partition(",")[0], 5, 15, predictions, settings))
    return rows


def predictions(
    setup: Setup, *, overrides: list[str], seconds: float, clips: int, tolerance: float
) -> dict[str, Any]:  # fmt: skip
    """Largest difference of probabilities from those of the CPU in fp32, as `gafx.predict` computes them.

    Random weights give almost the same logits to every clip. They are centred, and scaled to a std of 1 over the clips
    and labels, before they become probabilities, so that these differ between clips as a trained model's do.
    """
    config = compose_train(overrides, CONFIGS)
    torch.manual_seed(0)
    model = gafx.create_model(config.frontend, config.classifier, num_classes=10, segment_seconds=seconds).eval()
    rate, channels = model.frontend.sample_rate, model.frontend.channels
    files = find_files([str(setup.work / "synthetic")]).files[:clips]
    length = round(seconds * rate)
    waves = np.stack([
        read_segment(file, 0, length, sample_rate=rate, channels=channels) for file in files
    ])  # fmt: skip
    model.fit_statistics(torch.from_numpy(waves))
    with torch.no_grad():
        logits = on_device(model, "cpu", "fp32")(waves)
    mean = logits.mean(axis=0)
    std = (logits - mean).std()

    def probabilities(values: Any) -> Any:
        return torch.from_numpy((values - mean) / std).softmax(dim=1).numpy()

    expected = probabilities(logits)
    model.to(setup.device)
    ways = {"fp32": ("fp32", no_tf32), "bf16": ("bf16", nullcontext)}
    if setup.device.type == "cuda":
        ways |= {"tf32": ("fp32", nullcontext), "fp16": ("fp16", nullcontext)}  # as PyTorch sets TF32 by default
    found: dict[str, Any] = {"clips": len(files), "tolerance": tolerance, "finite": True}
    for name, (precision, context) in ways.items():
        with context():
            values = on_device(model, str(setup.device), precision)(waves)
        found["finite"] &= bool(np.isfinite(values).all())
        found[name] = float(np.abs(probabilities(values) - expected).max())
    return {**found, "equal": found["fp32"] <= tolerance, "largest_probability": float(expected.max())}


# --- fp16 stability of GAFX-A -----------------------------------------------------------------------------------------


def stability_rows(setup: Setup) -> list[Row]:
    """gafx's GAFX-A and the plain reading of the paper (`norm=post`) at both learning rates."""
    return [
        Row(
            "GAFX-A in fp16", f"norm={norm}, learning rate {rate:g}", 15, 70, stability,
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
    return [Row("FSDP2", "train, save, load, resume", 60, 40, fsdp, {"test": test}, needs_data=False)]


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
    """gafx.predict and transformers' pipeline, interleaved; the same again with a compiled model."""
    settings = {"files": 120, "rounds": 3, "batches": 50}
    if setup.tiny:
        settings = dict.fromkeys(settings, 1)
    return [
        Row("Labelling", name, cost, order, labelling, {"compiled": name == "compiled", **settings})
        for name, cost, order in (("eager", 65, 30), ("compiled", 75, 50))
    ]


def labelling(setup: Setup, *, compiled: bool, files: int, rounds: int, batches: int) -> dict[str, Any]:
    """See gpu_labelling.py; the files are cut from the synthetic tracks."""
    from gpu_labelling import compare
    from labelling import make_files

    check_compiled(setup, compiled)
    folder = setup.work / "labelling"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with without_code(setup):
        made = make_files(setup.work / "synthetic", folder, files, 0)
        return compare(made, setup.device, rounds=rounds, batches=batches, compiled=compiled)


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
    "predictions": prediction_rows,
    "stability": stability_rows,
    "fsdp": fsdp_rows,
    "labelling": labelling_rows,
    "esc10": esc10_rows,
}
