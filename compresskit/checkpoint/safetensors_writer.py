"""A .safetensors file written tensor by tensor: sizes beforehand, values one at a time, the same bytes every run."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from compresskit.checkpoint.atomic import writing
from compresskit.checkpoint.region import ITEM_SIZE
from compresskit.checkpoint.safetensors_file import DTYPES

if TYPE_CHECKING:
    import torch

_CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its size is known now, its values when ``produce`` is called.

    Attributes:
        name: Unique in the file.
        dtype: torch's name of it (``float16``), or the torch dtype itself.
        shape: Sizes.
        produce: Gives the tensor, of that dtype and shape, on any device; called once.
    """

    name: str
    dtype: str | torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor]

    @property
    def dtype_name(self) -> str:
        """torch's name of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_SIZE[self.dtype_name]


def entry(name: str, tensor: torch.Tensor) -> Entry:
    """An entry for a tensor that is there already."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_safetensors(path: Path | str, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file.

    The values are produced in the order given and lie in the file by size of element, so that all are aligned; at any
    time one tensor is in memory. The disk space is reserved first where the system can, so a full disk is found
    before the work and not after it.

    Args:
        path: Written as it goes: give a path inside ``new_folder`` or ``new_file``.
        entries: What to write; names unique.
        metadata: Text by name; written in sorted order.

    Raises:
        MachineError: The disk is full or read-only.
        ValueError: A name stands twice, a dtype isn't the format's, or a tensor isn't what its entry said.
    """
    path = Path(path)
    given = list(entries)
    places, total = _layout(given)
    header = _header(given, places, metadata or {})
    with writing(path), path.open("wb") as file:
        file.write(header)
        _reserve(file, len(header) + total)
        for item in given:
            file.seek(len(header) + places[item.name])
            _write_tensor(file, item)


def _layout(entries: list[Entry]) -> tuple[dict[str, int], int]:
    places: dict[str, int] = {}
    at = 0
    for item in sorted(entries, key=lambda e: -ITEM_SIZE[e.dtype_name]):
        if item.name in places or item.name == "__metadata__":
            raise ValueError(f"the tensor name '{item.name}' stands twice or is reserved")
        places[item.name] = at
        at += item.nbytes
    return places, at


def _header(entries: list[Entry], places: dict[str, int], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for item in entries:
        if item.dtype_name not in _CODES:
            raise ValueError(f"the tensor '{item.name}' is of {item.dtype_name}, which the format lacks")
        begin = places[item.name]
        header[item.name] = {
            "dtype": _CODES[item.dtype_name],
            "shape": list(item.shape),
            "data_offsets": [begin, begin + item.nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _reserve(file: BinaryIO, size: int) -> None:
    file.flush()
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            import errno

            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
    with contextlib.suppress(OSError):
        os.truncate(file.fileno(), size)


def _write_tensor(file: BinaryIO, item: Entry) -> None:
    import torch

    tensor = item.produce().detach()
    if str(tensor.dtype).removeprefix("torch.") != item.dtype_name or tuple(tensor.shape) != tuple(item.shape):
        raise ValueError(
            f"the tensor '{item.name}' is {tensor.dtype} {tuple(tensor.shape)}, "
            f"announced was {item.dtype_name} {tuple(item.shape)}"
        )
    if tensor.numel() == 0:
        return
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    file.write(flat.numpy().data)
