"""A bounded number of threads, with a bounded number of requests that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Workers:
    """Runs what several clients ask for.

    A request takes a place before anything of it is read, and gives it back when it is answered, so that neither
    memory nor waiting grows with the number of clients.

    Args:
        workers: Threads.
        waiting: Places beyond those of the threads.
    """

    def __init__(self, workers: int, waiting: int) -> None:
        self.places = workers + waiting
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="compresskit-serve")
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Requests that are being read, wait or run."""
        return self._taken

    def enter(self) -> bool:
        """Take a place; False when none is free."""
        with self._lock:
            if self._taken >= self.places:
                return False
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= 1

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Call ``work`` in one of the threads. The caller's place is given back when it has run or is cancelled."""
        try:
            future = self._threads.submit(work)
        except BaseException:  # it is closed
            self.leave()
            raise
        future.add_done_callback(lambda _: self.leave())
        return future

    def close(self) -> None:
        """Take nothing more; what waits is dropped, what runs can't be."""
        self._threads.shutdown(wait=False, cancel_futures=True)
