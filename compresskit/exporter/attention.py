"""Attention as torch's exporter writes it, in fewer operators: runtimes then see one pattern, and fuse it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.exporter.graph import added, constant, made_by, producer, replace

Dim = int | ir.SymbolicDim
_LOWEST = -1e9  # exp(x - 1e9) is 0 in float32 and bfloat16 alike; float32's own lowest number is -inf in bfloat16


def tidy_attention(model: ir.Model) -> int:
    """Rewrite, in place, what the decomposed ``scaled_dot_product_attention`` leaves behind.

    * The keys' last two axes are swapped by one Transpose, not by a Reshape to three axes, a Transpose and a Reshape.
    * A mask that hides nothing is not added.
    * ``Where(IsNaN(p), 0, p)`` after a Softmax goes where the mask is finite: then p can't be NaN unless its input was.

    Returns:
        How many rewrites were made.
    """
    count = 0
    for node in list(model.graph):
        if node.op_type == "Reshape":
            count += _swap_axes(node)
        elif node.op_type == "Where":
            count += _drop_guard(model.graph, node)
        elif node.op_type == "Add":
            count += _drop_mask(model.graph, node)
    if count:
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
    return count


def _perm(node: ir.Node | None) -> list[int]:
    return [] if node is None or node.op_type != "Transpose" else list(node.attributes.get_ints("perm", ()))


def _swap_axes(node: ir.Node) -> bool:
    """``Transpose(p) → Reshape(-1, s, d) → Transpose(0, 2, 1) → Reshape(…, d, s)`` as one Transpose."""
    middle = producer(node.inputs[0])
    inner = made_by(middle.inputs[0], "Reshape") if middle is not None and _perm(middle) == [0, 2, 1] else None
    if inner is None:
        return False
    source = inner.inputs[0]
    first = producer(source)
    perm = _perm(first)
    if first is None or len(perm) < 3 or source is None:
        return False
    *rest, second, last = range(len(perm))
    if _parts(node.inputs[1], source, len(perm)) != [*rest, last, second]:
        return False
    if _parts(inner.inputs[1], source, len(perm)) != [None, second, last]:
        return False
    new = ir.node("Transpose", [first.inputs[0]], {"perm": [*perm[:-2], perm[-1], perm[-2]]})
    replace(node, new.outputs[0], [new])
    return True


def _parts(shape: ir.Value | None, source: ir.Value, rank: int) -> list[int | None] | None:
    """A computed shape as axes of ``source``, None for a -1; None as a whole where it is anything else."""
    joined = made_by(shape, "Concat")
    found: list[int | None] = []
    for part in joined.inputs if joined is not None else ():
        fixed = constant(part)
        axes = _axes(part, source, rank) if fixed is None else None
        if axes is None and (fixed is None or fixed.reshape(-1).tolist() != [-1]):
            return None
        found += [None] if axes is None else axes
    return found or None


def _axes(part: ir.Value | None, source: ir.Value, rank: int) -> list[int] | None:
    """The axes that ``Slice(Shape(source))`` stands for; None for any other value."""
    cut = made_by(part, "Slice")
    shape = None if cut is None else made_by(cut.inputs[0], "Shape")
    if cut is None or shape is None or shape.inputs[0] is not source:
        return None
    if "end" in shape.attributes or shape.attributes.get_int("start"):
        return None
    bounds = [int(b.item()) for b in map(constant, cut.inputs[1:]) if b is not None and b.size == 1]
    if len(bounds) < max(2, len(cut.inputs) - 1) or bounds[2:] not in ([], [0], [0, 1]):
        return None
    return list(range(*slice(*bounds[:2]).indices(rank)))


def _drop_guard(graph: ir.Graph, node: ir.Node) -> bool:
    test = producer(node.inputs[0])
    soft = producer(node.inputs[2])
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not node.inputs[2] or soft is None:
        return False
    if soft.op_type != "Softmax" or not _finite_mask(graph, producer(soft.inputs[0])):
        return False
    out = node.inputs[2]
    if out is None or node.outputs[0].is_graph_output():
        return False
    node.outputs[0].replace_all_uses_with(out)
    graph.remove(node, safe=True)
    return True


def _drop_mask(graph: ir.Graph, node: ir.Node) -> bool:
    """``Add(x, Where(true, 0, …))`` as x; the exporter expands the constant condition to the size of the batch."""
    for x, mask in (node.inputs, reversed(node.inputs)):
        chosen = made_by(mask, "Where")
        spread = None if chosen is None else made_by(chosen.inputs[0], "Expand")
        if x is None or mask is None or chosen is None or node.outputs[0].is_graph_output():
            continue
        shown = constant(chosen.inputs[0] if spread is None else spread.inputs[0])
        nothing = constant(chosen.inputs[1])
        if shown is not None and shown.all() and nothing is not None and not nothing.any() and _fits(mask, x):
            node.outputs[0].replace_all_uses_with(x)
            graph.remove(node, safe=True)
            return True
    return False


def _fits(small: ir.Value, large: ir.Value) -> bool:
    """Whether a sum of the two has the shape of the second, as far as is known."""
    own, whole = _dims(small), _dims(large)
    if own is None or whole is None or len(own) > len(whole):
        return False
    return all(a == 1 or (a == b and _known(a)) for a, b in zip(reversed(own), reversed(whole), strict=False))


def _known(dim: Dim) -> bool:
    return isinstance(dim, int) or dim.value is not None


def _dims(value: ir.Value | None) -> list[Dim] | None:
    """A shape, with what its producers tell of axes that the exporter has lost; None where the rank isn't known."""
    if value is None or value.shape is None:
        return None
    told = list(value.shape)
    node = value.producer()
    if node is None or all(map(_known, told)):
        return told
    shapes = [_dims(one) for one in node.inputs]
    found = _told(node, [shape for shape in shapes if shape is not None], len(told))
    return [a if _known(a) else b for a, b in zip(told, found, strict=True)] if found else told


def _told(node: ir.Node, shapes: list[list[Dim]], rank: int) -> list[Dim] | None:
    """The shape of a result by those of the inputs."""
    if not shapes or (node.op_type != "Reshape" and len(shapes[0]) != rank):
        return None
    first = shapes[0]
    if node.op_type == "Transpose" and (perm := _perm(node)):
        return [first[axis] for axis in perm]
    if node.op_type == "MatMul" and len(shapes) == 2 and len(shapes[1]) >= 2:
        return [*first[:-1], shapes[1][-1]]
    if node.op_type == "Mul" and len(shapes) == 2 and shapes[1] in ([], [1]):
        return first
    if node.op_type == "Reshape" and (shape := constant(node.inputs[1])) is not None and shape[0] == -1:
        old, new = first[1:], shape.tolist()[1:]
        kept = all(isinstance(dim, int) for dim in old) and math.prod(new) == math.prod(
            d for d in old if isinstance(d, int)
        )
        return [first[0], *new] if kept and min(new) > 0 else None
    return None


def _finite_mask(graph: ir.Graph, scores: ir.Node | None) -> bool:
    """True when the scores are a matrix product, plus a choice of finite constants at most.

    The lowest of them is raised to where it still masks, but stays finite in bfloat16.
    """
    if scores is None or scores.op_type != "Add":
        return scores is not None and scores.op_type == "MatMul"
    added_up = {node.op_type: node for node in map(producer, scores.inputs) if node is not None}
    mask = added_up.get("Where")
    if mask is None or "MatMul" not in added_up:
        return False
    choices = [choice for choice in map(constant, mask.inputs[1:]) if choice is not None and np.isfinite(choice).all()]
    if len(choices) < len(mask.inputs) - 1:
        return False
    for index, choice in enumerate(choices, 1):
        if choice.size == 1 and choice.item() < _LOWEST:
            raised = np.full_like(choice, _LOWEST)
            mask.replace_input_with(index, added(graph, raised, f"{mask.outputs[0].name}:mask{index}"))
    return True
