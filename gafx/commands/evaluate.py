"""`gafx evaluate`: evaluate finished runs on the test part of their own protocol and fold."""

import argparse
from pathlib import Path

from gafx.commands.options import add_config_options, configuration_yaml, keys_help
from gafx.config import EvaluateConfig
from gafx.errors import require
from gafx.process import print_made

DESCRIPTION = (
    "Evaluate runs, e.g. gafx evaluate outputs/RUN outputs/RUN batch_size=32, and print the table. Protocol, fold and "
    "test part come from the runs; folds of one protocol are pooled. Each run gets result.json, predictions and a "
    "report."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("overrides", nargs="*", metavar="RUN|key=value", help="run folders, patterns of them, and keys")
    add_config_options(parser)


def more_help() -> str:
    """Every key with its default."""
    return f"\n{keys_help(EvaluateConfig)}\n"


def run(parsed: argparse.Namespace) -> None:
    """Evaluate, and print the table."""
    from gafx.compose import compose_evaluate

    runs = [Path(item) for item in parsed.overrides if "=" not in item or Path(item).is_dir()]
    parsed.overrides = [item for item in parsed.overrides if Path(item) not in runs]
    config = compose_evaluate(parsed.overrides, parsed.config_dir)
    if parsed.cfg:
        return print(configuration_yaml("evaluate", config, parsed), end="")
    require("jinja2", "gafx evaluate")  # before the work, not when its report is written
    from gafx.evaluation.evaluate import evaluate_runs
    from gafx.report.evaluation import write_reports
    from gafx.training.distributed import run_rank, start_ranks

    def evaluate() -> None:
        ranks = start_ranks(config.device)
        table = write_reports(evaluate_runs(runs, config))
        if ranks.is_main_process:
            print_made(table)

    run_rank(evaluate)
