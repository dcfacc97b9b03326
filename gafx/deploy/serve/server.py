"""The server: one process, a loopback address by default, connections that are bounded in number and in time."""

import json
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gafx.deploy.serve.app import Service, build
from gafx.deploy.uploads import interruptible, wait_for_interruption
from gafx.errors import UsageError, require
from gafx.model import GAFX

# A connection is closed if for one to two such times it has no request, or its client reads nothing of an answer.
STALLED_SECONDS = 10.0
_MAX_CONNECTIONS = 1024
_BACKLOG = 2048
# For as long after the end was asked for requests are still answered; then what waits is refused, and a little later
# uploads that have not arrived.
_GRACE_SECONDS = 6


def check_packages() -> None:
    """Raise `UsageError` where a package is missing that the service needs."""
    for package in ("fastapi", "uvicorn", "python_multipart", "jinja2"):
        require(package, "gafx serve")


def serve(
    model: GAFX, *, host: str = "127.0.0.1", port: int = 8000, ready: Callable[[str], object] = print, **options: Any
) -> None:
    """Serve a model until the process is interrupted (Ctrl-C, SIGTERM).

    Args:
        model: from `gafx.load`.
        host: address to listen on; everyone who can reach it can use the service.
        port: to listen on; 0: any free one.
        ready: called with the address once it can be used.
        **options: of `gafx.deploy.serve.app.Service`: `name`, `max_bytes`, `max_seconds`, `device`, `max_requests`.

    Raises:
        UsageError: see `Service`; a package is missing, or the server cannot listen on this port or address.
    """
    with interruptible(), opened(model, host=host, port=port, **options) as address:
        ready(address)
        wait_for_interruption()


@contextmanager
def opened(model: GAFX, *, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[str]:
    """Serve a model in the background and yield the address; the arguments are those of `serve`.

    Leaving the block answers the requests that are in progress, for six seconds at most, refuses the others and
    deletes all uploads.
    """
    check_packages()
    import uvicorn

    with (
        _listen(host, port) as listening,
        tempfile.TemporaryDirectory(prefix="gafx-serve-", ignore_cleanup_errors=True) as folder,
    ):
        service = Service(model, Path(folder), **options)
        try:
            config = uvicorn.Config(
                build(service), http=_protocol(), ws="none", loop="asyncio", lifespan="off", log_config=None,
                access_log=False, server_header=False, proxy_headers=False, limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )  # fmt: skip
            logging.getLogger("uvicorn").setLevel(logging.ERROR)
            logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's mistake is told to the client
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listening],), name="gafx-http", daemon=True)
            thread.start()
            try:
                yield _address(listening)
            finally:
                service.ending = True
                end = time.monotonic() + _GRACE_SECONDS
                while service.requests and time.monotonic() < end:
                    time.sleep(0.05)
                service.close()  # refuses what waits, and ends what is computed
                server.should_exit = True
                thread.join()
        finally:
            service.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"the service cannot listen on {host}, port {port} ({error}): choose another --port or --host"
        ) from error


def _address(listening: socket.socket) -> str:
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _protocol() -> type:
    """uvicorn's protocol, with errors in JSON, which also closes connections on which nothing moves.

    uvicorn has no limit on the time that a request's headers take.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Watched(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch("new")

        def _watch(self, before: object) -> None:
            if self.transport.is_closing():
                return
            # The application has limits of its own on a request's body and on the time until it is answered.
            waits = self.cycle is None or self.cycle.response_started
            state = (self.cycle, self.transport.get_write_buffer_size()) if waits else None
            if state is not None and state == before:
                self.transport.abort()
                return
            self.loop.call_later(STALLED_SECONDS, self._watch, state)

        def send_400_response(self, msg: str) -> None:
            headers = [("content-type", "application/json"), ("connection", "close")]
            body = json.dumps({"error": "the request is no valid HTTP: see /docs"}).encode()
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body),
                h11.EndOfMessage(),
            ):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Watched
