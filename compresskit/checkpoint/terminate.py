"""SIGTERM as an exception, so that what cleans up after Ctrl-C cleans up after it too."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from compresskit.errors import ExitCode


@contextlib.contextmanager
def terminating_as_exception() -> Iterator[None]:
    """Within it SIGTERM raises ``SystemExit(143)``, unless the program has a handler of its own."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit(int(ExitCode.TERMINATED))

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
