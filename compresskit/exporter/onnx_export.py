"""torch to ONNX, through ``torch.export``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compresskit.errors import CompressKitError, InputError, MachineError
from compresskit.exporter.attention import tidy_attention
from compresskit.exporter.branches import branch, settle
from compresskit.exporter.call import Flat, call, device_of
from compresskit.exporter.chosen import choose_early
from compresskit.exporter.expand import expand
from compresskit.exporter.kept import KeptGraph, Traced
from compresskit.exporter.lower import lowered
from compresskit.exporter.operators import read_once
from compresskit.exporter.quiet import first_line, quiet
from compresskit.exporter.samples import Limits
from compresskit.exporter.slim import DATA_ABOVE, merge, save, slim
from compresskit.model import SCORES_ONLY, InputSpec, writes_text
from compresskit.stage import Progress, silent

OPSET = 21  # the first with 4-bit types and blocked DequantizeLinear
TRACED = {"batch": 2, "sequence": 11}
_OTHER_AXIS = 32
_ATTEMPTS = 4
_STATIC = re.compile(r"^\s+(\w+) = (\d+)\s*$", re.M)
_RANGE = re.compile(r"^\s+(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)\s*$", re.M)


@dataclass(frozen=True)
class Exported(Traced):
    """What an export came to.

    Attributes:
        operators: How many packed layers became which operator.
        graph: From which later states of the module are exported without a trace; None where layers were packed.
    """

    operators: dict[str, int] = field(default_factory=dict)
    graph: KeptGraph | None = None


def export_onnx(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    path: Path,
    *,
    accuracy_level: int = 0,
    sizes: dict[str, int] | None = None,
    data_above: int = DATA_ABOVE,
    progress: Progress = silent,
) -> Exported:
    """Write a module as ONNX; the module itself, its flags and buffers stay as they are.

    Args:
        module: Any module, with or without packed layers.
        inputs: What it takes; a string axis becomes dynamic, the same name is the same axis in all inputs.
        path: The file to write; weights of ``data_above`` bytes and more go to ``<name>.data`` beside it.
        accuracy_level: Of 4- and 8-bit matrix products: 0 is float32, 4 rounds activations to int8.
        sizes: Sizes of named axes while tracing; what an axis gets if it has to be fixed.
        data_above: Bytes from which on the weights leave the protobuf (its limit is 2 GiB).
        progress: Told of each of the three steps.

    Raises:
        InputError: The model can't be called with these inputs, or can't be exported.
        MachineError: The file can't be written, or memory ran out.
    """
    if not inputs:
        raise InputError("the export needs to know the model's inputs", "give `input_shape`")
    progress("export", 0, 3)
    sizes = {**TRACED, **(sizes or {})}
    flat = Flat(lowered(module), inputs)
    original = Flat(module, inputs)
    args = _example(inputs, sizes, device_of(module))
    call(original, args)
    with quiet():
        program, limits = _trace(flat, inputs, args)
        progress("export", 1, 3)
        model = _translate(program, inputs, original.names)
        progress("export", 2, 3)
        traced = Traced(inputs, original.names, limits, _suspects(program), writes_text(module))
        graph = KeptGraph.of(model, traced, flat.module)
        operators = _write(model, traced, path, accuracy_level, data_above)
    progress("export", 3, 3)
    return Exported(**vars(traced), operators=operators, graph=graph)


def export_kept(graph: KeptGraph, module: nn.Module, path: Path, *, data_above: int = DATA_ABOVE) -> Exported | None:
    """Write a module as ONNX from the graph of an earlier state of it.

    Args:
        graph: Of the same structure; layers may have been packed since.
        module: Stays as it is.
        path: As for :func:`export_onnx`.
        data_above: As for :func:`export_onnx`.

    Returns:
        As of :func:`export_onnx`; None where only a trace can tell what the module computes.

    Raises:
        MachineError: The file can't be written, or memory ran out.
    """
    with quiet():
        model = graph.filled(module)
        if model is None:
            return None
        operators = _write(model, graph.traced, path, 0, data_above)
    return Exported(**vars(graph.traced), operators=operators, graph=graph)


def _write(model: ir.Model, traced: Traced, path: Path, accuracy_level: int, data_above: int) -> dict[str, int]:
    """What torch wrote, optimized, as a file; returns how many packed layers became which operator."""
    try:
        program = torch.onnx.ONNXProgram(model, None)
        program.optimize()
    except MemoryError as error:
        raise MachineError("not enough memory to export the model") from error
    model = program.model
    operators = expand(model, accuracy_level)
    merge(model)
    tidy_attention(model)
    choose_early(model)
    branched = branch(model)
    slim(model, traced.inputs, traced.limits)
    if branched:
        settle(model)
    if traced.generates:
        model.metadata_props["generation"] = SCORES_ONLY
    save(model, path, data_above=data_above)
    return operators


def _suspects(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Operators that torch's exporter writes as something else, without a word."""
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.scatter_reduce.two and node.args[4:5] == ("mean",):
            return ("scatter_reduce with mean",)
    return ()


def _example(inputs: tuple[InputSpec, ...], sizes: dict[str, int], device: torch.device) -> tuple[Tensor, ...]:
    """Inputs for tracing: ones where integers are asked for, else small random numbers."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for spec in inputs:
        shape = [sizes.get(d, _OTHER_AXIS) if isinstance(d, str) else d for d in spec.shape]
        dtype = getattr(torch, {"float": "float32", "double": "float64"}.get(spec.dtype, spec.dtype), None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(
                f"input '{spec.name}' has the unknown type '{spec.dtype}'", "use a name like float32 or int64"
            )
        if dtype.is_floating_point:
            out.append(torch.rand(shape, generator=generator).to(dtype))
        else:
            out.append(torch.full(shape, min(1, (spec.high or 2) - 1)).to(dtype))
    return tuple(t.to(device) for t in out)


def _trace(
    flat: Flat, inputs: tuple[InputSpec, ...], args: tuple[Tensor, ...]
) -> tuple[torch.export.ExportedProgram, Limits]:
    """The traced program; an axis that the model's code restricts is bounded or fixed as torch suggests."""
    names = {_symbol(d): d for spec in inputs for d in spec.shape if isinstance(d, str)}
    limits = _tabled(flat, inputs)
    error: Exception = RuntimeError("")
    for _ in range(_ATTEMPTS):
        try:
            return _export(flat, inputs, args, limits), limits
        except MemoryError as no_memory:
            raise MachineError("not enough memory to export the model") from no_memory
        except Exception as caught:  # torch.export lets through whatever the model's code raises
            error = caught
            found = _suggested(str(caught), names)
            if not found or found.items() <= limits.items():
                break
            limits.update(found)
    if any(not _fixed(limits, name) for name in names.values()):
        try:
            limits = {n: (size, size) for n, size in _traced_sizes(inputs, args).items()}
            return _export(flat, inputs, args, limits), limits
        except Exception as caught:
            error = caught
    raise InputError(
        f"this model can't be exported: {first_line(error)}",
        "its forward must not branch on the values of tensors; rewrite that part, or use `no_export`",
    ) from error


def _tabled(flat: Flat, inputs: tuple[InputSpec, ...]) -> Limits:
    """The most tokens that a model has positions for: known before the trace that would end in saying so."""
    if not any("sequence" in spec.shape for spec in inputs):
        return {}
    tables = [b for name, b in flat.named_buffers() if name.endswith("position_ids") and b.dim() == 2 and len(b) == 1]
    return {"sequence": (0, min(table.shape[1] for table in tables))} if tables else {}


def _fixed(limits: Limits, name: str) -> bool:
    low, high = limits.get(name, (0, None))
    return low == high


def _traced_sizes(inputs: tuple[InputSpec, ...], args: tuple[Tensor, ...]) -> dict[str, int]:
    pairs = [(d, a.shape[i]) for s, a in zip(inputs, args, strict=True) for i, d in enumerate(s.shape)]
    return {d: size for d, size in pairs if isinstance(d, str)}


def _symbol(name: str) -> str:
    """An axis name as torch.export takes it: an identifier."""
    return "axis_" + re.sub(r"\W", "_", name)


def _suggested(text: str, names: dict[str, str]) -> Limits:
    """The bounds that torch.export's message asks for."""
    found: Limits = {}
    for name, value in _STATIC.findall(text):
        if name in names:
            found[names[name]] = (int(value), int(value))
    for name, low, high in _RANGE.findall(text):
        if name in names and names[name] not in found:
            found[names[name]] = (int(low or 0), int(high) if high else None)
    return found


def _export(
    flat: Flat,
    inputs: tuple[InputSpec, ...],
    args: tuple[Tensor, ...],
    limits: Limits,
) -> torch.export.ExportedProgram:
    dims: dict[str, Any] = {}
    for name in {d for spec in inputs for d in spec.shape if isinstance(d, str)}:
        low, high = limits.get(name, (0, None))
        if low != high:
            bounds = {k: v for k, v in (("min", low), ("max", high)) if v}
            dims[name] = torch.export.Dim(_symbol(name), **bounds)
    shapes = tuple({i: dims[d] for i, d in enumerate(s.shape) if isinstance(d, str) and d in dims} for s in inputs)
    with torch.no_grad():
        return torch.export.export(flat, args, dynamic_shapes=(shapes,), strict=False)


def _translate(
    program: torch.export.ExportedProgram, inputs: tuple[InputSpec, ...], outputs: tuple[str, ...]
) -> ir.Model:
    try:
        with read_once():
            result = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs],
                output_names=list(outputs),
                verbose=False,
                optimize=False,
            )
    except MemoryError as error:
        raise MachineError("not enough memory to export the model") from error
    except CompressKitError:
        raise
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise InputError(
            f"this model can't be exported: {reason}", "an operator in it has no ONNX form; replace it"
        ) from error
    if result is None:
        raise InputError("this model can't be exported: the exporter gave nothing")
    return result.model
