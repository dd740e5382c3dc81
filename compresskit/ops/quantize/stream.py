"""Weight-only quantization of bare tensors without an architecture, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.quantize.rtn import quantize_rtn, stored_dtype
from compresskit.ops.quantize.select import ROUTES, Selection, routers
from compresskit.ops.quantize.weights import fact, named


class Tensors(Protocol):
    """Named tensors, each read when asked for; ``ties`` maps a name to the earlier one it shares its values with."""

    ties: dict[str, str]

    def names(self) -> Sequence[str]:
        """In file order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the data."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Without reading the data."""
        ...

    def get(self, name: str) -> Tensor:
        """Read, or map, one tensor."""
        ...


@dataclass(frozen=True)
class Plan:
    """Which tensors are quantized.

    Attributes:
        layers: Layer name to its grid; the tensor is called ``<layer>.weight``, that of fused experts as the layer.
        skipped: Tensors of two axes or more that are kept, with the reason.
    """

    layers: dict[str, Grid]
    skipped: dict[str, str]

    def grid_of(self, name: str) -> Grid | None:
        """The grid of a tensor; None where it is kept."""
        return self.layers.get(_layer(name)) if name.endswith(_WEIGHT) or name in self.layers else None


def plan(tensors: Tensors, selection: Selection) -> Plan:
    """Decide by names and shapes alone; no data is read.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: There is nothing to quantize.
    """
    matrices = [n for n in tensors.names() if len(tensors.shape(n)) >= 2]
    named = {_layer(n): n for n in matrices if n.endswith(_WEIGHT) or _fused(tensors, n)}
    selection.check(named)
    layers: dict[str, Grid] = {}
    skipped = {n: "not a layer's weight by its name" for n in matrices if _layer(n) not in named}
    choosing = routers(named)
    for layer, name in named.items():
        shape, dtype = _shape(tensors, name), tensors.dtype(name)
        if layer in choosing:
            skipped[layer] = ROUTES
        elif not dtype.is_floating_point:
            skipped[layer] = f"holds {str(dtype).removeprefix('torch.')}"
        elif 0 in shape:
            skipped[layer] = "is empty"
        elif reason := selection.reason_against(layer, shape, dtype.itemsize):
            skipped[layer] = reason
        else:
            layers[layer] = selection.grid_for(layer, shape)
    if not layers:
        raise InputError("there is no weight matrix here that could be quantized", "see: compresskit inspect MODEL")
    return Plan(layers, skipped)


_WEIGHT = ".weight"


def _layer(name: str) -> str:
    return name.removesuffix(_WEIGHT)


def _fused(tensors: Tensors, name: str) -> bool:
    """True for one tensor with the weights of all experts of a block, ``(experts, rows, columns)``."""
    return ".experts." in f".{name}" and len(tensors.shape(name)) == 3 and not name.endswith(_WEIGHT)


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Sizes of a weight as it is quantized: of fused experts the rows of all of them, one below the other."""
    shape = tensors.shape(name)
    return (shape[0] * shape[1], shape[2]) if _fused(tensors, name) else shape


Producer = Callable[[], Tensor]


class Quantizer:
    """Produces the tensors to store, each when it is asked for; holds one quantized weight at most.

    Args:
        tensors: The originals.
        plan: What :func:`plan` decided.
        clip: As in :func:`~compresskit.ops.quantize.rtn.quantize_rtn`.
        progress: Called after each quantized weight.
    """

    def __init__(
        self, tensors: Tensors, plan: Plan, *, clip: bool = True, progress: Callable[[str, int, int], None]
    ) -> None:
        self.tensors, self.plan, self.clip, self.progress = tensors, plan, clip, progress
        self.ties: dict[str, str] = {}
        self._facts: dict[str, Any] = {}
        self._held: tuple[str, Packed] | None = None

    def entries(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], Producer]]:
        """(name, dtype, shape, producer) of every tensor to store, in file order; call the producers in that order.

        A weight that is tied to a quantized one is stored once, and recorded in ``ties``.
        """
        for name in self.tensors.names():
            layer, grid = _layer(name), self.plan.grid_of(name)
            owner = _layer(self.tensors.ties.get(name, ""))
            if grid is None:
                yield name, self.tensors.dtype(name), self.tensors.shape(name), partial(self.tensors.get, name)
            elif self.plan.layers.get(owner) == grid:
                self.ties[layer] = owner
            else:
                yield from self._packed(name, grid)

    def facts(self) -> dict[str, Any]:
        """What the card records, once every tensor was produced."""
        layers = dict(self._facts)
        layers.update({name: layers[owner] for name, owner in self.ties.items()})
        return {"layers": layers, "ties": self.ties}

    def _packed(self, name: str, grid: Grid) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], Producer]]:
        layer, shape = _layer(name), _shape(self.tensors, name)
        dtypes = {"scales": stored_dtype(self._weight(name), grid)}
        for part, sizes in grid.part_shapes(shape).items():
            yield f"{layer}.{part}", dtypes.get(part, torch.uint8), sizes, partial(self._part, name, part)

    def _weight(self, name: str) -> Tensor:
        return self.tensors.get(name).reshape(_shape(self.tensors, name))

    def _part(self, name: str, part: str) -> Tensor:
        layer = _layer(name)
        if self._held is None or self._held[0] != layer:
            self._held = None
            weight, grid = self._weight(name), self.plan.layers[layer]
            packed = named(layer, partial(quantize_rtn, weight, grid, clip=self.clip))
            self._held = (layer, packed)
            self._facts[layer] = fact("", packed, weight)
            self.progress("quantize", len(self._facts), len(self.plan.layers))
        found: Tensor = getattr(self._held[1], part)
        return found
