"""Where training stands, kept on disk at each epoch's end, so that a run that was killed goes on to the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.checkpoint.atomic import new_file
from compresskit.checkpoint.safetensors_file import read_safetensors_file
from compresskit.checkpoint.safetensors_writer import entry, write_safetensors
from compresskit.checkpoint.tensors import Tensors
from compresskit.errors import InputError

_PREFIX, _SUFFIX = "training-", ".safetensors"
_FACTS = "training"


@dataclass(frozen=True)
class State:
    """What a run needs to go on.

    Attributes:
        tensors: By name: weights, moments of the optimizer, averages, states of random generators.
        facts: The rest, as JSON.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix/``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + "/")}


@dataclass(frozen=True)
class Keeper:
    """One run's state in a folder.

    Attributes:
        folder: May hold the states of other runs; they are left alone.
        key: What the run starts from; another key is another run. See :func:`key_of`.
    """

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The file of this run."""
        return self.folder / f"{_PREFIX}{self.key[:16]}{_SUFFIX}"

    def others(self) -> int:
        """How many states of other runs the folder holds."""
        return sum(path != self.path for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}"))

    def save(self, state: State) -> None:
        """Put a state in the place of the last one; a kill leaves one of the two, whole.

        Raises:
            MachineError: The disk is full or read-only.
        """
        text = json.dumps({"key": self.key, **state.facts}, sort_keys=True)
        with new_file(self.path, force=True) as path:
            write_safetensors(path, [entry(name, t) for name, t in state.tensors.items()], {_FACTS: text})

    def load(self) -> State | None:
        """The state that was saved last; None where there is none.

        Raises:
            InputError: The file is damaged, or of another run.
        """
        if not self.path.exists():
            return None
        regions, metadata, data = read_safetensors_file(self.path)
        try:
            facts = json.loads(metadata[_FACTS])
            key = facts.pop("key")
        except (KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{self.path} is not a training state", "remove it") from error
        if key != self.key:
            raise InputError(f"{self.path} is the state of another training", "remove it, or give another folder")
        tensors = Tensors(self.path, [(regions, data)])
        # Copies: the file is replaced at the end of the next epoch.
        return State({name: tensors.get(name).clone() for name in tensors}, facts)


def key_of(options: Mapping[str, Any], module: nn.Module) -> str:
    """SHA-256 of what a training starts from, in hexadecimal.

    Args:
        options: Everything that decides the result besides the weights, as JSON.
        module: As it is before training.
    """
    found = hashlib.sha256(json.dumps({**options, "torch": torch.__version__}, sort_keys=True).encode())
    for name, tensor in sorted(tensors_of(module).items()):
        found.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state.

    Raises:
        InputError: It holds something else than tensors, which no file of ours keeps.
    """
    state = module.state_dict()
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise InputError(f"the module's '{other}' is no tensor, so its training can't be kept", "remove `checkpoint`")
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an optimizer's state as ``index/name``; no optimizer of ours keeps anything else there."""
    for index, values in optimizer.state_dict()["state"].items():
        yield from ((f"{index}/{name}", value) for name, value in values.items() if isinstance(value, Tensor))


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[Any]) -> None:
    """The inverse of :func:`optimizer_tensors`, with the groups of ``state_dict()``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, own = name.partition("/")
        state.setdefault(int(index), {})[own] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
