"""Ways to run a model, by name. Engines are imported when one is opened, never before."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from compresskit.errors import UsageError
from compresskit.runtimes.base import Runtime, Session

__all__ = ["Runtime", "Session", "get", "names", "runs_modules"]

_ONNX = "compresskit.runtimes.onnxruntime:OnnxRuntime"
_RUNTIMES: dict[str, tuple[str, dict[str, Any]]] = {
    "onnxruntime": (_ONNX, {}),
    "openvino": ("compresskit.runtimes.openvino:OpenVino", {}),
    "openvino-bf16": ("compresskit.runtimes.openvino:OpenVino", {"precision": "bf16"}),
    "torch": ("compresskit.runtimes.torch:TorchRuntime", {}),
    "torch-compile": ("compresskit.runtimes.torch:TorchRuntime", {"compiled": True}),
    **{
        f"onnxruntime-{kind}": (_ONNX, {"provider": kind})
        for kind in ("cuda", "tensorrt", "openvino", "coreml", "xnnpack", "qnn")
    },
}


def names() -> list[str]:
    """The names that :func:`get` knows, in the order in which they are offered."""
    return list(_RUNTIMES)


def runs_modules(name: str) -> bool:
    """True for a runtime that takes an ``nn.Module``; the others take ONNX files."""
    return name.partition("-")[0] == "torch"


def get(name: str, **options: Any) -> Runtime:
    """A runtime by name.

    Args:
        name: One of :func:`names`.
        **options: The constructor's arguments (``loader`` for torch, ``exact`` for onnxruntime).

    Raises:
        UsageError: No runtime has this name.
    """
    if name not in _RUNTIMES:
        near = difflib.get_close_matches(name, _RUNTIMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no runtime '{name}'", f"{hint}available: {', '.join(_RUNTIMES)}")
    reference, settings = _RUNTIMES[name]
    module, _, attribute = reference.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)(**settings, **options)
    return runtime
