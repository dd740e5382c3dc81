"""The other side of ``warm``: a process that has imported what the tests run, and forks for each order.

Started as ``python warm_server.py FD MODULES…``. An order is one byte on the socket FD, with the descriptors of a
socket of its own, stdin, stdout and stderr. That socket brings ``{"args": […], "cwd": …, "env": {…}}`` and takes the
child's pid and, at its end, its exit code, one a line.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any


def serve(orders: socket.socket) -> dict[str, Any]:
    """Fork for each order until there are no more; returns in the children only, with what to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, lambda *_: None)
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([orders, hear], [], [])[0]
        if hear in ready:
            os.read(hear, 1024)
            bury(running)
        if orders in ready:
            found, handed, *_ = socket.recv_fds(orders, 1, 4)
            if not found:  # the tests have ended, or were killed
                for child in running:
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            own = socket.socket(fileno=handed[0])
            pid = os.fork()
            if pid == 0:
                for other in (orders, *running.values()):
                    other.close()
                os.close(hear)
                signal.set_wakeup_fd(-1)
                os.close(tell)
                return order(own, handed[1:])
            for number in handed[1:]:
                os.close(number)
            own.sendall(f"{pid}\n".encode())
            running[pid] = own


def bury(running: dict[int, socket.socket]) -> None:
    """Tell the exit codes of the children that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as own:
            own.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def order(own: socket.socket, streams: list[int]) -> dict[str, Any]:
    """In the child: make streams, folder, environment and signals those of a fresh process."""
    with own, own.makefile(encoding="utf-8") as lines:
        told: dict[str, Any] = json.loads(lines.readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return told


def run(args: list[str]) -> None:
    """What ``python -c CODE …`` or ``python -m MODULE …`` does, to the end of the process."""
    how, what, *rest = args
    sys.argv = [how, *rest]
    sys.path[0] = "" if how == "-c" else os.getcwd()
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    else:
        code = 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            try:
                stream.flush()
            except OSError:
                sys.exit(code)  # Python has a code of its own for that
    os._exit(code)  # a regular end walks through all that is imported


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    run(serve(socket.socket(fileno=int(sys.argv[1])))["args"])
