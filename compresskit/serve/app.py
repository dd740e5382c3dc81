"""The routes of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from compresskit import __version__
from compresskit.errors import InputError, MachineError
from compresskit.serve import tensors
from compresskit.serve.engine import Engine
from compresskit.serve.http import Answer, HttpService, number_of
from compresskit.serve.refused import Refused
from compresskit.serve.tensors import Limits

_HEADER = "Inference-Header-Content-Length"


class Service(HttpService):
    """One ONNX model.

    Args:
        name: The model's, in the addresses.
        runtime: The engine's name, shown as the platform.
        engine: Runs the model.
        limits: The largest request.
    """

    def __init__(self, name: str, runtime: str, engine: Engine, limits: Limits) -> None:
        super().__init__(name, engine, limits)
        self.runtime, self.engine = runtime, engine

    def routes(self) -> list[tuple[str, str, Answer, str]]:
        """See :class:`HttpService`."""
        return [
            ("/v2", "metadata", self._server, "GET"),
            ("/v2/models/{model}", "metadata", self._model, "GET"),
            ("/v2/models/{model}/ready", "health", self._model_ready, "GET"),
            ("/v2/models/{model}/infer", "infer", self._infer, "POST"),
        ]

    def error(self, refused: Refused) -> Response:
        """See :class:`HttpService`."""
        return JSONResponse({"error": refused.message}, refused.status)

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

    def _known(self, request: Request) -> None:
        if request.path_params["model"] != self.name:
            raise Refused(404, f"there is no model '{request.path_params['model']}', only '{self.name}'")

    async def _infer(self, request: Request) -> Response:
        self._known(request)
        header = number_of(request, _HEADER, -1) if _HEADER in request.headers else None
        body = await self.received(request)
        start = time.perf_counter()
        future = self.engine.submit(partial(self._compute, body, header))
        del body
        try:
            # Cancelled, a request that waits is dropped; one that runs can't be stopped, and keeps its place till then.
            payload, length = await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except asyncio.TimeoutError:
            raise Refused(504, f"no answer within {self.limits.timeout:g} s") from None
        self.metrics.took(time.perf_counter() - start)
        if length is None:
            return Response(payload, media_type="application/json")
        return Response(payload, media_type="application/octet-stream", headers={_HEADER: str(length)})

    def _compute(self, body: bytes, header: int | None) -> tuple[bytes, int | None]:
        """All of a request that takes time, in one of the engine's threads."""
        asked = tensors.read_request(body, header, self.engine.inputs, self.engine.outputs, self.limits)
        try:
            results = self.engine.run(asked.feeds)
        except InputError as error:
            raise Refused(400, f"the model refuses these inputs: {error.message}") from error
        except MachineError as error:
            raise Refused(500, error.message) from error
        return tensors.write_response(self.name, asked, results)
