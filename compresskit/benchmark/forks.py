"""Workers that are forked from a parent that has imported their engine: without the half second of an interpreter.

:mod:`multiprocessing` has such a server too. Its forks run the user's main module again, one server serves a whole
program, and its interpreter looks for modules in the current folder first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

_FORKED = ("none", "onnxruntime", "openvino", "openvino-bf16", "torch")
"""Runtimes whose import starts nothing that a fork would lack; those that drive a GPU have not been tried."""
_BOOT = """import sys; sys.path[:] = sys.argv[3:]
import signal
for stop in (signal.SIGINT, signal.SIGTERM): signal.signal(stop, signal.SIG_IGN)
from compresskit.benchmark.parent import main
main(sys.argv[1], int(sys.argv[2]))"""


class Forked:
    """A forked worker, as far as it is like ``subprocess.Popen``: text in, text out, its end and its exit code.

    Raises:
        OSError: The parent has ended, or doesn't answer.
    """

    def __init__(self, channel: socket.socket, path: Sequence[str], log: IO[bytes]) -> None:
        self._channel = channel
        self._code: int | None = None
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self.stdin: IO[str] = os.fdopen(ours_out, "w", encoding="utf-8")
        self.stdout: IO[str] = os.fdopen(ours_in, "r", encoding="utf-8")
        try:
            order = json.dumps({"path": list(path), "folder": str(Path.cwd())}).encode()
            socket.send_fds(channel, [order], [theirs_in, theirs_out, log.fileno()])
            self.pid = int(_answer(channel, "pid"))
        except BaseException:
            self.stdin.close()
            self.stdout.close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def kill(self) -> None:
        """End it at once."""
        if self._code is None:  # until then the number is its own
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Exit code, negative for a signal; SIGKILL where the parent is gone, and its workers with it."""
        if self._code is None:
            try:
                self._channel.send(str(self.pid).encode())
                self._code = int(_answer(self._channel, f"end {self.pid}"))
            except OSError:
                self._code = -signal.SIGKILL
        return self._code


def _answer(channel: socket.socket, to: str) -> str:
    """The answer to what was asked; one to a question that was interrupted is passed over."""
    while said := channel.recv(64).decode():
        if said.startswith(f"{to} "):
            return said.removeprefix(f"{to} ")
    raise ConnectionResetError("the parent of the workers has ended")


class Parents:
    """A warm parent for each runtime, which starts with the first worker that is asked of it.

    Args:
        stack: Ends them.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._channels: dict[str, socket.socket | None] = {}

    def fork(
        self, runtime: str, path: Sequence[str], env: Mapping[str, str], timeout_s: float, log: IO[bytes]
    ) -> Forked | None:
        """A worker; None where its engine can't be forked here: a fresh process says why, or does without.

        Args:
            runtime: What the parent has imported.
            path: Where the worker looks for modules.
            env: The parent's environment, if it starts now.
            timeout_s: Longest wait for the import.
            log: Takes the worker's stderr.
        """
        if sys.platform != "linux" or runtime not in _FORKED:  # macOS forks too, but its frameworks don't bear it
            return None
        with suppress(OSError):
            if runtime not in self._channels:
                self._channels[runtime] = self._start(runtime, path, env, timeout_s)
            channel = self._channels[runtime]
            return None if channel is None else Forked(channel, path, log)
        self._channels[runtime] = None
        return None

    def _start(self, runtime: str, path: Sequence[str], env: Mapping[str, str], timeout_s: float) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable or "python", "-c", _BOOT, runtime, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        ours.settimeout(timeout_s)
        self._stack.callback(_end, ours, process)
        return ours


def _end(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """End a parent and its workers; their CPU time is then known to the system as this program's."""
    channel.close()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    finally:
        process.kill()
        process.wait()


_parents: ContextVar[Parents | None] = ContextVar("parents", default=None)


@contextmanager
def warm_parents() -> Iterator[Parents]:
    """Workers that start in here have warm parents; in another such context they have those of the outer one."""
    outer = current()
    if outer is not None:
        yield outer
        return
    with ExitStack() as stack:
        mine = Parents(stack)
        token = _parents.set(mine)
        try:
            yield mine
        finally:
            _parents.reset(token)


def current() -> Parents | None:
    """The warm parents of the context."""
    return _parents.get()
