"""Tensors of an ONNX file: what they declare against what is there."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import contained, single_link
from compresskit.errors import InputError

_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of an element by ``TensorProto.DataType``; strings (8) have none."""
_STRING = 8
_MADE_LIMIT = 1 << 28


def stored_bytes(tensor: Any) -> int:
    """Bytes of a ``TensorProto``; elements of less than a byte are packed, strings count as none."""
    return (math.prod(int(size) for size in tensor.dims) * _BITS.get(tensor.data_type, 0) + 7) // 8


def check_tensor(path: Path, tensor: Any) -> int:
    """Check one tensor.

    Args:
        path: The ONNX file.
        tensor: An ``onnx.TensorProto``.

    Returns:
        Its size in bytes.

    Raises:
        InputError: It declares more or less than is there, or its external data may not be read.
    """
    name = f"{path}: its tensor '{tensor.name}'"
    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        raise InputError(f"{name} has the shape {list(tensor.dims)[:8]}")
    if tensor.data_type == _STRING:
        return sum(len(text) for text in tensor.string_data)
    if tensor.data_type not in _BITS:
        raise InputError(f"{name} has the data type {tensor.data_type}, which is not known")
    need = stored_bytes(tensor)
    if tensor.data_location == 1:
        _check_external(path, name, tensor, need)
        return need
    have = len(tensor.raw_data) if tensor.HasField("raw_data") else _typed_bytes(tensor, _BITS[tensor.data_type], need)
    if have != need:
        raise InputError(f"{name} declares {list(tensor.dims)[:8]}, which is {need} bytes; the file holds {have}")
    return need


def _typed_bytes(tensor: Any, bits: int, need: int) -> int:
    """Bytes of the values that stand in a typed field; sub-byte elements are packed, one byte to an entry."""
    count = (
        len(tensor.float_data)
        + len(tensor.int32_data)
        + len(tensor.int64_data)
        + len(tensor.double_data)
        + len(tensor.uint64_data)
    )
    if tensor.data_type in (14, 15):  # complex numbers take two entries
        count //= 2
    if bits < 8:  # writers differ: one element or one byte to an entry
        return need if count in (need, math.prod(tensor.dims)) else count
    return count * bits // 8


def external(tensor: Any) -> dict[str, str]:
    """The external data's ``location``, ``offset`` and ``length``."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_external(path: Path, name: str, tensor: Any, need: int) -> None:
    entries = external(tensor)
    location = entries.get("location", "")
    file = contained(path.parent, location, name)
    place = path.parent
    for part in Path(location).parts:
        place = place / part
        if place.is_symlink():
            raise InputError(
                f"{name} is in '{location}', which leads through a symbolic link", "replace the link by a copy"
            )
    single_link(file, f"{name}, external data")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", need))
    except ValueError as error:
        raise InputError(f"{name} has external data at an offset that is no number") from error
    available = file.stat().st_size
    if offset < 0 or length != need or offset + need > available:
        raise InputError(
            f"{name} declares {need} bytes at {offset} of '{location}' (length {length}), the file has {available}",
            "get the file again",
        )


def check_made(path: Path, model: Any, stored: int) -> None:
    """Refuse constant nodes that would make a tensor far larger than the whole model: engines compute them at load.

    Args:
        path: The ONNX file.
        model: The ``onnx.ModelProto``.
        stored: Bytes of all stored tensors.

    Raises:
        InputError: A node makes more than 256 MB and more than four times the model.
    """
    limit = max(_MADE_LIMIT, 4 * stored)
    known = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            known.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for sparse in model.graph.sparse_initializer:
        _refuse_large(path, sparse.values.name, math.prod(sparse.dims) * 8, limit)
    for node in model.graph.node:
        _refuse_large(path, node.name or node.op_type, _made_bytes(node, known), limit)


def _refuse_large(path: Path, name: str, made: int, limit: int) -> None:
    if made > limit:
        raise InputError(f"{path} is refused: '{name}' would make a tensor of {made} bytes, the limit here is {limit}")


def _made_bytes(node: Any, known: dict[str, Any]) -> int:
    """Bytes that a node makes of constant operands; 0 when it doesn't, or can't be told."""
    operands: list[Any] = [known.get(name) for name in node.input]
    count = 0
    if node.op_type in ("ConstantOfShape", "Expand") and operands and operands[-1] is not None:
        count = math.prod(_integers(operands[-1]))
    elif None in operands:
        return 0
    elif node.op_type == "Tile" and len(operands) == 2:
        count = math.prod(operands[0].dims) * math.prod(_integers(operands[1]))
    elif node.op_type == "Range" and len(operands) == 3:
        start, end, step = (next(iter(_integers(operand)), 0) for operand in operands)
        count = max(0, (end - start) // step) if step else 0
    return 4 * int(count)


def _integers(tensor: Any) -> list[int]:
    """The values of a small constant integer tensor; empty when it is none."""
    if tensor.data_type not in (6, 7) or tensor.data_location == 1 or math.prod(tensor.dims) > 4096:
        return []
    if tensor.HasField("raw_data"):
        width = 4 if tensor.data_type == 6 else 8
        raw = tensor.raw_data
        return [int.from_bytes(raw[i : i + width], "little", signed=True) for i in range(0, len(raw), width)]
    return list(tensor.int32_data) or list(tensor.int64_data)


def has_nan(path: Path, tensor: Any) -> bool:
    """True when a stored tensor of float16, float32 or float64 holds NaN; others are not looked at."""
    import numpy as np

    dtype = {1: "<f4", 10: "<f2", 11: "<f8"}.get(tensor.data_type)
    if dtype is None or sys.byteorder != "little":
        return False
    count = math.prod(tensor.dims)
    if tensor.data_location == 1:
        entries = external(tensor)
        file = path.parent / entries["location"]
        flat: Any = (
            np.memmap(file, dtype, "r", int(entries.get("offset", 0)), (count,)) if count else np.empty(0, dtype)
        )
    elif tensor.HasField("raw_data"):
        flat = np.frombuffer(tensor.raw_data, dtype)
    else:
        flat = np.asarray(tensor.float_data if tensor.data_type == 1 else tensor.double_data, "f8")
    block = 1 << 22
    return any(bool(np.isnan(flat[at : at + block]).any()) for at in range(0, len(flat), block))
