"""The weight files of a folder: one, or shards that an index names."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import contained, read_json
from compresskit.checkpoint.region import Region
from compresskit.checkpoint.safetensors_file import read_safetensors_file
from compresskit.checkpoint.state_dict_keys import find_state_dict
from compresskit.checkpoint.tensors import Tensors
from compresskit.checkpoint.torch_file import read_torch_file
from compresskit.errors import InputError, listing

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_INDEX = 1 << 28


def open_shards(folder: Path) -> Tensors:
    """The tensors of a Hugging Face folder, over all its shards; safetensors is preferred.

    Raises:
        InputError: No weights, a file leads out of the folder, is damaged or hostile, or the index is wrong.
    """
    for name in _WEIGHTS:
        if (folder / name).exists() or (folder / name).is_symlink():
            return Tensors(folder, [_open(contained(folder, name, str(folder)))])
        index = f"{name}.index.json"
        if (folder / index).exists():
            return _sharded(folder, contained(folder, index, str(folder)))
    raise InputError(f"{folder} has no weights: {listing(list(_WEIGHTS))} or shards of them were expected")


def _sharded(folder: Path, index: Path) -> Tensors:
    placed = _weight_map(index)
    parts = []
    for shard in dict.fromkeys(placed.values()):
        entries, data = _open(contained(folder, shard, str(index)))
        wanted = {name for name, place in placed.items() if place == shard}
        if lacking := sorted(wanted - set(entries)):
            raise InputError(
                f"{folder / shard} lacks {len(lacking)} tensors that {index.name} promises: {listing(lacking)}"
            )
        parts.append(({name: region for name, region in entries.items() if name in wanted}, data))
    return Tensors(folder, parts)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found: Any = read_json(index, _MAX_INDEX).get("weight_map")
    except InputError as error:
        raise InputError(f"not an index of shards: {error.message}", error.hint) from error
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise InputError(f"{index} is not an index of shards: its weight_map does not name files")
    return found


def _open(path: Path) -> tuple[dict[str, Region], mmap.mmap]:
    if path.suffix == ".safetensors":
        entries, _, data = read_safetensors_file(path)
        return entries, data
    saved, data = read_torch_file(path)
    return find_state_dict(path, saved), data
