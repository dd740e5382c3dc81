"""Weights written as they come, a file at a time: one .safetensors file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint.atomic import writing
from compresskit.checkpoint.safetensors_writer import Entry, entry, write_safetensors
from compresskit.checkpoint.tensors import INDEX

if TYPE_CHECKING:
    import torch

NAME = "model.safetensors"
SHARD = 1 << 28
"""Bytes after which a shard is full."""


class ShardWriter:
    """Writes tensors into a folder; holds those of one shard.

    Args:
        folder: To write into; holds no weights yet.
        metadata: Text for the header of each file.
        limit: Bytes after which a shard is full.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, str], limit: int = SHARD) -> None:
        self._folder, self._metadata, self._limit = folder, metadata, limit
        self._held: dict[str, Entry] = {}
        self._shards: list[list[str]] = []
        self._size = self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> bool:
        """Write a tensor, now or with later ones; it must not change.

        Returns:
            True where all that was added lies on disk now.

        Raises:
            MachineError: The disk is full or read-only.
        """
        self._held[name] = entry(name, tensor)
        self._size += tensor.nbytes
        self._total += tensor.nbytes
        if self._size < self._limit:
            return False
        self._flush()
        return True

    def finish(self, order: Sequence[str]) -> Path:
        """Write what is left.

        Args:
            order: Of the tensors, where all of them fit into one file.

        Returns:
            The file; of shards their index.

        Raises:
            MachineError: The disk is full or read-only.
        """
        if not self._shards:
            path = self._folder / NAME
            write_safetensors(path, [self._held[name] for name in order if name in self._held], self._metadata)
            return path
        if self._held:
            self._flush()
        return self._indexed()

    def _flush(self) -> None:
        write_safetensors(self._part(len(self._shards)), self._held.values(), self._metadata)
        self._shards.append(list(self._held))
        self._held, self._size = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"{number}.part"

    def _indexed(self) -> Path:
        placed: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            shard = f"model-{number + 1:05}-of-{len(self._shards):05}.safetensors"
            self._part(number).rename(self._folder / shard)
            placed.update(dict.fromkeys(names, shard))
        path = self._folder / f"{NAME}{INDEX}"
        told = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(placed.items()))}
        with writing(path):
            path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return path
