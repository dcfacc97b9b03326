"""A failure on one rank ends a torchrun launch: no hang, a non-zero status, and that rank's error."""

import subprocess
import time

import pytest
from runs import MEL, SMALL, environment, script
from test_parallel import TORCHRUN

# Two ranks, of which one fails in a given way while the other waits for it in a barrier with a timeout of two hours.
RANKS = """
import os, signal, sys
from datetime import timedelta
import torch.distributed as dist
import gafx.cli
from gafx.errors import UsageError
from gafx.training.distributed import run_rank

who, how = sys.argv[1:]

def work():
    dist.init_process_group("gloo", timeout=timedelta(hours=2))
    dist.barrier()
    if str(dist.get_rank()) == who:
        if how == "usage":
            raise UsageError("data.root is not here; bring it")
        if how == "error":
            {}["a bug"]
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "nothing":
        print("done", flush=True)
    else:
        dist.barrier()
        print("done", flush=True)

class Command:
    run = staticmethod(lambda parsed: run_rank(work))

gafx.cli.read_command = lambda argv: Command
gafx.cli.main([])
print("after the work", flush=True)
"""
LIMIT = 60  # seconds, with two imports of torch


def launch(tmp_path, *arguments):
    path = tmp_path / "ranks.py"
    path.write_text(RANKS)
    begin = time.monotonic()
    done = subprocess.run(
        [*TORCHRUN, path, *arguments], capture_output=True, text=True, check=False, timeout=2 * LIMIT,
        env=environment(),
    )  # fmt: skip
    assert time.monotonic() - begin < LIMIT
    return done


@pytest.mark.parametrize(
    ("who", "how", "message"),
    [
        ("1", "usage", "error on rank 1: data.root is not here; bring it"),
        ("0", "usage", "error on rank 0: data.root is not here; bring it"),
        ("1", "error", "KeyError: 'a bug'"),
        ("1", "kill", "Signal 9 (SIGKILL)"),
    ],
)
def test_the_failed_rank_ends_the_launch(tmp_path, who, how, message):
    done = launch(tmp_path, who, how)
    assert done.returncode != 0
    assert message in done.stderr
    assert "done" not in done.stdout
    # torchrun's report names the rank that failed, and not the one whose connection was lost.
    report = done.stderr.partition("Root Cause")[2]
    assert f"rank      : {who} " in report
    if how != "kill":
        assert message.partition(": ")[2] in report


def test_ranks_end_when_the_work_is_done(tmp_path):
    done = launch(tmp_path, "1", "nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2  # the ranks write to one pipe: their lines can mix


def test_one_process_goes_on():
    from gafx.training.distributed import run_rank

    ran = []
    run_rank(lambda: ran.append(1))
    with pytest.raises(KeyError):
        run_rank(lambda: {}["a bug"])
    assert ran == [1]


def test_a_file_that_one_rank_cannot_read(synthetic_root, tmp_path):
    """Training has started, with loader workers; one rank reads a broken file, which `data.strict` makes an error."""
    root = tmp_path / "data"
    for file in synthetic_root.rglob("*.*"):
        copy = root / file.relative_to(synthetic_root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = sorted(root.rglob("*.flac"))[0]
    content = bytearray(broken.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)  # the header is intact
    broken.write_bytes(content)
    recipe = [*SMALL, *MEL, f"data.root={root}", f"output_dir={tmp_path / 'out'}", "data.strict=true", "workers=1"]
    recipe += ["data.segment_seconds=1.5", "epochs=50", "data.test_fraction=0.1"]
    begin = time.monotonic()
    done = script("train.py", *recipe, launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    own = [line for line in done.stderr.splitlines() if line.startswith("error on rank")]
    assert len(own) == 1
    assert broken.name in own[0]
    assert "data.strict" in own[0]
    assert time.monotonic() - begin < 90
