"""Tensors that are used again, kept from a module that writes into its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Untouched:
    """Calls one module again and again with tensors that stay as they are.

    Some modules write into what they are given (``x.sub_(0.5)``, ``ids[ids < 0] = 0``). Copies for each call would cost
    every module time and memory. So the first call gets copies, which tell what is written into, and later calls get
    copies of that alone.
    """

    def __init__(self) -> None:
        self._written: frozenset[str] | None = None

    def call(self, module: Callable[[dict[str, Tensor]], T], given: Mapping[str, Tensor]) -> T:
        """What ``module`` gives for the tensors, or for copies of them.

        Args:
            module: Takes tensors by name.
            given: The tensors.

        Raises:
            Exception: Whatever the module raises; the next call gets copies again.
        """
        if self._written is not None:
            return module({n: t.clone() if n in self._written else t for n, t in given.items()})
        copies = {name: tensor.clone() for name, tensor in given.items()}
        out = module(copies)
        self._written = frozenset(name for name, tensor in given.items() if _differs(copies[name], tensor))
        return out


def _differs(copy: Tensor, tensor: Tensor) -> bool:
    """True where a fresh copy was written into; values tell of what the counter doesn't see, ``x.data`` say."""
    written = not copy.is_inference() and copy._version > 0
    return written or not bool((copy == tensor).logical_or((copy != copy) & (tensor != tensor)).all())
