"""`python evaluate.py RUN ... [key=value ...]` is `gafx evaluate RUN ... [key=value ...]`: evaluate finished runs."""

import sys

from gafx.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
