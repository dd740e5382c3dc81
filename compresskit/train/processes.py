"""Training in one process, or in several that Hugging Face Accelerate joins.

Several are started by ``torchrun``, or by ``accelerate launch`` on GPUs. Each gets a part of every batch; Accelerate
averages the gradients, so the steps are those of one process with the whole batch. Only batch normalization sees less:
its statistics are those of its own process's part.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import UsageError, missing_extra
from compresskit.ranks import launched


class Team:
    """The processes that train one module together; alone where none were launched.

    Attributes:
        size: How many.
        rank: Which one this is, from 0 on.
        device: Where this one trains: its GPU if there is one.

    Raises:
        MachineError: Several were launched, and Accelerate isn't installed.
    """

    def __init__(self) -> None:
        self.size, self.rank = launched(), 0
        self._accelerator: Any = None
        if self.size == 1:
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError:
            raise missing_extra("accelerate", "train") from None
        # A loss may look at one output of several: layers behind the others get no gradient.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device
        # Threads that still listen when the interpreter ends would abort it.
        atexit.unregister(_part)
        atexit.register(_part)

    def joined(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over all processes."""
        return self._accelerator.prepare_model(module) if self._accelerator else module

    def apart(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Within it gradients are added up here, and averaged with the others' only after it."""
        return self._accelerator.no_sync(module) if self._accelerator else nullcontext()

    def share(self, part: list[Tensor]) -> list[Tensor]:
        """This process's samples of a batch.

        Raises:
            UsageError: The batch can't be shared equally, so that the mean over processes would be another.
        """
        if self._accelerator is None:
            return part
        if len(part[0]) % self.size:
            raise UsageError(
                f"a batch of {len(part[0])} can't be shared equally by {self.size} processes",
                f"give a `batch_size` that is a multiple of {self.size}",
            )
        with self._accelerator.split_between_processes(dict(enumerate(part))) as mine:
            return list(mine.values())

    def mean(self, value: float) -> float:
        """The mean over all processes: the same number in each."""
        if self._accelerator is None:
            return value
        return float(self._accelerator.reduce(torch.tensor(value, device=self.device), "mean"))

    @torch.no_grad()
    def agree(self, tensors: Sequence[Tensor]) -> None:
        """Give each process the first one's values: batch statistics differ between them."""
        if self._accelerator is None:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.to(self.device, copy=True)))


def _part() -> None:
    from accelerate import PartialState

    PartialState().destroy_process_group()


@contextmanager
def on_device(device: torch.device, *modules: nn.Module | None) -> Iterator[None]:
    """Modules on a device for a while; they come back to the CPU."""
    found = [module for module in modules if module is not None]
    if device.type == "cpu":
        yield
        return
    for module in found:
        module.to(device)
    try:
        yield
    finally:
        for module in found:
            module.to("cpu")
