"""Evaluate finished runs: `python evaluate.py outputs/RUN [outputs/RUN ...] [key=value ...]`.

Protocol, fold and test part come from the runs; folds of one protocol are pooled. Prints a table on standard output.
"""

import sys
from pathlib import Path

from gafx.cli import run_script, show_help
from gafx.compose import compose_evaluate

CONFIGS = Path(__file__).resolve().parent / "configs"


def main(arguments: list[str]) -> None:
    """Evaluate the run folders among the arguments, and print the table."""
    if {"-h", "--help"} & set(arguments):
        return show_help("evaluate", CONFIGS)
    runs = [Path(argument) for argument in arguments if "=" not in argument or Path(argument).is_dir()]
    config = compose_evaluate([argument for argument in arguments if Path(argument) not in runs], CONFIGS)
    from gafx.evaluation.evaluate import evaluate_runs
    from gafx.report.evaluation import write_reports
    from gafx.training.distributed import start_ranks
    from gafx.training.together import together

    with together():
        ranks = start_ranks(cpu=config.device == "cpu")
        table = write_reports(evaluate_runs(runs, config))
        if ranks.is_main_process:
            print(table)


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
