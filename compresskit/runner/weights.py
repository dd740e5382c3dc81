"""The weights of a module on disk, tied ones once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint.bundle import weights_metadata
from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
from compresskit.errors import InputError
from compresskit.model import Model

if TYPE_CHECKING:
    import torch


def write_weights(model: Model, path: Path) -> None:
    """Write a module's state as safetensors; one tensor at a time, nothing is copied that is contiguous already.

    Names that share their values are stored under the first of them; the architecture ties them again.

    Raises:
        InputError: The state holds something else than tensors.
        MachineError: The disk is full or read-only.
    """
    import torch

    if isinstance(model.body, Path):
        raise TypeError("a module is needed")
    entries: list[Entry] = []
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]] = set()
    for name, tensor in model.body.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{model.source}: '{name}' in the module's state is not a tensor", "give it up, or store it as a buffer"
            )
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), partial(_same, tensor)))
    write_safetensors(path, entries, weights_metadata(model.card))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
