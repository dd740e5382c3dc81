"""Memory that was freed, back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Let go of pages that the C library keeps after they were freed; nothing where it has no call for that.

    Batches of other lengths leave holes that the next one doesn't fit in: in a small model they are most of what a
    training's resident memory grows by.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim  # of glibc; musl has none
    except (OSError, AttributeError):
        return None
    return found
