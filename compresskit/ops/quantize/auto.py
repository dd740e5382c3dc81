"""Which layer gets how many bits, from what rounding each of them alone does to the output of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from compresskit.errors import InputError, listing
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.packed.modules import same_tensor
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.sensitivity import CHOICES, Layer, allocate, distances

_SPARE = 0.02
"""Share of the packed bytes that sensitive layers may take beyond plain ``bits`` when no size is asked for."""
_STEPS = (1.0, 1.06, 1.15, 1.3, 1.6, 2.0)
"""Sizes tried, as multiples of the first, until a quality limit is kept."""
_OVERHEAD = 0.01
"""Share of a file that isn't weights."""


@dataclass(frozen=True)
class Plan:
    """Bits of each layer, and why.

    Attributes:
        bits: Layer name to bits, only where they aren't the usual ones.
        mean: Mean bits of a quantized weight, scales and zero points included.
        notes: What a user should read.
    """

    bits: dict[str, int]
    mean: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What limits the choice; None where nothing was asked for.

    Attributes:
        bits: Of a layer that isn't sensitive.
        target_bits: Mean bits of a weight with its scales.
        max_bytes: Size of the whole file.
        within: Says whether a model (with its weights rounded in place) keeps the quality limit, and its figures.
    """

    bits: int
    target_bits: float | None = None
    max_bytes: int | None = None
    within: Callable[[nn.Module], tuple[bool, str]] | None = None

    @property
    def is_sized(self) -> bool:
        """Whether a size was asked for: then layers may get fewer bits than ``bits``."""
        return self.target_bits is not None or self.max_bytes is not None

    def budget(self, usual: int, weights: int, others: int) -> int:
        """Bytes that the weights may take.

        Args:
            usual: Bytes of them at ``bits``.
            weights: Their number.
            others: Bytes of all other tensors.
        """
        found = int(usual * (1 + _SPARE)) if self.target_bits is None else int(weights * self.target_bits / 8)
        if self.max_bytes is None:
            return found
        left = int(self.max_bytes * (1 - _OVERHEAD)) - others
        return left if self.target_bits is None else min(found, left)

    def explain(self, budget: int, smallest: int, weights: int, least: int) -> str:
        """Why no choice keeps a size.

        Args:
            budget: Bytes that the weights may take.
            smallest: Bytes that they take at the fewest bits.
            weights: Their number.
            least: The fewest bits.

        Raises:
            InputError: It is the mean that was asked for.
        """
        if self.target_bits is not None and budget == int(weights * self.target_bits / 8):
            mean = 8 * smallest / weights
            raise InputError(f"{self.target_bits:g} bits a weight: {least} bits take {mean:.2f} with their scales")
        told = f"no choice of bits keeps the size: at {least} bits the weights take {smallest:,} bytes, "
        return f"{told}and {max(0, budget):,} are left for them"


def plan_bits(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    grid: Callable[[tuple[int, ...], int], Grid],
    wanted: Wanted,
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], Any],
    progress: Callable[[str, int, int], None],
    *,
    choices: Sequence[int] = CHOICES,
    ties: Mapping[str, str] = MappingProxyType({}),
    scores: bool = False,
    once: Callable[[str, Callable[[], Any]], Any] = lambda _name, make: make(),
) -> Plan:
    """Choose the bits of each layer.

    Args:
        module: In eval mode; is as before afterwards.
        layers: The layers that will be quantized.
        grid: Shape and bits to the grid that the method will use.
        wanted: The limits.
        batches: Inputs to measure with.
        forward: Calls the module with a batch.
        progress: Told of each layer.
        choices: Bits that a layer may get, ascending.
        ties: Layers whose weight is that of another one, and which: they get its bits.
        scores: See :func:`~compresskit.ops.quantize.sensitivity.distances`.
        once: Gives what was measured for these grids and inputs before; see :class:`compresskit.stage.Context`.

    Raises:
        InputError: Not even the fewest bits keep the mean that was asked for.
    """
    owners = {name: layer for name, layer in layers.items() if name not in ties}
    shapes = {name: tuple(layer.get_parameter("weight").shape) for name, layer in owners.items()}
    changed = {name: partial(rounded, grid=grid(shape, wanted.bits)) for name, shape in shapes.items()}
    grids = [(name, grid(shape, wanted.bits)) for name, shape in shapes.items()]
    found = once(
        f"effect of rounding: {grids}",
        lambda: distances(module, changed, batches, forward, progress, scores=scores),
    )
    sizes = {name: {b: grid(shape, b).nbytes(shape) for b in choices} for name, shape in shapes.items()}
    items = [Layer(name, found[name], sizes[name]) for name in owners]
    weights = sum(math.prod(shape) for shape in shapes.values())
    usual = sum(sizes[name][wanted.bits] for name in owners)
    budget = wanted.budget(usual, weights, _bytes_of_others(module, owners))
    least = choices[0] if wanted.is_sized else wanted.bits
    smallest = sum(sizes[name][least] for name in owners)
    if budget < smallest:
        told = wanted.explain(budget, smallest, weights, least)
        return Plan({}, 8 * usual / weights, (told,))
    choose = partial(allocate, items, wanted.bits, choices=choices, least=least)
    bits, note = choose(budget), ""
    if wanted.within is not None:
        bits, note = _kept(module, choose, budget, shapes, grid, wanted.within, wanted.max_bytes is not None)
    mean = 8 * sum(sizes[name][b] for name, b in bits.items()) / weights
    notes = [_says(bits, wanted.bits, found, mean)] + ([note] if note else [])
    every = bits | {name: bits[first] for name, first in ties.items()}
    return Plan({name: b for name, b in every.items() if b != wanted.bits}, mean, tuple(notes))


def rounded(weight: Tensor, grid: Grid) -> Tensor:
    """A weight as plain rounding leaves it, in floating point."""
    return dequantize(quantize_rtn(weight, grid))


def _bytes_of_others(module: nn.Module, owners: Mapping[str, nn.Module]) -> int:
    """Bytes of all tensors but the weights to quantize."""
    taken = {same_tensor(layer.get_parameter("weight")) for layer in owners.values()}
    found = {same_tensor(t): t.numel() * t.element_size() for t in module.state_dict().values()}
    return sum(size for key, size in found.items() if key not in taken)


def _kept(
    module: nn.Module,
    choose: Callable[[int], dict[str, int]],
    budget: int,
    shapes: Mapping[str, tuple[int, ...]],
    grid: Callable[[tuple[int, ...], int], Grid],
    within: Callable[[nn.Module], tuple[bool, str]],
    fixed: bool,
) -> tuple[dict[str, int], str]:
    """The smallest of some sizes that keeps the quality limit with plain rounding, which any method improves on."""
    said = ""
    for factor in (1.0,) if fixed else _STEPS:
        bits = choose(int(budget * factor))
        kept = {name: module.get_submodule(name).get_parameter("weight") for name in bits}
        before = {name: weight.data for name, weight in kept.items()}
        try:
            for name, weight in kept.items():
                weight.data = rounded(before[name], grid(shapes[name], bits[name])).to(weight.dtype)
            passed, said = within(module)
        finally:
            for name, weight in kept.items():
                weight.data = before[name]
        if passed:
            return bits, f"plain rounding already meets the quality limit on held-out calibration data: {said}"
    return bits, f"plain rounding misses the quality limit on held-out calibration data: {said}"


def _says(bits: Mapping[str, int], usual: int, found: Mapping[str, float], mean: float) -> str:
    wider = sorted((n for n, b in bits.items() if b > usual), key=lambda n: -found[n])
    fewer = [n for n, b in bits.items() if b < usual]
    text = f"{mean:.2f} bits a weight with scales"
    total = sum(found.values()) or 1.0
    if wider:
        share = 100 * sum(found[n] for n in wider) / total
        text += f"; {len(wider)} of {len(bits)} layers wider than {usual} bit: {listing(wider, 4)}"
        text += f" (rounding them to {usual} causes {share:.0f} % of the error)"
    if fewer:
        share = 100 * sum(found[n] for n in fewer) / total
        text += f"; {len(fewer)} narrower ({share:.0f} % of the error)"
    return text
