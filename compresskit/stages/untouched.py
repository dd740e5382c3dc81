"""Tensors that are used again, kept from a module that writes into its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Untouched:
    """Calls one module again and again with tensors that stay as they are.

    Some modules write into what they are given (``x.sub_(0.5)``, ``ids[ids < 0] = 0``), some only for certain values.
    Copies for each call would cost every module time and memory. So a tensor is copied the first time, which tells
    whether it is written into, and later only where it is.
    """

    def __init__(self) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._written: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()

    def call(self, module: Callable[[dict[str, Tensor]], T], given: Mapping[str, Tensor]) -> T:
        """What ``module`` gives for the tensors, or for copies of them.

        Args:
            module: Takes tensors by name.
            given: The tensors.

        Raises:
            Exception: Whatever the module raises; the tensors are copied the next time too.
        """
        handed = {name: t.clone() if self._written.get(t, True) else t for name, t in given.items()}
        out = module(handed)
        for name, tensor in given.items():
            if tensor not in self._written:
                self._written[tensor] = _differs(handed[name], tensor)
        return out


def _differs(copy: Tensor, tensor: Tensor) -> bool:
    """True where a fresh copy was written into; values tell of what the counter doesn't see, ``x.data`` say."""
    written = not copy.is_inference() and copy._version > 0
    return written or not bool((copy == tensor).logical_or((copy != copy) & (tensor != tensor)).all())
