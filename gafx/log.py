"""Logging: library modules log to `logging.getLogger("gafx")`; the commands print that log to standard error.

Standard output is for results alone, so that it can be piped.
"""

import logging
import sys
import warnings

logger = logging.getLogger("gafx")
logger.addHandler(logging.NullHandler())


class _Handler(logging.Handler):
    """Writes to the present `sys.stderr`, above a progress bar where one is drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            text = f"error: {text}"
        elif record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and sys.stderr.isatty():
            tqdm.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def show_log() -> None:
    """Print gafx's log to standard error, and Python's warnings in the same form; called once by each command.

    Calling it again changes nothing.
    """
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
        logger.propagate = False
    logger.setLevel(logging.INFO)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without file and source line
