"""A failure on one rank ends all ranks at once, with that rank's error, whoever launched them."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from runs import MEL, SMALL, environment, script
from test_parallel import TORCHRUN

# Two ranks of which the one named first fails in the way named second, while the other waits for it in a barrier.
RANKS = """
import os, signal, sys, time
from datetime import timedelta
import torch.distributed as dist
from gafx.errors import UsageError
from gafx.training import together

together._INTERVAL, together._PATIENCE = 0.25, 16
who, how = sys.argv[1:]
with together.together():
    dist.init_process_group("gloo", timeout=timedelta(hours=2))
    rank = dist.get_rank()
    together.join(rank, dist.get_world_size())
    dist.barrier()
    if str(rank) in who:
        if how == "usage":
            raise UsageError("data.root is not here; bring it")
        if how == "error":
            {}["a bug"]
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
    if how == "nothing":
        together.part()
        if str(rank) in who:
            time.sleep(5)  # the other leaves long before
    else:
        dist.barrier()
    print("done")
"""


def start_ranks(*arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                            MASTER_PORT=str(port)),
        )
        for rank in range(2)
    ]  # fmt: skip


def end_of(process, timeout=60):
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("who", "how", "status", "said", "told"),
    [
        ("1", "usage", 2, "error on rank 1: data.root is not here; bring it", "rank 1 failed: data.root is not here"),
        ("1", "error", 1, "error on rank 1: KeyError: 'a bug'", "rank 1 failed: KeyError: 'a bug'"),
        ("0", "usage", 2, "error on rank 0: data.root is not here; bring it", ""),  # rank 0 keeps the store
        ("1", "kill", -signal.SIGKILL, "", "another rank, which was killed or whose machine is gone"),
    ],
)
def test_the_others_end_with_the_error_of_the_one(who, how, status, said, told):
    ranks = start_ranks(who, how)
    begin = time.monotonic()
    failed, other = ranks[int(who)], ranks[1 - int(who)]
    code, _, error = end_of(failed)
    assert code == status
    assert said in error
    assert ("Traceback" in error) == (how == "error")
    code, out, error = end_of(other)
    assert code not in (0, None)
    assert "done" not in out
    assert told in error
    assert "Traceback" not in error
    assert sum(line.startswith("error") for line in error.splitlines()) <= 1
    assert time.monotonic() - begin < 40  # importing torch included; the barrier would wait for two hours


def test_a_rank_that_is_silent_ends_all():
    """Its machine is gone, say, and no connection says so."""
    waiting, silent = start_ranks("1", "stop")
    try:
        code, _, error = end_of(waiting)
        assert code == 1
        assert "rank 1 has not been heard of for 4 s" in error
    finally:
        silent.kill()
        silent.communicate()


def test_an_error_that_all_meet_is_said_once():
    results = [end_of(process) for process in start_ranks("01", "usage")]
    assert all(code not in (0, None) for code, _, _ in results)
    assert sum(error.count("data.root is not here") for *_, error in results) == 1


def test_ranks_that_leave_in_any_order_are_no_failure():
    for code, out, error in [end_of(process) for process in start_ranks("1", "nothing")]:
        assert (code, out.strip()) == (0, "done"), error


@pytest.mark.parametrize("launcher", [TORCHRUN, None], ids=["torchrun", "by hand"])
def test_a_file_that_one_rank_cannot_read(synthetic_root, tmp_path, launcher):
    """Training is under way, with loaders; one rank meets a broken file, and `data.strict` makes that an error."""
    root = tmp_path / "data"
    for file in synthetic_root.rglob("*.*"):
        copy = root / file.relative_to(synthetic_root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = sorted(root.rglob("*.flac"))[0]
    content = bytearray(broken.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)  # its header is whole
    broken.write_bytes(content)
    recipe = [*SMALL, *MEL, f"data.root={root}", f"output_dir={tmp_path / 'out'}", "data.strict=true", "workers=1"]
    recipe += ["data.segment_seconds=1.5", "epochs=50", "data.test_fraction=0.1"]
    begin = time.monotonic()
    if launcher:
        done = script("train.py", *recipe, launcher=launcher, ACCELERATE_USE_CPU="true")
        codes, error = [done.returncode], done.stderr
    else:
        processes = by_hand(recipe)
        results = [end_of(process) for process in processes]
        codes, error = [code for code, _, _ in results], "".join(text for *_, text in results)
    assert all(codes)
    assert broken.name in error
    own = [line for line in error.splitlines() if line.startswith("error on rank")]
    assert len(own) == 1
    assert "data.strict" in own[0]
    assert "unreadable" in own[0] or "cannot be read" in own[0] or "truncated" in own[0]
    assert time.monotonic() - begin < 90


def by_hand(recipe):
    """As `srun` starts them: processes with an environment, and nobody who ends the others when one has failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")
    return [
        subprocess.Popen(
            [sys.executable, train, *recipe], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                            MASTER_PORT=str(port), ACCELERATE_USE_CPU="true"),
        )
        for rank in range(2)
    ]  # fmt: skip
