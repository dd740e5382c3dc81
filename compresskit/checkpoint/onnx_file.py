"""An ONNX file, checked as a graph before a runtime opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import regular_file
from compresskit.checkpoint.onnx_tensors import check_made, check_tensor, has_nan
from compresskit.errors import InputError, listing

_OURS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_UNUSED = (
    "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training",
    "com.microsoft.experimental", "com.microsoft.nchwc", "com.microsoft.dml",
    "com.ms.internal.nhwc", "org.pytorch.aten",
)  # fmt: skip
_LIMIT = 1 << 31


def read_onnx_file(path: Path, *, allow_nonfinite: bool = True) -> Any:
    """Parse and check an ONNX file; external data is checked where it lies and not loaded.

    Checked: opsets and domains that are known, external data inside the folder and behind no link, every tensor's
    declared size against the bytes that are there, and what constant nodes would allocate.

    Args:
        path: The file.
        allow_nonfinite: False refuses NaN in stored tensors; infinities are common in masks and always pass.

    Returns:
        The ``onnx.ModelProto``, without external data.

    Raises:
        InputError: What was found.
    """
    size = regular_file(path)
    if size >= _LIMIT:
        raise InputError(f"{path} has {size} bytes, an ONNX file ends at 2 GB", "keep its weights as external data")
    model = _parse(path)
    _check_opsets(path, model)
    tensors = list(_tensors(model))
    available = sum(check_tensor(path, tensor) for tensor in tensors)
    check_made(path, model, max(available, size))
    if not allow_nonfinite:
        bad = [tensor.name or "(unnamed)" for tensor in tensors if has_nan(path, tensor)]
        if bad:
            raise InputError(f"{path} has NaN values in {listing(bad)}", "pass `allow_nonfinite` to go on all the same")
    return model


def _parse(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's own kinds, by implementation
        raise InputError(f"{path} is not an ONNX file, or is cut off ({type(error).__name__})") from error
    if not model.ir_version or not model.HasField("graph") or not model.graph.node:
        raise InputError(f"{path} is not an ONNX file: it has no graph")
    return model


def _check_opsets(path: Path, model: Any) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    local = {function.domain for function in model.functions}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for domain, version in versions.items():
        if domain not in (*_OURS, *_UNUSED) and domain not in local:
            raise InputError(
                f"{path} uses the operator set '{domain}', which is not known; its operators may be anyone's code"
            )
        if domain in ("", "ai.onnx") and not 1 <= version <= newest:
            raise InputError(f"{path} is of ONNX opset {version}, opsets 1 to {newest} are known")
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in _OURS and (node.domain, node.op_type) not in functions:
            raise InputError(f"{path} uses the operator '{node.domain}::{node.op_type}', which is not known")
    if not any(domain in versions for domain in ("", "ai.onnx")):
        raise InputError(f"{path} names no ONNX opset")


def _graphs(model: Any) -> Iterator[Any]:
    """The graph and every subgraph."""
    yield model.graph
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (g for g in (attribute.g, *attribute.graphs) if g.node)


def _nodes(model: Any) -> Iterator[Any]:
    """Every node of the graph, its subgraphs and its functions."""
    stack = [list(model.graph.node), *(list(function.node) for function in model.functions)]
    while stack:
        for node in stack.pop():
            yield node
            for attribute in node.attribute:
                stack.extend(list(g.node) for g in (attribute.g, *attribute.graphs) if g.node)


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor that the file declares: initializers and attributes, of subgraphs too."""
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                if sparse.HasField("values"):
                    yield from (sparse.values, sparse.indices)
