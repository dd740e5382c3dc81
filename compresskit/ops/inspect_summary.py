"""What the inspections of modules, tensors and ONNX files end in; no torch."""

from __future__ import annotations

from typing import Any

BIGGEST = 5
WEIGHTLESS = "MACs do not include products without weights (attention scores)"


def summary(
    kind: str, layers: list[dict[str, Any]], macs: int | None, inputs: dict[str, list[int]], notes: list[str]
) -> dict[str, Any]:
    """Totals over layers; turns each layer's count of zeros into its ``sparsity`` (fraction of parameters).

    Args:
        kind: ``module``, ``tensors`` or ``onnx``.
        layers: Entries with ``parameters``, ``bytes``, ``zeros``, ``dtype``.
        macs: All MACs, if known.
        inputs: Input shapes that they hold for.
        notes: What a reader must know.
    """
    dtypes: dict[str, int] = {}
    parameters = size = zeros = 0
    known = True
    for layer in layers:
        count = layer["parameters"] - layer.pop("tied_parameters", 0)
        stored = layer["bytes"] - layer.pop("tied_bytes", 0)
        found = layer.pop("zeros")
        layer["sparsity"] = found / layer["parameters"] if found is not None and layer["parameters"] else None
        known = known and found is not None
        parameters, size = parameters + count, size + stored
        zeros += (found or 0) if count == layer["parameters"] else 0
        dtypes[layer["dtype"]] = dtypes.get(layer["dtype"], 0) + stored
    ranked = sorted((layer for layer in layers if "tied_to" not in layer), key=lambda layer: -layer["bytes"])
    return {
        "kind": kind,
        "totals": {
            "layers": len(layers),
            "parameters": parameters,
            "bytes": size,
            "macs": macs,
            "sparsity": zeros / parameters if known and parameters else None,
        },
        "dtypes": dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        "inputs": inputs,
        "layers": layers,
        "biggest": [layer["name"] for layer in ranked[:BIGGEST]],
        "notes": notes,
    }
