"""The operators that torch's exporter can write, read once in a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

_read: dict[Any, Any] = {}
_lock = RLock()


@contextmanager
def read_once() -> Iterator[None]:
    """Inside the block the exporter takes the operators that it read before.

    It reads the sources of 500 functions of onnxscript anew at each export, which was most of what a small model took:
    .8 of 1.2 s. It changes none of what it read, as long as the caller brings no operators of its own. A torch that
    keeps them elsewhere is left as it is.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    with _lock:
        yield from _patched(ONNXRegistry)


def _patched(registry: Any) -> Iterator[None]:
    whole = vars(registry).get("from_torchlib")
    if not isinstance(whole, classmethod):
        yield
        return

    def from_torchlib(kind: Any, *args: Any, **kwargs: Any) -> Any:
        # Those of torchvision are among them once it is imported.
        key = kind, args, tuple(sorted(kwargs.items())), "torchvision" in sys.modules
        if key not in _read:
            _read[key] = whole.__func__(kind, *args, **kwargs)
        return _read[key]

    try:
        registry.from_torchlib = classmethod(from_torchlib)
        yield
    finally:
        registry.from_torchlib = whole
