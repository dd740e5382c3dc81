"""Freed memory goes back to the system, where its C library can."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from compresskit.ops.allocator import give_back


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has a call for it")
def test_holes_between_what_stays_are_given_back() -> None:
    size, count = 50_000, 2000
    held = [bytes(size) for _ in range(count)]
    kept = held[::20]
    before = resident()
    del held
    give_back()
    assert resident() < before - 0.5 * size * count
    assert len(kept) == count // 20


def test_another_time_is_harmless_everywhere() -> None:
    give_back()
    give_back()
