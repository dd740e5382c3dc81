"""The most memory that this process ever held."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def peak() -> int | None:
    """Peak resident bytes of this process, or None where the system doesn't tell.

    Linux: ``VmHWM``. Its ``ru_maxrss`` won't do: a child starts with the peak of the parent that spawned it.
    """
    if sys.platform == "win32":
        return _windows()
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        unit = {"darwin": 1}.get(sys.platform, 1024)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def _windows() -> int | None:
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            _fields_ = (
                ("size", wintypes.DWORD),
                ("faults", wintypes.DWORD),
                ("peak", ctypes.c_size_t),
                ("rest", ctypes.c_size_t * 7),
            )

        kernel = ctypes.WinDLL("kernel32")
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD)
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        counters = Counters(size=ctypes.sizeof(Counters))
        done = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
        return int(counters.peak) if done else None
    return None
