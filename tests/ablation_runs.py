"""Fakes of `gafx train` and `gafx evaluate` that write the files the driver looks for; run folders written by hand."""

import json
import sys
from pathlib import Path

import numpy as np

from gafx.config import TrainConfig
from gafx.evaluation.predictions import PredictionTable
from gafx.evaluation.result import Cost, Result, write_results
from gafx.stats.scores import Score
from gafx.studies.ablation.drive import Executor
from gafx.studies.ablation.plan import Job

# Overrides as `name=value`; `behave` selects a failure.
TRAIN = """
import json, os, sys, time
from pathlib import Path
arguments = dict(item.split("=", 1) for item in sys.argv[1:])
folder = Path(arguments["folder"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "began").open("a") as file:
    file.write("x")
behave = arguments.get("behave", "")
print("starting", flush=True)
if behave == "diverge":
    sys.exit(print("error: the loss or its gradient is not finite at step 7 (first: the loss itself)") or 2)
if behave == "refuse":
    sys.exit(print("error: optim.rte is no key; did you mean optim.lr?") or 2)
if behave == "memory":
    sys.exit(print("RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes") or 1)
if behave == "crash":
    raise ZeroDivisionError("by hand")
if behave == "eat":
    eaten = bytearray(600_000_000)
    time.sleep(60)
if behave == "sleep" and (folder / "began").stat().st_size == 1:
    time.sleep(60)
(folder / "model").mkdir(exist_ok=True)
"""
EVALUATE = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
for name in ("result.json", "predictions.npz", "report.html"):
    (folder / name).write_text("{}")
"""


def scripts(folder: Path) -> tuple[list[str], list[str]]:
    """Command lines of the fakes."""
    (folder / "train.py").write_text(TRAIN)
    (folder / "evaluate.py").write_text(EVALUATE)
    return [sys.executable, str(folder / "train.py")], [sys.executable, str(folder / "evaluate.py")]


def job_of(folder: Path, key: str, behave: str = "", **more) -> Job:
    """A job of the fakes with a chosen failure."""
    overrides = [f"folder={folder / key}", f"behave={behave}"]
    return Job(key, key, overrides, 0, config=TrainConfig(), folder=folder / key, **more)


def executor_of(folder: Path, **more) -> Executor:
    """Executor of the fakes."""
    return Executor(*scripts(folder), folder / "logs", **more)


def write_run(folder: Path, predicted: np.ndarray, truth: np.ndarray, classes: list[str], **result: object) -> None:
    """A finished and evaluated run of `classify`, with these class numbers for its test tracks."""
    (folder / "model").mkdir(parents=True)
    cost = Cost(
        parameters=1000, frontend_parameters=0, flops_per_clip=2e6, clips_per_second=10.0, peak_memory_bytes=2**30,
        device="CPU", precision="fp32",
    )  # fmt: skip
    accuracy = Score(float((predicted == truth).mean()))
    finished = Result(
        name="run", data="gtzan", classes=classes, chance=1 / len(classes), cost=cost, tracks=len(truth),
        scores={"track": {"accuracy": accuracy}},
        **{"protocol": "paper", **result},
    )  # fmt: skip
    write_results(folder, [finished])
    config = {"batch_size": 4, "data": {"segment_seconds": 2.0}, "optim": {"name": "adam", "lr": 1e-3}}
    record = {"config": config, "steps": 10, "train_seconds": 5.0, "clips_per_second": 8.0, "peak_memory_bytes": 2**29}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": step, "loss": 2.0 - step / 10, "rate": 1e-3} for step in (1, 5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "report.html").write_text("<p>report</p>")
    others = 0.1 / (len(classes) - 1)
    values = np.where(np.eye(len(classes), dtype=bool)[predicted], 0.9, others)
    write_predictions(folder, values, np.eye(len(classes), dtype=np.uint8)[truth], classes)


def write_predictions(
    folder: Path, values: np.ndarray, targets: np.ndarray, classes: list[str], clips: list[str] | None = None
) -> PredictionTable:
    """predictions.npz of a run whose tracks are recordings of their own."""
    count = len(values)
    clip = np.array([f"{index:04d}.wav" for index in range(count)] if clips is None else clips, object)
    label = np.array([";".join(np.array(classes)[row > 0]) for row in targets], object)
    table = PredictionTable(
        row=np.arange(count), clip=clip, track=clip, group=np.arange(count), fold=np.full(count, -1),
        run=np.array([folder.name] * count, object), label=label, targets=targets, values=values,
        classes=tuple(classes), columns=tuple(classes),
    )  # fmt: skip
    table.write(folder / "predictions.npz")
    return table
