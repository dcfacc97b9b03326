"""`python train.py key=value ...` is `gafx train key=value ...`: train a front-end and a classifier together."""

import sys

from gafx.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
