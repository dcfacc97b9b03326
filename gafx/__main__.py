"""`python -m gafx` is the `gafx` command."""

from gafx.cli import main

if __name__ == "__main__":
    main()
