"""The bitsandbytes library: imported late, quietly, without its network access, and only where it has kernels."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from functools import cache
from types import ModuleType


@cache
def bitsandbytes() -> ModuleType | None:
    """The library, or None where it isn't installed or can't be loaded here.

    On import it asks the package ``kernels``, where installed, to download a kernel: that is kept from it, so that
    nothing leaves the machine and the same kernel runs everywhere.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    absent = object()
    before = sys.modules.get("kernels", absent)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes as library
    except Exception:  # a wheel of another platform, a missing shared library: anything may come
        return None
    finally:
        logging.disable(level)
        if before is absent:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before  # type: ignore[assignment]
    return library  # type: ignore[no-any-return]


@cache
def has_cpu_kernel() -> bool:
    """True where bitsandbytes multiplies by 4-bit weights on this CPU without unpacking them (AVX-512 with bf16)."""
    library = bitsandbytes()
    if library is None:
        return False
    try:
        return bool(library.functional.has_avx512bf16())
    except Exception:  # an older or newer release without the function
        return False
