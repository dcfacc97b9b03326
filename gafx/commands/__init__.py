"""The commands of `gafx`, one module each: DESCRIPTION, `add_arguments(parser)` and `run(parsed)`.

A module may have `more_help()`, the text that ends its `--help`. They import nothing heavy at the top, so that a
mistake in the arguments is reported at once. Standard output is a command's result; everything else goes to standard
error.
"""
