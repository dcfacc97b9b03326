"""Evaluate finished runs: `python evaluate.py outputs/RUN [outputs/RUN ...] [key=value ...]`.

Protocol, fold and test part come from the runs; folds of one protocol are pooled. Prints a table on standard output.
"""

import sys
from pathlib import Path

from gafx.cli import run_script, show_help
from gafx.compose import compose_evaluate
from gafx.log import show_log

CONFIGS = Path(__file__).resolve().parent / "configs"


def main(arguments: list[str]) -> None:
    """Evaluate the run folders among the arguments, and print the table."""
    if {"-h", "--help"} & set(arguments):
        return show_help("evaluate", CONFIGS)
    runs = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    show_log()
    config = compose_evaluate([argument for argument in arguments if Path(argument) not in runs], CONFIGS)
    from gafx.evaluation.evaluate import evaluate_runs
    from gafx.training.distributed import run_rank, start_ranks

    def evaluate() -> None:
        ranks = start_ranks(config.device)
        table = evaluate_runs(runs, config)
        if ranks.is_main_process:
            print(table)

    run_rank(evaluate)


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
