"""Where a language model goes besides ONNX, by name. A new target is a file with a :class:`Target`, and a row here."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from compresskit.errors import UsageError
from compresskit.exporter.targets.target import Target

__all__ = ["Target", "get", "names"]

_TARGETS = {
    "gguf": "compresskit.exporter.targets.gguf:Gguf",
    "genai": "compresskit.exporter.targets.genai:Genai",
    "optimum": "compresskit.exporter.targets.optimum:Optimum",
    "gptq": "compresskit.exporter.targets.gptq:Gptq",
    "compressed-tensors": "compresskit.exporter.targets.compressed_tensors:CompressedTensors",
}


def names() -> list[str]:
    """The names that :func:`get` knows."""
    return list(_TARGETS)


def get(name: str) -> Target:
    """A target by name.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in _TARGETS:
        near = get_close_matches(name, [*_TARGETS, "onnx"], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"`to` {name}: there is no such target", f"{hint}there are: onnx, {', '.join(_TARGETS)}")
    module, _, attribute = _TARGETS[name].partition(":")
    found: Target = getattr(importlib.import_module(module), attribute)()
    return found
