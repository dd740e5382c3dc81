"""How much a model's output suffers when one layer alone is rounded, and how many bits each layer should get for it.

Errors of single layers add up well while they are small (Dong et al., 2019, HAWQ; Frantar & Alistarh, 2022, Optimal
Brain Compression, section 6): so the cheapest way to a size is found by giving bits where they lower the sum the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import replaced
from compresskit.ops.calibration.trace import chain, copied, tensors_in, trace

_FAR = 1e6
"""Taken for a distance that isn't finite: such a layer must get bits."""
_PER_BIT = 4.0
"""One bit more halves the rounding error, and so quarters its square."""
CHOICES = (2, 3, 4, 8)


@dataclass(frozen=True)
class Layer:
    """What the choice of a layer's bits rests on.

    Attributes:
        name: Dotted name.
        distance: Squared error of the model's output relative to the output, with only this layer rounded.
        sizes: Bytes of the packed weight for each choice of bits.
    """

    name: str
    distance: float
    sizes: Mapping[int, int]


@torch.no_grad()
def distances(
    module: nn.Module,
    weights: Mapping[str, Callable[[Tensor], Tensor]],
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], Any],
    progress: Callable[[str, int, int], None],
    *,
    scores: bool = False,
) -> dict[str, float]:
    """How the output changes for each layer, when its weight alone is changed.

    Args:
        module: In eval mode; is as before afterwards.
        weights: Layer name to a function that gives its changed weight, same shape.
        batches: Inputs.
        forward: Calls the module with a batch; all floating point tensors of its output count, each by its own size.
        progress: Called after each layer.
        scores: The first output holds scores of classes or tokens, ``(…, classes)``: what counts is the distribution.
            A single score, ``(…, 1)`` or ``(samples,)``, is no distribution and counts as any output does.

    Returns:
        Layer name to ``|changed − original|² / |original|²``, the mean over the tensors of the output; with ``scores``
        to the mean Kullback-Leibler divergence of the changed distribution from the original one. Always finite.
    """
    trial = Trial(module, batches, forward, scores=scores)
    found: dict[str, float] = {}
    for done, (name, change) in enumerate(weights.items(), 1):
        found[name] = trial.distance({name: change(module.get_submodule(name).get_parameter("weight").data)})
        progress("measure the layers", done, len(weights))
    return found


class Trial:
    """Measures what other weights do to a module's outputs; the module is as before after each measurement.

    Args:
        module: In eval mode.
        batches: Inputs; what the module and its blocks give for them is kept.
        forward: Calls the module with a batch.
        scores: See :func:`distances`.
    """

    @torch.no_grad()
    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[nn.Module, Any], Any],
        *,
        scores: bool = False,
    ) -> None:
        self._module, self._batches, self._forward, self._scores = module, batches, forward, scores
        found = trace(module, partial(forward, module, batches[0]))
        self._blocks = chain(module, found)
        self._copied = found.outputs_overwritten()
        self._before, self._outputs = _recorded(module, self._blocks, batches, forward, self._copied)

    @torch.no_grad()
    def distance(self, weights: Mapping[str, Tensor]) -> float:
        """How far the outputs move, as :func:`distances` says.

        Args:
            weights: Layer name to what its weight is to be, same shape.
        """
        kept = {name: self._module.get_submodule(name).get_parameter("weight") for name in weights}
        saved = {name: weight.data for name, weight in kept.items()}
        passed = min((_passed(self._module, self._blocks, w) for w in kept.values()), key=len, default=[])
        try:
            for name, weight in kept.items():
                weight.data = weights[name].to(saved[name].dtype)
            after = []
            for batch, known in zip(self._batches, self._outputs, strict=True):
                with replaced(self._module, passed, partial(self._giving, known)):
                    after.append(floats(self._forward(self._module, batch)))
        finally:
            for name, weight in kept.items():
                weight.data = saved[name]
        return apart(self._before, after, scores=self._scores)

    def _giving(self, known: Mapping[str, Any], block: str) -> Callable[..., Any]:
        """A forward that gives what a block gave; a copy where what follows writes into it."""
        return lambda *_args, **_kwargs: copied(known[block]) if block in self._copied else known[block]


def _recorded(
    module: nn.Module,
    blocks: Sequence[str],
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], Any],
    copies: Collection[str],
) -> tuple[list[list[Tensor]], list[dict[str, Any]]]:
    """For each batch the model's output, and that of each block; ``copies`` names those that are overwritten later."""
    results, outputs = [], []
    for batch in batches:
        seen: dict[str, Any] = {}
        with ExitStack() as stack:
            for name in blocks:
                hook = partial(_keep, seen, name, name in copies)
                handle = module.get_submodule(name).register_forward_hook(hook)
                stack.callback(handle.remove)
            results.append(floats(forward(module, batch)))
        outputs.append(seen)
    return results, outputs


def _keep(seen: dict[str, Any], name: str, copy: bool, _layer: nn.Module, _args: Any, out: Any) -> None:
    seen[name] = copied(out) if copy else out


def _passed(module: nn.Module, blocks: Sequence[str], weight: Tensor) -> list[str]:
    """The blocks before the first user of a weight: what they give is known. None where it is used before them all."""
    users = [n for n, m in module.named_modules(remove_duplicate=False) if m._parameters.get("weight") is weight]
    first = min((_place(blocks, user) for user in users), default=0)
    return list(blocks[:first])


def _place(blocks: Sequence[str], name: str) -> int:
    return next((i for i, block in enumerate(blocks) if name == block or name.startswith(f"{block}.")), 0)


def floats(out: Any) -> list[Tensor]:
    """The floating point tensors of an output."""
    return [t.float() for t in tensors_in(out) if t.is_floating_point()]


def apart(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]], *, scores: bool) -> float:
    """How far a model's outputs moved, as :func:`distances` says.

    Args:
        before: For each batch the tensors of the output.
        after: The same of the changed model.
        scores: The first output holds scores.
    """
    distance = (_divergence if scores and _distributions(before) else _relative)(before, after)
    return distance if math.isfinite(distance) else _FAR


def _relative(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]) -> float:
    ratios = []
    for first, second in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
        size = sum(float(t.double().where(t.isfinite(), 0.0).square().sum()) for t in first)
        error = sum(float(_difference(a, b).square().sum()) for a, b in zip(first, second, strict=True))
        ratios.append(error / size if size else 0.0)
    return sum(ratios) / len(ratios) if ratios else 0.0


def _difference(known: Tensor, found: Tensor) -> Tensor:
    """``found - known`` in float64; 0 where both are the same infinity, and where the original is NaN."""
    return (found.double() - known.double()).where((found != known) & ~known.isnan(), 0.0)


def _distributions(outputs: Sequence[Sequence[Tensor]]) -> bool:
    return all(bool(out) and out[0].dim() > 1 and out[0].shape[-1] > 1 for out in outputs)


def _divergence(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]]) -> float:
    total, count = 0.0, 0
    for first, second in zip(before, after, strict=True):
        known, found = (t[0].log_softmax(-1).flatten(0, -2) for t in (first, second))
        valid = ~known.isnan().any(-1)  # a row of nothing but -inf has no distribution
        apart = (known.exp() * (known - found)).where(known != -math.inf, 0.0)  # p log p is 0 at p = 0
        total += float(apart[valid].double().sum())
        count += int(valid.sum())
    mean = total / max(1, count)
    return max(0.0, mean) if math.isfinite(mean) else _FAR


def allocate(
    layers: Sequence[Layer], base: int, budget: int, choices: Sequence[int] = CHOICES, least: int = 2
) -> dict[str, int]:
    """Bits for each layer: the smallest sum of distances that fits into a number of bytes.

    Every layer starts at ``least`` bits; again and again the step up that lowers the sum the most per byte is taken
    while it fits. A distance that was measured at ``base`` bits is taken as four times as large for each bit less.

    Args:
        layers: With their distances at ``base`` bits.
        base: Bits that the distances were measured at.
        budget: Bytes for all packed weights together.
        choices: Bits that a layer may get, ascending.
        least: Fewest bits of a layer.

    Returns:
        Layer name to bits; when not even ``least`` bits fit, all layers have ``least``.
    """
    steps = [b for b in choices if b >= least]
    bits = {layer.name: steps[0] for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    free = budget - sum(layer.sizes[steps[0]] for layer in layers)

    def gains() -> list[tuple[float, int, str, int]]:
        found = []
        for name, now in bits.items():
            layer = by_name[name]
            for wider in steps[steps.index(now) + 1 :]:
                cost = layer.sizes[wider] - layer.sizes[now]
                gain = layer.distance * (_PER_BIT ** (base - now) - _PER_BIT ** (base - wider))
                if cost <= free and gain > 0:
                    found.append((gain / max(1, cost), -cost, name, wider))
        return found

    while options := gains():
        _, cost, name, wider = max(options)
        bits[name], free = wider, free + cost
    return bits
