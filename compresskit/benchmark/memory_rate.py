"""How fast this process moves bytes. numpy only: it runs in a worker."""

from __future__ import annotations

import threading
import time

import numpy as np

_WINDOWS, _WINDOW_S = 6, 0.05
_LEAST, _MOST = 1 << 20, 1 << 28


def moved(size: int, threads: int, windows: int = _WINDOWS, window_s: float = _WINDOW_S) -> float:
    """Bytes that this process moves in a second, at best.

    Args:
        size: Bytes that are walked over, split among the threads; between 1 MB and 256 MB are taken.
        threads: That work at a time.
        windows: The best of so many counts, of copying and of reading each.
        window_s: Seconds of one.
    """
    each = min(max(size, _LEAST), _MOST) // (8 * threads)  # two arrays of four bytes a number
    pairs = [(np.ones(each, np.float32), np.zeros(each, np.float32)) for _ in range(threads)]
    best = 0.0
    for copies in (True, False):
        for _ in range(windows):
            best = max(best, _window(pairs, window_s, copies))
    return best


def _window(pairs: list[tuple[np.ndarray, np.ndarray]], seconds: float, copies: bool) -> float:
    counts = [0] * len(pairs)
    begin = time.perf_counter()
    end = begin + seconds

    def work(index: int) -> None:
        source, target = pairs[index]
        while time.perf_counter() < end:
            if copies:
                np.copyto(target, source)
            else:
                source.max()
                target.max()
            counts[index] += source.nbytes + target.nbytes

    helpers = [threading.Thread(target=work, args=(index,)) for index in range(1, len(pairs))]
    for helper in helpers:
        helper.start()
    work(0)
    for helper in helpers:
        helper.join()
    return sum(counts) / (time.perf_counter() - begin)
