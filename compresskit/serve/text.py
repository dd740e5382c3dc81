"""The routes of OpenAI's API for a language model."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from compresskit.errors import InputError, MachineError
from compresskit.runtimes.text import Made, TooLong, Writer
from compresskit.serve.completions import Asked, Named, Stopping, read_asked, reason
from compresskit.serve.http import Answer, HttpService
from compresskit.serve.refused import Refused
from compresskit.serve.tensors import Limits
from compresskit.serve.workers import Workers

_LOG = logging.getLogger("compresskit.serve")
_TYPES = {404: "not_found_error", 408: "timeout_error", 503: "overloaded_error", 504: "timeout_error"}
Event = str | Made | Refused
"""A piece of text; at the end what it took, or why there is no more."""


class TextWorkers(Workers):
    """One thread with a language model.

    Args:
        writer: The model.
        waiting: Requests that may wait for it.
    """

    def __init__(self, writer: Writer, waiting: int) -> None:
        super().__init__(1, waiting)
        self.writer = writer
        self.stopping = threading.Event()

    def close(self) -> None:
        """Take nothing more, and end what is being written."""
        self.stopping.set()
        super().close()


class TextService(HttpService):
    """A language model behind ``/v1/completions`` and ``/v1/chat/completions``.

    Args:
        name: The model's.
        workers: The model with its thread.
        limits: The largest request.
    """

    def __init__(self, name: str, workers: TextWorkers, limits: Limits) -> None:
        super().__init__(name, workers, limits)
        self._writer, self._stopping = workers.writer, workers.stopping
        self._since = int(time.time())

    def routes(self) -> list[tuple[str, str, Answer, str]]:
        """See :class:`HttpService`."""
        return [
            ("/v1/models", "metadata", self._models, "GET"),
            ("/v1/models/{model:path}", "metadata", self._model, "GET"),
            ("/v1/completions", "completions", self._completions, "POST"),
            ("/v1/chat/completions", "chat", self._chat, "POST"),
        ]

    def error(self, refused: Refused) -> Response:
        """See :class:`HttpService`."""
        return JSONResponse(_error(refused), refused.status)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        asked = request.path_params["model"]
        if asked != self.name:
            raise Refused(
                404, f"there is no model '{asked}', only '{self.name}'", about="model", code="model_not_found"
            )
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._since, "owned_by": "compresskit"}

    async def _completions(self, request: Request) -> Response:
        return await self._answered(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._answered(request, chat=True)

    async def _answered(self, request: Request, *, chat: bool) -> Response:
        body = await self.received(request)
        try:
            asked = await asyncio.to_thread(read_asked, body, self.name, chat=chat, context=self.limits.length)
        except BaseException:
            self.workers.leave()
            raise
        writing = _Writing(self._writer, asked, self._stopping)
        future = self.workers.submit(writing.run)
        named = Named(f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", int(time.time()), self.name, chat)
        start = time.perf_counter()
        try:
            # The first event tells whether there is an answer at all.
            first = await self._next(writing, start)
            if asked.stream:
                return StreamingResponse(
                    self._streamed(writing, first, named, start), media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache"},
                )  # fmt: skip
            pieces = []
            while isinstance(first, str):
                pieces.append(first)
                first = await self._next(writing, start)
        except BaseException:  # of a client that left too
            writing.give_up()
            future.cancel()
            raise
        self.metrics.took(time.perf_counter() - start)
        return JSONResponse(named.answer("".join(pieces), first))

    async def _next(self, writing: _Writing, start: float) -> str | Made:
        """The next event.

        Raises:
            Refused: There is no answer, or it took too long.
        """
        left = self.limits.timeout - (time.perf_counter() - start)
        try:
            found = await asyncio.wait_for(writing.events.get(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise Refused(504, f"no answer within {self.limits.timeout:g} s") from None
        if isinstance(found, Refused):
            raise found
        return found

    async def _streamed(self, writing: _Writing, event: str | Made, named: Named, start: float) -> AsyncIterator[str]:
        """Server-sent events; an error after the first of them is one of them."""
        first = True
        try:
            while isinstance(event, str):
                yield _event(named.piece(event, first=first))
                first, event = False, await self._next(writing, start)
            if first:
                yield _event(named.piece("", first=True))
            yield _event(named.piece("", reason(event)))
            if writing.asked.usage:
                yield _event(named.counted(event))
            self.metrics.took(time.perf_counter() - start)
        except Refused as refused:
            yield _event(_error(refused))
        finally:
            writing.give_up()
        yield "data: [DONE]\n\n"


class _Writing:
    """One answer while it is being written, in a thread; its events are read in the loop.

    Attributes:
        asked: What for.
        events: What came of it so far.
    """

    def __init__(self, writer: Writer, asked: Asked, stopping: threading.Event) -> None:
        self.asked = asked
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._writer, self._stopping, self._given_up = writer, stopping, threading.Event()

    def give_up(self) -> None:
        """Nobody reads the rest."""
        self._given_up.set()

    def run(self) -> None:
        """Write, in a thread of the workers."""
        until = Stopping(self.asked.stops)

        def show(text: str) -> bool:
            self._tell(until.take(text))
            return until.stopped or self._given_up.is_set() or self._stopping.is_set()

        try:
            if self._given_up.is_set():
                return
            made = self._writer.write(self.asked.request, show)
            if self._stopping.is_set():
                raise Refused(503, "the server is stopping")
            self._tell(until.rest())
            self._tell(made)
        except TooLong as error:
            self._tell(Refused(400, error.message, about="messages" if self.asked.chat else "prompt",
                               code="context_length_exceeded"))  # fmt: skip
        except InputError as error:
            self._tell(Refused(400, error.message))
        except MachineError as error:
            self._tell(Refused(500, error.message))
        except Refused as refused:
            self._tell(refused)
        except Exception:  # a bug: told to whoever runs the server, not to the client
            _LOG.exception("a bug in compresskit serve")
            self._tell(Refused(500, "internal error; the server's log has more"))

    def _tell(self, event: Event) -> None:
        if event != "":
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.events.put_nowait, event)


def _error(refused: Refused) -> dict[str, Any]:
    kind = _TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.message, "type": kind, "param": refused.about, "code": refused.code}}


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"
