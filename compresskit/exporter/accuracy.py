"""How products with packed codes compute: an attribute of each node, changed in the file without a second export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compresskit.checkpoint.atomic import writing
from compresskit.errors import InputError


def set_accuracy_level(path: Path, level: int) -> int:
    """Set ``accuracy_level`` of every MatMulNBits in a file; external data aren't touched.

    A product with a blocked ``DequantizeLinear`` (2 and 3 bit) has no such attribute: onnxruntime makes a MatMulNBits
    of it at load, with the level of the session, 4 by default. It is counted.

    Args:
        path: The ONNX file.
        level: 0 computes in float32, 4 rounds activations to int8 block by block.

    Returns:
        How many products with packed codes the file has.

    Raises:
        InputError: The file can't be read.
        MachineError: The file can't be written.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise InputError(f"{path} can't be read as ONNX: {error}") from error
    everything = list(_nodes(model.graph))
    nodes = [node for node in everything if node.op_type == "MatMulNBits"]
    for node in nodes:
        kept = [a for a in node.attribute if a.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", level)])
    if nodes:
        with writing(path):
            path.write_bytes(model.SerializeToString(deterministic=True))
    return len(nodes) + sum(map(_blocked, everything))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of those within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _blocked(node: onnx.NodeProto) -> bool:
    return node.op_type == "DequantizeLinear" and any(a.name == "block_size" and a.i for a in node.attribute)
