"""The processes that compute one command's layers together, where ``torchrun`` or another launcher started several.

They exchange layers through torch.distributed with gloo. What a layer becomes doesn't depend on who computes it, so
the result has the bytes of one process's (with as many threads).
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from compresskit.errors import MachineError

if TYPE_CHECKING:
    from torch import Tensor

Part = tuple[dict[str, Any], dict[str, "Tensor"]]
"""What is exchanged: JSON, and tensors by name."""
GRACE_S = 5.0
"""How long a process waits before it reports an error that another one may have: the launcher ends all when the first
of them has ended."""
_AHEAD = 1 << 28
"""Bytes of finished layers that a process holds while the first one is at an earlier layer."""
_PATIENCE = timedelta(hours=12)
"""A block of a large model may take hours. A process that ended is noticed at once."""
_FACTS = "facts"


def launched() -> int:
    """How many processes a launcher started together; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; the first, 0, writes the output and shows the report."""
    return int(os.environ.get("RANK", "0"))


class Ranks:
    """Splits layers over processes; here over one, which computes all of them.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
    """

    rank = 0
    size = 1

    def collected(self, costs: Mapping[str, int], make: Callable[[str], Part]) -> Iterator[tuple[str, Part]]:
        """Compute layers that don't depend on each other; the first process gets all of them.

        Args:
            costs: By layer, in order: how much work each is, in any unit. The same in every process.
            make: Computes a layer.

        Yields:
            In the first process each layer in order, when it is needed; in the others nothing.
        """
        for name in costs:
            yield name, make(name)

    def shared(self, costs: Mapping[str, int], make: Callable[[str], Part], take: Callable[[Part], None]) -> None:
        """Compute layers that don't depend on each other; every process has all of them in the end.

        Args:
            costs: As for :meth:`collected`.
            make: Computes a layer, and puts it in its place.
            take: Puts a layer in its place that another process computed.
        """
        for name in costs:
            make(name)


ALONE = Ranks()


class JoinedRanks(Ranks):
    """Several processes with a process group of torch.distributed."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def collected(self, costs: Mapping[str, int], make: Callable[[str], Part]) -> Iterator[tuple[str, Part]]:
        """See :class:`Ranks`."""
        owners = self._owners(costs)
        if self.rank:
            self._send(owners, make)
            return
        for tag, (name, owner) in enumerate(owners.items()):
            yield name, make(name) if owner == 0 else self._received(owner, 2 * tag)

    def shared(self, costs: Mapping[str, int], make: Callable[[str], Part], take: Callable[[Part], None]) -> None:
        """See :class:`Ranks`."""
        owners = self._owners(costs)
        made = {name: make(name) for name, owner in owners.items() if owner == self.rank}
        for name, owner in owners.items():
            if owner == self.rank:
                self._broadcast(_encoded(made.pop(name)), owner)
            else:
                take(_decoded(self._broadcast(None, owner)))

    def _owners(self, costs: Mapping[str, int]) -> dict[str, int]:
        """Who computes each layer: whoever has the least to do by then."""
        loads = [0] * self.size
        owners: dict[str, int] = {}
        for name, cost in costs.items():
            owners[name] = loads.index(min(loads))
            loads[owners[name]] += cost
        return owners

    def _send(self, owners: Mapping[str, int], make: Callable[[str], Part]) -> None:
        """Compute this process's layers and send each to the first process, which takes them when it needs them."""
        import torch

        waiting: deque[tuple[Any, Any, Tensor, Tensor]] = deque()
        held = 0
        for tag, (name, owner) in enumerate(owners.items()):
            if owner != self.rank:
                continue
            data = _encoded(make(name))
            size = torch.tensor([data.numel()])
            with _connected():
                sent = (self._dist.isend(size, 0, tag=2 * tag), self._dist.isend(data, 0, tag=2 * tag + 1))
            waiting.append((*sent, size, data))
            held += data.numel()
            while held > _AHEAD:
                held -= _arrived(*waiting.popleft())
        while waiting:
            _arrived(*waiting.popleft())

    def _received(self, owner: int, tag: int) -> Part:
        import torch

        size = torch.empty(1, dtype=torch.int64)
        with _connected():
            self._dist.recv(size, owner, tag=tag)
            data = torch.empty(int(size), dtype=torch.uint8)
            self._dist.recv(data, owner, tag=tag + 1)
        return _decoded(data)

    def _broadcast(self, data: Tensor | None, owner: int) -> Tensor:
        import torch

        size = torch.tensor([0 if data is None else data.numel()])
        with _connected():
            self._dist.broadcast(size, owner)
            data = torch.empty(int(size), dtype=torch.uint8) if data is None else data
            self._dist.broadcast(data, owner)
        return data


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that were launched together; without a launcher this one alone.

    Raises:
        MachineError: The processes can't reach each other, or one of them ended.
    """
    if launched() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    with _connected():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield JoinedRanks()
    finally:
        # Threads that still listen when the interpreter ends would abort it.
        dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    """Errors of torch.distributed as ours; the process that ended has the time to say why."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(2 * GRACE_S)  # it may wait for its own turn
        why = str(error).partition("\n")[0]
        raise MachineError(
            f"the connection to the other processes was lost: {why}", "start all of them again"
        ) from error


def _arrived(size_sent: Any, sent: Any, _size: Tensor, data: Tensor) -> int:
    """Wait until a layer was taken; returns its bytes."""
    with _connected():
        size_sent.wait()
        sent.wait()
    return data.numel()


def _encoded(part: Part) -> Tensor:
    """uint8: a safetensors file with the JSON as one more tensor."""
    import torch
    from safetensors.torch import save

    facts, tensors = part
    text = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    # Tied layers share their codes, and the format refuses tensors that share memory.
    held = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return torch.frombuffer(bytearray(save({_FACTS: text, **held})), dtype=torch.uint8)


def _decoded(data: Tensor) -> Part:
    from safetensors.torch import load

    tensors = load(data.numpy().tobytes())
    return json.loads(tensors.pop(_FACTS).numpy().tobytes()), tensors
