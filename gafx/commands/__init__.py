"""The commands of `gafx`, a module each: SUMMARY, `add_arguments(parser)` and `run(parsed)`.

Their modules import nothing heavy at the top: `gafx --help` reads them all. What a command prints on standard output is
its result; all else goes to standard error.
"""
