"""Bits of each layer so that the whole model keeps a share of the original's time, measured on this machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from compresskit.errors import InputError, listing
from compresskit.model import InputSpec
from compresskit.stage import Context
from compresskit.stages.shared_latency import SEQUENCE, Choices, TimesByShape, within_latency
from compresskit.stages.weight_only import FLOAT

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.packed.modules import PackedLayer
    from compresskit.ops.quantize.faster_bits import LayerTimes
    from compresskit.ops.quantize.select import Selection
    from compresskit.ops.quantize.weights import Layers


def bits_in_time(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    layers: Layers,
    bits: Mapping[str, int],
    selections: Mapping[int, Selection],
    target: float,
    ctx: Context,
) -> tuple[dict[str, int], str]:
    """Give layers more bits where that is faster, until the model keeps the target.

    Args:
        module: In eval mode; stays as it is.
        inputs: Of the model.
        layers: The layers that will be quantized.
        bits: Of each of them: the fewest that it may get.
        selections: Bits to the grids of weights that have them.
        target: Share of the original's latency for one sample under onnxruntime.
        ctx: Where to put what is timed.

    Returns:
        Layer name to bits, 16 for one that stays in floating point; and what a user should read.

    Raises:
        UsageError: Not even the fastest bits keep the target.
        InputError: No Linear layer is quantized, so that bits don't change the time.
    """
    from compresskit.ops.quantize.faster_bits import share_of_time, widened

    timed = _timed(module, inputs, layers, bits, selections, ctx)
    if not timed:
        raise InputError(
            "`target_latency`: no Linear layer is quantized, and convolutions take as long with any bits",
            "`method` int8-static is faster for convolutions",
        )
    own = {layer.name: bits[layer.name] for layer in timed}

    def at(share: float) -> tuple[dict[str, int], float]:
        chosen = dict(bits) | widened(timed, own, share)
        return _with_ties(chosen, layers), share_of_time(timed, chosen)

    def build(chosen: dict[str, int]) -> nn.Module:
        smaller = copy.deepcopy(module)
        _pack(smaller, layers, chosen, selections)
        return smaller

    choices = Choices(
        share_of_time(timed, widened(timed, own, 0)),
        at,
        build,
        "fastest bits of each layer",
        "weights of few bits are no faster for these",
    )
    chosen, tries = within_latency(module, inputs, target, ctx, choices)
    wider = [name for name, b in chosen.items() if b > bits[name]]
    told = f"one sample takes {tries[-1][1]:.3f} of the original's time under onnxruntime with plainly rounded weights"
    if wider:
        told += f"; {len(wider)} of {len(bits)} layers have more bits because that is faster: {listing(wider, 4)}"
    return chosen, told


def _with_ties(bits: dict[str, int], layers: Layers) -> dict[str, int]:
    """With the same bits for layers that share a weight."""
    return bits | {name: bits[first] for name, first in layers.ties.items() if name in bits}


def _timed(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    layers: Layers,
    bits: Mapping[str, int],
    selections: Mapping[int, Selection],
    ctx: Context,
) -> list[LayerTimes]:
    """Times of all Linear layers at their bits and at more, one measurement for all of a shape."""
    from torch import nn

    from compresskit.ops.quantize.faster_bits import LayerTimes

    times, shapes = TimesByShape(ctx), _input_shapes(module, inputs, layers, ctx.seed)
    found = []
    for done, (name, layer) in enumerate(layers.layers.items(), 1):
        if isinstance(layer, nn.Linear) and name in shapes and name not in layers.ties:
            weight, shape = tuple(layer.weight.shape), shapes[name]
            shares, sizes = {FLOAT: 1.0}, {FLOAT: layer.weight.nbytes}
            for b in (b for b in selections if b >= bits[name]):
                pair = partial(_pair, layer, b, selections)
                shares[b] = times.share((shape, weight, layer.bias is None, b), shape, pair)
                sizes[b] = selections[b].grid(weight).nbytes(weight)
            found.append(LayerTimes(name, math.prod(shape) * weight[0], shares, sizes))
        ctx.progress("time layers", done, len(layers.layers))
    return found


def _pair(layer: nn.Module, bits: int, selections: Mapping[int, Selection]) -> tuple[nn.Module, nn.Module]:
    return layer, _packed(layer, bits, selections)


def _packed(layer: nn.Module, bits: int, selections: Mapping[int, Selection]) -> PackedLayer:
    from compresskit.ops.packed.modules import packed_twin
    from compresskit.ops.quantize.rtn import quantize_rtn

    weight = layer.get_parameter("weight").detach()
    return packed_twin(layer, quantize_rtn(weight, selections[bits].grid(tuple(weight.shape))))


def _pack(module: nn.Module, layers: Layers, bits: Mapping[str, int], selections: Mapping[int, Selection]) -> None:
    from compresskit.ops.packed.modules import set_module

    for name, b in bits.items():
        if b != FLOAT and name not in layers.ties:
            set_module(module, name, _packed(module.get_submodule(name), b, selections))


def _input_shapes(
    module: nn.Module, inputs: tuple[InputSpec, ...], layers: Layers, seed: int
) -> dict[str, tuple[int, ...]]:
    """Layer name to the shape of what it takes for one sample."""
    from contextlib import ExitStack

    import torch

    from compresskit.stages.batches import forward_of, made_up

    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, _layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        shapes.setdefault(name, tuple(given[0].shape))

    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in layers.layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        forward_of(module, inputs)(module, made_up(inputs, 1, seed, sequence=SEQUENCE))
    return shapes
