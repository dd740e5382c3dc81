"""What stands in the place of a factorized layer: plain layers, one behind the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.factorize import RANKS, Kind

Plain = nn.Linear | nn.Conv1d | nn.Conv2d
_WINDOW = ("kernel_size", "stride", "padding", "dilation")


class Factorized(nn.Sequential):
    """A few Linear layers, or convolutions, that together do the work of one.

    The layers are plain, so whatever comes later (quantization, pruning, export) treats them as any other.

    ========= ====================================================================================================
    svd       ``in → r → out``; of a Linear layer or a 1×1 convolution
    tucker    1×1 ``in → r₁``, the window ``r₁ → r₂``, 1×1 ``r₂ → out``; without a 1×1 where its rank is full
    spatial   k×1 ``in → r``, 1×k ``r → out``
    cp        1×1 ``in → r``, k×1 and 1×k on each of the r channels, 1×1 ``r → out``
    ========= ====================================================================================================

    Args:
        like: The layer; gives sizes, window, dtype and device, and whether there is a bias. Its values aren't used.
        kind: How it is taken apart.
        ranks: As many as :data:`RANKS` says.

    Attributes:
        kind: As given.
        ranks: As given.
    """

    def __init__(self, like: Plain, kind: Kind, ranks: Sequence[int]) -> None:
        super().__init__(*_layers(like, kind, tuple(ranks)))
        self.kind, self.ranks = kind, tuple(ranks)
        self._shape, self._blank = tuple(like.weight.shape), blank(like)
        if isinstance(like, nn.Linear):
            self.in_features, self.out_features = like.in_features, like.out_features
        else:
            self.in_channels, self.out_channels = like.in_channels, like.out_channels

    @torch.no_grad()
    def fill(self, weights: Sequence[Tensor], bias: Tensor | None) -> Factorized:
        """Take over the layers' weights, in order, and the last one's bias."""
        for layer, weight in zip(self, weights, strict=True):
            parameter = layer.get_parameter("weight")
            parameter.copy_(weight.reshape(parameter.shape))
        if bias is not None:
            self[-1].get_parameter("bias").copy_(bias)
        return self

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the one layer that computes the same: float64, in the original's shape.

        Each axis of the window belongs to one of the layers, so no layer's padding or stride gets in another's way.
        """
        total = _kernel(self[0])
        for layer in list(self)[1:]:
            kernel = _kernel(layer)
            single = isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups > 1
            rule = "oab,oicd->oiacbd" if single else "orab,ricd->oiacbd"
            product = torch.einsum(rule, kernel[:, 0] if single else kernel, total)
            outputs, inputs, a, c, b, d = product.shape
            total = product.reshape(outputs, inputs, a * c, b * d)
        return total.reshape(self._shape)

    def whole(self) -> bool:
        """False where a later stage cut inputs or outputs of the factors."""
        first, last = (self[i].get_parameter("weight").shape for i in (0, -1))
        return (last[0], first[1]) == tuple(self._shape[:2])

    def dense(self) -> Plain:
        """The one layer that computes the same."""
        last = self[-1]
        bias = last._parameters.get("bias")
        made: Plain = self._blank(bias=bias is not None, device=last.weight.device, dtype=last.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(self.merged())
            if made.bias is not None and bias is not None:
                made.bias.copy_(bias)
        made.train(self.training)
        return made


def blank(layer: Plain) -> Callable[..., Any]:
    """Builds a layer of the same sizes: takes ``bias``, ``device`` and ``dtype``."""
    if isinstance(layer, nn.Linear):
        return partial(nn.Linear, layer.in_features, layer.out_features)
    window: dict[str, Any] = {n: getattr(layer, n) for n in (*_WINDOW, "padding_mode")}
    kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return partial(kind, layer.in_channels, layer.out_channels, **window)


def _kernel(layer: nn.Module) -> Tensor:
    """A layer's weight as float64 ``(outputs, inputs, height, width)``."""
    weight = layer.get_parameter("weight").double()
    lead = {2: (1, 1), 3: (1,), 4: ()}[weight.dim()]
    return weight.reshape(*weight.shape[:2], *lead, *weight.shape[2:])


def _layers(like: Plain, kind: Kind, ranks: tuple[int, ...]) -> list[nn.Module]:
    bias = like.bias is not None
    where: Any = {"device": like.weight.device, "dtype": like.weight.dtype}
    if len(ranks) != RANKS[kind] or min(ranks) < 1:
        raise InputError(f"{kind} with ranks {list(ranks)}: expected {RANKS[kind]} of 1 or more")
    if isinstance(like, nn.Linear):
        if kind != "svd":
            raise InputError(f"{kind} is for convolutions")
        return [
            nn.Linear(like.in_features, ranks[0], bias=False, **where),
            nn.Linear(ranks[0], like.out_features, bias=bias, **where),
        ]
    conv: Callable[..., nn.Module] = partial(
        nn.Conv1d if isinstance(like, nn.Conv1d) else nn.Conv2d, padding_mode=like.padding_mode, **where
    )
    point = partial(conv, kernel_size=1)
    window: Any = {n: getattr(like, n) for n in _WINDOW}
    inputs, outputs, rank = like.in_channels, like.out_channels, ranks[0]
    if kind == "svd":
        if math.prod(like.kernel_size) > 1:
            raise InputError("svd is for 1×1 convolutions")
        return [conv(inputs, rank, bias=False, **window), point(rank, outputs, bias=bias)]
    if kind == "tucker":
        last = ranks[1]
        before = [point(inputs, rank, bias=False)] if rank < inputs else []
        after = [point(last, outputs, bias=bias)] if last < outputs else []
        return [*before, conv(rank, last, bias=bias and not after, **window), *after]
    if not isinstance(like, nn.Conv2d):
        raise InputError(f"{kind} is for convolutions of two axes")
    down, across = _along(window, 0), _along(window, 1)
    if kind == "spatial":
        return [conv(inputs, rank, bias=False, **down), conv(rank, outputs, bias=bias, **across)]
    alone = partial(conv, rank, rank, groups=rank, bias=False)
    return [point(inputs, rank, bias=False), alone(**down), alone(**across), point(rank, outputs, bias=bias)]


def _along(window: dict[str, Any], axis: int) -> dict[str, Any]:
    """A window of two axes with one of them only; ``same`` and ``valid`` hold for each axis by itself."""
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return {
        key: value if isinstance(value, str) else tuple(v if i == axis else neutral[key] for i, v in enumerate(value))
        for key, value in window.items()
    }
