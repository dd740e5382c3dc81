"""Which layers get more bits than their accuracy needs, because a kernel for more bits is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerTimes:
    """What one layer costs at each number of bits.

    Attributes:
        name: Dotted name.
        macs: Multiply-accumulates of a sample: what the layer's own time is taken to be proportional to.
        shares: Bits to the measured time, as a share of the float layer's.
        sizes: Bits to bytes of the weight.
    """

    name: str
    macs: int
    shares: Mapping[int, float]
    sizes: Mapping[int, int]


def share_of_time(layers: Sequence[LayerTimes], bits: Mapping[str, int]) -> float:
    """The estimated time of all layers, as a share of what they take in floating point."""
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs * layer.shares[bits[layer.name]] for layer in layers) / total if total else 1.0


def widened(layers: Sequence[LayerTimes], bits: Mapping[str, int], share: float) -> dict[str, int]:
    """More bits for as few bytes as possible, until the estimated time is at most a share of the float layers'.

    Args:
        layers: With their times at these and at more bits.
        bits: Of each layer, at least; the accuracy needs them.
        share: In (0, 1].

    Returns:
        Layer name to bits. Where no choice is fast enough, each layer has the fastest that is not below its own.
    """
    chosen = dict(bits)
    by_name = {layer.name: layer for layer in layers}
    while share_of_time(layers, chosen) > share:
        steps = [
            (layer.macs * (layer.shares[now] - layer.shares[b]) / max(1, layer.sizes[b] - layer.sizes[now]), name, b)
            for name, layer in by_name.items()
            for now in (chosen[name],)
            for b in layer.shares
            if b > now and layer.shares[b] < layer.shares[now]
        ]
        if not steps:
            break
        _, name, b = max(steps)
        chosen[name] = b
    return chosen
