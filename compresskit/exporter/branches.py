"""Early exits in a graph: whatever only later exits need moves into the branch of an ``If``.

The module emits one placeholder with the logits of all exits (``ops/route/exits.py``). What the first exit's logits are
made of stays where it is; an ``If`` follows that gives them when every sample has an answer, and else runs the rest, in
which the next exit is treated alike. A branch reads values of the graphs around it, so nothing is passed on.

Where each value that enters a branch has a sample along its first axis, the branch is given the samples alone that have
no answer yet. Else it runs on all of them, and keeps the answers that there are.

What quantizes a graph sees no branches. :func:`flatten` takes a file's away, so that all of it runs and each exit's
logits are an output; :func:`branch_at` makes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.exporter.build import Builder, array
from compresskit.exporter.lower import DOMAIN
from compresskit.ops.route.exits import PLACEHOLDER

_OP = PLACEHOLDER.removeprefix(f"{DOMAIN}::")
LEFT = "left."
"""How the names of answers begin that are given where an exit is taken."""
_SHAPES = ("Shape", "Size")
"""Operators whose results say how many samples there are."""


def branch(model: ir.Model) -> bool:
    """Replace the placeholder of early exits, in place; False where there is none."""
    graph = model.graph
    node = next((n for n in graph if n.domain == DOMAIN and n.op_type == _OP), None)
    if node is None:
        return False
    last, *logits = (value for value in node.inputs if value is not None)
    exits = list(zip(logits, node.attributes["thresholds"].as_floats(), strict=True))
    out = node.outputs[0]
    out.shape, out.type = last.shape, last.type
    graph.remove(node)
    made = _branched(graph, exits, last)
    out.replace_all_uses_with(made, replace_graph_outputs=True)
    made.name, out.name = out.name, None
    model.opset_imports.pop(DOMAIN, None)
    return True


def flatten(model: ir.Model) -> tuple[float, ...]:
    """Let all of a graph run, in place: its first output is the last exit's logits, those of the others follow.

    Returns:
        The threshold of each exit but the last; empty where the graph has none.
    """
    graph = model.graph
    thresholds: list[float] = []
    while (choice := next((node for node in graph if _is_exit(node)), None)) is not None:
        thresholds.append(_opened(graph, choice))
    if thresholds:
        common.RemoveUnusedNodesPass()(model)
    return tuple(thresholds)


def branch_at(model: ir.Model, thresholds: Sequence[float]) -> None:
    """Make the branches again that :func:`flatten` took away, in place."""
    common.ShapeInferencePass()(model)
    graph = model.graph
    last, *logits = graph.outputs
    graph.outputs.clear()
    made = _branched(graph, list(zip(logits, thresholds, strict=True)), last)
    made.name, last.name = last.name, None
    graph.outputs.append(made)


def _branched(graph: ir.Graph, exits: Sequence[tuple[ir.Value, float]], last: ir.Value) -> ir.Value:
    """Put the nodes of a graph into branches, in place; gives the answer."""
    nodes = list(graph)
    graph.remove(nodes)
    made, nodes = _Branches(graph, _batch_axis(graph)).of(nodes, exits, last)
    graph.extend(nodes)
    return made


def _is_exit(node: ir.Node) -> bool:
    return node.op_type == "If" and str(node.attributes["then_branch"].as_graph().outputs[0].name).startswith(LEFT)


def _opened(graph: ir.Graph, choice: ir.Node) -> float:
    """Move the branch behind an exit into the graph, with the exit's logits as one more output; gives its threshold."""
    inner = choice.attributes["else_branch"].as_graph()
    answer, leave = _maker(inner.outputs[0]), _maker(_input(choice, 0))
    sure = _input(_maker(_input(leave, 0)), 0)
    limit = array(_input(leave, 1))
    logits, deeper = _input(answer, 0 if answer.op_type == "ScatterND" else 1), _input(answer, 2)
    for node in inner:
        if node.op_type == "Compress" and _input(_maker(_input(node, 1)), 0) is sure:
            node.outputs[0].replace_all_uses_with(_input(node, 0))
    out = choice.outputs[0]
    for value in (logits, deeper):
        value.type, value.shape = out.type, out.shape
    for name, value in list(inner.initializers.items()):
        del inner.initializers[name]
        graph.register_initializer(value)
    nodes = list(inner)
    inner.outputs.clear()
    inner.remove(nodes)
    graph.insert_before(choice, nodes)
    out.replace_all_uses_with(deeper, replace_graph_outputs=True)
    deeper.name, out.name = out.name, None
    graph.remove(choice, safe=True)
    graph.outputs.append(logits)
    return float(limit)


def settle(model: ir.Model) -> None:
    """Move each constant that a single branch reads into it, in place: there runtimes fold and fuse it as elsewhere."""
    main = model.graph
    for name, value in list(main.initializers.items()):
        readers = {use.node.graph for use in value.uses()} | ({main} if value.is_graph_output() else set())
        inner = readers.pop()
        if isinstance(inner, ir.Graph) and inner is not main and not readers:
            del main.initializers[name]
            inner.register_initializer(value)


def _batch_axis(graph: ir.Graph) -> str | int | None:
    """What the first axis of the first input is called."""
    shape = graph.inputs[0].shape
    first = shape[0] if shape is not None and len(shape) else None
    return first if isinstance(first, int) else str(first.value) if first is not None else None


@dataclass
class _Branches:
    """Makes nested branches out of the nodes of a graph."""

    graph: ir.Graph
    batch: str | int | None
    depth: int = 0

    def __post_init__(self) -> None:
        self.made = {name: value for name, value in self.graph.initializers.items() if name.startswith("i64:")}

    def of(
        self, nodes: Sequence[ir.Node], exits: Sequence[tuple[ir.Value, float]], last: ir.Value
    ) -> tuple[ir.Value, list[ir.Node]]:
        """The answer, and nodes that make it.

        Args:
            nodes: In order, in no graph.
            exits: Logits and threshold of each that is left.
            last: Logits of the last exit.
        """
        if not exits:
            return last, list(nodes)
        (logits, threshold), *later = exits
        needed = _ancestors(logits)
        first = [n for n in nodes if n in needed]
        deeper, rest = self.of([n for n in nodes if n not in needed], later, last)
        self.depth += 1
        return self._choice(first, rest, logits, threshold, deeper)

    def _choice(
        self, first: list[ir.Node], rest: list[ir.Node], logits: ir.Value, threshold: float, deeper: ir.Value
    ) -> tuple[ir.Value, list[ir.Node]]:
        """The nodes of an exit, with an ``If`` behind them that has the others."""
        rest = [*_dequantized(rest), *rest]
        build = Builder(self.graph, first[-1], self.made)
        limit = build.constant(np.array(threshold, np.float32), f"threshold.{self.depth}")
        likely = build.op("Softmax", logits, attributes={"axis": -1})
        sure = build.op("ReduceMax", likely, build.integers([-1]), attributes={"keepdims": 0})
        least = build.op("ReduceMin", sure, build.integers([0]), attributes={"keepdims": 0})
        leave = build.op("GreaterOrEqual", least, limit)
        within = Builder(self.graph, first[-1], self.made)
        entering = _entering(rest)
        if self._by_sample(entering):
            unsure = within.op("Less", sure, limit)
            for value in entering:
                if self._per_sample(value):
                    _replace(value, within.op("Compress", value, unsure, attributes={"axis": 0}), rest)
            after = Builder(self.graph, first[-1], self.made)
            places = after.transposed(after.op("NonZero", unsure))
            answer = after.op("ScatterND", logits, places, deeper)
        else:
            after = Builder(self.graph, first[-1], self.made)
            known = after.column(after.op("GreaterOrEqual", sure, limit))
            answer = after.op("Where", known, logits, deeper)
        going = [*within.new, *rest, *after.new]
        left = ir.node("Identity", [logits])
        for value, name in ((left.outputs[0], LEFT), (answer, "went.")):
            value.name, value.shape, value.type = f"{name}{self.depth}", logits.shape, logits.type
        choice = ir.node(
            "If",
            [leave],
            {
                "then_branch": ir.Graph([], [left.outputs[0]], nodes=[left], name=f"{LEFT}{self.depth}"),
                "else_branch": ir.Graph([], [answer], nodes=going, name=f"went.{self.depth}"),
            },
        )
        out = choice.outputs[0]
        out.name, out.shape, out.type = f"answer.{self.depth}", logits.shape, logits.type
        return out, [*first, *build.new, choice]

    def _by_sample(self, entering: Iterable[ir.Value]) -> bool:
        """Whether a branch can be given some of the samples alone: nothing that enters tells how many there are."""
        return all(self._per_sample(v) or (self._fixed(v) and not _tells_sizes(v)) for v in entering)

    def _per_sample(self, value: ir.Value) -> bool:
        return value.shape is not None and len(value.shape) > 0 and _named(value.shape[0]) == self.batch

    def _fixed(self, value: ir.Value) -> bool:
        return value.shape is not None and all(_named(size) != self.batch for size in value.shape)


def _named(size: int | ir.SymbolicDim) -> int | str:
    return size if isinstance(size, int) else str(size.value)


def _maker(value: ir.Value) -> ir.Node:
    """The node that makes a value of an exit's branches."""
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name}: an exit of another form")
    return node


def _input(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    if value is None:
        raise ValueError(f"{node.op_type}: an exit of another form")
    return value


def _tells_sizes(value: ir.Value) -> bool:
    return any(node.op_type in _SHAPES for node in _ancestors(value))


def _ancestors(value: ir.Value) -> set[ir.Node]:
    """All nodes that a value is made of."""
    found, waiting = set[ir.Node](), [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [v for inner in _with_inner(node) for v in inner.inputs if v is not None]
    return found


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    """A node, and those of the graphs in it."""
    yield node
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _with_inner(inner)


def _entering(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What nodes read that none of them makes and that is no constant."""
    every = [inner for node in nodes for inner in _with_inner(node)]
    made = {value for node in every for value in node.outputs}
    read = (value for node in every for value in node.inputs if value is not None)
    return list(dict.fromkeys(v for v in read if v not in made and v.const_value is None))


def _dequantized(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """What dequantizes inside a branch what it read dequantized: runtimes compute on codes where both meet."""
    copies = []
    for value in _entering(nodes):
        outside = value.producer()
        if outside is not None and outside.op_type == "DequantizeLinear":
            copies.append(ir.node(outside.op_type, outside.inputs, outside.attributes))
            _replace(value, copies[-1].outputs[0], nodes)
    return copies


def _replace(value: ir.Value, by: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Let nodes read another value in the place of one."""
    by.type, by.shape = value.type, value.shape
    for node in nodes:
        for inner in _with_inner(node):
            for place, read in enumerate(inner.inputs):
                if read is value:
                    inner.replace_input_with(place, by)
