"""The layers of a cut model fitted again to what the original gave, by least squares on real activations.

After "OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial Optimization" (Meng et al.,
2024), without its local search; layer by layer from the input on, with the inputs of the model that is cut and fitted
already, so that later layers make up for what earlier ones lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import Batch, Forward, Stop
from compresskit.ops.calibration.gram import damped
from compresskit.ops.calibration.moments import collectable, columns_of
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune.cut import Places
from compresskit.ops.shrinking import CalibrationData

_DAMPING, _MOST = 1e-3, 0.1
"""Share of the inputs' mean square that pulls a weight to where it was: the least, and the most where few positions
were seen for many columns."""


@dataclass
class _Sums:
    """Sums over positions: of ``x xᵀ``, ``y xᵀ``, ``x`` and ``y``, each by group of a convolution, and of ``y²``."""

    gram: Tensor
    cross: Tensor
    x: Tensor
    y: Tensor
    energy: float
    count: int


@torch.no_grad()
def refit(
    module: nn.Module,
    original: nn.Module,
    stay: dict[str, Places],
    calls: Mapping[str, int],
    data: CalibrationData,
    progress: Callable[[str, int, int], None],
    *,
    after: Mapping[str, str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Fit layers of a cut module in place, in the order in which they are called.

    Args:
        module: The cut module, in eval mode.
        original: The module before the cut.
        stay: The outputs that are left of each layer that lost some.
        calls: Names of the layers to fit in the order of their calls, and how often each is called.
        data: Inputs, and how a module is called with them.
        progress: Called after each layer.
        after: Layer to the one of the original model whose output it should give, where that has another name.

    Returns:
        By layer its squared error, relative to what it gave in the original model, before and after the fit; layers
        that can't be fitted are missing.
    """
    found: dict[str, tuple[float, float]] = {}
    for done, (name, times) in enumerate(calls.items(), 1):
        layer = module.get_submodule(name)
        if collectable(layer):
            out = stay.get(name, Places()).out
            sums = _sums(module, original, (name, (after or {}).get(name, name)), out, data, times)
            if sums is not None:
                found[name] = _fit(layer, sums)
        progress("least-squares refit", done, len(calls))
    return found


def _sums(
    module: nn.Module,
    original: nn.Module,
    names: tuple[str, str],
    out: Tensor | None,
    data: CalibrationData,
    calls: int,
) -> _Sums | None:
    """Of the inputs of a layer, and of what another one of the original gives; ``names`` of both."""
    layer = module.get_submodule(names[0])
    total: _Sums | None = None
    for batch in data.batches:
        keep = batch.get("attention_mask")
        keep = None if keep is None or keep.dim() != 2 else keep.bool()
        given = _seen(module, names[0], batch, data.forward, calls, before=True)
        wanted = _seen(original, names[1], batch, data.forward, calls, before=False)
        for x, y in zip(given, wanted, strict=False):
            rows = columns_of(layer, x, keep).double()
            target = _rows(layer, y if out is None else y.index_select(_axis(layer), out), keep).double()
            part = _Sums(rows.mT @ rows, target.mT @ rows, rows.sum(1), target.sum(1), _square(target), rows.shape[1])
            total = part if total is None else _plus(total, part)
    return total


def _plus(a: _Sums, b: _Sums) -> _Sums:
    return _Sums(a.gram + b.gram, a.cross + b.cross, a.x + b.x, a.y + b.y, a.energy + b.energy, a.count + b.count)


def _square(of: Tensor) -> float:
    return float(of.square().sum())


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else -_axes(layer) - 1


def _axes(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.Conv1d) else 2


def _rows(layer: nn.Module, y: Tensor, keep: Tensor | None) -> Tensor:
    """A layer's output as rows: ``(groups, positions, outputs of a group)``, in the order of its columns."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        if keep is not None and y.dim() >= 3 and y.shape[:2] == keep.shape:
            y = y[keep]
        return y.reshape(1, -1, y.shape[-1])
    y = y if y.dim() == _axes(layer) + 2 else y.unsqueeze(0)
    flat = y.flatten(2).permute(0, 2, 1).flatten(0, 1)
    return flat.reshape(len(flat), layer.groups, -1).permute(1, 0, 2)


def _seen(module: nn.Module, name: str, batch: Batch, forward: Forward, calls: int, *, before: bool) -> list[Tensor]:
    """The layer's inputs, or what it gives, in each of its calls."""
    found: list[Tensor] = []

    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        value = next(tensors_in((args, kwargs))) if before else out
        if len(found) + 1 == calls:
            found.append(value)
            raise Stop
        found.append(value.clone())  # what follows may write into it before the last call

    handle = module.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        forward(module, batch)
    except Stop:
        pass
    finally:
        handle.remove()
    return found


def _fit(layer: nn.Module, sums: _Sums) -> tuple[float, float]:
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    groups, count = len(sums.gram), sums.count
    now = weight.double().reshape(groups, -1, sums.gram.shape[1])
    level = torch.zeros_like(sums.y) if bias is None else bias.double().reshape(groups, -1)
    gram, cross, x, y = sums.gram / count, sums.cross / count, sums.x / count, sums.y / count
    # With a bias only what differs from the mean has to be fitted: the bias makes up for the rest.
    centre = 0.0 if bias is None else 1.0
    inner = gram - centre * x.unsqueeze(2) * x.unsqueeze(1)
    left = cross - centre * y.unsqueeze(2) * x.unsqueeze(1) - now @ inner
    damping = min(_MOST, max(_DAMPING, 0.5 * inner.shape[1] / count))
    new = now + torch.linalg.solve(damped(inner, damping), left.mT).mT
    shift = level if bias is None else y - (new @ x.unsqueeze(2)).squeeze(2)
    errors = [_error(w, b, gram, cross, x, y, sums.energy / count) for w, b in ((now, level), (new, shift))]
    if errors[1] < errors[0]:
        weight.copy_(new.reshape(weight.shape))
        if bias is not None:
            bias.copy_(shift.reshape(-1))
    return errors[0], min(errors)


def _error(w: Tensor, b: Tensor, gram: Tensor, cross: Tensor, x: Tensor, y: Tensor, energy: float) -> float:
    """``|y − W x − b|² / |y|²`` from the means alone."""
    of_w = ((w @ gram) * w).sum() - 2 * (w * cross).sum()
    of_b = (b * (b + 2 * (w @ x.unsqueeze(2)).squeeze(2) - 2 * y)).sum()
    return max(0.0, float(energy + of_w + of_b)) / max(energy, 1e-30)
