"""Which node of an ONNX graph makes a value, which nodes use it, and what is constant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class OnnxGraph:
    """The main graph of a model, indexed by value name; a later change of the model isn't seen.

    Args:
        model: An ``onnx.ModelProto``, its nodes in topological order.
        folder: Where external data lies.

    Attributes:
        stored: The ``TensorProto`` of each initializer and of each Constant node that holds a tensor.
        producer: The node that makes a value; none for stored ones and the graph's inputs.
        users: The nodes that take a value, in order; one that takes it twice stands there twice.
    """

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        self.folder = folder
        self.stored: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer: dict[str, Any] = {}
        self.users: dict[str, list[Any]] = {}
        self._constant: set[str] = set()
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.stored[node.output[0]] = node.attribute[0].t
                continue
            self.producer.update((name, node) for name in node.output if name)
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            if node.input and all(not name or self.constant(name) for name in node.input):
                self._constant.update(filter(None, node.output))

    def constant(self, name: str) -> bool:
        """True for stored tensors and what is computed from nothing else."""
        return name in self.stored or name in self._constant

    def leaves(self, name: str) -> Iterator[str]:
        """The stored tensors that a value is computed from, each once, in the order of the operators' inputs."""
        stack, seen = [name], set()
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            if current in self.stored:
                yield current
            elif current in self.producer:
                stack.extend(reversed(self.producer[current].input))

    def array(self, name: str) -> np.ndarray:
        """The numbers of a stored tensor; those of 4 and 2 bits as int8."""
        import numpy as np
        from onnx import numpy_helper

        array = numpy_helper.to_array(self.stored[name], base_dir=str(self.folder or ""))
        return np.asarray(array.astype(np.int8) if array.dtype.name in ("int4", "uint4", "int2", "uint2") else array)
