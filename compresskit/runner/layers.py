"""The layers of a model as it ships: bytes, bits and zeros off its ONNX file, rank and rounding off its history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compresskit.errors import CompressKitError
from compresskit.model import Applied
from compresskit.report import LayerEntry
from compresskit.runner.candidate import files_of

_MOST_LAYERS = 2000
_MOST_BYTES = 1 << 30
"""Larger files are not read once more for the sake of a picture."""
_TENSOR = re.compile(r"\.(weight|codes|weight_quantized|weight_packed)$")
_WIDTH = re.compile(r"\D+(\d+)$")


def layers_of(name: str, path: Path, history: Sequence[Applied] = ()) -> list[LayerEntry]:
    """One entry a layer with weights; empty where nothing runs, or the file can't be looked into.

    Args:
        name: Of the model in the report.
        path: Its ONNX file.
        history: What was done to it.
    """
    if (
        path.suffix != ".onnx"
        or not path.is_file()
        or sum(file.stat().st_size for file in files_of(path)) > _MOST_BYTES
    ):
        return []
    from compresskit.ops.inspect_onnx import inspect_onnx

    try:
        found = inspect_onnx(path)["layers"]
    except CompressKitError:  # an engine runs what is not known here
        return []
    known = _facts(history)
    entries = [_entry(name, layer, known) for layer in found if "tied_to" not in layer and layer["parameters"]]
    return sorted(entries, key=lambda e: -e.bytes)[:_MOST_LAYERS] if len(entries) > _MOST_LAYERS else entries


def _entry(model: str, layer: dict[str, Any], known: dict[str, dict[str, Any]]) -> LayerEntry:
    name = _TENSOR.sub("", layer["name"])
    facts = known.get(name, {})
    width = _WIDTH.search(layer["dtype"])
    bits = facts.get("bits", int(width.group(1)) if width else None)
    sparsity = layer["sparsity"]
    return LayerEntry(
        model=model,
        name=name,
        kind=layer["type"],
        parameters=layer["parameters"],
        bytes=layer["bytes"],
        bits=bits if isinstance(bits, (int, float)) else None,
        sparsity=None if sparsity is None else round(sparsity, 6),
        rank=facts.get("rank") if isinstance(facts.get("rank"), int) else None,
        sqnr=facts.get("sqnr") if isinstance(facts.get("sqnr"), (int, float)) else None,
    )


def _facts(history: Sequence[Applied]) -> dict[str, dict[str, Any]]:
    """What the stages noted of each layer; a later stage's word counts more."""
    known: dict[str, dict[str, Any]] = {}
    for applied in history:
        layers = applied.facts.get("layers")
        for name, facts in layers.items() if isinstance(layers, dict) else ():
            if isinstance(facts, dict):
                plain = _TENSOR.sub("", name)  # stages on ONNX files know weights, those on modules know layers
                known[plain] = {**known.get(plain, {}), **facts}
    return known
