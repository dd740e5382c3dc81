"""A time limit for Python code that may never end, without signals: they exist on one thread and some systems only."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OutOfTime(Exception):
    """Raised inside the block whose time is up."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block when it takes longer.

    The exception comes between two steps of Python code: a single long call into a library is not cut short.

    Args:
        seconds: Above 0.

    Raises:
        OutOfTime: The time is up.
    """
    watch = _Watch(threading.get_ident())
    timer = threading.Timer(seconds, watch.fire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """Fires at most once, and never after :meth:`stop`."""

    def __init__(self, thread: int) -> None:
        self._thread, self._lock = thread, threading.Lock()
        self._fired = self._stopped = False

    def fire(self) -> None:
        with self._lock:
            if not self._stopped:
                self._fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            # What was fired in the block's last step hasn't arrived yet: taken back, or it would strike later code.
            if self._fired:
                with suppress(OutOfTime):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)
                    time.sleep(0)
