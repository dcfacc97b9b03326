"""The routes of the service."""

import asyncio
import json
import logging
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafx._version import __version__
from gafx.audio.formats import NAMES
from gafx.deploy.predict import Prediction
from gafx.deploy.serve.receive import Refusal, receive
from gafx.deploy.serve.worker import Ended, Job, Worker
from gafx.deploy.uploads import MAX_BYTES, MAX_SECONDS, Limits, OverLimit
from gafx.errors import UnreadableAudio, UsageError, did_you_mean
from gafx.inference import Probabilities
from gafx.io import is_disk_full
from gafx.model import GAFX
from gafx.report.format import duration, plural, printable, size
from gafx.report.html import render

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("gafx")
# Requests that are received, wait or are labelled at the same time: with uploads of `max_bytes` they bound the disk.
MAX_REQUESTS = 64
_MAX_RETRY_SECONDS = 600
_ENDED = "the service is ending: ask again when it has been started anew"
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def _field(kind: Any, description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **more}


_RESULT = {
    "label": _field("string", "the most probable label; absent for silence"),
    "probabilities": _field("object", "by label, falling; absent for silence", additionalProperties={"type": "number"}),
    "level_db": _field(["number", "null"], "level in dBFS; null for a constant signal"),
    "silent": _field("boolean", "true for silence, else absent"),
}
_WINDOW = {"start": _field("number", "in seconds"), "end": _field("number", "in seconds"), **_RESULT}
_ANSWER = {
    "type": "object",
    "properties": {
        "file": _field("string", "name of the file; upload for bytes without a form"),
        "seconds": _field("number", "length of the audio"),
        "note": _field("string", "what is doubtful about the file; absent where nothing is"),
        **_RESULT,
        "windows": _field("integer", "number of windows, where some are silent"),
        "silent_windows": _field("integer", "number of silent windows, where there are some"),
        "over_time": _field(
            "array", "with over_time=true: of each window start, end, and label, probabilities, level_db or silent",
            items={"type": "object", "properties": _WINDOW, "required": ["start", "end", "level_db"]},
        ),
    },
    "required": ["file", "seconds", "level_db"],
}  # fmt: skip
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"],
    }
}  # fmt: skip
_REFUSALS = {
    400: "The form is damaged, or incomplete.", 408: "The upload is too slow.",
    413: "The file has too many bytes or seconds.", 415: "The body is neither a form nor audio.",
    422: "The file cannot be decoded, the form has none, or a parameter is out of range.",
    500: "A fault of the service.",
    503: "There is no room for the request, or the service is ending; Retry-After says when to ask again.",
}  # fmt: skip

_MODEL = (
    "Name, labels, sampling rate, channels, window in seconds, if the probabilities sum to 1 and are calibrated; "
    "largest bytes and seconds of a file."
)


class Service:
    """State that the routes share: the model, the limits, the computing thread and the folder of uploads.

    Args:
        model: from `gafx.load`.
        folder: of uploads, which nobody else can read.
        name: of the model.
        max_bytes: largest file.
        max_seconds: longest audio.
        device: as for `predict_files`.
        max_requests: that are received, wait or are labelled at the same time; further ones are refused.

    Raises:
        UsageError: a limit that admits no file, a model that predicts no labels, or a device that is not available.
    """

    def __init__(
        self, model: GAFX, folder: Path, *, name: str = "", max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS, device: str = "auto", max_requests: int = MAX_REQUESTS,
    ):  # fmt: skip
        if max_requests < 1:
            raise UsageError(f"max_requests={max_requests} admits no request: it must be at least 1")
        self.limits = Limits(max_bytes, max_seconds, "service", "service")
        self.probabilities = Probabilities(model).eval()
        self.info = self.probabilities.info
        self.name = printable(name or self.info.frontend.get("name", "model"))
        self.folder, self.max_requests = folder, max_requests
        self.requests = 0
        self.ending = False
        self.worker = Worker(self.probabilities, self.limits, device)

    def close(self) -> None:
        """Refuse what waits, and end the computing thread."""
        self.ending = True
        self.worker.close()

    def describe(self) -> dict[str, Any]:
        """The model and the limits, as the route `/model` gives them."""
        front_end = self.probabilities.model.frontend
        return {
            "model": self.name, "labels": list(self.probabilities.classes), "sample_rate": front_end.sample_rate,
            "channels": front_end.channels, "window_seconds": self.info.segment_seconds,
            "sums_to_one": self.probabilities.sums_to_one, "calibrated": bool(self.info.calibration),
            "max_bytes": self.limits.max_bytes, "max_seconds": self.limits.max_seconds,
        }  # fmt: skip

    def health(self) -> dict[str, Any]:
        """The state, as the route `/health` gives it."""
        return {
            "status": "ending" if self.ending else "ok", "model": self.name, "version": __version__,
            "requests": self.requests, "max_requests": self.max_requests,
        }  # fmt: skip

    async def predict(self, request: Any, top: int | None, over_time: bool) -> dict[str, Any]:
        """Receive the file of a request and label it.

        Args:
            request: starlette's.
            top: number of labels; None for all.
            over_time: also give the probabilities of each window.

        Returns:
            what `gafx predict --json` writes.

        Raises:
            Refusal: it is not answered.
            starlette.requests.ClientDisconnect: nobody waits for the answer any more.
        """
        if self.ending or self.requests >= self.max_requests:
            raise self._busy()
        self.requests += 1
        name = "the upload"
        try:
            path, name = await receive(request, self.folder, self.limits)
            job = Job(path, name, over_time)
            self.worker.submit(job)
            found = await _unless_gone(request, job)
            return found.to_dict(top, over_time=over_time)
        except Ended:
            raise Refusal(503, _ENDED, {"Retry-After": "60"}) from None
        except OverLimit as error:
            raise Refusal(413, str(error)) from None
        except UnreadableAudio as error:
            raise Refusal(422, f"{name} {error}") from None
        except UsageError as error:
            raise Refusal(422, str(error)) from None
        except OSError as error:
            if not is_disk_full(error):
                raise
            _log.error("no room for uploads in %s", self.folder)
            raise Refusal(
                503, "the service has no room for the upload: ask again later", {"Retry-After": "60"}
            ) from None
        finally:
            self.requests -= 1

    def _busy(self) -> Refusal:
        if self.ending:
            return Refusal(503, _ENDED, {"Retry-After": "60"})
        wait = min(_MAX_RETRY_SECONDS, max(1, round(self.requests * self.worker.seconds_per_file)))
        sentence = f"{plural(self.requests, 'request')} wait already: ask again in {duration(wait)}"
        return Refusal(503, sentence, {"Retry-After": str(wait)})


async def _unless_gone(request: Any, job: Job) -> Prediction:
    """The prediction of a job; if the client goes first, the job gives up its place."""
    from starlette.requests import ClientDisconnect

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    labelled = asyncio.wrap_future(job.future)
    leaving = asyncio.ensure_future(gone())
    both: list[asyncio.Future[Any]] = [labelled, leaving]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not labelled.done():
            raise ClientDisconnect
        return labelled.result()
    finally:
        leaving.cancel()
        labelled.cancel()


def build(service: Service) -> "FastAPI":
    """The routes as an ASGI application; the page `/docs` and all others load nothing from other servers."""
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    limits = service.limits
    app = FastAPI(
        title=f"{service.name} – gafx", version=__version__, docs_url=None, redoc_url=None,
        description=(
            f"Label probabilities of audio files: {NAMES}, up to {size(limits.max_bytes)} and "
            f"{duration(limits.max_seconds)}. Errors are JSON objects with a sentence in `error`."
        ),
    )  # fmt: skip

    def answered(value: dict[str, Any]) -> Response:
        # ASCII: labels may hold lone surrogates, which only escapes can represent.
        return Response(json.dumps(value), media_type="application/json")

    def refused(status: int, sentence: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, headers)

    @app.post(
        "/predict",
        summary="Label a file",
        response_class=Response,
        responses={
            200: {
                "description": "Labels by falling probability.",
                "content": {"application/json": {"schema": _ANSWER}},
            },
            **{
                status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
                for status, text in _REFUSALS.items()
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "a form with the file in the field `file`, or the bytes of the file",
                "content": {
                    "multipart/form-data": _FORM,
                    "audio/*": _BINARY,
                    "video/*": _BINARY,
                    "application/ogg": _BINARY,
                    "application/octet-stream": _BINARY,
                },
            }
        },
    )
    async def predict(
        request: Request,
        top: int = Query(0, ge=0, description="number of labels; 0: all"),
        over_time: bool = Query(False, description="also the probabilities of each window"),
    ) -> Response:
        for name in request.query_params:
            if name not in (known := ("top", "over_time")):
                raise Refusal(422, f"unknown parameter {name!r}: choose from top, over_time{did_you_mean(name, known)}")
            if len(request.query_params.getlist(name)) > 1:
                raise Refusal(422, f"{name} is given several times: give it once")
        try:
            return answered(await service.predict(request, top or None, over_time))
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
        except asyncio.CancelledError:
            if not service.ending:
                raise
            return refused(503, _ENDED)
        except Refusal as refusal:
            return refused(refusal.status, refusal.sentence, refusal.headers)
        except Exception:
            _log.exception("a request could not be answered")
            return refused(500, "an internal error occurred: the log of the service shows it")

    @app.head("/health", include_in_schema=False)
    @app.get(
        "/health",
        summary="State of the service",
        response_description="It answers requests.",
        responses={503: {"description": "It is ending."}},
    )
    async def health() -> JSONResponse:
        return JSONResponse(service.health(), 503 if service.ending else 200)

    @app.head("/model", include_in_schema=False)
    @app.get("/model", summary="The model and the limits", response_description=_MODEL, response_class=Response)
    async def model() -> Response:
        return answered(service.describe())

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            render("serve.html.j2", title=app.title, schema=app.openapi(), phrase=_phrase, **service.describe())
        )

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.exception_handler(Refusal)
    async def refuse(_: Request, error: Refusal) -> JSONResponse:
        return refused(error.status, error.sentence, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refused(422, f"{first['loc'][-1]}={first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}")

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{request.method} {request.url.path} is not offered: see /docs"
        return refused(error.status_code, sentence, error.headers)

    return app


def _phrase(status: str) -> str:
    with suppress(ValueError):
        return HTTPStatus(int(status)).phrase
    return ""
