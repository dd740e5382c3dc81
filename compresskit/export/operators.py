"""The operators that torch's exporter can write, read once in a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_read: dict[Any, Any] = {}


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
    whole = vars(ONNXRegistry).get("from_torchlib")
    if not isinstance(whole, classmethod):
        yield
        return

    def from_torchlib(kind: Any, *args: Any, **kwargs: Any) -> Any:
        key = kind, args, tuple(sorted(kwargs.items()))
        if key not in _read:
            _read[key] = whole.__func__(kind, *args, **kwargs)
        return _read[key]

    changed: Any = ONNXRegistry
    changed.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        changed.from_torchlib = whole
