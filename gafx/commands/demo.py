"""`gafx demo`: a web page on this machine to try a model."""

import argparse
import sys
from pathlib import Path

from gafx.commands.options import add_device, add_model
from gafx.errors import UsageError

SUMMARY = "try a model in the browser: drop a file or record; nothing is kept"
DESCRIPTION = (
    "Serve a page on this machine (127.0.0.1) and print its address: drop a file or record, and see the label "
    "probabilities, also over time, and the front-end's map next to the mel spectrogram. Uploads are deleted after "
    "they are answered, and the page loads nothing from other servers. Ctrl-C ends it. pip install 'gafx[demo]'"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model(parser, required=True)
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on (default: a free one from 7860 on)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--max-mb", type=float, default=50, metavar="X", help="largest file in MB (default 50)")
    parser.add_argument(
        "--max-seconds", type=float, default=1200, metavar="X", help="longest file in seconds (default 1200)"
    )
    add_device(parser)


def run(parsed: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise UsageError(f"--port {parsed.port} must be between 1 and 65535")
    if not 1e-6 <= parsed.max_mb < 1e12:
        raise UsageError(f"--max-mb {parsed.max_mb:g} must be above 0, e.g. 50")
    if not 0 < parsed.max_seconds < float("inf"):
        raise UsageError(f"--max-seconds {parsed.max_seconds:g} must be above 0, e.g. 1200")
    from gafx.deploy import demo
    from gafx.loading import load

    demo.warn_of_host(parsed.host)
    model = load(parsed.model)
    demo.serve(
        model,
        name=model_name(parsed.model),
        host=parsed.host,
        port=parsed.port,
        max_bytes=int(parsed.max_mb * 1e6),
        max_seconds=parsed.max_seconds,
        device=parsed.device,
        ready=lambda address: print(f"{address}  (Ctrl-C ends it)", flush=True),
    )
    print("the demo has ended; nothing was kept", file=sys.stderr)


def model_name(source: str) -> str:
    """Name of a model on the page: its run's, or the hub's."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name
