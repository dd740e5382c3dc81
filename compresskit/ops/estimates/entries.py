"""The inventory of a file that was inspected: an ONNX graph, or bare tensors; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compresskit.ops.estimates.ranks import break_even
from compresskit.ops.estimates.sizes import Inventory, Kind, Weight
from compresskit.ops.packed.layout import Grid
from compresskit.ops.quantize.select import Selection

_KINDS: dict[str, Kind] = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "Gather": "embedding",
}
_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_FOLDED = 0.75
"""Of what a batch normalization takes: scale, mean and variance go, the shift becomes a bias."""


def inventory_of_graph(layers: Sequence[dict[str, Any]], size: int) -> Inventory:
    """What an ONNX file is made of.

    Args:
        layers: As ``inspect_onnx`` gives them.
        size: Bytes of the file, external data included.
    """
    weights = [w for w in (_weight(layer) for layer in layers) if w is not None]
    folded = sum(layer["bytes"] for layer in layers if layer["type"] == "BatchNormalization")
    return Inventory(tuple(weights), size - sum(w.bytes for w in weights), int(_FOLDED * folded), "written")


def inventory_of_tensors(layers: Sequence[dict[str, Any]], total: int) -> Inventory:
    """What a file of bare tensors is made of; a layer's weight is known by its name alone.

    Args:
        layers: As ``inspect_tensors`` gives them.
        total: Bytes of all of them.
    """
    weights = []
    for layer in layers:
        shape, size = tuple(layer["shape"]), _ITEMSIZE.get(layer["dtype"])
        if "tied_to" not in layer and size and len(shape) > 1 and 0 not in shape and layer["name"].endswith(".weight"):
            kind: Kind = "conv" if len(shape) > 2 else "linear"
            weights.append(Weight(layer["name"].removesuffix(".weight"), kind, shape, size))
    return Inventory(tuple(weights), total - sum(w.bytes for w in weights), 0, "tensors")


def grids_of(inventory: Inventory, selection: Selection) -> dict[str, Grid]:
    """The grid of each weight that would be quantized."""
    return {
        w.name: selection.grid(w.shape)
        for w in inventory.weights
        if selection.reason_against(w.name, w.shape, w.itemsize) is None
    }


def ranks_of(layers: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Break-even ranks of the products and ungrouped convolutions of an ONNX file."""
    found = {}
    for layer in layers:
        shape = layer.get("weight")
        grouped = layer.get("groups", 1) > 1 or (shape and len(shape) > 4)
        if layer["type"] in ("Gemm", "MatMul", "Conv") and shape and not grouped and "tied_to" not in layer:
            found[layer["name"]] = break_even(tuple(shape))
    return found


def _weight(layer: dict[str, Any]) -> Weight | None:
    kind, shape, size = _KINDS.get(layer["type"]), layer.get("weight"), _ITEMSIZE.get(layer["dtype"])
    if kind is None or not shape or not size or "tied_to" in layer or not math.prod(shape):
        return None
    return Weight(layer["name"], kind, tuple(shape), size, layer["macs"])
