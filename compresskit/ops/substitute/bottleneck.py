"""A layer through fewer channels: a 1×1 that reduces, a window on what is left, and a 1×1 that expands.

The bottleneck of "Deep Residual Learning for Image Recognition" (He et al., 2016) in the place of one trained
convolution, without activations between its parts: they are the convolution's Tucker decomposition (Kim et al., 2016),
so that the fit of the last one has the least to make up for. A Linear layer and a 1×1 have no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import BottleneckFacts
from compresskit.ops.factorize.metric import Metric
from compresskit.ops.factorize.svd import Svd
from compresskit.ops.factorize.tucker import Tucker
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.substitute.parts import Parts

_MULTIPLE = 8
"""Widths are multiples of this: kernels are slow on others."""


class Bottleneck(Parts):
    """Reduce, window, expand.

    Args:
        like: The layer in whose place it stands: gives sizes, window, dtype, device, and whether there is a bias.
        width: Channels in between.

    Attributes:
        reduce: To the width.
        core: The window; nothing for a Linear layer or a 1×1.
        point: From the width to the outputs.
    """

    def __init__(self, like: nn.Linear | nn.Conv2d, width: int) -> None:
        super().__init__()
        where: Any = {"device": like.weight.device, "dtype": like.weight.dtype}
        bias = like.bias is not None
        self.core: nn.Module = nn.Identity()
        if isinstance(like, nn.Linear):
            self.reduce: nn.Module = nn.Linear(like.in_features, width, bias=False, **where)
            self.point = nn.Linear(width, like.out_features, bias=bias, **where)
        else:
            window: Any = {name: getattr(like, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            wide = like.weight[0, 0].numel() > 1
            own: Any = {} if wide else window
            self.reduce = nn.Conv2d(like.in_channels, width, 1, bias=False, **own, **where)
            if wide:
                size: Any = like.kernel_size
                self.core = nn.Conv2d(width, width, size, bias=False, **window, **where)
            self.point = nn.Conv2d(width, like.out_channels, 1, bias=bias, **where)
        self.train(like.training)

    def spread(self, x: Tensor) -> Tensor:
        """``(batch, width, height, width of the picture)``, or ``(…, width)``."""
        out: Tensor = self.core(self.reduce(x))
        return out

    @torch.no_grad()
    def fill(self, like: Any, columns: Tensor | None = None) -> Bottleneck:
        """Take the nearest weights to those of a layer: exact at full width."""
        width, wide = len(self.reduce.get_parameter("weight")), not isinstance(self.core, nn.Identity)
        taken = (Tucker if wide else Svd)(like.weight, Metric(inner=columns))
        factors = taken.factors([width, width] if wide else [width])
        for layer, weight in zip((self.reduce, self.core, self.point) if wide else (self.reduce, self.point), factors,
                                 strict=True):  # fmt: skip
            own = layer.get_parameter("weight")
            own.copy_(weight.reshape(own.shape))
        if like.bias is not None:
            self.point.bias.copy_(like.bias)
        return self


def width_of(layer: Any, share: float) -> int:
    """The channels in between for a share of the fewer of inputs and outputs, a multiple of eight."""
    fewer: int = min(layer.weight.shape[:2])
    return max(_MULTIPLE, round(share * fewer / _MULTIPLE) * _MULTIPLE)


def why_not(layer: nn.Module, width: int) -> str:
    """Why a layer can't become one; empty where it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d) or getattr(layer, "groups", 1) > 1:
        return "no Linear layer, and no convolution of all channels"
    weight = layer.get_parameter("weight")
    outputs, inputs = weight.shape[:2]
    if width >= min(outputs, inputs):
        return f"it has {min(outputs, inputs)} channels, too few for a bottleneck of {width}"
    window = weight[0, 0].numel() if weight.dim() > 2 else 1
    places = 1
    if window > 1:
        places = int(torch.tensor(layer.stride).prod())  # the first 1×1 sees what the window steps over
    inner = width * width * window if window > 1 else 0
    if places * inputs * width + inner + width * outputs >= inputs * outputs * window:
        return "the parts would take as many products as it does"
    return ""


def replay(module: nn.Module, layers: Mapping[str, BottleneckFacts]) -> None:
    """Put empty ones into a freshly built architecture, in place; values are loaded afterwards.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in layers.items():
        layer: Any = layer_of_card(module, name, "became a bottleneck")
        why = why_not(layer, fact.width)
        if why:
            raise InputError(f"layer '{name}' can't have become a bottleneck: {why}", "check `arch` and `arch_args`")
        set_module(module, name, Bottleneck(layer, fact.width))
