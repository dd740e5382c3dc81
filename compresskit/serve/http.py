"""What every server of ours has over HTTP: bounded bodies, answers whatever happens, health and metrics."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from compresskit.serve.metrics import CONTENT_TYPE, Metrics
from compresskit.serve.refused import Refused
from compresskit.serve.tensors import Limits
from compresskit.serve.workers import Workers

_LOG = logging.getLogger("compresskit.serve")

Answer = Callable[[Request], Awaitable[Response]]


class HttpService(ABC):
    """A model behind some addresses.

    Args:
        name: The model's, in the addresses.
        workers: What runs it.
        limits: The largest request.

    Attributes:
        draining: True once the server is to stop.
        metrics: Counters.
    """

    def __init__(self, name: str, workers: Workers, limits: Limits) -> None:
        self.name, self.workers, self.limits = name, workers, limits
        self.draining = False
        self.metrics = Metrics(lambda: workers.taken, workers.places)

    @abstractmethod
    def routes(self) -> list[tuple[str, str, Answer, str]]:
        """(address, word for the metrics, what answers, HTTP method) each."""

    @abstractmethod
    def error(self, refused: Refused) -> Response:
        """The answer to a request that can't be answered, as the protocol writes it."""

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            ("/v2/health/live", "health", self._live, "GET"),
            ("/v2/health/ready", "health", self._ready, "GET"),
            *self.routes(),
            ("/metrics", "metrics", self._metrics, "GET"),
        ]
        app = Starlette(
            routes=[
                Route(path, self._answering(route, answer), methods=[method]) for path, route, answer, method in routes
            ],
            exception_handlers={HTTPException: self._elsewhere},
        )
        app.router.redirect_slashes = False  # the address of a redirect would be made of what the client sent
        return self._framed_once(app)

    async def received(self, request: Request) -> bytes:
        """Take a place among the workers, and the body. Whoever calls this hands the place on, or gives it back.

        Raises:
            Refused: No place is free, or the body is compressed, too large or too slow.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "a compressed body is not taken: send it plain")
        if number_of(request, "content-length", 0) > self.limits.body:
            raise self._too_large()
        if not self.workers.enter():
            raise Refused(503, f"{self.workers.places} requests are waiting already")
        try:
            return await asyncio.wait_for(self._body(request), self.limits.timeout)
        except BaseException as error:
            self.workers.leave()
            if isinstance(error, asyncio.TimeoutError):
                raise Refused(408, f"the body did not arrive within {self.limits.timeout:g} s") from None
            raise

    def refused(self, refused: Refused) -> Response:
        """As :meth:`error`; a request for which there is no place also gets the time to try again."""
        response = self.error(refused)
        if refused.status == 503:
            response.headers["Retry-After"] = "1"
        return response

    def _answering(self, route: str, answer: Answer) -> Answer:
        """An endpoint that counts its answers and turns whatever happens into one of them."""

        async def endpoint(request: Request) -> Response:
            try:
                response = await answer(request)
            except Refused as refused:
                response = self.refused(refused)
            except ClientDisconnect:
                response = self.error(Refused(400, "the connection was closed before the request was whole"))
            except asyncio.CancelledError:  # the grace is over; let out, it would be logged as a crash
                response = self.error(Refused(503, "the server is stopping"))
            except Exception:  # a bug: told to whoever runs the server, not to the client
                _LOG.exception("a bug in compresskit serve")
                response = self.error(Refused(500, "internal error; the server's log has more"))
            self.metrics.answered(route, response.status_code)
            return response

        return endpoint

    async def _elsewhere(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        self.metrics.answered("other", status)
        word = {404: "there is nothing here", 405: "this method is not allowed here"}.get(status, "error")
        response = self.error(Refused(status, f"{word}: {request.method} {request.url.path}"))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": not self.draining}, 503 if self.draining else 200)

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _body(self, request: Request) -> bytes:
        parts = bytearray()
        async for part in request.stream():
            parts += part
            if len(parts) > self.limits.body:
                raise self._too_large()
        return bytes(parts)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self.limits.body} bytes")

    def _framed_once(self, app: ASGIApp) -> ASGIApp:
        """Refuses a request that gives its length twice: what stands before this server may believe the other one."""

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            names = {name for name, _ in scope.get("headers", ())}
            if {b"content-length", b"transfer-encoding"} <= names:
                response = self.error(Refused(400, "Content-Length and Transfer-Encoding together are not taken"))
                response.headers["Connection"] = "close"
                await response(scope, receive, send)
            else:
                await app(scope, receive, send)

        return checked


def number_of(request: Request, header: str, default: int) -> int:
    """A number of bytes from a header; ``default`` where it isn't given.

    Raises:
        Refused: It is no number.
    """
    text: Any = request.headers.get(header)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refused(400, f"{header}: expected a number of bytes, found '{text}'")
    return int(text)
