"""Web server of the page: on a loopback address, with uploads in a private folder that is deleted at the end."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx.deploy.demo.page import Page, refusal
from gafx.deploy.uploads import interruptible, wait_for_interruption
from gafx.errors import UsageError, require
from gafx.model import GAFX

if TYPE_CHECKING:
    import gradio

_log = logging.getLogger("gafx")
_UPLOADS = "GRADIO_TEMP_DIR"  # variable that names gradio's folder for uploads
_MAX_WAITING = 8
# Uploads that nobody waits for any more (the page was closed) are deleted after ten minutes.
_MAX_AGE_SECONDS = 600
_NARROW_PIXELS = 700
# The browser may load the page's own resources only, whatever gradio would fetch.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'"
)


def build(model: GAFX, **options: Any) -> "gradio.Blocks":
    """The demo as `gradio.Blocks`, to be launched or mounted by the caller.

    Uploads are deleted once they are answered. The size is checked in the browser and before labelling; to stop larger
    uploads from reaching the server, call `launch(max_file_size=max_bytes)`, as `serve` does.

    Args:
        model: from `gafx.load`.
        **options: of `Page`: `name`, `max_bytes`, `max_seconds`, `device`.

    Raises:
        UsageError: see `Page`; or gradio is not installed.
    """
    return _blocks(Page(model, **options))


def serve(
    model: GAFX, *, host: str = "127.0.0.1", port: int | None = None, ready: Callable[[str], object] = print,
    **options: Any,
) -> None:  # fmt: skip
    """Serve the demo until the process is interrupted (Ctrl-C, SIGTERM).

    Args:
        model: from `gafx.load`.
        host: address to listen on; everyone who can reach it can use the page.
        port: to listen on; default: the first free one from 7860 on.
        ready: called with the page's address once it can be opened.
        **options: of `Page`: `name`, `max_bytes`, `max_seconds`, `device`.

    Raises:
        UsageError: as for `build`; or the server cannot listen on this port or address.
    """
    with interruptible(), private_folder(), opened(model, host=host, port=port, **options) as address:
        ready(address)
        wait_for_interruption()


@contextmanager
def opened(model: GAFX, *, host: str = "127.0.0.1", port: int | None = None, **options: Any) -> Iterator[str]:
    """Serve the demo in the background and yield its address; the arguments are those of `serve`."""
    gr = _gradio()
    page = Page(model, **options)
    blocks = _blocks(page)
    from starlette.middleware import Middleware

    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            max_file_size=page.limits.max_bytes, allowed_paths=[], show_error=False, ssr_mode=False,
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


def _blocks(page: Page) -> "gradio.Blocks":
    gr = _gradio()

    def answer(path: str | None, width: float | None, progress: Any = gr.Progress()) -> tuple[str, None]:  # noqa: B008
        try:
            narrow = 0 < (width or 0) < _NARROW_PIXELS
            text = page.answer(path, narrow=narrow, progress=lambda done, step: progress(done, desc=step))
        except Exception:
            _log.exception("an upload could not be answered")
            text = refusal("An internal error occurred: the server's terminal shows it.")
        return text, None

    title = f"{page.name} – gafx"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, _MAX_AGE_SECONDS)) as blocks:
        gr.HTML(page.head(), elem_id="gafx-head", padding=False)
        audio = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Audio: a file, or the microphone", buttons=[],
            editable=False, elem_id="gafx-audio",
        )  # fmt: skip
        width = gr.Number(visible=False)
        shown = gr.HTML("", elem_id="gafx-answer", padding=False)
        gr.on(
            [audio.upload, audio.stop_recording], answer, [audio, width], [shown, audio], concurrency_limit=1,
            show_progress_on=audio, api_visibility="private",
            js="(file, _) => [file, document.documentElement.clientWidth]",
        ).then(None, js="() => window.gafxAnswered && window.gafxAnswered()", api_visibility="private")  # fmt: skip
        blocks.load(None, js=page.script(), api_visibility="private")
    return blocks.queue(max_size=_MAX_WAITING, default_concurrency_limit=1, api_open=False)


class _Policy:
    """ASGI middleware that adds the content security policy to all responses."""

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
    # Read when gradio is imported, and later by its threads.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return require("gradio", "the demo")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads that other users cannot read; it is deleted when the block ends."""
    before = {key: value for key, value in os.environ.items() if key == _UPLOADS}
    with tempfile.TemporaryDirectory(prefix="gafx-demo-", ignore_cleanup_errors=True) as folder:
        os.environ[_UPLOADS] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_UPLOADS]
            os.environ.update(before)
