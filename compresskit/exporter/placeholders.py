"""The placeholders of ``lower.py`` put into a graph that was traced before its layers were packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from compresskit.exporter.graph import insert_before, only_user, remove, replace
from compresskit.exporter.lower import DOMAIN, attributes_of, block_of
from compresskit.ops.packed.grid import PARTS
from compresskit.ops.packed.modules import PackedConv, PackedEmbedding, PackedLayer, PackedLinear


class Placeholders:
    """Puts packed layers in the place of the operators that read their weights.

    Attributes:
        count: How many placeholders were put.
        missed: A layer that has an operator of its own was read in some other way.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        """Start with a graph.

        Args:
            graph: Changed in place.
            prefix: What the names of parameters begin with.
        """
        self.count, self.missed = 0, False
        self._graph, self._prefix = graph, prefix
        self._values: dict[str, ir.Value] = {}
        self._by_tensor: dict[int, ir.Value] = {}

    def bind(self, value: ir.Value, tensor: Tensor, names: Iterable[str]) -> bool:
        """Give a value of the graph its numbers, under all names that they have; False where it expects others."""
        held = TorchTensor(tensor.detach(), name=value.name)
        if held.dtype != value.dtype or value.shape is None or list(tensor.shape) != list(value.shape):
            return False
        value.const_value = held
        known = self._by_tensor.setdefault(id(tensor), value)
        if known is not value:  # tied since the graph was traced
            value.replace_all_uses_with(known)
        self._values.update((f"{self._prefix}{name}", known) for name in names)
        return True

    def lower(self, weight: ir.Value, layers: Mapping[str, PackedLayer]) -> None:
        """Replace whatever reads a weight.

        Args:
            weight: Without numbers; unused afterwards.
            layers: The packed layers that it is the weight of, by name; more than one where it is tied.
        """
        linears = [(name, layer) for name, layer in layers.items() if isinstance(layer, PackedLinear)]
        embeddings = [(name, layer) for name, layer in layers.items() if isinstance(layer, PackedEmbedding)]
        for use in list(weight.uses()):
            node = use.node
            if linears and self._linear(node, weight, *linears[0]):
                continue
            if embeddings and node.op_type == "Gather" and use.idx == 0 and not node.attributes.get_int("axis", 0):
                self._embedding(node, *embeddings[0])
                continue
            name, layer = next(iter(layers.items()))
            self.missed |= not isinstance(layer, PackedConv) and bool(block_of(layer.grid, layer.shape[-1]))
            self._weight(node, weight, name, layer)

    def register(self, names: Iterable[str]) -> None:
        """Store all values that are used, in the order of a module's parameters and buffers."""
        for name in names:
            value = self._values.get(f"{self._prefix}{name}")
            if value is not None and value.uses():
                self._graph.register_initializer(value)

    def _linear(self, node: ir.Node, weight: ir.Value, name: str, layer: PackedLinear) -> bool:
        """A product with the transposed weight, and the bias behind it; False for any other operator."""
        if not block_of(layer.grid, layer.in_features):
            return False
        bias = self._values.get(f"{self._prefix}{name}.bias")
        if node.op_type == "Gemm" and node.inputs[1] is weight and _plain(node) and _third(node) is bias:
            self._product(node, node, bias, name, layer)
            return True
        products = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "Transpose" or not products or not all(_multiplies(p, node.outputs[0]) for p in products):
            return False
        ends = [end for product in products if (end := _end(product, bias)) is not None]
        if len(ends) < len(products):
            return False
        for product, end in zip(products, ends, strict=True):
            self._product(product, end, bias, name, layer)
        remove(node)
        return True

    def _product(self, first: ir.Node, last: ir.Node, bias: ir.Value | None, name: str, layer: PackedLinear) -> None:
        """The nodes of a layer, as ``LoweredLinear`` emits them, in the place of ``first`` up to ``last``."""
        given, new = first.inputs[0], []
        if given is None:
            raise ValueError("a product of nothing")
        x = given

        def add(kind: str, *inputs: ir.Value | None, domain: str = "", columns: int = 0, **attributes: Any) -> ir.Value:
            node = ir.node(kind, inputs, attributes, domain=domain)
            out = node.outputs[0]
            out.type = ir.TensorType(ir.DataType.FLOAT)
            if columns and given.shape is not None:
                out.shape = ir.Shape([*given.shape[:-1], columns])
            new.append(node)
            return out

        def times(data: ir.Value, part: str, rows: int) -> ir.Value:
            floats = add("Floats", self._stored(name, layer, part), domain=DOMAIN)
            if given.shape is not None and len(given.shape) == 2:
                return add("Gemm", data, floats, columns=rows, alpha=1.0, beta=1.0, transA=0, transB=1)
            return add("MatMul", data, add("Transpose", floats, perm=[1, 0]), columns=rows)

        if layer.input_scale is not None:
            x = add("Mul", x, self._stored(name, layer, "input_scale"), columns=layer.in_features)
        repaired = layer.repair_in is not None and layer.repair_out is not None
        small = times(x, "repair_in", layer.repair_in.shape[0]) if layer.repair_in is not None and repaired else None
        codes = self._codes(name, layer)
        out = add("Linear", *codes, x, bias, domain=DOMAIN, columns=layer.out_features, **attributes_of(layer))
        if small is not None:
            out = add("Add", out, times(small, "repair_out", layer.out_features), columns=layer.out_features)
        self.count += 1
        replace(last, out, new)
        if first is not last:
            remove(first)

    def _embedding(self, node: ir.Node, name: str, layer: PackedEmbedding) -> None:
        new = ir.node("Embedding", [*self._codes(name, layer), node.inputs[1]], attributes_of(layer), domain=DOMAIN)
        self.count += 1
        replace(node, new.outputs[0], [new])

    def _weight(self, node: ir.Node, weight: ir.Value, name: str, layer: PackedLayer) -> None:
        """The dequantized weight, for one operator."""
        new = ir.node("Weight", self._codes(name, layer), attributes_of(layer), domain=DOMAIN)
        out = new.outputs[0]
        out.shape, out.type = weight.shape, weight.type
        self.count += 1
        insert_before(node, [new])
        for place, value in enumerate(node.inputs):
            if value is weight:
                node.replace_input_with(place, out)

    def _codes(self, name: str, layer: PackedLayer) -> list[ir.Value | None]:
        known = layer.packed.parts()
        return [self._stored(name, layer, part) if part in known else None for part in PARTS]

    def _stored(self, name: str, layer: PackedLayer, part: str) -> ir.Value:
        """A buffer of a layer; what two layers share is stored once."""
        tensor = layer.get_buffer(part)
        if id(tensor) not in self._by_tensor:
            full = f"{self._prefix}{name}.{part}"
            held = TorchTensor(tensor, name=full)
            value = ir.Value(name=full, shape=held.shape, type=ir.TensorType(held.dtype), const_value=held)
            self._by_tensor[id(tensor)] = self._values[full] = value
        return self._by_tensor[id(tensor)]


def _third(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _plain(node: ir.Node) -> bool:
    """A Gemm that is ``x · wᵀ + b``."""
    a = node.attributes
    scales = a.get_float("alpha", 1.0), a.get_float("beta", 1.0)
    return scales == (1.0, 1.0) and a.get_int("transB", 0) == 1 and not a.get_int("transA", 0)


def _multiplies(node: ir.Node, weight: ir.Value) -> bool:
    return node.op_type == "MatMul" and node.inputs[1] is weight


def _end(product: ir.Node, bias: ir.Value | None) -> ir.Node | None:
    """The last node of a layer: its product, or the sum with its bias; None where something else reads the product."""
    if bias is None:
        return product
    total = None if product.outputs[0].is_graph_output() else only_user(product, "Add")
    return total if total is not None and total.inputs[1] is bias else None
