"""What little of a traced program the exporter can't write, in operators that it can, without tracing it once more."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

_aten = torch.ops.aten
_CASTS = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device)
_SHAPES = (_aten.view.default, _aten.reshape.default, _aten.expand.default)
_CHECKS = (_aten._assert_tensor_metadata.default,)


def decomposed(program: ExportedProgram, registry: Any) -> bool:
    """Rewrite a program in place so that the exporter can write all of it, as torch's own decomposition would.

    That decomposition runs the whole program through the tracer twice more, which was half of an export; nearly all
    that a transformer or a convolutional net is made of needs none.

    Args:
        program: From ``torch.export``.
        registry: The exporter's: ``is_registered(operator)``.

    Returns:
        False, and nothing was changed, where an operator is left that takes torch's own: one that writes into its
        inputs, that holds a subgraph, or that nobody here knows.
    """
    graph = program.graph_module.graph
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if not all(node.op == "call_function" and _known(node, registry) for node in nodes):
        return False
    for node in nodes:
        rewrite = _REWRITES.get(node.target)
        if rewrite is not None:
            rewrite(graph, node)
    return True


def _known(node: Node, registry: Any) -> bool:
    if node.target is _aten.batch_norm.default:
        return node.args[3] is not None and node.args[5] is False
    if node.target is _aten.adaptive_avg_pool2d.default:
        return node.args[1] == [1, 1]
    if node.target is _aten.dropout.default and node.args[2] is not False:
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return False
    return node.target in _REWRITES or bool(registry.is_registered(node.target))


def _drop(graph: Graph, node: Node) -> None:
    graph.erase_node(node)


def _pass_on(graph: Graph, node: Node) -> None:
    source = node.all_input_nodes[0]
    if any(user.op == "output" for user in node.users):  # the program's signature has the name of this node
        _retarget(node, _aten.clone.default, source)
        return
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _cast(graph: Graph, node: Node) -> None:
    before, after = node.all_input_nodes[0].meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        _pass_on(graph, node)
    else:
        _retarget(node, _aten._to_copy.default, node.args[0], dtype=after)


def _shape(graph: Graph, node: Node) -> None:
    source = node.all_input_nodes[0]
    if str(source.meta["val"].shape) == str(node.meta["val"].shape):
        _pass_on(graph, node)
    elif node.target is _aten.reshape.default:
        node.target = _aten.view.default
        if not source.meta["val"].is_contiguous():
            with graph.inserting_before(node):
                copy = graph.call_function(_aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
            copy.meta = {**source.meta, "val": source.meta["val"].contiguous()}
            node.replace_input_with(source, copy)


def _batch_norm(graph: Graph, node: Node) -> None:
    *tensors, _training, momentum, epsilon = node.args[:8]
    with graph.inserting_before(node):
        norm = graph.call_function(_aten._native_batch_norm_legit_no_training.default, (*tensors, momentum, epsilon))
    value = node.meta["val"]
    norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    _retarget(node, operator.getitem, norm, 0)


def _retarget(node: Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs


_REWRITES: dict[Any, Callable[[Graph, Node], None]] = {
    **dict.fromkeys(_CHECKS, _drop),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_SHAPES, _shape),
    _aten.dropout.default: lambda _, node: _retarget(node, _aten.clone.default, node.args[0]),
    _aten.__and__.Tensor: lambda _, node: _retarget(node, _aten.bitwise_and.Tensor, *node.args),
    _aten.__or__.Tensor: lambda _, node: _retarget(node, _aten.bitwise_or.Tensor, *node.args),
    _aten.batch_norm.default: _batch_norm,
    _aten.adaptive_avg_pool2d.default: lambda _, node: _retarget(node, _aten.mean.dim, node.args[0], [-1, -2], True),
}
