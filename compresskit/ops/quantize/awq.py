"""Activation-aware scaling: columns that meet large inputs are scaled up before they are rounded, inputs down.

"AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (Lin et al., 2023). The scale is a
power of each input's root mean square, the power searched by the output error that the second moments give. It goes
into the normalization layer that makes the input where only these layers read it; else it stays with the packed
layer as ``input_scale``, if it gains enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.gram import flat_weight
from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.calibration.sequential import Segment
from compresskit.ops.calibration.trace import Trace
from compresskit.ops.packed.grid import Grid, Packed, dequantize
from compresskit.ops.packed.modules import computes
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.two_level_codes import empty_codes

_POWERS = [i / 20 for i in range(21)]
_LEAST_GAIN = 0.1
"""Share of the output error that a scale must take away to be stored with a layer: it costs a product in each pass."""
_EXACT = {torch.float16: (2e-3, 2e-3), torch.bfloat16: (2e-2, 2e-2)}
"""Relative and absolute error that the rounding of a half-precision normalization may make; else that of float32."""
_ROWS = 512
"""Outputs of a layer that the power is searched on."""


@dataclass(frozen=True)
class Scaled:
    """The result for a group of layers that share an input.

    Attributes:
        moments: Of the inputs as the layers get them now, by layer.
        input_scale: float32 ``(in,)``: what each layer must multiply its inputs by; None where nothing is left to do.
    """

    moments: dict[str, Moments]
    input_scale: Tensor | None = None


def quantize_weighted(weight: Tensor, grid: Grid, moments: Moments) -> Packed:
    """Round to nearest, each group's range searched with the columns weighted by their inputs' mean squares."""
    target = flat_weight(weight, moments)
    importance = moments.gram.diagonal(dim1=1, dim2=2)
    found = empty_codes(target, grid)
    _, size, _ = grid.layout(target.shape[2])
    for start in range(0, target.shape[2], size):
        found.fit(target, start, importance)
    found.round_all(target)
    return found.packed(weight)


@torch.no_grad()
def scale_group(
    segment: Segment, names: Sequence[str], moments: Mapping[str, Moments], grids: Mapping[str, Grid], found: Trace
) -> Scaled:
    """Scale the weights of Linear layers that share an input, and the inputs the other way.

    The layers get new weights, in the dtype that they multiply in: the old ones may be views of a file.

    Args:
        segment: Where they are.
        names: Full names; all have the same input.
        moments: Of that input, by layer.
        grids: What each layer is rounded to.
        found: The trace of the whole model.
    """
    kept = Scaled(dict(moments))
    if not names:
        return kept
    seen = moments[names[0]]
    layers = [segment.layer(name) for name in names]
    weights = [layer.get_parameter("weight") for layer in layers]
    scale, gain = _search(weights, [grids[name] for name in names], seen)
    if scale is None:
        return kept
    norm = _norm(segment, names, found)
    folded = norm is not None and _fold(norm, scale)
    if not folded and gain < _LEAST_GAIN:
        return kept
    for layer, weight in zip(layers, weights, strict=True):
        dtype = computes(layer)
        layer.weight = nn.Parameter(weight.to(dtype) * scale.to(dtype), requires_grad=False)
    changed = _of_scaled(seen, 1 / scale)
    return Scaled({**moments, **dict.fromkeys(names, changed)}, None if folded else 1 / scale)


def _search(weights: Sequence[Tensor], grids: Sequence[Grid], moments: Moments) -> tuple[Tensor | None, float]:
    """The best scale, or None where none helps, and the share of the error that it takes away."""
    size = moments.gram[0].diagonal().clamp_min(0).sqrt()
    size = torch.where(size > 0, size, size.mean()).clamp_min(1e-12)
    some = [w.detach()[:: -(-len(w) // _ROWS)].float() for w in weights]
    errors: dict[float, float] = {}
    for power in _POWERS:
        scale = _scale(size, power)
        errors[power] = sum(
            float(output_error(w, dequantize(quantize_rtn(w * scale, grid)) / scale, moments).sum())
            * (len(whole) / len(w))
            for w, whole, grid in zip(some, weights, grids, strict=True)
        )
    best = min(errors, key=lambda power: errors[power])
    if best == 0.0 or errors[0.0] <= 0:
        return None, 0.0
    return _scale(size, best), 1 - errors[best] / errors[0.0]


def _scale(size: Tensor, power: float) -> Tensor:
    scale = size**power
    return scale / (scale.amax() * scale.amin()).sqrt()


def _of_scaled(moments: Moments, factor: Tensor) -> Moments:
    """The moments of inputs times ``factor`` ``(columns,)``."""
    both = factor.unsqueeze(1) * factor
    return replace(
        moments,
        gram=moments.gram * both,
        mean=moments.mean * factor,
        cross=None if moments.cross is None else moments.cross * both,
        drift=None if moments.drift is None else moments.drift * factor,
    )


def _norm(segment: Segment, names: Sequence[str], found: Trace) -> nn.Module | None:
    """The normalization layer whose output only these layers read."""
    makers = {found.producer(name) for name in names}
    maker = makers.pop() if len(makers) == 1 else None
    if maker is None or found.consumers(maker) != set(names):
        return None
    layer = segment.root.get_submodule(maker)
    return layer if "norm" in type(layer).__name__.lower() and layer._parameters.get("weight") is not None else None


def _fold(norm: nn.Module, scale: Tensor) -> bool:
    """Divide a normalization layer's output by ``scale``; False, and nothing changed, where that isn't exact."""
    parts = [p for p in (norm._parameters.get("weight"), norm._parameters.get("bias")) if p is not None]
    if any(p.shape != scale.shape for p in parts):
        return False
    tried = torch.randn(4, len(scale), generator=torch.Generator().manual_seed(0)).to(parts[0].dtype)
    before, old = norm(tried), [p.clone() for p in parts]
    for p in parts:
        p.div_(scale.to(p.dtype))
    rtol, atol = _EXACT.get(parts[0].dtype, (1e-4, 1e-5))
    if torch.allclose(norm(tried).float() * scale.float(), before.float(), rtol=rtol, atol=atol):
        return True
    for p, value in zip(parts, old, strict=True):
        p.copy_(value)
    return False
