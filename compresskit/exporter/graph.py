"""Small questions and edits of a graph that several passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value; None for inputs and constants."""
    return None if value is None else value.producer()


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes a value, if it is of a kind."""
    node = producer(value)
    return node if node is not None and node.op_type == kind else None


def only_user(node: ir.Node, kind: str) -> ir.Node | None:
    """The one node that reads a node's first output, if it is of a kind; an output of the graph doesn't count."""
    uses = [use.node for use in node.outputs[0].uses()]
    return uses[0] if len(uses) == 1 and uses[0].op_type == kind else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a stored value, else None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def added(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """Store a constant under a name that is not taken yet."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(node: ir.Node, out: ir.Value, new: list[ir.Node]) -> None:
    """Put new nodes, whose result is ``out``, in the place of one."""
    old = node.outputs[0]
    if old.is_graph_output():
        out.name, old.name = old.name, None
    out.shape, out.type = old.shape, old.type
    insert_before(node, new)
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    remove(node)


def insert_before(node: ir.Node, new: list[ir.Node]) -> None:
    """Put new nodes in front of one, in its graph."""
    _graph_of(node).insert_before(node, new)


def remove(node: ir.Node) -> None:
    """Take a node whose outputs nothing reads out of its graph."""
    _graph_of(node).remove(node, safe=True)


def _graph_of(node: ir.Node) -> ir.Graph:
    if node.graph is None:
        raise ValueError("a node outside a graph")
    return node.graph
