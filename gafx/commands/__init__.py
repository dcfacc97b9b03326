"""The commands of `gafx`, one module each: SUMMARY, DESCRIPTION, `add_arguments(parser)` and `run(parsed)`.

A module may have `more_help()`, the text that ends its `--help`. They import nothing heavy at the top, since `gafx
--help` imports them all. Standard output is a command's result; everything else goes to standard error.
"""
