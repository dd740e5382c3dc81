"""A block as a function of one tensor, so that it can be exported and timed without the model around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import Stop


class Alone(nn.Module):
    """A block whose other arguments are fixed.

    Args:
        block: The block, or what stands in for it.
        place: Where its input stands among the arguments: a position or a keyword.
        args: All positional arguments.
        kwargs: All keyword arguments.
    """

    def __init__(self, block: nn.Module, place: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.block = block
        self._place, self._args, self._kwargs = place, args, kwargs

    def forward(self, x: Tensor) -> Any:
        """What the block returns for this input."""
        place = self._place
        if isinstance(place, int):
            return self.block(*self._args[:place], x, *self._args[place + 1 :], **self._kwargs)
        return self.block(*self._args, **{**self._kwargs, place: x})


def arguments_of(block: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block in a run, which ends there.

    Args:
        block: Called once.
        run: Calls the module that holds it.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise Stop

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    except Stop:
        pass
    finally:
        handle.remove()
    return found[0]
