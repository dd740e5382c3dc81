"""What both 8-bit quantizers start from: a float graph that onnxruntime's tools take, whatever file it came from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import onnx
import onnx_ir as ir

from compresskit.errors import InputError, MachineError
from compresskit.exporter.branches import branch_at, flatten, settle
from compresskit.exporter.foreign import check_same, read_float
from compresskit.exporter.qdq import before
from compresskit.exporter.quiet import first_line
from compresskit.exporter.slim import DATA_ABOVE, save, slim

T = TypeVar("T")
_MADE = (
    "_quantized",
    "_scale",
    "_zero_point",
    "_convert",
    "_Transposed",
    "_bias",
    "_output",
    "_Quantize",
    "_Dequantize",
)
"""How the names begin that onnxruntime's quantizers make, behind the name of a value."""


@dataclass(frozen=True)
class Ready:
    """A float file that can be quantized.

    Attributes:
        path: The file; weights that are too large for it lie beside it.
        large: Its weights lie beside it.
        notes: What was changed that the user must know.
        renamed: Names of weights as they came, by those in the file.
        exits: Thresholds of early exits, whose branches the file doesn't have: all of it runs.
    """

    path: Path
    large: bool
    notes: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    exits: tuple[float, ...] = ()

    def as_came(self, facts: dict[str, T]) -> dict[str, T]:
        """Facts by weights' names, with the names as they came."""
        return {self.renamed.get(name, name): fact for name, fact in facts.items()}

    def named(self) -> onnx.ModelProto:
        """The model with inferred shapes and a name for every node: nodes to exclude are given by name."""
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        model: onnx.ModelProto = load_model_with_shape_infer(self.path)
        for index, node in enumerate(model.graph.node):
            node.name = f"node{index}"
        return model

    def write(self, model: ir.Model, out: Path, data_above: int) -> None:
        """Write what was made of the file, with its exits.

        Args:
            model: Changed in place.
            out: The file to write.
            data_above: Bytes of weights from which on they go to ``<name>.data``.
        """
        if self.exits:
            branch_at(model, self.exits)
        slim(model)
        if self.exits:
            settle(model)
        save(model, out, data_above=data_above)


def prepared(source: Path, work: Path) -> Ready:
    """The model in float32 with shapes inferred and batch normalization folded, as far as onnxruntime's tools manage.

    Args:
        source: The float model; not changed.
        work: A folder for files.

    Raises:
        InputError: It is quantized already, or can't be brought into that form.
    """
    import onnxruntime
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnxruntime.set_default_logger_severity(4)  # its tools open sessions whose severity can't be set
    model, notes, moved = read_float(source)
    exits = flatten(model)
    before(model)
    plain = work / "plain.onnx"
    large = weights_bytes(model) >= DATA_ABOVE
    save(model, plain)
    if moved is not None:
        notes += check_same(source, plain, moved)
    path = work / "ready.onnx"
    # Its symbolic shape inference fails on transformers, and leaves the model in the current folder when it does.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(plain), str(path), skip_symbolic_shape=True, save_as_external_data=large)
    except Exception:  # any kind
        path = plain
    model = ir.load(path)
    renamed = without_clashes(model)
    if renamed is not None:
        path = work / "renamed.onnx"
        save(model, path)
    return Ready(path, large, notes, renamed or {}, exits)


def weights_bytes(model: ir.Model) -> int:
    """Of all that is stored."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def without_clashes(model: ir.Model) -> dict[str, str] | None:
    """Rename, in place, what is called as the quantizer would call what belongs to another value.

    Values inside the graph get new names, and weights whose names clash. Inputs and outputs keep theirs: one that
    clashes with another is read and written through an Identity.

    Returns:
        Old names of weights by the new ones; None where nothing clashes.
    """
    graph = model.graph
    values = [v for g in (graph, *graph.subgraphs()) for v in (*g.inputs, *g.initializers.values(), *_made(g))]
    names = {str(value.name) for value in values}
    clashes = {name: base for name in names if (base := _base(name, names))}
    if not clashes:
        return None
    outer = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
    for value in [v for v in (*graph.inputs, *graph.outputs) if str(v.name) in clashes.values()]:
        _detach(graph, value)
    inside = [v for g in (graph, *graph.subgraphs()) for v in _made(g) if str(v.name) not in outer]
    stored = [v for v in graph.initializers.values() if str(v.name) in clashes and str(v.name) not in outer]
    fresh = (name for number in range(10**9) if (name := f"t{number}") not in names)
    renamed = {f"{next(fresh)}.{value.name}": str(value.name) for value in stored}
    ir.convenience.rename_values([*stored, *inside], [*renamed, *(next(fresh) for _ in inside)])
    return renamed


def _made(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs if value.name]


def _base(name: str, names: set[str]) -> str | None:
    """The value whose companion a name would be."""
    places = (name.find(made, 1) for made in _MADE)
    return next((name[:at] for at in places if at > 0 and name[:at] in names), None)


def _detach(graph: ir.Graph, value: ir.Value) -> None:
    """Let the graph's nodes use another value than an input or an output itself."""
    identity = ir.node("Identity", [value])
    inner = identity.outputs[0]
    inner.type, inner.shape = value.type, value.shape
    if value.is_graph_input():
        value.replace_all_uses_with(inner)
        identity.replace_input_with(0, value)
        graph.insert_before(graph[0], [identity])
        return
    graph.append(identity)
    inner.name, value.name = value.name, f"{value.name}.inner"
    graph.outputs[graph.outputs.index(value)] = inner


@contextlib.contextmanager
def explained(source: Path, hint: str) -> Iterator[None]:
    """Whatever the quantizer raises as an error of ours.

    Raises:
        InputError: ``source`` can't be quantized.
        MachineError: Disk or memory ran out.
    """
    try:
        yield
    except (InputError, MachineError):
        raise
    except (MemoryError, OSError) as error:
        raise MachineError(f"int8 quantization stopped: {first_line(error)}", "free memory or disk space") from error
    except Exception as error:
        raise InputError(f"{source.name} can't be quantized to int8: {first_line(error)}", hint) from error
