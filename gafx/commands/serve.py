"""`gafx serve`: a web service that labels uploads."""

import argparse
import sys

from gafx.commands.options import add_model, add_server, check_model, read_server
from gafx.process import print_made

DESCRIPTION = (
    "Serve a model on this machine (127.0.0.1): POST /predict takes an audio file and answers what gafx predict --json "
    "writes; GET /docs describes it, GET /health and GET /model tell its state. Requests that the service has no room "
    "for are refused with status 503 and the seconds to wait. Ctrl-C or SIGTERM ends it. pip install 'gafx[serve]'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, required=True)
    add_server(parser, "8000")


def run(parsed: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    options = read_server(parsed)
    check_model(parsed.model)
    from gafx.deploy import serve
    from gafx.deploy.uploads import warn_of_host
    from gafx.loading import load

    serve.check_packages()
    warn_of_host(parsed.host, "service")
    options["port"] = options["port"] or 8000
    serve.serve(
        load(parsed.model), ready=lambda address: print_made(f"{address}  (Ctrl-C ends it)"), **options
    )  # fmt: skip
    print("the service has ended; nothing was kept", file=sys.stderr)
