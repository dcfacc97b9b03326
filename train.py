"""Train a front-end and a classifier together: `python train.py frontend=gafx_r data=esc data.root=ESC-10`.

Prints the run's folder on standard output when it is finished; the same command continues a run that was broken off.
With `dry_run=true` it prints what the run would be and cost, in seconds, and trains nothing.
"""

import os
import sys
from pathlib import Path

from gafx.cli import run_script, show_help
from gafx.compose import compose_train
from gafx.config import TrainConfig
from gafx.log import show_log

CONFIGS = Path(__file__).resolve().parent / "configs"


def main(arguments: list[str]) -> None:
    """Train the run that the overrides describe, and print its folder."""
    if {"-h", "--help"} & set(arguments):
        return show_help("train", CONFIGS)
    show_log()
    config = compose_train(arguments, CONFIGS)  # a mistake is reported before torch is imported
    if config.dry_run:
        return print_plan(config)
    from gafx.training.distributed import run_rank
    from gafx.training.trainer import Trainer

    def train() -> None:
        trainer = Trainer(config)
        folder = trainer.fit()
        if trainer.main:
            print(folder)

    run_rank(train)


def print_plan(config: TrainConfig) -> None:
    """Print what the run would be and cost."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported: a dry run fetches nothing
    from gafx.training.distributed import run_rank
    from gafx.training.dry_run import plan

    def describe() -> None:
        found = plan(config)
        if found is not None:
            print(found)

    run_rank(describe)


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
