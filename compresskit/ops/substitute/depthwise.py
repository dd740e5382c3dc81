"""A convolution as one of each channel by itself, and a 1×1 behind it.

As in "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (Howard et al., 2017), made
of a trained convolution: the windows of a channel are the first singular vectors of its weights. Several windows a
channel are several depthwise convolutions side by side, never a grouped one of several outputs a group, for which
onnxruntime has no fast kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import DepthwiseFacts
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.substitute.parts import Parts


class Depthwise(Parts):
    """``multiplier`` depthwise convolutions of the same input, their outputs in a row, and a 1×1 convolution.

    Args:
        like: The convolution in whose place it stands: gives sizes, window, dtype, device, and whether there is a bias.
        multiplier: Windows a channel.

    Attributes:
        depth: The depthwise convolutions.
        point: The 1×1 convolution.
    """

    def __init__(self, like: nn.Conv2d, multiplier: int) -> None:
        super().__init__()
        where: Any = {"device": like.weight.device, "dtype": like.weight.dtype}
        window: Any = {name: getattr(like, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        size: Any = like.kernel_size
        channels = like.in_channels
        self.depth = nn.ModuleList(
            nn.Conv2d(channels, channels, size, groups=channels, bias=False, **window, **where)
            for _ in range(multiplier)
        )
        self.point = nn.Conv2d(multiplier * channels, like.out_channels, 1, bias=like.bias is not None, **where)
        self.train(like.training)

    def spread(self, x: Tensor) -> Tensor:
        """What the 1×1 convolution is given: ``(batch, multiplier · channels, height, width)``."""
        parts = [layer(x) for layer in self.depth]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @torch.no_grad()
    def fill(self, like: Any, columns: Tensor | None = None) -> Depthwise:
        """Take the nearest weights to those of a convolution: exact where no channel has more windows."""
        weight = like.weight.double().flatten(2).permute(1, 0, 2)  # (channels, outputs, window)
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        rows = []
        for number, layer in enumerate(self.depth):
            own = layer.get_parameter("weight")
            own.copy_(right[:, number].reshape(own.shape))
            rows.append((left[:, :, number] * sizes[:, number, None]).mT)
        self.point.weight.copy_(torch.cat(rows, 1)[:, :, None, None])
        if self.point.bias is not None and like.bias is not None:
            self.point.bias.copy_(like.bias)
        return self


def why_not(layer: nn.Module, multiplier: int) -> str:
    """Why a layer can't become one; empty where it can."""
    if type(layer) is not nn.Conv2d or layer.groups > 1:
        return "not a convolution of all channels"
    window, outputs = layer.weight[0, 0].numel(), layer.out_channels
    if multiplier > min(window, outputs):
        return f"its windows have {window} places and {outputs} outputs: `multiplier` is more"
    if multiplier * (window + outputs) >= window * outputs:
        return "the parts would take as many products as it does"
    return ""


def replay(module: nn.Module, layers: Mapping[str, DepthwiseFacts]) -> None:
    """Put empty ones into a freshly built architecture, in place; values are loaded afterwards.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in layers.items():
        layer = layer_of_card(module, name, "was made depthwise")
        why = why_not(layer, fact.multiplier)
        if not isinstance(layer, nn.Conv2d) or why:
            raise InputError(f"layer '{name}' can't have been made depthwise: {why}", "check `arch` and `arch_args`")
        set_module(module, name, Depthwise(layer, fact.multiplier))
