"""The lowest and highest value of each channel that a layer takes: on samples, and at most for all inputs of a box."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.structure.samples import places_of
from compresskit.ops.substitute.affine import of_norm
from compresskit.ops.substitute.candidates import mask_of

Range = tuple[Tensor, Tensor]
"""Lowest and highest, ``(samples, channels)`` or ``(channels,)``."""


@torch.no_grad()
def by_sample(
    module: nn.Module, names: Collection[str], batches: Sequence[Batch], forward: Forward
) -> Iterator[dict[str, Range]]:
    """What layers take in each sample, over all places that aren't padding.

    Args:
        module: In eval mode.
        names: Of Linear layers and convolutions.
        batches: Samples.
        forward: Calls the module with a batch.

    Yields:
        For each batch by name ``(samples, channels)``; a layer that isn't called with so many samples is missing.
    """
    for batch in batches:
        found: dict[str, Range] = {}
        keep, size = mask_of(batch), len(next(iter(batch.values())))

        def note(name: str, layer: nn.Module, given: Tensor, keep: Any = keep, found: Any = found) -> None:
            rows = given.movedim(_axis(layer), -1).reshape(len(given), -1, given.shape[_axis(layer)])
            counted = places_of(rows, keep)
            low = high = rows
            if counted is not None:
                low = rows.masked_fill(~counted[..., None], torch.inf)
                high = rows.masked_fill(~counted[..., None], -torch.inf)
            now = low.amin(1), high.amax(1)
            found[name] = now if name not in found else _wider(found[name], now)

        with ExitStack() as stack:
            for name in names:
                hook = _noting(name, note)
                layer = module.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            forward(module, batch)
        yield {name: pair for name, pair in found.items() if len(pair[0]) == size}


def _noting(name: str, note: Callable[[str, nn.Module, Tensor], None]) -> Any:
    return lambda layer, args, kwargs: note(name, layer, next(tensors_in((args, kwargs))).detach())


def _axis(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1


def _wider(one: Range, two: Range) -> Range:
    return torch.minimum(one[0], two[0]), torch.maximum(one[1], two[1])


def over(ranges: Iterator[dict[str, Range]]) -> dict[str, Range]:
    """Over all samples, ``(channels,)``; layers that are missing in some batch are left out."""
    found: dict[str, Range] | None = None
    for batch in ranges:
        now = {name: (low.amin(0), high.amax(0)) for name, (low, high) in batch.items()}
        found = now if found is None else {n: _wider(found[n], now[n]) for n in found if n in now}
    return found or {}


@torch.no_grad()
def reachable(module: nn.Module, names: Collection[str], batches: Sequence[Batch]) -> dict[str, Range]:
    """What layers take at most for any input within the ranges of some samples, by interval arithmetic.

    Each feature of vectors has its own range, of pictures and sequences each channel (the second axis). Only inputs in
    floating point have one.

    Args:
        module: In eval mode.
        names: Of Linear layers and convolutions.
        batches: The samples; keys are the module's arguments.

    Returns:
        By name ``(channels,)``; what can't be followed is missing.
    """
    try:
        graph = fx.symbolic_trace(module)
    except Exception:  # fx refuses code that depends on values
        return {}
    walk = _Intervals(graph, names)
    try:
        walk.run(*_given(graph, batches))
    except Exception:  # what one operator of the user's code doesn't take as a tensor
        return {}
    return walk.found


def within(batches: Sequence[Batch], batch: Batch) -> Tensor:
    """Which samples of a batch lie within the ranges of others, ``(samples,)`` bool; see :func:`reachable`."""
    inside = torch.ones(len(next(iter(batch.values()))), dtype=torch.bool)
    for name in _floats(batch):
        low, high = _box([other[name] for other in batches])
        fits = (batch[name] >= low) & (batch[name] <= high)
        inside &= fits.flatten(1).all(1)
    return inside


def _floats(batch: Batch) -> list[str]:
    return [name for name, tensor in batch.items() if tensor.is_floating_point()]


def _given(graph: fx.GraphModule, batches: Sequence[Batch]) -> list[Any]:
    """The intervals of a module's arguments, which are found by name, else by their order."""
    known = {
        name: Interval(*(t.double().contiguous() for t in _box([batch[name] for batch in batches])))
        for name in _floats(batches[0])
    }
    arguments = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    names = arguments if known.keys() <= set(arguments) else [*batches[0], *[""] * len(arguments)]
    return [known.get(name, UNKNOWN) for name in names[: len(arguments)]]


def _box(parts: Sequence[Tensor]) -> Range:
    """Lowest and highest in the shape of one sample, with a batch axis."""
    axes = [n for n in range(parts[0].dim()) if n != 1]
    low = torch.stack([part.amin(axes, keepdim=True) for part in parts]).amin(0)
    high = torch.stack([part.amax(axes, keepdim=True) for part in parts]).amax(0)
    shape = (1, *parts[0].shape[1:])
    return low.expand(shape), high.expand(shape)


@dataclass(frozen=True)
class Interval:
    """Lowest and highest of each value, float64 of the value's shape."""

    low: Tensor
    high: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """What a function that never falls makes of it."""
        return Interval(function(self.low), function(self.high))

    def linear(self, function: Callable[[Tensor], Tensor], size: Callable[[Tensor], Tensor]) -> Interval:
        """What an affine function makes of it.

        Args:
            function: Takes the middle.
            size: The same with the magnitudes of its factors and without a constant: takes half of the width.
        """
        middle, half = function((self.low + self.high) / 2), size((self.high - self.low) / 2)
        return Interval(middle - half, middle + half)


UNKNOWN = object()
"""A value whose range isn't known."""
_RISING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.ELU, nn.Identity, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_RISING_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, torch.sigmoid, torch.tanh, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    torch.flatten, torch.mean, torch.amax,
)  # fmt: skip
_RISING_METHODS = (
    "relu", "relu_", "sigmoid", "tanh", "flatten", "view", "reshape", "mean", "amax", "contiguous", "permute",
    "transpose", "squeeze", "unsqueeze", "float",
)  # fmt: skip
_ADDS = (operator.add, operator.iadd, torch.add)


class _Intervals(fx.Interpreter):
    """Follows the code of a module with intervals; keeps what some of its layers take."""

    def __init__(self, graph: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(graph)
        self._names = set(names)
        self.found: dict[str, Range] = {}
        self._lost: set[str] = set()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer, given = self.fetch_attr(target), args[0] if len(args) == 1 and not kwargs else UNKNOWN
        if target in self._names:
            self._note(target, layer, given)
        if not isinstance(given, Interval):
            return UNKNOWN
        if isinstance(layer, _RISING):
            return given.mapped(layer)
        if type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d):
            return _weighted(layer, given)
        norm = of_norm(layer)
        if norm is not None:
            factor, shift = (t.reshape(-1, *(1,) * (given.low.dim() - 2)) for t in norm)
            return given.linear(lambda x: x * factor + shift, lambda x: x * factor.abs())
        return UNKNOWN

    def _note(self, target: str, layer: nn.Module, given: Any) -> None:
        if not isinstance(given, Interval):
            self._lost.add(target)
            self.found.pop(target, None)
        elif target not in self._lost:
            axis = _axis(layer)
            low, high = (t.movedim(axis, -1).flatten(0, -2) for t in (given.low, given.high))
            now = low.amin(0), high.amax(0)
            self.found[target] = _wider(self.found[target], now) if target in self.found else now

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(a, Interval) or a is UNKNOWN for a in (*args, *kwargs.values())):
            return super().call_function(target, args, kwargs)
        if target is getattr:
            return getattr(args[0].low, *args[1:]) if isinstance(args[0], Interval) else UNKNOWN
        if target in _ADDS and len(args) == 2 and not kwargs:
            return _sum(*args)
        if target in _RISING_FUNCTIONS and isinstance(args[0], Interval) and _plain((*args[1:], *kwargs.values())):
            return args[0].mapped(lambda x: target(x, *args[1:], **kwargs))
        return UNKNOWN

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        given, rest = args[0], args[1:]
        if not isinstance(given, Interval) or not _plain((*rest, *kwargs.values())):
            return UNKNOWN if given is UNKNOWN or not _plain(rest) else super().call_method(target, args, kwargs)
        if target in ("size", "dim"):
            return getattr(given.low, target)(*rest, **kwargs)
        if target in _RISING_METHODS:
            return given.mapped(lambda x: getattr(x, target)(*rest, **kwargs))
        return UNKNOWN


def _plain(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, (Interval, Tensor)) or value is UNKNOWN for value in values)


def _sum(one: Any, two: Any) -> Any:
    if not all(isinstance(value, (Interval, int, float)) for value in (one, two)):
        return UNKNOWN
    ends = [(v.low, v.high) if isinstance(v, Interval) else (v, v) for v in (one, two)]
    return Interval(ends[0][0] + ends[1][0], ends[0][1] + ends[1][1])


def _weighted(layer: nn.Module, given: Interval) -> Interval:
    own: Mapping[str, Tensor] = {name: p.detach().double() for name, p in layer.named_parameters()}
    sizes = {name: p.abs() if name == "weight" else torch.zeros_like(p) for name, p in own.items()}
    return given.linear(
        lambda x: functional_call(layer, dict(own), (x,)), lambda x: functional_call(layer, dict(sizes), (x,))
    )
