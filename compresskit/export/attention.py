"""Attention as torch's exporter writes it, in fewer operators: runtimes then see one pattern, and fuse it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.export.graph import added, constant, producer, replace

_LOWEST = -1e9  # exp(x - 1e9) is 0 in float32 and bfloat16 alike; float32's own lowest number is -inf in bfloat16


def tidy_attention(model: ir.Model) -> int:
    """Rewrite, in place, what the decomposed ``scaled_dot_product_attention`` leaves behind.

    * The keys' last two axes are swapped by one Transpose, not by a Reshape to three axes, a Transpose and a Reshape.
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
    if count:
        common.RemoveUnusedNodesPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
    return count


def _perm(node: ir.Node | None) -> list[int]:
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return []
    return list(node.attributes["perm"].as_ints())


def _swap_axes(node: ir.Node) -> bool:
    """``Transpose(p) → Reshape(-1, s, d) → Transpose(0, 2, 1) → Reshape(…, d, s)`` as one Transpose."""
    middle = producer(node.inputs[0])
    inner = producer(middle.inputs[0]) if middle is not None and _perm(middle) == [0, 2, 1] else None
    if inner is None or inner.op_type != "Reshape":
        return False
    source = inner.inputs[0]
    first = producer(source)
    perm = _perm(first)
    if first is None or len(perm) < 3 or source is None:
        return False
    parts = _parts(node.inputs[1], source, len(perm))
    rank = len(perm)
    if parts != [*range(rank - 2), rank - 1, rank - 2] or _parts(inner.inputs[1], source, rank) != [
        None,
        rank - 2,
        rank - 1,
    ]:
        return False
    new = ir.node("Transpose", [first.inputs[0]], {"perm": [*perm[:-2], perm[-1], perm[-2]]})
    replace(node, new.outputs[0], [new])
    return True


def _parts(shape: ir.Value | None, source: ir.Value, rank: int) -> list[int | None] | None:
    """A computed shape as axes of ``source``, None for a -1; None as a whole where it is anything else."""
    joined = producer(shape)
    if joined is None or joined.op_type != "Concat":
        return None
    found: list[int | None] = []
    for part in joined.inputs:
        fixed = constant(part)
        if fixed is not None:
            if fixed.reshape(-1).tolist() != [-1]:
                return None
            found.append(None)
            continue
        cut = producer(part)
        bounds = [constant(v) for v in cut.inputs[1:]] if cut is not None and cut.op_type == "Slice" else []
        shape_node = producer(cut.inputs[0]) if cut is not None else None
        if shape_node is None or shape_node.op_type != "Shape" or shape_node.inputs[0] is not source:
            return None
        if len(bounds) < 2 or any(b is None or b.size != 1 for b in bounds) or "end" in shape_node.attributes:
            return None
        start, end, *more = [int(b.reshape(-1)[0]) for b in bounds if b is not None]
        if more not in ([], [0], [0, 1]) or (
            "start" in shape_node.attributes and shape_node.attributes["start"].as_int()
        ):
            return None
        found += range(*slice(start, end).indices(rank))
    return found


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


def _finite_mask(graph: ir.Graph, scores: ir.Node | None) -> bool:
    """True when the scores are a matrix product, plus a choice of finite constants at most.

    The lowest of them is raised to where it still masks, but stays finite in bfloat16.
    """
    if scores is None or scores.op_type == "MatMul":
        return scores is not None
    if scores.op_type != "Add":
        return False
    makers = [producer(v) for v in scores.inputs]
    mask = next((m for m in makers if m is not None and m.op_type == "Where"), None)
    if mask is None or not any(m is not None and m.op_type == "MatMul" for m in makers):
        return False
    choices = [constant(v) for v in mask.inputs[1:]]
    if any(c is None or not np.isfinite(c).all() for c in choices):
        return False
    for index, choice in enumerate(choices, 1):
        if choice is not None and choice.size == 1 and choice.item() < _LOWEST:
            raised = np.full_like(choice, _LOWEST)
            mask.replace_input_with(index, added(graph, raised, f"{mask.outputs[0].name}:mask{index}"))
    return True
