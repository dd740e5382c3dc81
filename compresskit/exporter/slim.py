"""The last pass over a graph: nothing in the file but what running it takes, and the same bytes on every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.checkpoint.atomic import writing
from compresskit.model import InputSpec

DATA_ABOVE = 1 << 31
_MIN_EXTERNAL = 1024
PRODUCER = "compresskit"


def slim(
    model: ir.Model,
    inputs: tuple[InputSpec, ...] = (),
    limits: dict[str, tuple[int, int | None]] | None = None,
) -> None:
    """Strip metadata and intermediate shapes, share equal constants, shorten names; in place.

    Args:
        model: The graph.
        inputs: When given, the graph's inputs get these names for their axes.
        limits: Axes that were fixed.
    """
    common.RemoveUnusedNodesPass()(model)
    share(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    model.producer_name, model.producer_version, model.domain, model.doc_string = PRODUCER, None, None, None
    model.metadata_props.clear()
    graph = model.graph
    graph.name = "model"
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
    _name_axes(graph, inputs, {n: low for n, (low, high) in (limits or {}).items() if low == high})
    _rename(graph)


def _name_axes(graph: ir.Graph, inputs: tuple[InputSpec, ...], fixed: dict[str, int]) -> None:
    """Axes of inputs and outputs by the names of the inputs' axes, not by the exporter's symbols."""
    symbols: dict[str, str] = {}
    for value, spec in zip(graph.inputs, inputs, strict=False):
        old = value.shape or ()
        symbols.update(
            {str(o.value): str(d) for o, d in zip(old, spec.shape, strict=False) if isinstance(o, ir.SymbolicDim)}
        )
        value.shape = ir.Shape([fixed.get(d, d) if isinstance(d, str) else d for d in spec.shape])
    for value in graph.outputs if inputs else ():
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else symbols.get(str(d.value)) for d in value.shape])


def share(graph: ir.Graph) -> None:
    """Keep one of several equal constants."""
    first: dict[tuple[object, ...], list[ir.Value]] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input():
            continue
        alike = first.setdefault((tensor.dtype, *tensor.shape), [])
        twin = next((v for v in alike if v.const_value is not None and equal(v.const_value, tensor)), None)
        if twin is None:
            alike.append(value)
        else:
            value.replace_all_uses_with(twin)
            del graph.initializers[name]


def merge(model: ir.Model) -> None:
    """Compute once what is computed twice from the same input (a scale in front of several layers); in place."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    share(model.graph)
    common.CommonSubexpressionEliminationPass()(model)


def equal(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Same bits, so that NaN equals itself and the zeros differ."""
    a, b = np.asarray(one.numpy()), np.asarray(other.numpy())
    start = slice(0, 64)  # different weights differ here already, and nothing large is copied
    return a.flat[start].tobytes() == b.flat[start].tobytes() and a.tobytes() == b.tobytes()


def _rename(graph: ir.Graph) -> None:
    """Short names: constants keep a parameter's name without the wrapper's prefix, the rest are numbered."""
    taken = {str(v.name) for v in (*graph.inputs, *graph.outputs)}
    old = [v for v in graph.initializers.values() if str(v.name) not in taken]
    graph_nodes = list(graph.all_nodes())
    for node in graph_nodes:
        node.name = None
    names: dict[ir.Value, str] = {}
    short = {value: _short(str(value.name)) for value in old}
    packed = {name.removesuffix("codes") for name in short.values() if name.endswith(".codes")}
    for value in old:
        layer, _, part = short[value].rpartition(".")
        named = "" if part in ("scales", "zeros", "levels", "multiples") and f"{layer}." in packed else short[value]
        names[value] = _unique(named, taken)  # each name is in the file twice, so that of the codes is enough
        value.type, value.shape = None, None  # the tensor itself has them
    for node in graph_nodes:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            names[value] = _unique("", taken)
            value.type, value.shape = None, None
    ir.convenience.rename_values(list(names), list(names.values()))


def _short(name: str) -> str:
    """A parameter's name as the user knows it; nothing for a constant that the exporter made up."""
    if name.startswith("module."):
        return name.removeprefix("module.").partition(":")[0]
    return "" if ":" in name or "/" in name or name.startswith(("val_", "_", "scalar")) else name


def _unique(name: str, taken: set[str]) -> str:
    number = len(taken)
    candidate = name or _base36(number)
    while candidate in taken:
        number += 1
        candidate = f"{name}.{_base36(number)}" if name else _base36(number)
    taken.add(candidate)
    return candidate


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, low = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[low] + digits
        if not number:
            return "v" + digits


def save(model: ir.Model, path: Path, *, data_above: int = DATA_ABOVE) -> None:
    """Write a graph; from ``data_above`` bytes of weights on, these go to ``<name>.data`` beside it.

    Below that all is in the file, wherever the weights lay that it was read with.

    Raises:
        MachineError: The disk is full or read-only.
    """
    stored = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    size = sum(tensor.nbytes for tensor in stored if tensor is not None)
    with writing(path):
        if size >= data_above:
            ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_MIN_EXTERNAL)
        else:
            ir.external_data.load_to_model(model)
            path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
