"""Measure gafx on one GPU within a time budget: throughput, numerics, labelling, FSDP2, and one real training run.

    make gpu                                        # 8 minutes; outputs/gpu/<card>.json and <card>.md
    make gpu GPU="--esc10 ESC-10 --output outputs/gpu"
    python benchmarks/gpu.py --rehearse             # every section with tiny models, on the CPU

Each section is a list of rows (gpu_sections.py), the most important rows first. The JSON file and the Markdown table
are rewritten atomically before and after each row, so both are valid whenever the process is killed. A row that is
expected not to fit into the rest of the budget is skipped; an exception in a row is recorded and the next row runs.
Run the same command again to continue: rows that are done with the same settings are kept (`--again` measures them
again), and rows that failed or were interrupted are tried again after all others.
"""

# Nothing heavy is imported here before the main process begins: the processes that make the synthetic data import this
# file again.
import os
import sys
import time

if __name__ == "__main__":
    started = time.perf_counter()  # the budget includes the import of torch
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gpu_run import main

    sys.exit(main(sys.argv[1:], started))
