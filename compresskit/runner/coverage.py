"""The layers that a stage changed and those that it left alone, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compresskit.kinds import QUANTIZE
from compresskit.model import Applied
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.report import Coverage


def coverage(facts: dict[str, Any], skipped: dict[str, str], left: dict[str, int] | None = None) -> Coverage:
    """The layers that a stage changed, in words, and those it left alone, with their bytes where they are known."""
    done = {name: _described(layer) for name, layer in facts.get("layers", {}).items()}
    return Coverage(done=done, skipped=skipped, left=left or {})


def bytes_left(weights: Path, history: Sequence[Applied], skipped: dict[str, str]) -> dict[str, int]:
    """Bytes of the layers that quantization left alone, off the weights' headers."""
    if not skipped or not history[-1].name.startswith(f"{QUANTIZE.name}.") or not weights.is_file():
        return {}
    from compresskit.checkpoint.tensors import open_tensors

    tensors, found = open_tensors(weights, allow_nonfinite=True), dict.fromkeys(skipped, 0)
    for name in tensors.names():
        layer = name if name in found else name.rpartition(".")[0]
        if layer in found and name not in tensors.ties:
            found[layer] += tensors.region(name).nbytes
    return {name: size for name, size in found.items() if size}


def _described(layer: dict[str, Any]) -> str:
    group = layer.get("group_size")
    scope = f"group {group}" if group else "per tensor" if layer.get("scales") == 1 else "per channel"
    if layer.get("grid") == K_QUANT.name:
        scope = K_QUANT.dtype(layer["bits"]).upper()
    kind = layer.get("kind") or {0: "layer", 2: "matrix"}.get(len(layer.get("shape", ())), "kernel")
    repair = f", repair {layer['repair']}" if layer.get("repair") else ""
    return f"{kind} {layer['bits']} bit, {scope}{repair}" if "bits" in layer else str(layer.get("about", layer))
