"""Listening, and stopping without losing an answer."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from compresskit.errors import ExitCode, MachineError, UsageError, printable
from compresskit.serve.header_timeout import HeaderTimeoutProtocol
from compresskit.serve.http import HttpService

_PATIENCE_S = 1.0  # the least that headers get to arrive
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before a model is read: an address that is taken is told at once.

    Raises:
        MachineError: The address is taken, or not allowed.
        UsageError: The host isn't an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]  # fmt: skip
    except OSError as error:
        raise UsageError(
            f"--host {host} is not an address here: {error}", "for example 127.0.0.1 or 0.0.0.0"
        ) from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a restart needn't wait for the last connections; on Windows it would share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise MachineError(
            f"can't listen on {host}:{port}: {error.strerror or error}", "give another --port"
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """``http://127.0.0.1:8080``."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    service: HttpService, bound: socket.socket, *, connections: int, grace: float, ready: Callable[[], None]
) -> int:
    """Answer requests until a signal comes, then finish those that are in flight.

    Args:
        service: What answers.
        bound: From :func:`listen`; closed at the end.
        connections: Open at a time; more are answered 503.
        grace: Seconds that requests in flight get to finish.
        ready: Called once requests are answered.

    Returns:
        The exit code: 0 after SIGTERM, which is how a server is stopped, 130 after Ctrl-C. Where a model still runs
        when the grace is over, the process ends here, with 143 after SIGTERM: a thread in an engine can't be stopped.
    """
    _log_to_stderr()
    heads = type("Heads", (HeaderTimeoutProtocol,), {"patience": max(_PATIENCE_S, service.limits.timeout)})
    config = uvicorn.Config(
        service.app(), loop="asyncio", http=heads, ws="none", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, limit_concurrency=connections,
        timeout_graceful_shutdown=max(1, round(grace)),
    )  # fmt: skip
    server = _Server(config, service, ready)
    try:
        server.run(sockets=[bound])
    finally:
        bound.close()
        service.workers.close()
    interrupted = server.stopped_by == signal.SIGINT
    if service.workers.taken:
        logging.getLogger("compresskit.serve").warning("requests were aborted: %d", service.workers.taken)
        sys.stdout.flush()
        os._exit(int(ExitCode.INTERRUPTED if interrupted else ExitCode.TERMINATED))
    return int(ExitCode.INTERRUPTED if interrupted else ExitCode.OK)


class _Server(uvicorn.Server):
    """uvicorn's, but a signal ends it with an exit code of ours instead of being raised once more."""

    def __init__(self, config: uvicorn.Config, service: HttpService, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.stopped_by = 0
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: Any) -> None:
        self._service.draining = True
        self.force_exit = self.should_exit  # a second signal doesn't wait
        self.should_exit = True
        self.stopped_by = self.stopped_by or number


class _OneLine(logging.Formatter):
    """Time, level and message; text from clients made harmless. A bug of ours keeps its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        text = f"{self.formatTime(record)} {record.levelname.lower()}: {printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


_CLIENTS = (
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
)
"""What uvicorn would log of a client's mistakes: anyone could fill the log."""


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: not str(record.msg).startswith(_CLIENTS))
    handler.setFormatter(_OneLine())
    for name in ("uvicorn", "compresskit.serve"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.WARNING)
