"""`gafx demo`: a web page on this machine to try a model."""

import argparse
import sys

from gafx.commands.options import add_model, add_server, check_model, read_server
from gafx.process import print_made

DESCRIPTION = (
    "Serve a page on this machine (127.0.0.1) and print its address: drop a file or record, and see the label "
    "probabilities, also over time, and the front-end's map next to the mel spectrogram. Uploads are deleted after "
    "they are answered, and the page loads nothing from other servers. Ctrl-C ends it. pip install 'gafx[demo]'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, required=True)
    add_server(parser, "a free one from 7860 on")


def run(parsed: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    options = read_server(parsed)
    check_model(parsed.model)
    from gafx.deploy import demo
    from gafx.deploy.uploads import warn_of_host
    from gafx.loading import load

    warn_of_host(parsed.host)
    demo.serve(
        load(parsed.model), ready=lambda address: print_made(f"{address}  (Ctrl-C ends it)"), **options
    )  # fmt: skip
    print("the demo has ended; nothing was kept", file=sys.stderr)
