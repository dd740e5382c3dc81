"""What torch's exporter repeats for nothing, once: reading the operators that it can write, and tracing a program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from types import SimpleNamespace
from typing import Any

from compresskit.exporter.decompose import decomposed

_read: dict[Any, Any] = {}
_lock = RLock()


@contextmanager
def read_once() -> Iterator[None]:
    """Inside the block the exporter takes the operators that it read before, and decomposes only what needs it.

    It reads the sources of 500 functions of onnxscript anew at each export, which was most of what a small model took:
    .8 of 1.2 s. It changes none of what it read, as long as the caller brings no operators of its own. For what it
    saves to decompose a program see ``decompose.py``. A torch that keeps these elsewhere is left as it is.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    with _lock, _decomposing(_fx_passes):
        yield from _patched(ONNXRegistry)


@contextmanager
def _decomposing(passes: Any) -> Iterator[None]:
    whole = getattr(passes, "decompose_with_registry", None)
    if whole is None:
        yield
        return

    def decompose(program: Any, registry: Any) -> Any:
        return program if decomposed(program, registry) else whole(program, registry)

    try:
        passes.decompose_with_registry = decompose
        yield
    finally:
        passes.decompose_with_registry = whole


def _patched(registry: Any) -> Iterator[None]:
    whole = vars(registry).get("from_torchlib")
    if not isinstance(whole, classmethod):
        yield
        return

    def from_torchlib(kind: Any, *args: Any, **kwargs: Any) -> Any:
        # Those of torchvision are among them once it is imported.
        key = kind, args, tuple(sorted(kwargs.items())), "torchvision" in sys.modules
        if key not in _read:
            with _unparsed():
                _read[key] = whole.__func__(kind, *args, **kwargs)
        return _read[key]

    try:
        registry.from_torchlib = classmethod(from_torchlib)
        yield
    finally:
        registry.from_torchlib = whole


@contextmanager
def _unparsed() -> Iterator[None]:
    """Inside the block onnxscript lists its functions without parsing the source of each.

    It does so for a name that the exporter doesn't ask for: half a second. Elsewhere it is left as it is.
    """
    try:
        import_module("onnxscript.function_libs.torch_lib.ops")
        listed: Any = import_module("onnxscript.function_libs.torch_lib.registration").default_registry
        place: Any = import_module("torch.onnx._internal.exporter._registration")
        known = place.onnxscript_apis
        found = [
            SimpleNamespace(qualified_name=name, function=function, is_complex=is_complex)
            for name, overloads in listed.items() if not name.startswith("internal::")
            for is_complex, functions in ((False, overloads.overloads), (True, overloads.complex))
            for function in functions
        ]  # fmt: skip
    except (ImportError, AttributeError):
        yield
        return
    try:
        place.onnxscript_apis = SimpleNamespace(get_torchlib_ops=lambda: found)
        yield
    finally:
        place.onnxscript_apis = known
