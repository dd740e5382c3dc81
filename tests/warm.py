"""Processes that are forked from a warm interpreter: they do what a fresh one would, without its second of imports.

Only the start is another one. Arguments, folder, environment, streams, signals and exit codes are those of a process of
its own. What an environment changes while Python starts (``PYTHONHASHSEED``, ``PYTHONPATH``) has no effect; a test of
that, of imports, of peak memory or of what happens when a parent dies starts a real process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SERVER = Path(__file__).with_name("warm_server.py")


Stream = int | IO[Any]


class Forked:
    """As ``subprocess.Popen``, as far as the tests need it. ``args`` follow the interpreter's name."""

    def __init__(
        self,
        orders: socket.socket,
        args: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.DEVNULL,
        stderr: Stream = subprocess.DEVNULL,
    ) -> None:
        self.returncode: int | None = None
        self._own, theirs = socket.socketpair()
        given: list[int] = []
        ours: list[int | None] = []
        for stream, write in ((stdin, False), (stdout, True), (stderr, True)):
            child, parent = _ends(stream, write)
            given.append(child)
            ours.append(parent)
        with theirs:
            socket.send_fds(orders, [b"x"], [theirs.fileno(), *given])
        for number in given:
            os.close(number)
        self.stdin, self.stdout, self.stderr = (
            None if number is None else os.fdopen(number, mode, encoding="utf-8")
            for number, mode in zip(ours, ("w", "r", "r"), strict=True)
        )
        told = {"args": list(args), "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        self._own.sendall(json.dumps(told).encode() + b"\n")
        self._said = self._own.makefile(encoding="ascii")
        self.pid = int(self._said.readline())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._own], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._said.readline())
            self._said.close()
            self._own.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _ends(stream: Stream, write: bool) -> tuple[int, int | None]:
    """The child's end of a stream, and the parent's where there is one."""
    if stream == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if stream == subprocess.PIPE:
        hear, tell = os.pipe()
        return (tell, hear) if write else (hear, tell)
    return os.dup(stream if isinstance(stream, int) else stream.fileno()), None


class Warm:
    """A warm interpreter, which starts with the first process that is asked of it.

    Args:
        modules: What it imports. None of them may start a thread.

    Its hash seed is another than that of the tests.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._orders: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, args: Sequence[str], **options: Any) -> Forked | subprocess.Popen[str]:
        """As ``Popen([sys.executable, *args], text=True, …)``, but that what isn't asked of the streams is lost."""
        if sys.platform != "linux":  # a fork of a process with torch in it isn't safe elsewhere
            nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            return subprocess.Popen([sys.executable, *args], text=True, encoding="utf-8", **{**nothing, **options})
        if self._orders is None:
            self._orders, theirs = socket.socketpair()
            with theirs:
                words = [sys.executable, str(SERVER), str(theirs.fileno()), *self._modules]
                env = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
                self._server = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
        return Forked(self._orders, args, **options)

    def run(self, args: Sequence[str], *, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run([sys.executable, *args], capture_output=True, text=True, …)``."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(args, **{"stdout": out, "stderr": err, **options})
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(list(args), code, out.read().decode(), err.read().decode())

    def close(self) -> None:
        if self._orders is not None and self._server is not None:
            self._orders.close()
            self._server.wait(timeout=30)
