"""What one token of the last layers is asked for is computed for that token alone.

A classifier reads the first token. Its last block then needs the keys and values of all tokens, but one query, and one
row of all that follows the attention: of ViT-Tiny's multiply-accumulates that leaves out 7 of 100.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.exporter.graph import added, constant, insert_before

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Erf", "Tanh", "Sigmoid", "Sqrt", "Pow", "Neg", "Cast"}
_ALONG_THE_LAST = {"LayerNormalization", "Softmax"}
_PRODUCTS = {"MatMul", "MatMulNBits"}
Read = dict[int, int]
"""By position of an input the axis along which one element of it is read."""


def choose_early(model: ir.Model) -> int:
    """Move, in place, the choice of one token up to where tokens meet; how many operators have less to do."""
    count = 0
    for node in list(model.graph):
        index = constant(node.inputs[1]) if node.op_type == "Gather" else None
        shape = node.inputs[0].shape if index is not None and node.inputs[0] is not None else None
        axis = node.attributes.get_int("axis", 0) if shape is not None else 0
        if index is None or index.ndim or index not in (0, -1) or shape is None or not 0 < axis < len(shape) - 1:
            continue  # the first and the last one are also there where an axis of unknown length has one
        read = _restricted(model.graph, node, axis)
        if len(read) > 1:
            _restrict(model.graph, read, int(index))
            node.replace_input_with(1, added(model.graph, np.array(0, np.int64), f"{node.outputs[0].name}:first"))
            count += len(read) - 1
    if count:
        common.RemoveUnusedNodesPass()(model)
    return count


def _restricted(graph: ir.Graph, choice: ir.Node, axis: int) -> dict[ir.Node, Read]:
    """The choice and the operators of whose result nothing else is read, each with what it reads of its inputs."""
    found: dict[ir.Node, Read] = {choice: {0: axis}}
    before = False
    for node in reversed(list(graph)):
        if not before or not node.outputs:
            before = before or node is choice
            continue
        uses = [(use.node, use.idx) for use in node.outputs[0].uses()]
        axes = {found.get(user, {}).get(position, 0) for user, position in uses}
        if len(axes) != 1 or 0 in axes or any(out.uses() for out in node.outputs[1:]):
            continue
        if any(out.is_graph_output() for out in node.outputs):
            continue
        read = _read(node, axes.pop())
        if read:
            found[node] = read
    return found


def _read(node: ir.Node, axis: int) -> Read | None:
    """What an operator needs of its inputs for one element of its result along ``axis``; None where that is all."""
    shape = node.outputs[0].shape
    if shape is None or axis >= len(shape):
        return None
    if node.op_type in _ELEMENTWISE:
        return _broadcast(node, axis, len(shape))
    if axis < len(shape) - 1 and (node.op_type in _ALONG_THE_LAST or node.op_type in _PRODUCTS):
        return _rows(node, axis, len(shape))
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", ())
        return {0: perm[axis]} if perm and perm[axis] else None
    return {0: axis} if node.op_type == "Reshape" and axis == 1 and _splits_the_rest(node) else None


def _rows(node: ir.Node, axis: int, rank: int) -> Read | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or len(shape) != rank:
        return None
    if node.op_type in _ALONG_THE_LAST:
        last = node.attributes.get_int("axis", -1)
        return {0: axis} if last in (-1, rank - 1) else None
    other = node.inputs[1]
    shared = other is not None and other.shape is not None and len(other.shape) == 2
    return {0: axis} if node.op_type == "MatMulNBits" or axis == rank - 2 or shared else None


def _broadcast(node: ir.Node, axis: int, rank: int) -> Read | None:
    found: Read = {}
    for position, value in enumerate(node.inputs):
        shape = None if value is None else value.shape
        if shape is None:
            return None
        own = axis - (rank - len(shape))
        if own >= 0 and shape[own] != 1:
            found[position] = own
    return found if all(found.values()) else None


def _splits_the_rest(node: ir.Node) -> bool:
    """True for a Reshape that keeps the first two axes, and whose other axes are of fixed sizes."""
    before = node.inputs[0].shape if node.inputs[0] is not None else None
    after = constant(node.inputs[1])
    if before is None or after is None or len(before) < 3 or len(after) < 3 or after[0] != -1:
        return False
    old, new = list(before)[1:], after.tolist()[1:]
    return all(isinstance(d, int) for d in old) and old[0] == new[0] and math.prod(old) == math.prod(new)


def _restrict(graph: ir.Graph, read: dict[ir.Node, Read], index: int) -> None:
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    cuts: list[ir.Node] = []
    for node, axes in read.items():
        for position, axis in axes.items():
            value = node.inputs[position]
            if value is None or value.producer() in read:
                continue
            if (value, axis) not in made:
                one = added(graph, np.array([index], np.int64), f"{value.name}:{axis}:{index}")
                cut = ir.node("Gather", [value, one], {"axis": axis})
                cut.outputs[0].name = f"{value.name}:one{axis}"
                made[value, axis] = cut.outputs[0]
                cuts.append(cut)
            node.replace_input_with(position, made[value, axis])
        if node.op_type == "Reshape":
            shape = constant(node.inputs[1])
            if shape is not None:
                narrow = np.concatenate([shape[:1], [1], shape[2:]]).astype(np.int64)
                node.replace_input_with(1, added(graph, narrow, f"{node.outputs[0].name}:narrow"))
    order = {node: place for place, node in enumerate(graph)}
    for cut in cuts:
        insert_before(min((use.node for use in cut.outputs[0].uses()), key=order.__getitem__), [cut])
    for node in read:
        for out in node.outputs:
            out.shape = None
