"""Which layers can be factorized, at which ranks, and what each choice costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compresskit.errors import InputError, UsageError
from compresskit.facts.factorize import Kind
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.factorize.chain import Factorized, Plain, blank
from compresskit.ops.globs import check_globs
from compresskit.ops.macs import layer_macs
from compresskit.ops.packed.modules import PackedLayer, set_module
from compresskit.ops.shrinking import ShrinkSettings

Unit = Literal["params", "macs"]
Weighting = Literal["plain", "inputs", "both"]
_MOST = 48
"""Ranks of a layer that are looked at."""
TIED = "its weight is that of"
"""How the reason of a shared weight begins."""
_GRID = 8
"""Ranks of each side of a Tucker-2."""


@dataclass(frozen=True)
class FactorizeSettings(ShrinkSettings):
    """What the user asked for, apart from the target.

    Attributes:
        kinds: What may be done with a layer.
        weighting: What counts: the weights' own squares, the layer's inputs, or these and the gradients of its outputs.
        rank: The one rank to look at, in the place of many.
    """

    kinds: Sequence[Kind] = ("svd", "tucker", "spatial")
    weighting: Weighting = "both"
    rank: int | None = None


@dataclass(frozen=True)
class Option:
    """One way to replace a layer.

    Attributes:
        kind: The decomposition: ``svd``, ``tucker`` …
        ranks: With which ranks.
        params: Weights of the layers in its place, without bias.
        macs: Multiply-accumulates of the example.
    """

    kind: Kind
    ranks: tuple[int, ...]
    params: int
    macs: int

    def cost(self, unit: Unit) -> int:
        """One of the two."""
        return self.params if unit == "params" else self.macs


@dataclass
class Candidate:
    """A layer that can be replaced.

    Attributes:
        name: Dotted name.
        layer: It.
        params: Size of its weight.
        macs: Multiply-accumulates of the example.
        options: The ways that take fewer weights and fewer multiply-accumulates than the layer.
        full: The largest rank that makes sense, by kind.
    """

    name: str
    layer: Plain
    params: int
    macs: int
    options: list[Option] = field(default_factory=list)
    full: dict[Kind, int] = field(default_factory=dict)

    def cost(self, unit: Unit) -> int:
        """One of the two."""
        return self.params if unit == "params" else self.macs


@dataclass(frozen=True)
class Found:
    """What a model holds.

    Attributes:
        candidates: Layers that can be replaced, in the order of their first call.
        skipped: The other layers with weights, with the reason.
        total: Weights, and multiply-accumulates of the example, of all Linear layers and convolutions.
        shapes: By layer the shape of its input in its first call.
    """

    candidates: list[Candidate]
    skipped: dict[str, str]
    total: dict[Unit, int]
    shapes: dict[str, tuple[int, ...]]


def find(module: nn.Module, run: Callable[[nn.Module], Any], settings: FactorizeSettings) -> Found:
    """The layers that can be factorized, and their options.

    Args:
        module: In eval mode; as before afterwards.
        run: Calls a module with an example.
        settings: What the user asked for.

    Raises:
        UsageError: The model is quantized, a glob matches nothing, or the rank is above a matrix's.
        InputError: The model has no Linear layer or convolution.
    """
    layers = _layers(module)
    check_globs(layers, settings.globs)
    calls = _calls(module, run, layers)
    factors = {f"{n}.{i}" for n, m in module.named_modules() if isinstance(m, Factorized) for i in range(len(m))}
    shared, skipped = _shared(module), _others(module)
    total: dict[Unit, int] = {"params": 0, "macs": 0}
    candidates: list[Candidate] = []
    for name in dict.fromkeys([*calls, *layers]):
        layer, shapes = layers[name], [shape for shape, _ in calls.get(name, [])]
        here = Candidate(name, layer, layer.weight.numel(), sum(macs for _, macs in calls.get(name, [])))
        total["params"] += here.params
        total["macs"] += here.macs
        reason = "factorized already" if name in factors else _unfit(name, layer, bool(shapes), shared, settings)
        reason = reason or _add_options(here, shapes, settings)
        if reason:
            skipped[name] = reason
        else:
            candidates.append(here)
    unread = _read_elsewhere(module, run, [c.name for c in candidates])
    first = {name: found[0][0] for name, found in calls.items()}
    return Found([c for c in candidates if c.name not in unread], skipped | unread, total, first)


def _layers(module: nn.Module) -> dict[str, Any]:
    if any(isinstance(layer, PackedLayer) for layer in module.modules()):
        raise UsageError("this model is quantized: its weights are codes", "factorize first, then quantize")
    layers = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, _ConvNd))}
    if not layers:
        raise InputError("this model has no Linear layer and no convolution: there is nothing to factorize")
    return layers


def _add_options(here: Candidate, shapes: list[tuple[int, ...]], settings: FactorizeSettings) -> str:
    """Fill in the ways to replace a layer; returns why there are none, else nothing.

    Raises:
        UsageError: The rank that was asked for is above the matrix's.
    """
    fitting = [kind for kind in settings.kinds if _fits(here.layer, kind)]
    if not fitting:
        return _misfit(here.layer, settings.kinds)
    for kind in fitting:
        _add_options_of(here, kind, shapes, settings)
    most, rank = max(here.full.values()), settings.rank
    if rank is not None and "cp" not in fitting and rank > most:
        raise UsageError(
            f"`rank` {rank} is above the rank of '{here.name}', whose matrix has {most}",
            f"give {most} or less, or `exclude` '{here.name}'",
        )
    return "" if here.options else _no_gain(here, rank, settings.multiple)


def _add_options_of(here: Candidate, kind: Kind, shapes: list[tuple[int, ...]], settings: FactorizeSettings) -> None:
    full, rank = _full(here.layer, kind), settings.rank
    here.full[kind] = full
    empty: Plain = blank(here.layer)(bias=here.layer.bias is not None, device="meta")
    if rank is not None and rank > full and kind != "cp":
        return
    asked = [] if rank is None else [(rank,) * (2 if kind == "tucker" else 1)]
    for ranks in asked or _ladder(here.layer, kind, settings.multiple):
        made = list(Factorized(empty, kind, ranks))
        params = sum(layer.get_parameter("weight").numel() for layer in made)
        macs = sum(macs_of(made, shape) for shape in shapes)
        if params < here.params and macs < here.macs:
            here.options.append(Option(kind, ranks, params, macs))


def _full(layer: Plain, kind: Kind) -> int:
    """The rank at which nothing is lost; for Tucker-2 the larger side, for CP a bound."""
    outputs, inputs = layer.weight.shape[:2]
    if kind == "tucker":
        return min(inputs, outputs)
    if kind == "spatial":
        return int(min(inputs * layer.weight.shape[2], outputs * layer.weight.shape[3]))
    window = math.prod(layer.weight.shape[2:])
    return int(min(inputs, outputs) * (window if kind == "cp" else 1))


def _ladder(layer: Plain, kind: Kind, multiple: int) -> list[tuple[int, ...]]:
    """Ranks from small to large."""
    outputs, inputs = layer.weight.shape[:2]
    if kind == "tucker":
        sides = [[*_steps(size, multiple, _GRID), size] for size in (inputs, outputs)]
        return [(a, b) for a in sides[0] for b in sides[1] if (a, b) != (inputs, outputs)]
    return [(r,) for r in _steps(_full(layer, kind), multiple, _GRID if kind == "cp" else _MOST)]


def _steps(size: int, multiple: int, most: int) -> list[int]:
    """Multiples below a size, not too many."""
    step = multiple * max(1, math.ceil(size / multiple / most))
    return list(range(step, size, step))


def _fits(layer: Plain, kind: Kind) -> bool:
    window = math.prod(layer.weight.shape[2:])
    if kind == "svd":
        return window == 1
    return window > 1 and (kind == "tucker" or isinstance(layer, nn.Conv2d))


def _misfit(layer: Plain, kinds: Sequence[Kind]) -> str:
    if "svd" in kinds:
        return "this method is for Linear layers and 1×1 convolutions: `method` tucker or spatial takes convolutions"
    what = "a Linear layer" if isinstance(layer, nn.Linear) else f"a window of {tuple(layer.weight.shape[2:])}"
    return f"this method is for convolutions with a window, and it is {what}: `method` svd takes Linear layers"


def _no_gain(here: Candidate, rank: int | None, multiple: int) -> str:
    if rank is not None:
        return f"at rank {rank} its factors would not be smaller: {even(here)}"
    return f"too small: no rank that is a multiple of {multiple} is below break-even ({even(here)})"


def even(here: Candidate) -> str:
    """The rank at which nothing is gained, in words."""
    outputs, inputs = here.layer.weight.shape[:2]
    if math.prod(here.layer.weight.shape[2:]) > 1:
        return "as many weights or products"
    return f"break-even is rank {break_even(outputs, inputs):.4g}"


def break_even(outputs: int, inputs: int) -> float:
    """The rank at which two factors take as much as their product."""
    return outputs * inputs / (outputs + inputs)


def _unfit(name: str, layer: nn.Module, called: bool, shared: dict[int, list[str]], settings: FactorizeSettings) -> str:
    """Why a layer is left alone; empty where it isn't."""
    return (
        settings.left_out(name)
        or ("" if name else "the model is this single layer: wrap it in a module")
        or _without_matrix(layer)
        or _tied(name, layer, shared)
        or _special(layer)
        or ("" if called else "it is never called: its weight is used elsewhere or not at all")
        or ("" if layer.get_parameter("weight").isfinite().all() else "its weight holds NaN or Inf")
    )


def _without_matrix(layer: nn.Module) -> str:
    """Why a layer has no weight that can be taken apart."""
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        return f"{type(layer).__name__}: only Linear, Conv1d and Conv2d are factorized"
    weight = layer._parameters.get("weight")
    return "" if weight is not None and weight.is_floating_point() else "its weight is computed from others"


def _tied(name: str, layer: nn.Module, shared: dict[int, list[str]]) -> str:
    others = [n for n in shared.get(layer.get_parameter("weight").data_ptr(), []) if n != name]
    return f"{TIED} '{others[0]}' too" if others else ""


def _special(layer: nn.Module) -> str:
    """Why a layer isn't one matrix product."""
    plain = next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d) if isinstance(layer, kind))
    if type(layer).forward is not plain.forward:
        return f"{type(layer).__name__} computes something of its own"
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else f"grouped ({layer.groups} groups)"
    return ""


def _others(module: nn.Module) -> dict[str, str]:
    """Other layers with matrices of weights."""
    known = (nn.Embedding, nn.EmbeddingBag)
    kinds = {n: m for n, m in module.named_modules() if isinstance(m, (*known, nn.RNNBase, nn.RNNCellBase))}
    return {n: "an embedding: rows are looked up" if isinstance(m, known) else "recurrent" for n, m in kinds.items()}


def _shared(module: nn.Module) -> dict[int, list[str]]:
    """Where each weight lies: names of its layers by address."""
    found: dict[int, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        weight = layer._parameters.get("weight")
        if weight is not None and not weight.is_meta:
            found.setdefault(weight.data_ptr(), []).append(name)
    return found


@torch.no_grad()
def _calls(
    module: nn.Module, run: Callable[[nn.Module], Any], layers: dict[str, nn.Module]
) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """Shape of the first input and MACs of each call of a layer, in the order of first calls."""
    found: dict[str, list[tuple[tuple[int, ...], int]]] = {}

    def noting(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            inputs = list(tensors_in((args, kwargs)))
            found.setdefault(name, []).append((tuple(inputs[0].shape), layer_macs(layer, inputs, out)))

        return hook

    handles = [layer.register_forward_hook(noting(n), with_kwargs=True) for n, layer in layers.items()]
    try:
        run(module)
    finally:
        for handle in handles:
            handle.remove()
    return found


def macs_of(layers: Sequence[nn.Module], shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of Linear layers or convolutions one behind the other, for an input of a shape."""
    total, sizes = 0, shape
    for layer in layers:
        weight = layer.get_parameter("weight")
        if not isinstance(layer, _ConvNd):
            total += weight.numel() * math.prod(sizes[:-1])
            continue
        axes = len(layer.kernel_size)
        out = [_along(layer, axis, n) for axis, n in enumerate(sizes[-axes:])]
        batch = math.prod(sizes[: -axes - 1])
        total += weight.numel() * batch * math.prod(out)
        sizes = (*sizes[: -axes - 1], weight.shape[0], *out)
    return total


def _along(layer: _ConvNd, axis: int, size: int) -> int:
    """Places that a window takes along an axis."""
    if isinstance(layer.padding, str):
        padding = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
    else:
        padding = 2 * int(layer.padding[axis])
    return (size + padding - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1) // layer.stride[axis] + 1


class _Wrapped(nn.Sequential):
    """A layer inside of another."""


@torch.no_grad()
def _read_elsewhere(module: nn.Module, run: Callable[[nn.Module], Any], names: Sequence[str]) -> dict[str, str]:
    """Layers whose weight the model's own code reads: it would not find it in a factorized one."""
    wanted = list(tensors_in(run(module)))

    def reason(part: Sequence[str]) -> str:
        before = {name: module.get_submodule(name) for name in part}
        try:
            for name, layer in before.items():
                set_module(module, name, _Wrapped(layer))
            found = list(tensors_in(run(module)))
            same = all(_same(a, b) for a, b in zip(wanted, found, strict=True))
            return "" if same else "the model computes something else without it"
        except Exception as error:  # the model's own code
            what = str(error).partition("\n")[0] or type(error).__name__
            return f"the model's code reads the layer itself: {what}"
        finally:
            for name, layer in before.items():
                set_module(module, name, layer)

    if not names or not reason(names):
        return {}
    return {name: why for name in names if (why := reason([name]))}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
