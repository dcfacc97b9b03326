"""`gafx train`: train a front-end and a classifier together, one run or every combination of a sweep."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gafx.commands.options import add_config_options, configuration_yaml, keys_help
from gafx.config import TrainConfig
from gafx.errors import UsageError
from gafx.process import check_output_open, print_made

DESCRIPTION = (
    "Train the run that the overrides describe, e.g. gafx train frontend=gafx_r data=esc data.root=ESC-10, and print "
    "its folder. A finished run is not trained again, an interrupted one resumes at its last checkpoint. With "
    "dry_run=true, print what the run would be and cost, and train nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="a key, or a file of a group; ~key takes a key out"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true",
        help="one run after another for every combination of e.g. seed=0,1 frontend=mel,gafx_r; also range(), glob()",
    )  # fmt: skip
    add_config_options(parser)


def more_help() -> str:
    """Choices of each group, and every key with its default."""
    from gafx.compose import config_folders, group_choices

    groups = [f"{group}=  {', '.join(names)}" for group, names in group_choices(config_folders()).items()]
    parts = "`gafx list` shows the arguments of front-ends, classifiers, objectives and data sets."
    return "\n".join(["", *groups, "", keys_help(TrainConfig), "", parts, ""])


def run(parsed: argparse.Namespace) -> None:
    """Train, or print the configuration."""
    from gafx.compose import compose_train

    if parsed.multirun:
        return _multirun(parsed)
    config = compose_train(parsed.overrides, parsed.config_dir)  # a mistake is reported before torch is imported
    if parsed.cfg:
        return print(configuration_yaml("train", config, parsed), end="")
    if not (config.data.download or (config.folder / "model").is_dir()):
        from gafx.data.sources.base import check_root

        check_root(config.data.name, config.data.root)
    if config.dry_run:
        return print_plan(config)
    from gafx.training.distributed import run_rank
    from gafx.training.trainer import Trainer

    def train() -> None:
        trainer = Trainer(config)
        folder = trainer.fit()
        if trainer.main:
            print_made(folder)

    run_rank(train)


def print_plan(config: TrainConfig) -> None:
    """Print what the run would be and cost."""
    check_output_open()
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported: a dry run fetches nothing
    from gafx.training.distributed import run_rank
    from gafx.training.dry_run import describe_run

    def describe() -> None:
        if text := describe_run(config):
            print(text)

    run_rank(describe)


def _multirun(parsed: argparse.Namespace) -> None:
    """Train every combination in a separate process, so that none inherits another's state; report failures last."""
    from gafx.compose import compose_train, sweep

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("-m starts its own runs; for several processes per run use gafx ablate --processes N")
    # Everything is composed before anything runs: a mistake in the last combination is reported at once.
    runs: dict[Path, tuple[list[str], TrainConfig]] = {}
    for overrides in sweep(parsed.overrides, parsed.config_dir):
        config = compose_train(overrides, parsed.config_dir)
        runs.setdefault(config.folder, (overrides, config))
    failed = []
    for number, (folder, (overrides, config)) in enumerate(runs.items(), 1):
        print(f"run {number} of {len(runs)}: {' '.join(overrides)} ({folder.name})", file=sys.stderr, flush=True)
        if parsed.cfg:
            print(f"---\n{configuration_yaml('train', config, parsed, overrides)}", end="", flush=True)
        elif status := _run(train_command(overrides, parsed.config_dir)):
            failed.append(f"{' '.join(overrides)} (status {status})")
    if failed:
        print(f"error: {len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def _run(command: Sequence[str]) -> int:
    """Run a command to its end and return its status; what ends this process ends it, too."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # not a kill: it removes its temporary files
            raise


def train_command(overrides: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Command line of one training run in a separate process."""
    folder = [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]
    return [sys.executable, "-m", "gafx", "train", *folder, *overrides]
