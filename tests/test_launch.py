"""The launchers' files: Accelerate reads them, and their requests are met or are an error."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from runs import MEL, ROOT, SMALL, script
from test_parallel import TORCHRUN

CONFIGS = ROOT / "configs"
KINDS = {
    "one_gpu": (DistributedType.NO, 1),
    "ddp": (DistributedType.MULTI_GPU, 1),
    "ddp_multi_node": (DistributedType.MULTI_GPU, 2),
    "fsdp2": (DistributedType.FSDP, 1),
    "fsdp2_multi_node": (DistributedType.FSDP, 2),
    "cpu": (DistributedType.NO, 1),
}


def test_each_kind_has_a_file():
    assert {path.stem for path in (CONFIGS / "accelerate").iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file(name):
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    kind, machines = KINDS[name]
    assert (config.distributed_type, config.num_machines) == (kind, machines)
    assert config.use_cpu == (name == "cpu")
    assert config.mixed_precision == "no"  # train.py's precision decides
    assert f"configs/accelerate/{name}.yaml" in path.read_text()  # how to launch it
    assert set(yaml.safe_load(path.read_text())) <= set(vars(config))  # Accelerate passes over what it does not know
    if kind is DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_slurm_scripts_are_sound(name):
    path = CONFIGS / "slurm" / f"{name}.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert "srun --kill-on-bad-exit=1" in text
    assert "#SBATCH --requeue" in text
    assert ("parallel=fsdp" in text) == (name == "fsdp2")


def test_help_lists_groups_and_not_the_launchers_folders():
    done = script("train.py", "--help")
    assert "experiment=" in done.stdout
    assert "accelerate=" not in done.stdout
    assert "slurm=" not in done.stdout
    assert "dry_run = False" in done.stdout
    assert "parallel = auto" in done.stdout


def small(root, folder, *more):
    return [*SMALL, *MEL, f"data.root={root}", f"output_dir={folder}", "max_steps=1", *more]


def test_fsdp_that_accelerate_turns_into_something_else_is_refused(synthetic_root, tmp_path):
    """On a CPU Accelerate silently gives DDP, or, from its own launcher, independent processes."""
    recipe = small(synthetic_root, tmp_path)
    done = script("train.py", *recipe, "parallel=fsdp", launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "parallel=fsdp, but Accelerate gives DDP (2 processes on cpu)" in done.stderr
    assert done.stderr.count("error on rank") == 1
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file")
    done = script(
        "train.py", *recipe, launcher=(*launch, str(CONFIGS / "accelerate" / "fsdp2.yaml")), CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode != 0
    assert "the launcher requests FSDP (ACCELERATE_USE_FSDP=true), but Accelerate gives single processes" in done.stderr
    assert "configs/accelerate/fsdp2.yaml" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "asked", "message"),
    [
        ("parallel=ddp", {}, "parallel=ddp, but there is one process"),
        ("parallel=ddp", {"ACCELERATE_USE_FSDP": "true"}, "parallel=ddp, but the launcher requests FSDP"),
        ("parallel=auto", {"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1, and only version 2 is supported"),
        ("parallel=fsdp", {}, "parallel=fsdp, but Accelerate gives single processes (1 process on cpu)"),
    ],
)
def test_what_there_is_not_is_refused(synthetic_root, tmp_path, override, asked, message, monkeypatch):
    from accelerate.state import AcceleratorState

    from gafx.compose import compose_train
    from gafx.errors import UsageError
    from gafx.training.distributed import start_accelerator

    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(True)
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        start_accelerator(compose_train(small(synthetic_root, tmp_path, override, "device=cpu"), CONFIGS))
    AcceleratorState._reset_state(True)
    assert "ACCELERATE_USE_FSDP" not in os.environ or asked  # another run of this process does not request it


def test_a_torchrun_on_each_machine_counts_processes_and_not_machines(monkeypatch):
    from gafx.training import distributed

    for name in distributed._WORLD_SIZES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # `srun` starts one torchrun a machine
    assert distributed._world_sizes() == {"SLURM_STEP_NUM_TASKS": 2}  # and without torchrun, processes that are alone
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert distributed._world_sizes() == {"WORLD_SIZE": 16}


def test_a_numbered_gpu_is_for_one_process(synthetic_root, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    from gafx.compose import compose_train
    from gafx.errors import UsageError
    from gafx.training import distributed

    config = compose_train(small(synthetic_root, tmp_path), CONFIGS)
    config.device, chosen = "cuda:1", []
    monkeypatch.setattr(distributed, "pick_device", torch.device)
    monkeypatch.setattr(distributed, "resolve_precision", lambda wanted, device: wanted)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    AcceleratorState._reset_state(True)
    accelerator, _ = distributed.start_accelerator(config)
    assert accelerator.device == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    AcceleratorState._reset_state(True)
    for start in (lambda: distributed.start_accelerator(config), lambda: distributed.start_ranks("cuda:1")):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match=r"device=cuda:1, but there are 2 processes.*CUDA_VISIBLE_DEVICES"):
            start()
