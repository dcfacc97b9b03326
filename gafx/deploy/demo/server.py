"""The page on a loopback address: uploads in a private folder, nothing from elsewhere, nothing left behind."""

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.deploy.demo.answers import MAX_BYTES, MAX_SECONDS, Page
from gafx.deploy.demo.page import refusal
from gafx.errors import UsageError
from gafx.model import GAFX

if TYPE_CHECKING:
    import gradio

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_WAITING = 8
# Uploads that nobody waits for (the page was closed) are deleted after ten minutes.
_OLDEST_SECONDS = 600
# The page may load its own parts and nothing else, whatever a library would fetch.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'"
)


def build(
    model: GAFX, *, name: str = "", max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS, device: str = "auto"
) -> "gradio.Blocks":
    """The demo as `gradio.Blocks`, to be launched or mounted by the caller.

    It deletes each upload once it is answered. The size is checked in the browser and before labelling; that nothing
    larger even reaches the server is for the caller: `launch(max_file_size=max_bytes)`. `serve` does so.

    Args:
        model: from `gafx.load`.
        name: what the page calls it.
        max_bytes: of a file.
        max_seconds: of a file's sound.
        device: as for `predict_files`.

    Raises:
        UsageError: see `Page`; or gradio is not installed.
    """
    return _blocks(Page(model, name=name, max_bytes=max_bytes, max_seconds=max_seconds, device=device))


def _blocks(page: Page) -> "gradio.Blocks":
    gr = _gradio()
    progress = gr.Progress()

    def label(path: str | None, width: float | None, progress: Any = progress) -> tuple[str, None]:
        try:
            narrow = bool(width) and float(width or 0) < 700
            said = page.answer(path, narrow=narrow, progress=lambda share, word: progress(share, desc=word))
        except Exception:
            traceback.print_exc()
            said = refusal("Something went wrong that should not: the server's terminal says what.")
        return said, None

    with gr.Blocks(title=f"{page.name} – gafx", analytics_enabled=False, delete_cache=(60, _OLDEST_SECONDS)) as blocks:
        gr.HTML(page.head(), elem_id="gafx-head", padding=False)
        audio = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Sound: a file, or the microphone", buttons=[],
            editable=False, elem_id="gafx-audio",
        )  # fmt: skip
        width = gr.Number(visible=False)
        answer = gr.HTML("", elem_id="gafx-answer", padding=False)
        gr.on(
            [audio.upload, audio.stop_recording], label, [audio, width], [answer, audio], concurrency_limit=1,
            show_progress_on=audio, api_visibility="private",
            js="(file, _) => [file, document.documentElement.clientWidth]",
        ).then(None, js="() => window.gafxAnswered && window.gafxAnswered()", api_visibility="private")  # fmt: skip
        blocks.load(None, js=page.script(), api_visibility="private")
    return blocks.queue(max_size=_MOST_WAITING, default_concurrency_limit=1, api_open=False)


def serve(
    model: GAFX,
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int | None = None,
    max_bytes: int = MAX_BYTES,
    max_seconds: float = MAX_SECONDS,
    device: str = "auto",
    ready: Callable[[str], object] = print,
) -> None:
    """Show the demo until the process is interrupted (Ctrl-C, SIGTERM).

    Args:
        model: from `gafx.load`.
        name: what the page calls it.
        host: address to listen on; who can reach it can use the page.
        port: to listen on; default: the first free one from 7860 on.
        max_bytes: of a file.
        max_seconds: of a file's sound.
        device: as for `predict_files`.
        ready: called with the page's address once it can be opened.

    Raises:
        UsageError: as for `build`; or the port or the address cannot be had.
    """
    ended = threading.Event()
    with private_folder(), opened(
        model, name=name, host=host, port=port, max_bytes=max_bytes, max_seconds=max_seconds, device=device
    ) as address, _ends(ended):  # fmt: skip
        ready(address)
        with suppress(KeyboardInterrupt):
            while not ended.wait(3600):
                pass


@contextmanager
def opened(model: GAFX, *, host: str = "127.0.0.1", port: int | None = None, **arguments: Any) -> Iterator[str]:
    """Serve the demo in the background and give its address; see `serve` for the arguments."""
    gr = _gradio()
    page = Page(model, **arguments)
    blocks = _blocks(page)
    from starlette.middleware import Middleware

    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            max_file_size=page.max_bytes, allowed_paths=[], show_error=False, ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, run_history=False, footer_links=[], num_workers=0,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": [Middleware(_Policy)], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"the demo cannot listen on {host}{f', port {port}' if port else ''} ({error}): choose another --port, or "
            "leave it out to take a free one"
        ) from error
    try:
        yield str(blocks.local_url)
    finally:
        page.close()
        blocks.close(verbose=False)


class _Policy:
    """Adds to every answer that the page may load nothing from elsewhere."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


def _gradio() -> Any:
    # Read when gradio is imported, and by its threads later on.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UsageError("the demo needs gradio: pip install 'gafx[demo]'") from error
    return gradio


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads that others cannot read and that goes with the server."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="gafx-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextmanager
def _ends(ended: threading.Event) -> Iterator[None]:
    """Set the event when the process is told to end, so that what must be deleted is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What the caller ignores stays ignored: SIGHUP under nohup, say.
    kinds = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    told = [kind for kind in kinds if kind is not None and signal.getsignal(kind) is not signal.SIG_IGN]
    before = {kind: signal.signal(kind, lambda *_: ended.set()) for kind in told}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def warn_of_host(host: str) -> None:
    """Say plainly what listening beyond the machine means."""
    if host not in LOOPBACK and not host.startswith("127."):
        print(
            f"warning: --host {host} lets everybody who can reach this machine use the page: there is no password and "
            "no encryption. Put it behind a server that has both, or leave --host out",
            file=sys.stderr, flush=True,
        )  # fmt: skip
