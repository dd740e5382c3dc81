"""Worker processes: starting them, asking them, and never leaving one behind."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from compresskit import errors
from compresskit.benchmark import forks
from compresskit.errors import CompressKitError, InputError, MachineError

_ROOT = str(Path(__file__).resolve().parents[2])
# The parent's own search path is handed down: `-m` would put the current folder first, where a user's json.py waits.
# Ctrl-C, and SIGTERM of a service or a container, reach the whole group; the parent closes the workers, when it has
# kept what they measured.
_BOOT = """import sys; sys.path[:] = sys.argv[2:]
import signal
for stop in (signal.SIGINT, signal.SIGTERM): signal.signal(stop, signal.SIG_IGN)
from compresskit.benchmark.worker import main
main(sys.argv[1])"""
_KINDS: dict[str, type[CompressKitError]] = {
    kind.__name__: kind for kind in (errors.InputError, errors.UsageError, errors.MachineError)
}


class Worker:
    """One worker process.

    Args:
        name: What errors call it: the model's name.
        runtime: Imported by the worker before it says that it is ready.
        timeout_s: Longest wait for an answer.
        stack: Closes the worker at its end.
        fresh: Start an interpreter also where a warm parent could fork the worker, see
            :func:`compresskit.benchmark.forks.warm_parents`.

    Attributes:
        boot: What the process runs; another than that of the bench has no warm parent.

    Raises:
        MachineError: The process can't be started.
    """

    boot: ClassVar[str] = _BOOT

    def __init__(self, name: str, runtime: str, timeout_s: float, stack: ExitStack, *, fresh: bool = False) -> None:
        self.name = name
        self._timeout = timeout_s
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        path = [*(p for p in sys.path if p), _ROOT]
        parents = forks.current() if self.boot is _BOOT and not fresh else None
        forked = None if parents is None else parents.fork(runtime, path, _environment(), timeout_s, self._log)
        self._process: forks.Forked | subprocess.Popen[str] = forked or self._start(runtime, path)
        stack.callback(self.close)
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _start(self, runtime: str, path: list[str]) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                [sys.executable or "python", "-c", self.boot, runtime, *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_environment(),
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise MachineError(f"cannot start a process to time {self.name}: {error.strerror}") from error

    def ask(self, **command: Any) -> Any:
        """Send a command and wait for its answer.

        Raises:
            InputError: The worker says so, or its engine crashed.
            MachineError: The worker says so, was killed, or doesn't answer in time.
            UsageError: The worker says so.
        """
        with suppress(OSError, ValueError):  # a dead worker is noticed on reading
            pipe = self._process.stdin
            if pipe is not None:
                pipe.write(json.dumps(command) + "\n")
                pipe.flush()
        return self.answer()

    def answer(self) -> Any:
        """Wait for an answer; raises as :meth:`ask`."""
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise MachineError(
                f"{self.name}: no answer from its process in {self._timeout:g} s", "time it with a smaller input"
            ) from None
        if line is None:
            raise self._crash()
        answer = json.loads(line)
        if "error" in answer:
            raise _KINDS[answer["error"]](f"{self.name}: {answer['message']}", answer["hint"])
        return answer["ok"]

    def close(self) -> None:
        """End the process: at once, whatever it does. May be called twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _listen(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._process.stdout or ():
                self._answers.put(line)
        self._answers.put(None)

    def _crash(self) -> CompressKitError:
        code = self._process.wait()
        if sys.platform != "win32" and code == -signal.SIGKILL:
            return MachineError(f"{self.name}: its process was killed", "most likely memory ran out")
        self._log.seek(0)
        lines = self._log.read()[-10_000:].decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        with suppress(ValueError):
            if code < 0:
                return InputError(f"{self.name}: the engine crashed with {signal.Signals(-code).name} ({last})")
        return InputError(f"{self.name}: the engine's process ended with code {code}: {last}")


def _environment() -> dict[str, str]:
    """Idle threads sleep (see :class:`OnnxRuntime`), the OpenMP ones of torch after a millisecond; nothing phones home.

    To sleep at once costs torch a wake-up for each operator, which takes as long as a small product. GNU's OpenMP spins
    about a millisecond when no policy is set; LLVM's and Intel's would spin for 200, into the turn of the next worker.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return {**kept, "KMP_BLOCKTIME": "1", "ORT_DISABLE_TELEMETRY": "1"}
