"""A process that has imported an engine and forks a worker of the bench for each order.

Runs as ``main(runtime, FD)``, with FD a socket of whole messages. ``{"path": […], "folder": …}`` comes with the
descriptors of stdin, stdout and stderr, and is answered by ``pid N``; the fork has this search path and this folder,
and serves as :mod:`compresskit.benchmark.worker` does. ``N`` asks for the exit code of a worker that ends:
``end N CODE``. When the socket closes, the parent ends what is left of its workers and itself. It opens no model and
has one thread: where an import starts another, or where the system doesn't show it, the parent ends before the first
order.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_SHIFT = 1024  # pages by which the addresses of forks differ at most
_PAGE = mmap.PAGESIZE


def main(runtime: str, orders: int) -> None:
    """Import the engine of ``runtime``, then fork for each order; returns in no process."""
    _single_threaded_numpy()
    from compresskit.benchmark import worker

    worker.prepare(runtime)
    with socket.socket(fileno=orders) as channel:
        pages = _file_pages()
        if pages is None or len(list(Path("/proc/self/task").iterdir())) != 1:
            os._exit(0)
        gc.collect()
        gc.freeze()
        _serve(channel)
    kept = _apart()
    _touch(pages)
    worker.main(runtime)
    del kept


def _serve(channel: socket.socket) -> None:
    """Take orders; returns in forks only."""
    living: set[int] = set()
    while True:
        said, handed, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not said:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        order = json.loads(said)
        if isinstance(order, int):
            answer = f"end {order} {os.waitstatus_to_exitcode(os.waitpid(order, 0)[1])}"
            living.discard(order)
        else:
            pid = os.fork()
            if pid == 0:
                for number, stream in enumerate(handed):
                    os.dup2(stream, number)
                    os.close(stream)
                sys.path[:] = order["path"]
                os.chdir(order["folder"])
                return
            for stream in handed:
                os.close(stream)
            living.add(pid)
            answer = f"pid {pid}"
        channel.send(answer.encode())


def _single_threaded_numpy() -> None:
    """Import numpy without the threads that OpenBLAS starts at once; others find the variable as it was."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    import numpy  # noqa: F401

    if before is None:
        del os.environ[name]
    else:
        os.environ[name] = before


def _apart() -> tuple[object, object]:
    """Move what a fork allocates from here on by a random number of pages, until what is returned is dropped.

    Forks have the addresses of their parent. A model that lies badly in the caches would lie so in all of its
    processes, where fresh ones differ, and the interval would not know.
    """
    return mmap.mmap(-1, _PAGE * random.randint(1, _SHIFT)), bytearray(_PAGE * random.randint(1, 16))


def _file_pages() -> np.ndarray | None:
    """Addresses, int64, of the pages of mapped files that are in this process; None where the system doesn't tell.

    The system gives a fork the pages that its parent wrote. Those of files it maps anew when they are used: what the
    import alone has read would be missing in the fork's peak memory.
    """
    import numpy as np

    found = [np.empty(0, np.int64)]
    with suppress(OSError, ValueError), Path("/proc/self/pagemap").open("rb", buffering=0) as table:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            where, rights, _offset, _device, inode, *_ = line.split()
            if inode == "0" or rights[0] != "r":
                continue
            start, end = (int(part, 16) // _PAGE for part in where.split("-"))
            entries = np.frombuffer(os.pread(table.fileno(), 8 * (end - start), 8 * start), np.uint64)
            there = np.flatnonzero((entries >> np.uint64(63)) & (entries >> np.uint64(61)) & np.uint64(1))
            found.append((start + there) * _PAGE)
        return np.concatenate(found)
    return None


def _touch(pages: np.ndarray) -> None:
    """Read a byte of each page."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for page in pages:
        with suppress(OSError):
            os.pread(memory, 1, int(page))
    os.close(memory)
