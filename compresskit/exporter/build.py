"""Nodes and constants in front of one node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

FLOAT, INT32, BOOL, UINT4 = (
    int(t) for t in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.UINT4)
)
"""What a Cast may be asked for."""


@dataclass
class Builder:
    """Collects new nodes, in order; constants and what is computed from them once are shared through ``made``."""

    graph: ir.Graph
    at: ir.Node
    made: dict[str, ir.Value]
    new: list[ir.Node] = field(default_factory=list)

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An initializer; the same name is made once."""
        if name not in self.made:
            tensor = ir.Tensor(array, name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
            self.made[name] = value
        return self.made[name]

    def op(
        self, kind: str, *inputs: ir.Value | None, attributes: dict[str, Any] | None = None, domain: str = ""
    ) -> ir.Value:
        """One node."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(kind, given, attributes or {}, domain=domain)
        self.new.append(node)
        return node.outputs[0]

    def once(self, key: str, make: Callable[[], ir.Value]) -> ir.Value:
        """The value of ``make()``, computed once for all its users in the same graph."""
        key = f"{key}@{id(self.at.graph)}"
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def cast(self, value: ir.Value, to: int) -> ir.Value:
        """Another element type."""
        return self.op("Cast", value, attributes={"to": to})

    def floats(self, value: ir.Value) -> ir.Value:
        """float32 of a constant: itself, or one Cast for all its users."""
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.once(f"{value.name}:float", lambda: self.cast(value, FLOAT))

    def gather(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """Rows of a table."""
        return self.op("Gather", table, index)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """0 keeps the size of the axis at that place."""
        return self.op("Reshape", value, self.integers(shape))

    def first(self, value: ir.Value, end: int, start: int = 0) -> ir.Value:
        """Some entries of the last axis, the first ones as a rule."""
        return self.op("Slice", value, *(self.integers([n]) for n in (start, end, -1)))

    def column(self, value: ir.Value) -> ir.Value:
        """One more axis, at the end."""
        return self.op("Unsqueeze", value, self.integers([-1]))

    def transposed(self, value: ir.Value) -> ir.Value:
        """A matrix the other way round."""
        return self.op("Transpose", value, attributes={"perm": [1, 0]})

    def integers(self, values: Sequence[int]) -> ir.Value:
        """A small int64 constant."""
        return self.constant(np.array(values, np.int64), "i64:" + ",".join(map(str, values)))


def array(value: ir.Value) -> np.ndarray:
    """The numbers of a constant."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not a constant")
    return value.const_value.numpy()
