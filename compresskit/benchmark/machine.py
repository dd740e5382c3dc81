"""What a figure was measured on: processor, cores, system and versions. Never host names or paths."""

from __future__ import annotations

import importlib
import math
import os
import platform
import subprocess
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compresskit import __version__

_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "transformers", "safetensors")
_FLAGS = {  # what the systems call it: what we call it
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avxvnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "i8mm": "i8mm",
    "feat_i8mm": "i8mm",
    "sve": "sve",
}


def environment(threads: int = 0, device: str | None = None) -> dict[str, Any]:
    """The facts for a report's ``environment``, as JSON.

    Args:
        threads: What the measurement was asked to use; 0 is recorded as :func:`cores`.
        device: Where models ran, as the runtime names it; None where none did.
    """
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": cores(),
        "threads": threads or cores(),
        **({} if device is None else {"device": device}),
        "flags": sorted(cpu_flags()),
        "os": platform.system(),
        "python": platform.python_version(),
        "packages": {
            "compresskit": __version__,  # not the metadata's: a copy has none, an editable install an old one
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
    }


def has_vnni() -> bool:
    """True on x86 with 8-bit dot products (AVX-512 VNNI or AVX-VNNI), where unsigned activations are the fast kind.

    False also where the system doesn't tell.
    """
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni"})


@lru_cache(maxsize=1)
def cores() -> int:
    """Physical cores that this process may use: after affinity, hyper-threads and a container's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = _physical_cores() or usable
    return max(1, min(usable, physical, _quota() or usable))


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's marketing name, or its architecture where the system doesn't tell."""
    for key in ("model name", "Hardware", "cpu model"):
        if key in _cpuinfo():
            return _cpuinfo()[key]
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The instruction sets that decide how fast int8 and int4 run, of those that we look for."""
    found = f"{_cpuinfo().get('flags', '')} {_cpuinfo().get('Features', '')}".lower().split()
    if not found and platform.system() == "Darwin":
        lines = _sysctl("-a hw.optional").splitlines()
        found = [line.split(":")[0].rpartition(".")[2].lower() for line in lines if line.endswith(" 1")]
        found += ["neon"] if platform.machine() == "arm64" else []
    if not found:
        found = _numpy_flags()
    return frozenset(_FLAGS[flag] for flag in found if flag in _FLAGS)


def _numpy_flags() -> list[str]:
    """What numpy detected for its own dispatch: the only portable source on Windows."""
    with suppress(ImportError):
        features = getattr(importlib.import_module("numpy._core._multiarray_umath"), "__cpu_features__", {})
        return [name.lower() for name, present in features.items() if present]
    return []


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo; empty elsewhere."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                facts.setdefault(key.strip(), value.strip())
    return facts


def _physical_cores() -> int | None:
    if platform.system() == "Darwin":
        count = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
        return int(count) if count.isdigit() else None
    siblings = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        with suppress(OSError):
            siblings.add(path.read_text(encoding="ascii").strip())
    return len(siblings) or None


def _quota() -> int | None:
    """Cores that a container's quota (cgroup 2) allows, rounded up; None without one."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    return None


def _sysctl(arguments: str) -> str:
    if platform.system() != "Darwin":
        return ""
    flag = [] if arguments.startswith("-a") else ["-n"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["/usr/sbin/sysctl", *flag, *arguments.removeprefix("-a ").split()],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        return done.stdout.strip()
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
