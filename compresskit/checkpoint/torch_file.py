"""Files of ``torch.save``, of the zip kind and of the kind before it, read as headers: where each tensor lies."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from compresskit.checkpoint.archive import Member, read_archive
from compresskit.checkpoint.files import map_file
from compresskit.checkpoint.pickle_machine import Leftover
from compresskit.checkpoint.pickled import PickledTensor, Storage, read_pickle
from compresskit.checkpoint.region import ITEM_SIZE, Aside, Region
from compresskit.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_PICKLE = 1 << 28
_DEPTH = 9
"""Levels of dictionaries that are looked into; those below count as empty."""
_SPAN = dict[str, tuple[int, int]]


def read_torch_file(path: Path) -> tuple[Any, mmap.mmap]:
    """What was saved, with a :class:`Region` in the place of each tensor, and the map that the regions lie in.

    Raises:
        InputError: Damaged, or anything but tensors and plain data; see guard.py.
    """
    data = map_file(path)
    start = data[:4]
    if start == b"PK\x03\x04":
        return _read_zip(path, data), data
    if start[:1] == b"\x80":
        return _read_legacy(path, data), data
    raise InputError(f"{path} is not a file of torch.save: it begins with {start!r}")


def _read_zip(path: Path, data: mmap.mmap) -> Any:
    members = read_archive(path, data)
    order = members.get("byteorder")
    if order is not None and data[order.start : order.start + order.size] != b"little":
        raise InputError(f"{path} was saved on a big-endian machine, which is not supported")
    pickled = members["data.pkl"]
    if pickled.size > _MAX_PICKLE:
        raise InputError(f"{path} is refused: its data.pkl has {pickled.size} bytes; tensors lie outside it")
    data.seek(pickled.start)
    saved = _named(path, data)
    spans = {name.removeprefix("data/"): _span(member) for name, member in members.items() if name.startswith("data/")}
    return _place(path, saved, spans)


def _span(member: Member) -> tuple[int, int]:
    return member.start, member.size


def _read_legacy(path: Path, data: mmap.mmap) -> Any:
    magic = _named(path, data)
    if type(magic) is not int or magic != _MAGIC:
        raise InputError(
            f"{path} is a plain pickle, not a file of torch.save",
            "save the weights with torch.save(model.state_dict(), ...)",
        )
    _named(path, data)
    _named(path, data)
    saved = _named(path, data)
    keys = _named(path, data)
    dtypes = {t.storage.key: t.storage.dtype for t in _tensors(saved, set())}
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or not set(dtypes) <= set(keys):
        raise InputError(f"{path} is damaged: its list of storages does not cover its tensors")
    return _place(path, saved, _legacy_spans(path, data, keys, dtypes))


def _legacy_spans(path: Path, data: mmap.mmap, keys: list[str], dtypes: dict[str, str]) -> _SPAN:
    """Storages lie one after the other, each behind its count of elements (int64)."""
    spans: _SPAN = {}
    at = data.tell()
    for key in keys:
        if key not in dtypes:
            raise InputError(f"{path} holds a storage that no tensor uses; this old format cannot say its length")
        if at + 8 > len(data):
            raise InputError(f"{path} is cut off: the storage of a tensor is missing", "get the file again")
        (count,) = struct.unpack_from("<q", data, at)
        size = count * ITEM_SIZE[dtypes[key]]
        if count < 0 or at + 8 + size > len(data):
            raise InputError(
                f"{path} is cut off or damaged: a storage of {size} bytes was expected, {len(data) - at - 8} are left",
                "get the file again",
            )
        spans[key] = (at + 8, size)
        at += 8 + size
    if at != len(data):
        raise InputError(f"{path} is damaged: {len(data) - at} bytes follow its last tensor", "get the file again")
    return spans


def _named(path: Path, data: mmap.mmap) -> Any:
    try:
        return read_pickle(cast(BinaryIO, data))  # a map has read, readline, seek and tell
    except InputError as error:
        raise InputError(f"{path} is refused: {error.message}", error.hint) from error


def _tensors(value: Any, seen: set[int]) -> Iterator[PickledTensor]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, PickledTensor):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, dict) else item)


def _place(path: Path, saved: Any, spans: _SPAN) -> Any:
    """The saved dictionaries with each tensor's region in its place; what is neither is an :class:`Aside` or None.

    Each is visited once, however often it is shared, and first where it lies least deep. Keys become text: those of
    an optimizer's state are numbers, others None or tuples.
    """
    if isinstance(saved, PickledTensor):
        return _region(path, saved, spans)
    if not isinstance(saved, dict):
        return None
    placed: dict[int, dict[str, Any]] = {id(saved): {}}
    level, lists = [saved], set[int]()
    for _ in range(_DEPTH):
        below: list[dict[Any, Any]] = []
        for source in level:
            target = placed[id(source)]
            for key, item in source.items():
                if not isinstance(item, dict):
                    target[str(key)] = (
                        _region(path, item, spans) if isinstance(item, PickledTensor) else _aside(item, lists)
                    )
                    continue
                if id(item) not in placed:
                    placed[id(item)] = {}
                    below.append(item)
                target[str(key)] = placed[id(item)]
        level = below
    return placed[id(saved)]


def _aside(item: Any, seen: set[int]) -> Aside | None:
    """A description of an entry that is left out. ``seen`` holds the lists visited so far, as lists may be shared."""
    if isinstance(item, Leftover):
        return Aside("an array or another object")
    if isinstance(item, (list, tuple)) and any(True for _ in _tensors(item, seen)):
        return Aside("a list of tensors")
    return None


def _region(path: Path, tensor: PickledTensor, spans: _SPAN) -> Region:
    storage: Storage = tensor.storage
    if storage.key not in spans:
        raise InputError(f"{path} is damaged: the storage '{storage.key}' of a tensor is missing", "get the file again")
    start, available = spans[storage.key]
    item = ITEM_SIZE[storage.dtype]
    size = storage.count * item
    if storage.begin * item + size > available:
        raise InputError(
            f"{path} is refused: a tensor claims a storage of {size} bytes, "
            f"the file holds {available} under '{storage.key}'"
        )
    region = Region(tensor.dtype, tensor.shape, tensor.strides, start + storage.begin * item, size, tensor.offset)
    fault = region.fault()
    if fault:
        raise InputError(f"{path} is refused: of one of its tensors, {fault}")
    return region
