"""SmoothQuant: move the outliers of activations into the weights that read them, channel by channel.

Xiao et al. 2023, "SmoothQuant: accurate and efficient post-training quantization for large language models". With
``s = max|x|^alpha / max|w|^(1 - alpha)``, ``(x / s) (s w)`` is what ``x w`` was, and both factors round better. The
division costs nothing where the producer of ``x`` can take it: a normalization, or a linear layer whose outputs only
pass linear operations (values of attention; the ungated half of a gated MLP). Whether it can is not guessed from
names: it is tried, with powers of two, and must leave the model's outputs as they are. Elsewhere the layer scales its
input itself.

Beyond the paper, alpha is chosen for each input on calibration data, and an input that gains little is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.calibration.trace import OUTPUT, Trace, tensors_in, trace
from compresskit.ops.packed.modules import set_module

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_GAIN = 0.8
"""An input is scaled where that leaves at most this share of the squared error."""
_ROWS = 512
"""Positions of a layer's input that alpha is chosen on."""
_BACK = 8
"""Linear layers before a layer that may be its producer."""
_SAME = 1e-6
"""Relative distance of outputs up to which they are the same."""
_STAYS = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative distance that rounding may make when a scale that is no power of two moves; of float32 it is 1e-5."""
_SAMPLES = 8
_PROBES = 6
"""Powers of two that a producer is tried with, either way: far enough that a clipped function (ReLU6) clips."""


class SmoothedLinear(nn.Module):
    """``nn.Linear`` that scales its input first: ``(…, in) -> (…, out)``."""

    input_scale: Tensor

    def __init__(self, layer: nn.Linear, input_scale: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("input_scale", input_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and multiply."""
        return F.linear(x * self.input_scale, self.weight, self.bias)


@dataclass
class _Seen:
    """What one input looks like: extremes by channel, ``(in,)``, and some of its rows."""

    low: Tensor | None = None
    high: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, rows: int) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        low, high = flat.amin(0), flat.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.rows.append(flat[:: max(1, math.ceil(len(flat) / rows))].clone())


@torch.no_grad()
def smooth_module(
    module: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    *,
    alpha: float | None = None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Smooth the inputs of the Linear layers of a module, in place; what it computes stays the same.

    Args:
        module: In eval mode, float.
        batches: Calibration inputs by name.
        forward: Calls the module with a batch.
        alpha: Share of the difficulty that moves to the weights, 0 to 1; None chooses for each input.
        progress: Called after each input.

    Returns:
        Facts: ``layers`` (name to ``alpha`` and ``folded``: the layer that took the scale, or None where the layer
        scales its own input) and ``difference`` (largest relative L2 distance of an output before and after); and
        Linear layers left alone, with the reason.

    Raises:
        InputError: No Linear layer that could be smoothed.
    """
    sample = {name: value[:_SAMPLES] for name, value in batches[-1].items()}
    run = partial(forward, module, sample)
    before = _outputs(run())
    found = trace(module, run)
    groups, skipped = _groups(module, found)
    if not groups:
        raise InputError("there is no Linear layer here that SmoothQuant could work on", "use `method` int8-static")
    seen = _look(module, batches, forward, [group[0] for group in groups])
    layers: dict[str, Any] = {}
    # From the end, so that a layer whose rows are scaled for its reader is looked at with those rows.
    for done, group in enumerate(reversed(groups), 1):
        linears = [_linear(module, name) for name in group]
        best, scale = _choose(seen[group[0]], torch.cat([layer.weight.float() for layer in linears]), alpha)
        if scale is None:
            skipped |= dict.fromkeys(group, "its input rounds as well without a scale")
        else:
            folded = _fold(module, found, group, run, scale)
            layers |= {name: {"alpha": best, "folded": folded} for name in group}
        progress("smooth", done, len(groups))
    ordered = {name: layers[name] for group in groups for name in group if name in layers}
    return {"layers": ordered, "difference": _distance(before, _outputs(run()))}, skipped


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(name)
    return layer


def _groups(module: nn.Module, found: Trace) -> tuple[list[list[str]], dict[str, str]]:
    """Layers by the input they share, and those that can't be changed."""
    once, skipped = found.once(), dict[str, str]()
    owners: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen: list[str] = []
    for name, layer in module.named_modules(remove_duplicate=False):
        if not isinstance(layer, nn.Linear):
            continue
        if type(layer) is not nn.Linear or nn.utils.parametrize.is_parametrized(layer):
            skipped[name] = f"{type(layer).__name__} may use its weight in another way"
        elif name not in once:
            skipped[name] = f"called {len(found.called(name))} times"
        elif owners[id(layer.weight)] > 1:
            skipped[name] = "its weight is shared with another layer"
        else:
            chosen.append(name)
    return found.groups(chosen), skipped


def _look(module: nn.Module, batches: Sequence[Batch], forward: Forward, names: list[str]) -> dict[str, _Seen]:
    """Extremes and rows of the inputs of some layers."""
    seen = {name: _Seen() for name in names}
    rows = max(1, _ROWS // len(batches))

    def hook(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name].add(next(tensors_in((args, kwargs))), rows)

    handles = [
        module.get_submodule(name).register_forward_pre_hook(partial(hook, name), with_kwargs=True) for name in names
    ]
    try:
        for batch in batches:
            forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _choose(seen: _Seen, weight: Tensor, alpha: float | None) -> tuple[float, Tensor | None]:
    """The alpha with the least error of the rounded product, and what the input is to be divided by, ``(in,)``."""
    if seen.low is None or seen.high is None:
        raise ValueError("an input that was never seen")
    top_x, top_w = torch.maximum(seen.high.abs(), seen.low.abs()), weight.abs().amax(0)
    if alpha is not None:
        return alpha, _scale(top_x, top_w, alpha)
    x = torch.cat(seen.rows)
    exact = x @ weight.T

    def error(scale: Tensor | None) -> float:
        s = torch.ones_like(top_x) if scale is None else scale
        if seen.low is None or seen.high is None:
            return math.inf
        rounded = _affine(x / s, float((seen.low / s).min()), float((seen.high / s).max())) @ _symmetric(weight * s).T
        return float((rounded - exact).square().mean())

    plain = error(None)
    options = {a: _scale(top_x, top_w, a) for a in ALPHAS}
    errors = {a: error(scale) for a, scale in options.items()}
    best = min(errors, key=lambda a: errors[a])
    return best, options[best] if errors[best] < _GAIN * plain else None


def _scale(top_x: Tensor, top_w: Tensor, alpha: float) -> Tensor:
    """``max|x|^alpha / max|w|^(1 - alpha)``, its geometric mean 1; 1 where a channel is never used."""
    used = (top_x > 0) & (top_w > 0)
    scale = torch.where(used, top_x, 1).pow(alpha) / torch.where(used, top_w, 1).pow(1 - alpha)
    if used.any():
        scale = scale / scale[used].log().mean().exp()
    return torch.where(used, scale, 1).clamp(1e-4, 1e4)


def _affine(x: Tensor, low: float, high: float) -> Tensor:
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, 1e-30) / 255
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def _symmetric(weight: Tensor) -> Tensor:
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / step).round() * step


def _fold(
    module: nn.Module,
    found: Trace,
    group: list[str],
    run: Callable[[], Any],
    scale: Tensor,
) -> str | None:
    """Divide the group's input by ``scale``, in its producer where that is exact; gives the producer's name."""
    weights = [_linear(module, name).weight for name in group]
    before = _outputs(run())  # as the model is now, or what other groups' scales left would add up
    for name in _producers(module, found, group):
        rows = [p for leaf, p in module.get_submodule(name)._parameters.items() if p is not None and leaf in _ROW_WISE]
        powers = torch.randint(-_PROBES, _PROBES + 1, scale.shape, generator=torch.Generator().manual_seed(0))
        with _Moved(rows, weights, (2.0**powers).to(scale)) as moved:
            if _distance(before, _outputs(run())) <= _SAME:
                moved.undo()
                moved.apply(scale)
                if _distance(before, _outputs(run())) <= _STAYS.get(weights[0].dtype, 1e-5):
                    moved.keep()
                    return name
    factor = 1 / scale
    for name, weight in zip(group, weights, strict=True):
        weight.mul_(scale.to(weight))
        set_module(module, name, SmoothedLinear(_linear(module, name), factor.to(weight)))
    return None


_ROW_WISE = ("weight", "bias")


def _producers(module: nn.Module, found: Trace, group: list[str]) -> list[str]:
    """Who might take the scale: the normalization that made the input, or Linear layers shortly before."""
    size = _linear(module, group[0]).in_features
    names: list[str] = []
    made = found.producer(group[0])
    if made is not None and OUTPUT not in found.consumers(made) and found.consumers(made) <= set(group):
        names.append(made)
    order = [call.name for call in found.calls]
    earlier = [n for n in order[: order.index(group[0])] if type(module.get_submodule(n)) is nn.Linear]
    names += reversed([n for n in earlier[-_BACK:] if n not in group])
    once = found.once()
    return [n for n in dict.fromkeys(names) if n in once and _takes(module, n, size)]


def _takes(module: nn.Module, name: str, size: int) -> bool:
    """True when every parameter of the layer runs over its output channels first, and nobody shares them."""
    layer = module.get_submodule(name)
    own = {leaf: p for leaf, p in layer._parameters.items() if p is not None}
    shared = [p for other in module.modules() if other is not layer for p in other._parameters.values()]
    return (
        "weight" in own
        and set(own) <= set(_ROW_WISE)
        and not layer._modules
        and all(p.shape[0] == size and p.is_floating_point() for p in own.values())
        and not any(p is q for p in own.values() for q in shared)
    )


class _Moved:
    """A scale taken from rows of some parameters into columns of others; put back on leaving, unless kept."""

    def __init__(self, rows: Sequence[Tensor], columns: Sequence[Tensor], scale: Tensor) -> None:
        self._rows, self._columns, self._kept = rows, columns, False
        self._saved = [(p, p.detach().clone()) for p in (*rows, *columns)]
        self.apply(scale)

    def apply(self, scale: Tensor) -> None:
        for p in self._rows:
            p.div_(scale.to(p).reshape(-1, *[1] * (p.dim() - 1)))
        for p in self._columns:
            p.mul_(scale.to(p))

    def undo(self) -> None:
        for p, value in self._saved:
            p.copy_(value)

    def keep(self) -> None:
        self._kept = True

    def __enter__(self) -> _Moved:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.undo()


def _outputs(out: Any) -> list[Tensor]:
    return [t.detach().float().clone() for t in tensors_in(out) if t.is_floating_point()]


def _distance(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest relative L2 distance of an output; infinite where one isn't a number any more."""
    found = [0.0]
    for a, b in zip(before, after, strict=True):
        error = (b - a).where((a != b) & ~a.isnan(), 0.0)  # masked places stay what they are, -inf say
        found.append(float(error.norm() / a.where(a.isfinite(), 0.0).norm().clamp(min=1e-30)))
    return max(found) if all(map(math.isfinite, found)) else math.inf
