"""What goes into an ONNX graph, as the card says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compresskit.model import InputSpec

_PASSES_ON = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")


def graph_inputs(model: Any) -> tuple[InputSpec, ...]:
    """The inputs that a caller must give; empty when the graph doesn't declare their shapes.

    An axis that may vary is called ``batch`` where samples lie along it, ``sequence`` where its name tells of one;
    others keep the graph's name. Samples lie along the first axis, or along another that is called a batch, or as the
    first axis of the first input. A scalar has none.

    Args:
        model: An ``onnx.ModelProto``.
    """
    import onnx

    stored = {tensor.name for tensor in model.graph.initializer}
    specs = []
    values = [value for value in model.graph.input if value.name not in stored]
    named = _batch_name([value.type.tensor_type.shape.dim for value in values])
    for value in values:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not tensor.elem_type:
            return ()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        dims = tensor.shape.dim
        at = next((i for i, dim in enumerate(dims) if named and dim.dim_param == named), 0 if len(dims) else None)
        shape = tuple(_axis(i == at, i, dim) for i, dim in enumerate(dims))
        high = _high(model, value.name) if dtype.startswith(("int", "uint")) else None
        specs.append(InputSpec(value.name, dtype, shape, high, at))
    return tuple(specs)


def _batch_name(inputs: Sequence[Any]) -> str:
    """What the graph calls the axis of samples: a batch, else as the first axis of its first input; empty for none."""
    names = [str(dim.dim_param) for dims in inputs for dim in dims if dim.dim_param]
    called = next((name for name in names if "batch" in name.lower()), "")
    first = str(inputs[0][0].dim_param) if inputs and inputs[0] else ""
    return called or ("" if "seq" in first.lower() else first)


def _axis(batch: bool, index: int, dim: Any) -> int | str:
    if dim.dim_value > 0:  # some exporters write -1 or 0 for what may vary
        return int(dim.dim_value)
    if batch:
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
