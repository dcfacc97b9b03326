"""A page to try a model: drop a file or record, see its labels, their shares over time, and the map that was read.

Everything stays on the machine: the page loads nothing from elsewhere, uploads lie in a private folder and are deleted
when they are answered, and pictures travel inside the answer.
"""

import base64
import html
import json
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

import numpy as np

from gafx.audio import probe
from gafx.deploy import plot
from gafx.deploy.predict import Prediction, predict_files
from gafx.errors import UnreadableAudio, UsageError
from gafx.inference import Probabilities
from gafx.model import GAFX
from gafx.nn.precision import pick_device

if TYPE_CHECKING:
    import gradio

MAX_BYTES = 50 * 2**20
MAX_SECONDS = 1200.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# 80 dB below full scale: what a muted microphone gives lies below it, the softest music above.
_SILENCE = 1e-4
_SHOWN_LABELS = 6
_MOST_WAITING = 8
# Uploads that nobody waits for (the page was closed) are deleted after ten minutes.
_OLDEST_SECONDS = 600
# The page may load its own parts and nothing else, whatever a library would fetch.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'"
)


class Page:
    """What the page says: a model's head, and an answer to every file.

    Args:
        model: from `gafx.load`.
        name: what the page calls it.
        max_bytes: of a file.
        max_seconds: of a file's sound.
        device: as for `predict_files`.

    Raises:
        UsageError: a limit that lets nothing pass, or a model that was not trained to tell labels.
    """

    def __init__(
        self,
        model: GAFX,
        *,
        name: str = "",
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        device: str = "auto",
    ):
        if max_bytes < 1:
            raise UsageError(f"max_bytes={max_bytes} lets no file pass: give at least 1, e.g. {MAX_BYTES}")
        if not max_seconds > 0:
            raise UsageError(f"max_seconds={max_seconds} lets no file pass: give more than 0, e.g. {MAX_SECONDS:g}")
        self.probabilities = Probabilities(model).eval()
        self.info = self.probabilities.info
        self.name = name or str(self.info.frontend.get("name", "model"))
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self.device = device
        # One computation at a time, also for those who embed the page beside others.
        self._busy = threading.Lock()
        self._ended = False

    def close(self, seconds: float = 60.0) -> None:
        """Stop what is being computed and wait for it: a process that ends while torch computes is aborted."""
        self._ended = True
        if self._busy.acquire(timeout=seconds):
            self._busy.release()

    def answer(
        self, path: str | None, *, narrow: bool = False, progress: Callable[[float, str], object] | None = None
    ) -> str:
        """Label one upload and delete it.

        Args:
            path: of the upload; None where nothing came.
            narrow: draw for a narrow screen.
            progress: called with the share that is done, in [0, 1], and a word for what is being done.

        Returns:
            HTML: the result, or a sentence that says why there is none.
        """
        if path is None:
            return refusal("Nothing arrived: drop a file again, or record for at least a second.")
        say = progress or (lambda *_: None)
        try:
            with self._busy:
                if self._ended:
                    return refusal("The demo has ended.")
                prediction, observed = self._label(Path(path), say)
                say(0.85, "drawing")
                return result(prediction, observed, self.probabilities, narrow=narrow)
        except UnreadableAudio as error:
            return refusal(f"{Path(path).name} {error}.")
        except UsageError as error:
            return refusal(f"{error}.")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            return refusal(f"{Path(path).name} takes more memory than there is: try a shorter file.")
        finally:
            forget(path)

    def _label(self, path: Path, say: Callable[[float, str], object]) -> tuple[Prediction, plot.Observed]:
        size = path.stat().st_size if path.is_file() else 0
        if size > self.max_bytes:
            raise UsageError(too_large(path.name, size, self.max_bytes))
        seconds = probe(path, any_format=True).seconds
        if seconds > self.max_seconds:
            raise UsageError(
                f"{path.name} lasts {_clock(seconds)}, and this page takes at most {_clock(self.max_seconds)}: cut "
                "it, label it with gafx predict, or start the demo with a larger --max-seconds"
            )

        def step(begin: float, word: str) -> Callable[[float], None]:
            done = 0.0

            def add(more: float) -> None:
                nonlocal done
                done += more
                if self._ended:
                    raise UsageError("The demo has ended before the answer was found")
                say(begin + 0.4 * min(1.0, done / seconds), word)

            return add

        add = step(0.02, "reading")
        add(0.0)
        model = self.probabilities.model.to(pick_device(self.device))
        observed = plot.observe(model, path, progress=add)
        peak = float(np.abs(observed.envelope.values).max())
        if peak < _SILENCE:
            raise UsageError(
                f"{path.name} is silent (its peak is {peak:.1g} of full scale): choose another file, or check that the "
                "microphone is on and allowed"
            )
        (prediction,) = predict_files(
            self.probabilities, [path], over_time=True, device=self.device, progress=step(0.42, "labelling")
        )  # fmt: skip
        if prediction.error is not None:
            raise UnreadableAudio(prediction.error)
        return prediction, observed

    def head(self) -> str:
        """The page's head: what the model is, knows and scores."""
        info = self.info
        labels = ", ".join(map(_escape, info.classes))
        if len(info.classes) > 30:
            labels = f"<details><summary>{len(info.classes)} labels</summary>{labels}</details>"
        rows = [("Labels", labels), ("Parts", _escape(_parts(info.frontend, info.classifier)))]
        rows.append(("Trained on", _escape(_training(info.training))))
        rows.append(("Scores", _scores(info.scores, info.evaluated_on)))
        lines = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in rows)
        limits = (
            f"Wav, flac, ogg, opus, mp3, au or aiff, up to {_megabytes(self.max_bytes)} and "
            f"{_clock(self.max_seconds)}. Nothing leaves this server, and nothing is kept on it."
        )
        return (
            f'<style>{_STYLE}</style><header class="gafx"><h1>{_escape(self.name)}</h1>'
            f"<p>Drop a file of sound, or record one, and see what the model makes of it.</p><dl>{lines}</dl>"
            f'<p class="gafx-small">{limits}</p></header><div id="gafx-note" role="alert" aria-live="assertive"></div>'
        )

    def script(self) -> str:
        """JavaScript that refuses what is too large or no sound before it is uploaded, with the server's sentences."""
        return _SCRIPT.replace("$LIMIT", str(self.max_bytes)).replace(
            "$SENTENCES",
            json.dumps({
                "large": too_large("{name}", None, self.max_bytes),
                "empty": "{name} is empty (0 bytes): choose another file",
                "wrong": no_sound("{name}"),
                "many": "One file at a time, please: {name} and {more} more were dropped",
            }),
        )  # fmt: skip


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
    with _private_folder(), opened(
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
def _private_folder() -> Iterator[Path]:
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


def forget(path: str | os.PathLike[str]) -> None:
    """Delete an upload, and its folder if nothing else is in it."""
    path = Path(path)
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        path.parent.rmdir()


def too_large(name: str, size: int | None, limit: int) -> str:
    """The sentence for a file over the limit of size; without its size where the browser fills it in."""
    has = "{size}" if size is None else _megabytes(size)
    if size is not None and has == _megabytes(limit):  # a little too large
        has = f"{size:,} bytes"
    return (
        f"{name} has {has}, and this page takes at most {_megabytes(limit)}: cut it or store it as mp3, label it with "
        "gafx predict, or start the demo with a larger --max-mb"
    )


def no_sound(name: str) -> str:
    """The sentence for a file that is of another kind by its name."""
    return f"{name} is no file of sound: drop a wav, flac, ogg, opus or mp3; unpack archives first"


def refusal(sentence: str) -> str:
    """A sentence in place of a result."""
    return f'<div class="gafx gafx-refusal" role="alert">{_escape(sentence)}</div>'


def result(prediction: Prediction, observed: plot.Observed, model: Probabilities, *, narrow: bool = False) -> str:
    """The answer to one file: its labels with bars, the picture for light and for dark pages, what the shares mean."""
    ranked = prediction.top()
    label, share = ranked[0]
    bars = "".join(_bar(*entry) for entry in ranked[:_SHOWN_LABELS])
    more = ranked[_SHOWN_LABELS:]
    rest = f'<details><summary>{len(more)} more</summary><ul class="gafx-bars">{"".join(_bar(*e) for e in more)}</ul>'
    name = Path(prediction.file).name
    windows = prediction.windows
    assert windows is not None
    length = float(windows[0, 1] - windows[0, 0])
    count = f"{len(windows)} windows" if len(windows) > 1 else "one window"
    described = f"Shares over time, waveform, map and mel spectrogram of {name}; the largest share is that of {label}"
    images = "".join(
        f'<img class="gafx-{kind}" src="{_image(prediction, observed, narrow, kind == "dark")}" '
        f'alt="{_escape(described)}">'
        for kind in ("light", "dark")
    )
    notes = "".join(f"<p>{_escape(note)}</p>" for note in (_meaning(model, share), _calibration(model.info)))
    return (
        f'<section class="gafx gafx-result" aria-label="Result">'
        f"<h2>{_escape(label)} <span>{_percent(share)}</span></h2>"
        f'<p class="gafx-small"><span class="gafx-file">{_escape(name)}</span>, {_clock(observed.seconds)}, '
        f"{count} of {length:.3g} s</p>"
        f'<audio class="gafx-player" controls hidden aria-label="Play the file"></audio>'
        f'<ul class="gafx-bars">{bars}</ul>{f"{rest}</details>" if more else ""}'
        f'<div class="gafx-picture">{images}</div><div class="gafx-small">{notes}</div></section>'
    )


def _bar(label: str, share: float) -> str:
    return (
        f'<li><span class="gafx-label">{_escape(label)}</span><span class="gafx-track" aria-hidden="true">'
        f'<span style="width:{100 * min(max(share, 0), 1):.1f}%"></span></span>'
        f'<span class="gafx-share">{_percent(share)}</span></li>'
    )


def _image(prediction: Prediction, observed: plot.Observed, narrow: bool, dark: bool) -> str:
    figure = plot.draw(prediction, observed, mel=True, width=4.2 if narrow else 10.0, dark=dark)
    return "data:image/webp;base64," + base64.b64encode(plot.encode(figure, "webp")).decode("ascii")


def _meaning(model: Probabilities, share: float) -> str:
    if model.sums_to_one:
        return (
            "A share is what the model gives a label, averaged over the windows. Shares of all labels sum to 100 %, "
            "whatever is heard: the model cannot say that it is none of them."
        )
    return (
        "Each label has a share of its own, averaged over the windows: how sure the model is that it applies. They do "
        "not sum to 100 %: several labels may apply, or none."
    )


def _calibration(info: Any) -> str:
    known = info.calibration
    if not known:
        return (
            "The shares are not calibrated: they rank the labels, but 80 % need not mean right in 80 of 100 cases "
            "(gafx calibrate RUN does that)."
        )
    on = f" on {known['tracks']} {known.get('part', 'validation')} tracks" if "tracks" in known else ""
    return (
        f"The shares are calibrated{on} (temperature {info.temperature:.3g}): for sound like that, 80 % means right in "
        "about 80 of 100 cases. For other sound nobody has measured it."
    )


def _parts(frontend: dict[str, Any], classifier: dict[str, Any]) -> str:
    return f"front-end {frontend.get('name', 'built by its class')}, classifier {classifier.get('name', 'unknown')}"


def _training(training: dict[str, Any]) -> str:
    if not training.get("data"):
        return "not recorded"
    said = str(training["data"])
    if training.get("protocol"):
        said += f", protocol {training['protocol']}"
    if training.get("fold") and not str(training.get("protocol", "")).startswith("paper"):
        said += f", fold {training['fold']}"
    return said


def _scores(scores: dict[str, dict[str, Any]], on: dict[str, Any]) -> str:
    known = {name: score for name, score in scores.items() if score.get("value") is not None}
    if not known:
        return "not evaluated"
    said = []
    for name, score in known.items():
        percent = name in ("accuracy", "macro_f1")
        shown = [
            f"{100 * value:.1f} %" if percent else f"{value:.3f}"
            for value in (score["value"], score.get("low"), score.get("high"))
            if value is not None
        ]
        between = f" ({shown[1].removesuffix(' %')} to {shown[2]})" if len(shown) == 3 else ""
        said.append(f"{name.replace('_', ' ')} {shown[0]}{between}")
    where = f"{on.get('tracks', 'unknown')} tracks of the {on.get('part', 'test')} part of {on.get('data', 'unknown')}"
    fold = f", fold {on['fold']}" if on.get("fold") else ""
    return _escape(f"{'; '.join(said)}; on {where}, protocol {on.get('protocol', 'unknown')}{fold}; 95 % intervals")


def _megabytes(size: int) -> str:
    """Bytes for a sentence."""
    if size < 2**20:
        return f"{size:,} bytes"
    return f"{size / 2**20:.4g} MB" if size < 2**30 else f"{size / 2**30:.3g} GB"


def _clock(seconds: float) -> str:
    """A length for a sentence: `0.4 s`, `17 s`, `20:00 min`, `1:02:05 h`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{plot.clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _escape(text: object) -> str:
    """Text inside HTML; what no UTF-8 page can hold (undecodable bytes of names) as an escape."""
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def warn_of_host(host: str) -> None:
    """Say plainly what listening beyond the machine means."""
    if host not in LOOPBACK and not host.startswith("127."):
        print(
            f"warning: --host {host} lets everybody who can reach this machine use the page: there is no password and "
            "no encryption. Put it behind a server that has both, or leave --host out",
            file=sys.stderr, flush=True,
        )  # fmt: skip


_STYLE = """
.gafx { --gafx-line: var(--border-color-primary, #d0d7de); --gafx-bar: #0072b2; --gafx-soft: #57606a;
  color: var(--body-text-color); }
.dark .gafx-player { color-scheme: dark; }
.dark .gafx { --gafx-bar: #56b4e9; --gafx-soft: #a5afbc; }
.gafx h1 { font-size: 1.6rem; margin: .4rem 0 .2rem; overflow-wrap: anywhere; }
.gafx h2 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
.gafx h2 span { font-weight: 400; }
.gafx dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .6rem 0; }
.gafx dt { color: var(--gafx-soft); }
.gafx dd { margin: 0; overflow-wrap: anywhere; }
.gafx p { margin: .3rem 0; }
.gafx .gafx-small, .gafx.gafx-small { font-size: .875rem; color: var(--gafx-soft); }
.gafx-file { overflow-wrap: anywhere; }
.gafx-result { border: 1px solid var(--gafx-line); border-radius: 8px; padding: 1rem; }
.gafx-refusal, #gafx-note:not(:empty) { border: 1px solid #d55e00; border-left-width: 6px; border-radius: 6px;
  padding: .7rem 1rem; margin: .5rem 0; color: var(--body-text-color); overflow-wrap: anywhere; }
.gafx ul.gafx-bars { list-style: none; padding: 0; margin: .7rem 0; }
.gafx ul.gafx-bars li { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr 4.2rem; gap: .6rem;
  align-items: center; margin: .2rem 0; }
.gafx-label { overflow-wrap: anywhere; }
.gafx-track { display: block; height: .8rem; border-radius: 4px; background: var(--gafx-line); overflow: hidden; }
.gafx-track span { display: block; height: 100%; background: var(--gafx-bar); }
.gafx-share { text-align: right; font-variant-numeric: tabular-nums; }
.gafx-player { width: 100%; height: 2.4rem; margin: .5rem 0; }
.gafx-picture img { width: 100%; height: auto; max-width: 1100px; margin: .4rem 0; }
.gafx-picture .gafx-dark, .dark .gafx-picture .gafx-light { display: none; }
.dark .gafx-picture .gafx-dark { display: block; }
.gafx details { margin: .3rem 0; } .gafx summary { cursor: pointer; }
@media (max-width: 520px) {
  .gafx dl { grid-template-columns: 1fr; gap: 0; } .gafx dd { margin-bottom: .3rem; }
  .gafx ul.gafx-bars li { grid-template-columns: 6rem 1fr 3.8rem; }
  .gafx-result { padding: .6rem; }
}
footer { display: none !important; }
"""

# Listens before the page's own handlers do, so that a file over the limit is never sent.
_SCRIPT = """() => {
  if (window.gafxAnswered) return;
  const limit = $LIMIT, sentences = $SENTENCES;
  const show = (visible) => { document.querySelector('#gafx-answer').style.display = visible ? '' : 'none'; };
  // What was said of another file goes; the next answer shows itself.
  const note = (text) => {
    document.getElementById('gafx-note').textContent = text;
    show(false);
  };
  const size = (n) => words(n) === words(limit) ? n.toLocaleString('en-US') + ' bytes' : words(n);
  const words = (n) => n < 2 ** 20 ? n.toLocaleString('en-US') + ' bytes'
    : n < 2 ** 30 ? +(n / 2 ** 20).toPrecision(4) + ' MB' : +(n / 2 ** 30).toPrecision(3) + ' GB';
  const fill = (text, file, more) => text.replace('{name}', () => file.name).replace('{size}', () => size(file.size))
    .replace('{more}', () => more);
  const wrong = (files) => {
    const file = files[0];
    if (files.length > 1) return fill(sentences.many, file, files.length - 1);
    if (file.size > limit) return fill(sentences.large, file);
    if (!file.size) return fill(sentences.empty, file);
    if (!/^audio\\//.test(file.type)) return fill(sentences.wrong, file);
    return '';
  };
  let url = null;
  const look = (event, files) => {
    if (!files || !files.length || !event.target.closest || !event.target.closest('#gafx-audio')) return;
    const said = wrong(files);
    note(said ? said + '.' : '');
    if (url) URL.revokeObjectURL(url);
    url = said ? null : URL.createObjectURL(files[0]);
    if (!said) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.matches('input')) event.target.value = '';
  };
  document.addEventListener('change', (e) => e.target.matches('input[type=file]') && look(e, e.target.files), true);
  document.addEventListener('drop', (e) => look(e, e.dataTransfer && e.dataTransfer.files), true);
  // A file dropped beside the field must not make the browser leave the page.
  for (const kind of ['dragover', 'drop']) document.addEventListener(kind, (e) => e.preventDefault());
  document.addEventListener('click', (e) => {
    if (e.target.closest && e.target.closest('#gafx-audio .record-button, #gafx-audio .record')) {
      note('');
      if (url) URL.revokeObjectURL(url);
      url = null;
    }
  }, true);
  window.gafxAnswered = () => {
    show(true);
    const player = document.querySelector('#gafx-answer .gafx-player');
    if (!player || !url) return;
    player.src = url;
    player.hidden = false;
  };
}"""
