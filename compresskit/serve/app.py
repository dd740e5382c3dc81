"""The routes of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from compresskit import __version__
from compresskit.errors import InputError, MachineError, printable
from compresskit.serve import tensors
from compresskit.serve.engine import Engine
from compresskit.serve.metrics import CONTENT_TYPE, Metrics
from compresskit.serve.tensors import Limits, Refused

_HEADER = "Inference-Header-Content-Length"
_LOG = logging.getLogger("compresskit.serve")

Answer = Callable[[Request], Awaitable[Response]]


@dataclass
class Service:
    """What the routes share.

    Attributes:
        name: The model's, in the addresses.
        runtime: The engine's name, shown as the platform.
        engine: Runs the model.
        limits: The largest request.
        max_body: Bytes of a body.
        timeout: Seconds that a request may take to arrive, and again to be answered.
        draining: True once the server is to stop.
    """

    name: str
    runtime: str
    engine: Engine
    limits: Limits
    max_body: int
    timeout: float
    draining: bool = False
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.engine.taken, self.engine.places)

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            ("/v2/health/live", "health", self._live, "GET"),
            ("/v2/health/ready", "health", self._ready, "GET"),
            ("/v2", "metadata", self._server, "GET"),
            ("/v2/models/{model}", "metadata", self._model, "GET"),
            ("/v2/models/{model}/ready", "health", self._model_ready, "GET"),
            ("/v2/models/{model}/infer", "infer", self._infer, "POST"),
            ("/metrics", "metrics", self._metrics, "GET"),
        ]
        app = Starlette(
            routes=[
                Route(path, self._answering(route, answer), methods=[method]) for path, route, answer, method in routes
            ],
            exception_handlers={HTTPException: self._elsewhere},
        )
        app.router.redirect_slashes = False  # the address of a redirect would be made of what the client sent
        return _framed_once(app)

    def _answering(self, route: str, answer: Answer) -> Answer:
        """An endpoint that counts its answers and turns whatever happens into one of them."""

        async def endpoint(request: Request) -> Response:
            try:
                response = await answer(request)
            except Refused as refused:
                response = _error(refused.status, refused.message)
            except ClientDisconnect:
                response = _error(400, "the connection was closed before the request was whole")
            except asyncio.CancelledError:  # the grace is over; let out, it would be logged as a crash
                response = _error(503, "the server is stopping")
            except Exception:  # a bug: told to whoever runs the server, not to the client
                _LOG.exception("a bug in compresskit serve")
                response = _error(500, "internal error; the server's log has more")
            self.metrics.answered(route, response.status_code)
            return response

        return endpoint

    async def _elsewhere(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        self.metrics.answered("other", status)
        word = {404: "there is nothing here", 405: "this method is not allowed here"}.get(status, "error")
        response = _error(status, f"{word}: {request.method} {request.url.path}")
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": not self.draining}, 503 if self.draining else 200)

    async def _server(self, _request: Request) -> Response:
        return JSONResponse({"name": "compresskit", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _model(self, request: Request) -> Response:
        self._known(request)
        return JSONResponse(
            {"name": self.name, "versions": [], "platform": f"{self.runtime}_onnx", **self.engine.describe()}
        )

    async def _model_ready(self, request: Request) -> Response:
        self._known(request)
        return JSONResponse({"name": self.name, "ready": not self.draining}, 503 if self.draining else 200)

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _known(self, request: Request) -> None:
        if request.path_params["model"] != self.name:
            raise Refused(404, f"there is no model '{request.path_params['model']}', only '{self.name}'")

    async def _infer(self, request: Request) -> Response:
        self._known(request)
        header = _json_length(request)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "a compressed body is not taken: send it plain")
        if _number(request, "content-length", 0) > self.max_body:
            raise Refused(413, f"the body is larger than {self.max_body} bytes")
        if not self.engine.enter():
            return _error(503, f"{self.engine.places} requests are waiting already", {"Retry-After": "1"})
        try:
            body = await asyncio.wait_for(self._body(request), self.timeout)
            start = time.perf_counter()
            future = self.engine.submit(partial(self._compute, body, header))
        except BaseException as error:
            self.engine.leave()
            if isinstance(error, asyncio.TimeoutError):
                raise Refused(408, f"the body did not arrive within {self.timeout:g} s") from None
            raise
        del body
        try:
            # Cancelled, a request that waits is dropped; one that runs can't be stopped, and keeps its place till then.
            payload, length = await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
        except asyncio.TimeoutError:
            raise Refused(504, f"no answer within {self.timeout:g} s") from None
        self.metrics.took(time.perf_counter() - start)
        if length is None:
            return Response(payload, media_type="application/json")
        return Response(payload, media_type="application/octet-stream", headers={_HEADER: str(length)})

    async def _body(self, request: Request) -> bytes:
        parts = bytearray()
        async for part in request.stream():
            parts += part
            if len(parts) > self.max_body:
                raise Refused(413, f"the body is larger than {self.max_body} bytes")
        return bytes(parts)

    def _compute(self, body: bytes, header: int | None, engine: Engine) -> tuple[bytes, int | None]:
        """All of a request that takes time, in one of the engine's threads."""
        asked = tensors.read_request(body, header, engine.inputs, engine.outputs, self.limits)
        try:
            results = engine.run(asked.feeds)
        except InputError as error:
            raise Refused(400, f"the model refuses these inputs: {error.message}") from error
        except MachineError as error:
            raise Refused(500, error.message) from error
        return tensors.write_response(self.name, asked, results)


def _framed_once(app: ASGIApp) -> ASGIApp:
    """Refuses a request that gives its length twice: what stands before this server may believe the other one."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            both = "Content-Length and Transfer-Encoding together are not taken"
            await _error(400, both, {"Connection": "close"})(scope, receive, send)
        else:
            await app(scope, receive, send)

    return checked


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": printable(message)}, status, headers)


def _json_length(request: Request) -> int | None:
    return _number(request, _HEADER, -1) if _HEADER in request.headers else None


def _number(request: Request, header: str, default: int) -> int:
    text: Any = request.headers.get(header)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refused(400, f"{header}: expected a number of bytes, found '{text}'")
    return int(text)
