"""Two processes do what one does; processes that do not know of each other are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import MEL, SLIM, SMALL, environment, records, script, start, train, weights

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")


@pytest.mark.parametrize(
    ("front_end", "passes"),
    [pytest.param(MEL, 3, marks=pytest.mark.slow), ([*SLIM, "frontend.norm=group"], 2)],
    ids=["mel, accumulated", "gafx_r"],
)
def test_two_processes_equal_one(synthetic_root, tmp_path, front_end, passes):
    # 32 clips in batches of 12: the last step of an epoch has 8, and 20 steps end in the middle of an epoch.
    recipe = [
        *SMALL,
        *front_end,
        f"data.root={synthetic_root}",
        "name=run",
        "batch_size=12",
        "epochs=9",
        "max_steps=20",
        "optim.lr=5e-5",
        "augment.mixup_probability=0.5",
        "augment.time_masks=1",
        "objective.class_weights=balanced",
    ]
    one = train(*recipe, f"output_dir={tmp_path / 'one'}")
    recipe += [f"output_dir={tmp_path / 'two'}", f"grad_accumulation={passes}"]
    done = script("train.py", *recipe, launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run-") == 1  # only one rank speaks
    two = Path(done.stdout.strip())
    assert json.loads((two / "run.json").read_text())["environment"]["processes"] == 2
    assert json.loads((one / "run.json").read_text())["environment"]["processes"] == 1
    assert len(records(one)) == len(records(two)) == 20
    pairs = list(zip(records(one), records(two), strict=True))
    # The first step is the same sum in another order; later ones carry what Adam makes of that order's rounding.
    assert pairs[0][0]["loss"] == pytest.approx(pairs[0][1]["loss"], rel=1e-5)
    assert pairs[0][0]["grad_norm"] == pytest.approx(pairs[0][1]["grad_norm"], rel=1e-4)
    for ours, theirs in pairs:
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["lr"] == theirs["lr"]
    theirs = weights(two)
    for name, tensor in weights(one).items():
        # Adam divides a gradient by its own size: where it is rounding alone, steps of the whole rate go either way, so
        # single weights may differ by what 20 steps of 5e-5 can move them. On the whole they must not.
        difference = (tensor.float() - theirs[name].float()).abs()
        assert difference.max() <= 1e-3, name
        assert difference.mean() <= 1e-4, name


def test_processes_that_do_not_know_of_each_other_are_refused(synthetic_root, tmp_path):
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "max_steps=1"]
    done = script("train.py", *recipe, "device=auto", WORLD_SIZE="2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "WORLD_SIZE=2, but Accelerate reports 1" in done.stderr
    assert "torchrun" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_evaluation_over_two_processes_counts_every_clip_once(synthetic_root, tmp_path):
    """The test tracks' segments do not divide evenly into batches of 7 over two processes."""
    recipe = [*SMALL, *MEL, f"data.root={synthetic_root}", f"output_dir={tmp_path}", "epochs=1"]
    run = train(*recipe, "data.test_fraction=0.3")
    results = []
    for launcher, more in (((), {}), (TORCHRUN, {"ACCELERATE_USE_CPU": "true"})):
        done = script("evaluate.py", run, "batch_size=7", "workers=0", launcher=launcher, **more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report:") == 1  # only one rank speaks
        results.append((json.loads((run / "result.json").read_text()), (run / "segments.csv").read_text()))
    (one, segments_of_one), (two, segments_of_two) = results
    assert (one["cost"]["processes"], two["cost"]["processes"]) == (1, 2)
    assert one["tracks"] == two["tracks"]
    assert one["segments"] == two["segments"] == len(segments_of_one.splitlines()) - 1
    assert one["scores"] == two["scores"]
    assert segments_of_one == segments_of_two


def ranks_of(launcher):
    """Process of each rank that torchrun has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(value.removeprefix(b"RANK=")): int(pid) for value in variables if value.startswith(b"RANK=")}
    return found


def test_killed_on_one_rank_and_resumed(synthetic_root, tmp_path):
    """One of two processes is killed: both end, and resumed they come to the bits of a run that was not."""
    recipe = [
        *SMALL,
        *MEL,
        f"data.root={synthetic_root}",
        "name=run",
        "workers=1",
        "checkpoint_steps=1",
        "optim.ema_decay=0.9",
        "augment.mixup_probability=0.5",
        "augment.time_masks=1",
        "augment.frequency_masks=1",
        "data.protocol=paper_val",
        "data.val_fraction=0.3",
    ]

    def two(folder):
        done = script("train.py", *recipe, f"output_dir={folder}", launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    whole = two(tmp_path / "whole")
    folder = tmp_path / "killed" / whole.name
    process = start(
        *recipe, f"output_dir={tmp_path / 'killed'}", launcher=TORCHRUN, ACCELERATE_USE_CPU="true", PYTHONUNBUFFERED="1"
    )
    log = folder / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 4):
        assert process.poll() is None
        time.sleep(0.001)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (folder / "model").exists()
    assert not Path(f"/proc/{ranks[0]}").exists()
    assert two(tmp_path / "killed") == folder
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    timed = {"clips_per_second", "data_wait", "seconds_per_step"}
    for ours, theirs in zip(records(folder), records(whole), strict=True):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}


# Scores seven tracks, 14 segments, in batches of 3, and prints how often each segment was read.
VALIDATE = """
import os, sys, json, collections, torch
from accelerate import PartialState
from gafx.config import TrainConfig, build
from gafx.data.dataset import ClipDataset
from gafx.data.open import open_reader, open_split
from gafx.data.batches import evaluation_loader
from gafx.model import create_model
from gafx.objectives.classify import Classify
from gafx.inference import validate
from gafx.training import build as parts_of, distributed

state = PartialState(cpu=True)
config = build(TrainConfig, {"frontend": {"name": "mel"}, "data": {
    "root": sys.argv[1], "segment_seconds": 0.8, "options": {"tracks": 4, "seconds": 1.5}}})
manifest, parts = open_split(config.data, multi_label=False, objective="classify")
torch.manual_seed(0)
model = create_model("mel", {"name": "ast", "depth": 1}, classes=list(manifest.classes), segment_seconds=0.8)
reader, _ = open_reader(config.data, manifest, sample_rate=22050, channels=1, build=False)
clips = parts_of.evaluation_clips(config, manifest, parts.train[:7], reader, model)
objective = Classify(model, manifest.label_counts(parts.train))
share = {"rank": state.process_index, "world": state.num_processes}
where = {"device": torch.device("cpu"), "precision": "fp32"}
scores, segments = validate(objective, clips, batch_size=3, workers=0, **where, **share)
read = [batch.index.tolist() for batch in evaluation_loader(clips, batch_size=3, **share)]
gathered = [read] if state.num_processes == 1 else distributed.gather_object(read)
counts = collections.Counter(index for part in gathered for batch in part for index in batch)
if state.is_main_process:
    print(json.dumps([scores, sorted(counts.items()), len(clips)]), flush=True)
os._exit(0)  # see gafx.training.distributed.run_rank
"""


def test_validation_counts_every_clip_once(synthetic_root, tmp_path):
    path = tmp_path / "validates.py"
    path.write_text(VALIDATE)
    results = []
    for launcher in ((sys.executable,), TORCHRUN):
        done = subprocess.run(
            [*launcher, path, synthetic_root], capture_output=True, text=True, check=False, timeout=120,
            env=environment(ACCELERATE_USE_CPU="true"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    (one, counts, segments), (two, *others) = results
    assert segments % 4 == 2  # no whole number of batches for each of two ranks
    assert counts == [[index, 1] for index in range(segments)]
    assert others == [counts, segments]
    assert one == two
