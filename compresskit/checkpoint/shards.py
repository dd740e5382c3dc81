"""The weight files of a folder: one, or shards that an index names."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import contained, read_json
from compresskit.checkpoint.region import Region
from compresskit.checkpoint.safetensors_file import read_safetensors_file
from compresskit.checkpoint.state_dict_keys import find_state_dict
from compresskit.checkpoint.tensors import INDEX, Tensors
from compresskit.checkpoint.torch_file import read_torch_file
from compresskit.errors import InputError, listing

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_INDEX = 1 << 28


def holds_weights(folder: Path) -> bool:
    """True for a folder with weights, or an index of shards, under the names that :func:`open_shards` takes."""
    return any((folder / name).exists() for weights in _WEIGHTS for name in (weights, weights + INDEX))


def open_shards(place: Path) -> Tensors:
    """The tensors of a folder, over all its shards; safetensors is preferred.

    Args:
        place: The folder, or the index in it.

    Raises:
        InputError: No weights, a file leads out of the folder, is damaged or hostile, or the index is wrong.
    """
    if place.name.endswith(INDEX) and not place.is_dir():
        return _sharded(place.parent, place)
    folder = place
    for name in _WEIGHTS:
        if (folder / name).exists() or (folder / name).is_symlink():
            return Tensors(folder, [_open(contained(folder, name, str(folder)))])
        index = name + INDEX
        if (folder / index).exists():
            return _sharded(folder, contained(folder, index, str(folder)))
    raise InputError(
        f"{folder} is a folder that has no weights: {listing(list(_WEIGHTS))} or shards of them were expected"
    )


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, sorted.

    Raises:
        InputError: It is no index, or names a file outside of its folder.
    """
    return [contained(index.parent, shard, str(index)) for shard in sorted(set(_weight_map(index).values()))]


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
    return find_state_dict(path, saved).entries, data
