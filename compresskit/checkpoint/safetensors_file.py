"""The header of a .safetensors file, checked: every length, offset and size before a tensor is touched."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import map_file
from compresskit.checkpoint.region import ITEM_SIZE, MAX_DIMS, Region, dense_strides
from compresskit.errors import InputError

MAX_HEADER = 100_000_000
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""The format's dtype names to torch's."""


def read_safetensors_file(path: Path) -> tuple[dict[str, Region], dict[str, str], mmap.mmap]:
    """Where each tensor lies, the metadata, and the map that the regions lie in.

    Raises:
        InputError: The header isn't one, or tensors leave the file, overlap, have gaps or a wrong size.
    """
    data = map_file(path)
    header, begin = _header(path, data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path} is damaged: its metadata is not text by name")
    regions = {name: _region(path, name, entry, begin) for name, entry in header.items()}
    _covers(path, regions, begin, len(data))
    return regions, metadata, data


def _header(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER or size + 8 > len(data) or data[8:9] != b"{":
        raise InputError(f"{path} is not a safetensors file, or is cut off: its header is missing")
    try:
        text = data[8 : 8 + size].decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            "".join(header).encode("utf-8")  # halves of surrogate pairs fit no other format
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its header is not valid JSON ({error})", "get the file again") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is damaged: its header is not a JSON object")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice")
    return out


def _region(path: Path, name: str, entry: Any, begin: int) -> Region:
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, last]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: its tensor '{name}' lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: its tensor '{name}' has the dtype '{dtype}', which is not supported")
    if (
        not isinstance(shape, list)
        or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers)
        or len(shape) > MAX_DIMS
    ):
        raise InputError(f"{path} is damaged: shape and offsets of its tensor '{name}' are not whole numbers")
    need = math.prod(shape) * ITEM_SIZE[DTYPES[dtype]]
    if last - first != need:
        raise InputError(
            f"{path} is refused: its tensor '{name}' of {dtype} {shape} needs {need} bytes, has {last - first}"
        )
    return Region(DTYPES[dtype], tuple(shape), dense_strides(tuple(shape)), begin + first, need)


def _covers(path: Path, regions: dict[str, Region], begin: int, end: int) -> None:
    """The format leaves no gap and no rest: so a cut-off or lengthened file is always found."""
    at = begin
    for name, region in sorted(regions.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if region.start + region.size > end:
            raise InputError(f"{path} is cut off: its tensor '{name}' ends beyond the file", "get the file again")
        if region.start != at:
            raise InputError(f"{path} is damaged: its tensor '{name}' overlaps another one or leaves a gap")
        at += region.size
    if at != end:
        raise InputError(f"{path} is damaged: {end - at} bytes follow its last tensor")
