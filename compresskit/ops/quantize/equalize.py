"""Cross-layer equalization: channels between two layers scaled so that their weights fill their grids alike.

"Data-Free Quantization Through Weight Equalization and Bias Correction" (DFQ; Nagel et al., 2019): a ReLU lets positive
factors through, so one layer's outputs may be divided by what the next layer's inputs are multiplied with. Where a
normalization stands between them, it takes the division. Whether only such functions stand between two layers is not
guessed but tried: a pair counts if the model's output stays the same under large random factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.trace import OUTPUT, Trace, tensors_in, trace

_SAME = 1e-5
"""Relative change of the output that rounding in float32 may make."""
_LARGEST = 64.0
"""Most that a channel is scaled by, either way, when a pair is tried; half of that when it is equalized."""
_Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """Two layers in a row.

    Attributes:
        first: The layer whose outputs can be scaled.
        norm: The normalization behind it, which takes the scale then; None where there is none.
        second: The only layer that reads them.
    """

    first: str
    norm: str | None
    second: str


@torch.no_grad()
def equalize(module: nn.Module, forward: Forward, batch: Batch) -> list[Pair]:
    """Scale the channels between all pairs, in place; the model computes what it did before, up to float32.

    Args:
        module: In eval mode.
        forward: Calls the module with a batch.
        batch: A few samples.

    Returns:
        The pairs scaled.
    """
    kept: list[Pair] = []
    for pair in pairs(module, forward, batch):
        first, second = module.get_submodule(pair.first), module.get_submodule(pair.second)
        inputs = _reach(second.get_parameter("weight"), 1)
        # Where a normalization takes the scale, the first layer's weight doesn't change: only the second is evened out.
        outputs = _reach(first.get_parameter("weight"), 0) if pair.norm is None else torch.ones_like(inputs)
        factor = torch.sqrt(outputs / inputs)
        factor = (factor / factor.log().mean().exp()).clamp(2 / _LARGEST, _LARGEST / 2)
        usable = (outputs > 0) & (inputs > 0) & factor.isfinite()
        before, saved = _output(forward(module, batch)), _saved(module, pair)
        scale(module, pair, torch.where(usable, factor, 1.0))
        # What the trial's factors didn't show, a clipping far out say, these may.
        if (_output(forward(module, batch)) - before).norm() <= _SAME * before.norm():
            kept.append(pair)
        else:
            _restore(saved)
    return kept


@torch.no_grad()
def pairs(module: nn.Module, forward: Forward, batch: Batch) -> list[Pair]:
    """The pairs of layers between which each channel may be scaled."""
    found: list[Pair] = []
    want = _output(forward(module, batch))
    generator = torch.Generator().manual_seed(0)
    for pair in _candidates(module, trace(module, partial(forward, module, batch))):
        kept = _saved(module, pair)
        channels = len(kept[0][0])
        power = torch.rand(channels, generator=generator) * 2 - 1
        scale(module, pair, _LARGEST**power)
        error = (_output(forward(module, batch)) - want).norm()
        _restore(kept)
        if error <= _SAME * want.norm():
            found.append(pair)
    return found


def scale(module: nn.Module, pair: Pair, factor: Tensor) -> None:
    """Divide the channels between two layers by ``factor`` ``(channels,)``, positive, and multiply them in again."""
    *outputs, second = _touched(module, pair)
    for tensor in outputs:
        tensor.data.div_(factor.reshape(-1, *[1] * (tensor.dim() - 1)))
    second.data.mul_(factor.reshape(1, -1, *[1] * (second.dim() - 2)))


def _touched(module: nn.Module, pair: Pair) -> list[Tensor]:
    """What gives the channels (first axis: channels), and the weight that reads them (second axis: channels)."""
    giver = module.get_submodule(pair.norm or pair.first)
    given = [giver.get_parameter("weight")]
    bias = giver._parameters.get("bias")
    if bias is not None:
        given.append(bias)
    return [*given, module.get_submodule(pair.second).get_parameter("weight")]


def _saved(module: nn.Module, pair: Pair) -> list[tuple[Tensor, Tensor]]:
    return [(t, t.detach().clone()) for t in _touched(module, pair)]


def _restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in saved:
        tensor.copy_(value)


def _candidates(module: nn.Module, found: Trace) -> list[Pair]:
    """Layers called once, one right after the other, with matching channels, whose channels aren't the output."""
    once = found.once()
    kinds = (*_Conv, nn.Linear, _BatchNorm)
    order = [n for n in once if isinstance(module.get_submodule(n), kinds)]
    result: list[Pair] = []
    for place, name in enumerate(order):
        layer, norm, after = module.get_submodule(name), None, order[place + 1 :]
        if isinstance(layer, _BatchNorm):
            continue
        if after and isinstance(following := module.get_submodule(after[0]), _BatchNorm):
            if not following.affine:
                continue
            norm, after = after[0], after[1:]
        if not after or OUTPUT in found.consumers(norm or name):
            continue
        if _matching(layer, module.get_submodule(after[0])):
            result.append(Pair(name, norm, after[0]))
    return result


def _matching(first: nn.Module, second: nn.Module) -> bool:
    """True where each channel that the first gives is read by the second as one of its columns."""
    if not isinstance(second, (*_Conv, nn.Linear)) or (isinstance(second, _Conv) and second.groups != 1):
        return False
    given, read = first.get_parameter("weight"), second.get_parameter("weight")
    return read.shape[1] == given.shape[0] and given is not read


def _reach(weight: Tensor, axis: int) -> Tensor:
    """The largest magnitude in each channel along an axis."""
    return weight.detach().abs().transpose(0, axis).flatten(1).amax(1)


def _output(value: object) -> Tensor:
    return torch.cat([t.float().flatten() for t in tensors_in(value) if t.is_floating_point()])
