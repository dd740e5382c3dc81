"""The weights of all experts of a block in one layer, plain and packed; their holder reads them as a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    _Layer = nn.Module
else:
    _Layer = object


class Stacked(_Layer):
    """What stands where a parameter ``(experts, rows, columns)`` was: indexed, or given to torch's functions.

    Attributes:
        stack: Sizes of the tensor.
        weight: The same values as a matrix ``(experts · rows, columns)``.
    """

    stack: tuple[int, ...]
    weight: Any

    @property
    def tensor(self) -> Tensor:
        """All experts ``(experts, rows, columns)``."""
        whole: Tensor = self.weight.reshape(self.stack)
        return whole

    def __getitem__(self, index: Any) -> Tensor:
        """Those experts."""
        return self.tensor[index]

    def transpose(self, first: int, second: int) -> Tensor:
        """All experts, two of their axes exchanged."""
        return self.tensor.transpose(first, second)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch with the tensors themselves."""
        given = {name: _tensor(value) for name, value in (kwargs or {}).items()}
        return function(*map(_tensor, args), **given)


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, Stacked) else value


class Experts(Stacked, nn.Module):
    """A parameter of fused experts as a layer with a matrix as its weight.

    Args:
        parameter: ``(experts, rows, columns)``; its values are shared.
    """

    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        self.stack = tuple(parameter.shape)
        matrix = parameter.detach().reshape(-1, parameter.shape[-1])
        self.weight = nn.Parameter(matrix, requires_grad=parameter.requires_grad)


@contextmanager
def batched(module: nn.Module) -> Iterator[None]:
    """transformers' mixtures of experts in the one form in which nothing depends on which experts are chosen."""
    found: list[Any] = [getattr(layer, "config", None) for layer in module.modules()]
    before = {id(c): (c, c._experts_implementation) for c in found if getattr(c, "_experts_implementation", None)}
    for config, _ in before.values():
        config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        for config, usual in before.values():
            config._experts_implementation = usual
