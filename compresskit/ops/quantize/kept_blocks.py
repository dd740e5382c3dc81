"""Blocks that were calibrated, kept on disk: a run that was killed goes on behind them, to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compresskit.checkpoint.atomic import new_file
from compresskit.checkpoint.safetensors_writer import entry, write_safetensors
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError

_PREFIX, _SUFFIX, _FACTS = "blocks-", ".safetensors", "blocks"


@dataclass(frozen=True)
class KeptBlocks:
    """The blocks of one run in a folder.

    Attributes:
        folder: May hold those of other runs.
        key: What decides the result: the model, the data, the options; another key is another run.
        block: Of which block, by its number.
    """

    folder: Path
    key: str
    block: int = 0

    @property
    def next(self) -> KeptBlocks:
        """The block behind this one."""
        return replace(self, block=self.block + 1)

    @property
    def _path(self) -> Path:
        return self.folder / f"{_PREFIX}{self.key[:16]}-{self.block:04}{_SUFFIX}"

    def save(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a block; a kill leaves it whole, or not at all.

        Args:
            facts: JSON.
            tensors: By name.

        Raises:
            MachineError: The disk is full or read-only.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": self.key, **facts})  # in their order: the card has it too
        with new_file(self._path, force=True) as path:
            write_safetensors(path, [entry(name, tensor) for name, tensor in tensors.items()], {_FACTS: text})

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The facts and tensors of the block; None where it wasn't kept.

        Raises:
            InputError: The file is damaged, or of another run.
        """
        if not self._path.exists():
            return None
        tensors = open_tensors(self._path)
        try:
            facts = json.loads(tensors.metadata[_FACTS])
            key = facts.pop("key")
        except (KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{self._path} is no block of a calibration", "remove it") from error
        if key != self.key:
            raise InputError(f"{self._path} is a block of another calibration", "remove it, or give another folder")
        return facts, {name: tensors.get(name).clone() for name in tensors}
