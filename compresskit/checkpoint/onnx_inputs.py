"""What goes into an ONNX graph, as the card says it."""

from __future__ import annotations

from typing import Any

from compresskit.model import InputSpec

_PASSES_ON = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")


def graph_inputs(model: Any) -> tuple[InputSpec, ...]:
    """The inputs that a caller must give; empty when the graph doesn't declare their shapes.

    A first axis that may vary is called ``batch``, one whose name tells of a sequence ``sequence``; others keep the
    graph's name.

    Args:
        model: An ``onnx.ModelProto``.
    """
    import onnx

    stored = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not tensor.elem_type:
            return ()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(_axis(i, dim) for i, dim in enumerate(tensor.shape.dim))
        high = _high(model, value.name) if dtype.startswith(("int", "uint")) else None
        specs.append(InputSpec(value.name, dtype, shape, high))
    return tuple(specs)


def _axis(index: int, dim: Any) -> int | str:
    if dim.dim_value > 0:  # some exporters write -1 or 0 for what may vary
        return int(dim.dim_value)
    if index == 0:
        return "batch"
    name = str(dim.dim_param) if dim.HasField("dim_param") else ""
    return "sequence" if "seq" in name.lower() else name or f"axis{index}"


def _high(model: Any, name: str) -> int | None:
    """One past the largest index: the rows of the table that the input looks up."""
    if "mask" in name.lower():
        return 2
    rows = {t.name: int(t.dims[0]) for t in model.graph.initializer if t.dims}
    values = {name}
    for node in model.graph.node:
        if node.op_type in ("Gather", "GatherBlockQuantized") and len(node.input) > 1 and node.input[1] in values:
            if node.input[0] in rows and not any(
                a.name in ("axis", "gather_axis") and a.i != 0 for a in node.attribute
            ):
                return rows[node.input[0]]
        elif node.op_type in _PASSES_ON and node.input and node.input[0] in values:
            values.add(node.output[0])
    return None
