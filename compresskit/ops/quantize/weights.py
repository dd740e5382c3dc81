"""Weight-only quantization of a module, and its replay from the recorded facts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.quantize import PackedFacts, QuantizeFacts
from compresskit.ops.packed.formats import format_named
from compresskit.ops.packed.grid import PARTS, Grid, Packed, sqnr
from compresskit.ops.packed.modules import (
    PackedLayer,
    PackedLinear,
    computes,
    layer_of_card,
    packable,
    packed_twin,
    same_tensor,
    set_module,
)
from compresskit.ops.quantize.opened import open_recorded, opened
from compresskit.ops.quantize.rotate import untie
from compresskit.ops.quantize.select import ROUTES, Selection, routers
from compresskit.ranks import ALONE, Part, Ranks

Algorithm = Callable[[Tensor, Grid], Packed]
T = TypeVar("T")


class Weights:
    """Where the weights of a module are, and where packed ones go: the module itself."""

    def get(self, name: str, layer: nn.Module) -> Tensor:
        """The weight of a layer, as that layer has it."""
        return layer.get_parameter("weight")

    def release(self) -> None:
        """Let go of the weight that :meth:`get` gave last."""

    def keep(self, name: str, packed: Packed) -> Packed:
        """Keep a layer's packed weight; returns what the module is to hold of it."""
        return packed


IN_MODULE = Weights()


def quantize_module(
    module: nn.Module,
    selection: Selection,
    algorithm: Algorithm,
    progress: Callable[[str, int, int], None],
    weights: Weights = IN_MODULE,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace the module's layers by packed ones, in place.

    Args:
        module: Any module; layers that share a weight go on sharing it.
        selection: Which layers, and their grid.
        algorithm: Weight and grid to codes.
        progress: Called after each layer.
        weights: Where they are.
        ranks: Processes that share the layers; only the first one's module is whole in the end.

    Returns:
        The facts, ``{"layers": {name: …}, "ties": {name: first name}}``, and the layers left alone with the reason.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: There is no layer that could be quantized.
    """
    with opened(module):
        return _quantize(module, selection, algorithm, progress, weights, ranks)


def _quantize(
    module: nn.Module,
    selection: Selection,
    algorithm: Algorithm,
    progress: Callable[[str, int, int], None],
    weights: Weights,
    ranks: Ranks,
) -> tuple[dict[str, Any], dict[str, str]]:
    chosen = plan_layers(module, selection)

    def computed(name: str) -> Part:
        layer = chosen.layers[name]
        weight = weights.get(name, layer)
        packed = named(name, partial(algorithm, weight, chosen.grids[name]))
        found = fact(type(layer).__name__, packed, weight)
        weights.release()
        return found, parts_of(packed)

    facts: dict[str, Any] = {}
    costs = {n: layer.get_parameter("weight").numel() for n, layer in chosen.layers.items() if n not in chosen.ties}
    for name, (found, parts) in ranks.collected(costs, computed):
        shape = tuple(found["shape"])
        stored: dict[str, Any] = {part: parts.get(part) for part in PARTS}
        packed = weights.keep(name, Packed(**stored, shape=shape, grid=chosen.grids[name]))
        for same in (name, *(other for other, owner in chosen.ties.items() if owner == name)):
            facts[same] = found
            set_module(module, same, packed_twin(chosen.layers[same], packed))
            progress("quantize", len(facts), len(chosen.layers))
    ordered = {name: facts[name] for name in chosen.layers if name in facts}
    return {"layers": ordered, "ties": chosen.ties}, chosen.skipped


def parts_of(packed: Packed) -> dict[str, Tensor]:
    """A packed weight as this program stores it."""
    return packed.parts()


@dataclass(frozen=True)
class Layers:
    """Which layers of a module are quantized.

    Attributes:
        layers: By name, in the module's order.
        grids: What each becomes; tied layers have one grid.
        ties: Layers whose weight is that of an earlier one, and which.
        skipped: The others, with the reason.
    """

    layers: dict[str, nn.Module]
    grids: dict[str, Grid]
    ties: dict[str, str]
    skipped: dict[str, str]


def plan_layers(module: nn.Module, selection: Selection) -> Layers:
    """Decide without changing anything; of Conv1D and fused experts only what is opened counts as layers.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: There is no layer that could be quantized.
    """
    layers = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if _matrix(layer) is not None}
    selection.check(layers)
    skipped = _bare_parameters(module)
    skipped |= {name: "quantized already" for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    plan, choosing = Layers({}, {}, {}, skipped), routers(layers)
    first: dict[tuple[Any, ...], str] = {}
    for name, layer in layers.items():
        weight = _matrix(layer)
        if weight is None:
            continue
        reason = ROUTES if name in choosing else _unfit(name, layer, weight, selection)
        if reason:
            skipped[name] = reason
            continue
        owner = first.setdefault(same_tensor(weight), name)
        grid = selection.grid_for(name, tuple(weight.shape))
        if owner != name:
            if selection.overrides(name) and grid != plan.grids[owner]:
                raise UsageError(f"'{name}' shares its weight with '{owner}'", "give that layer's name to `layer_bits`")
            plan.ties[name] = owner
        plan.layers[name], plan.grids[name] = layer, plan.grids.get(owner, grid)
    if not plan.layers:
        raise InputError(_nothing(layers, skipped), "to see what can be compressed: compresskit inspect MODEL")
    return plan


def _unfit(name: str, layer: nn.Module, weight: Tensor, selection: Selection) -> str | None:
    """None when the layer is to be quantized, else why not."""
    if weight.numel() == 0:
        return "its weight is empty"
    reason = packable(layer) or selection.reason_against(name, tuple(weight.shape), computes(layer).itemsize)
    return reason or (None if name else "the model is this single layer: wrap it in a module")


def packed_at(module: nn.Module, name: str) -> Packed:
    """The packed weight of a layer that was quantized."""
    layer = module.get_submodule(name)
    if not isinstance(layer, PackedLayer):
        raise TypeError(f"{name} is not packed")
    return layer.packed


def named(name: str, compute: Callable[[], T]) -> T:
    """Run one layer's quantization; its error names the layer."""
    try:
        return compute()
    except InputError as error:
        raise InputError(f"layer '{name}': {error.message}", error.hint) from error


def fact(kind: str, packed: Packed, weight: Tensor, layer: PackedLayer | None = None) -> dict[str, Any]:
    """What the card records of one layer: the JSON of :class:`~compresskit.facts.quantize.PackedFacts`.

    ``layer`` is the packed layer where it may hold more than the packed weight; a repair counts in the SQNR.
    """
    grid, linear = packed.grid, layer if isinstance(layer, PackedLinear) else None
    return to_json(
        PackedFacts(
            kind=kind,
            bits=grid.bits,
            group_size=grid.group_size,
            symmetric=grid.symmetric,
            grid=grid.format.name,
            shape=list(packed.shape),
            scales="float32" if packed.scales.dtype == torch.float32 else "float16",
            sqnr=round(_sqnr(weight, packed, layer), 1),
            repair=0 if linear is None or linear.repair_in is None else linear.repair_in.shape[0],
            input_scale=linear is not None and linear.input_scale is not None,
        )
    )


def _sqnr(weight: Tensor, packed: Packed, layer: PackedLayer | None) -> float:
    if not isinstance(layer, PackedLinear) or layer.repair_in is None or layer.repair_out is None:
        return sqnr(weight, packed)
    # Codes and term against the weight is codes against what the term leaves of it, with the weight's own loudness.
    original = weight.detach().float()
    left = original - layer.repair_out.float() @ layer.repair_in.float()
    louder = 20 * math.log10(max(float(original.norm()), 1e-30) / max(float(left.norm()), 1e-30))
    return min(200.0, sqnr(left, packed) + louder)


def replay(module: nn.Module, facts: QuantizeFacts) -> dict[str, Packed]:
    """Rebuild the packed layers of a module from a card's facts; the tensors are loaded afterwards.

    Args:
        module: The original architecture; changed in place.
        facts: What :func:`quantize_module` returned.

    Returns:
        Empty packed weights of the layers that stay plain here (this architecture has no packed form for them):
        the caller fills them and stores :func:`~compresskit.ops.packed.grid.dequantize` of them as weights.

    Raises:
        InputError: A layer that the facts name is not in this architecture, or has another shape.
    """
    if facts.rotation is not None:
        untie(module, facts.rotation)
    open_recorded(module, facts.layers)
    plain: dict[str, Packed] = {}
    twins: dict[str, PackedLayer] = {}
    for name, fact in facts.layers.items():
        grid = named(name, partial(grid_of, fact))
        layer = layer_of_card(module, name, "was quantized")
        weight = layer._parameters.get("weight")
        if weight is None or list(weight.shape) != fact.shape:
            found = type(layer).__name__ if weight is None else tuple(weight.shape)
            wanted = tuple(fact.shape)
            raise InputError(f"layer '{name}': the quantized weight is {wanted}, the architecture's is {found}")
        packed = named(name, partial(empty, fact, grid))
        if packable(layer) is not None:
            plain[name] = packed
            continue
        tied = twins.get(facts.ties.get(name, ""))
        twins[name] = packed_twin(layer, tied.packed if tied is not None else packed)
        add_extras(twins[name], fact)
        set_module(module, name, twins[name])
    return plain


def grid_of(fact: PackedFacts) -> Grid:
    """The grid that a card's facts record for one layer.

    Raises:
        InputError: There is none with these numbers.
    """
    try:
        return Grid(fact.bits, fact.group_size, fact.symmetric, format_named(fact.grid))
    except ValueError as error:
        raise InputError(str(error), "the card is damaged") from error


def empty(fact: PackedFacts, grid: Grid) -> Packed:
    """A packed weight of the sizes on record, its values to be filled in.

    Raises:
        InputError: A weight of that shape has no place in the format.
    """
    dtypes = {"scales": getattr(torch, fact.scales), "levels": torch.float16}
    try:
        shapes = grid.part_shapes(tuple(fact.shape))
    except ValueError as error:
        raise InputError(str(error), "the card is damaged") from error
    parts: dict[str, Any] = {n: torch.empty(s, dtype=dtypes.get(n, torch.uint8)) for n, s in shapes.items()}
    return Packed(**{"zeros": None, **parts}, shape=tuple(fact.shape), grid=grid)


def add_extras(layer: PackedLayer, fact: PackedFacts) -> None:
    """Empty buffers for what a layer holds besides its packed weight."""
    if isinstance(layer, PackedLinear):
        if fact.repair:
            layer.repair_in = torch.empty(fact.repair, layer.in_features, dtype=torch.float16)
            layer.repair_out = torch.empty(layer.out_features, fact.repair, dtype=torch.float16)
        if fact.input_scale:
            layer.input_scale = torch.empty(layer.in_features)


def _matrix(layer: nn.Module) -> Tensor | None:
    """The layer's own weight where it has one of two axes or more."""
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() < 2 or not weight.is_floating_point():
        return None
    return weight


def _bare_parameters(module: nn.Module) -> dict[str, str]:
    """Parameters of two axes or more that are no layer's ``weight``: positions, recurrent and fused projections."""
    found: dict[str, str] = {}
    for prefix, layer in module.named_modules():
        for leaf, parameter in layer._parameters.items():
            if leaf != "weight" and parameter is not None and sum(n > 1 for n in parameter.shape) >= 2:
                found[f"{prefix}.{leaf}" if prefix else leaf] = f"a parameter of {type(layer).__name__}, not a layer"
    return found


def _nothing(layers: dict[str, nn.Module], skipped: dict[str, str]) -> str:
    if not layers and not skipped:
        return "the model has no layer with a weight matrix, so there is nothing to quantize"
    name, reason = next(iter(skipped.items()))
    return f"none of {len(skipped)} layers can be quantized; '{name}': {reason}"
