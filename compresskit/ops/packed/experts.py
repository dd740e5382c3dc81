"""The weights of all experts of a block in one layer, plain and packed; their holder reads them as a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    _Layer = nn.Module
else:
    _Layer = object

_EVERY = "every_expert"


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
def unrouted(module: nn.Module) -> Iterator[None]:
    """transformers' mixtures of experts in a form in which nothing depends on which experts are chosen."""
    found: list[Any] = [getattr(layer, "config", None) for layer in module.modules()]
    before = {id(c): (c, c._experts_implementation) for c in found if getattr(c, "_experts_implementation", None)}
    if before:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(_EVERY, every_expert)
    for config, _ in before.values():
        config._experts_implementation = _EVERY
    try:
        yield
    finally:
        for config, usual in before.values():
            config._experts_implementation = usual


def every_expert(layer: Any, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """All experts on all tokens, each counted by its share, which is 0 where it wasn't chosen.

    Args:
        layer: Fused experts of transformers.
        x: ``(tokens, width)``.
        chosen: int64 ``(tokens, k)``.
        shares: ``(tokens, k)``.
    """
    share = x.new_zeros(x.shape[0], layer.num_experts).scatter(1, chosen, shares.to(x.dtype))
    out = torch.zeros_like(x)
    for expert in range(layer.num_experts):
        inner = _product(layer, x, "gate_up_proj" if layer.has_gate else "up_proj", expert)
        inner = layer._apply_gate(inner) if layer.has_gate else layer.act_fn(inner)
        found = _product(layer, inner, "down_proj", expert)
        if getattr(layer, "has_post_expert_norm", False):
            found = layer.post_expert_norm(found)
        out = out + found * share[:, expert : expert + 1]
    return out


def _product(layer: Any, x: Tensor, name: str, expert: int) -> Tensor:
    weight = getattr(layer, name)[expert]
    bias = getattr(layer, f"{name}_bias")[expert] if layer.has_bias else None
    return F.linear(x, weight.t() if layer.is_transposed else weight, bias)
