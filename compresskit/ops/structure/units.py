"""Which units of a model's activations are never or always on, and how sparse the activations are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.activations import Activated, Activations
from compresskit.ops.structure.samples import count, parted, places_of
from compresskit.ops.substitute.candidates import mask_of

Progress = Callable[[str, int, int], None]
CONFIDENCE = 0.95
ENERGY = 0.9
"""Share of the squares of a place's activations that some of its units hold."""
_PLACES = 4096
"""Places of a batch at which this share is looked at."""
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}
_OFF = ("relu", "relu6")
"""Those that give 0 for what isn't above 0, and else, up to a limit, what they are given."""


@dataclass
class _Layer:
    """What was seen of an activation: for each unit the samples in which it was on somewhere, and everywhere."""

    function: str
    channels: bool
    some: Tensor
    every: Tensor
    deviating: list[Tensor] = field(default_factory=list)
    zeros: float = 0.0
    values: int = 0
    holding: float = 0.0
    places: int = 0


@torch.no_grad()
def units(module: nn.Module, data: CalibrationData, progress: Progress) -> dict[str, Any]:
    """Which units are never or always on in most of the samples, and whether they stay so in the others.

    A unit is a neuron or a channel; it is on in a sample where what its activation is given is above 0, and always on
    where that is so at every place (pixel, token) of every sample.

    Args:
        module: In eval mode.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        ``layers``, a row for each activation in the order of their calls: ``name``, ``function``, ``kind`` (``neurons``
        or ``channels``), ``units``, ``never`` and ``always`` (None for smooth activations), ``on`` (mean share of the
        samples in which a unit is on somewhere), ``sparsity`` (share of its outputs that are 0) and ``concentration``
        (share of a place's units that hold 90 % of the sum of squares). Sums ``units``, ``never``, ``always``;
        ``samples`` that they were found on, and ``held_out``: ``samples``, how many of them are ``deviating`` (any of
        these units behaves otherwise), and the ``bound`` below which the share of such samples lies with 95 %
        confidence.
    """
    used, held = parted(data.batches)
    seen: dict[str, _Layer] = {}
    for done, batch in enumerate(used, 1):
        keep = mask_of(batch)
        with Activations(module, lambda a, keep=keep: _add(seen, a, keep)):  # type: ignore[misc]
            data.forward(module, batch)
        progress("look at units", done, len(used))
    never = {name: layer.some == 0 for name, layer in seen.items() if layer.function in _OFF}
    samples = count(used)
    always = {name: seen[name].every == samples for name in never}
    rows = [_row(name, layer, never.get(name), always.get(name), samples) for name, layer in seen.items()]
    found: dict[str, Any] = {
        "layers": rows,
        **{key: sum(row[key] or 0 for row in rows if row["never"] is not None) for key in ("units", "never", "always")},
        "samples": samples,
    }
    if found["never"] + found["always"]:
        found["held_out"] = _held_out(module, data, held, never, always)
    return found


def _add(seen: dict[str, _Layer], found: Activated, keep: Tensor | None) -> None:
    if found.function not in _FUNCTIONS or not found.given.is_floating_point():
        return
    z = found.rows()
    counted = places_of(z, keep)
    on = z > 0
    if found.name not in seen:
        zeros = torch.zeros(z.shape[-1], dtype=torch.int64)
        seen[found.name] = _Layer(found.function, found.axis == 1 and found.given.dim() > 2, zeros, zeros.clone())
    layer = seen[found.name]
    if counted is None:
        some, every = on.any(1), on.all(1)
        flat = z.flatten(0, 1)
    else:
        some, every = (on & counted[..., None]).any(1), (on | ~counted[..., None]).all(1)
        flat = z[counted]
    layer.some += some.sum(0)
    layer.every += every.sum(0)
    out = _FUNCTIONS[found.function](flat)
    layer.zeros += int((out == 0).sum())
    layer.values += out.numel()
    some_places = out[:: max(1, len(out) // _PLACES)].square()
    total = some_places.sum(1, keepdim=True)
    ranked = some_places.sort(1, descending=True).values.cumsum(1)
    alive = total[:, 0] > 0
    layer.holding += float(((ranked < ENERGY * total).sum(1) + 1)[alive].sum()) / z.shape[-1]
    layer.places += int(alive.sum())


def _row(name: str, layer: _Layer, never: Tensor | None, always: Tensor | None, samples: int) -> dict[str, Any]:
    return {
        "name": name,
        "function": layer.function,
        "kind": "channels" if layer.channels else "neurons",
        "units": len(layer.some),
        "never": None if never is None else int(never.sum()),
        "always": None if always is None else int(always.sum()),
        "on": round(float(layer.some.double().mean()) / samples, 4),
        "sparsity": round(layer.zeros / max(1, layer.values), 4),
        "concentration": round(layer.holding / layer.places, 4) if layer.places else 0.0,
    }


def _held_out(
    module: nn.Module, data: CalibrationData, held: Any, never: dict[str, Tensor], always: dict[str, Tensor]
) -> dict[str, Any]:
    """In how many other samples any of the units behaves otherwise."""
    deviating, samples = 0, 0
    for batch in held:
        keep = mask_of(batch)
        other = torch.zeros(len(next(iter(batch.values()))), dtype=torch.bool)

        def note(found: Activated, keep: Tensor | None = keep, other: Tensor = other) -> None:
            if found.name not in never or len(found.given) != len(other):
                return
            z = found.rows()
            counted = places_of(z, keep)
            on = z > 0
            wrong = (on & never[found.name]) | (~on & always[found.name])
            other |= (wrong if counted is None else wrong & counted[..., None]).flatten(1).any(1)

        with Activations(module, note):
            data.forward(module, batch)
        deviating, samples = deviating + int(other.sum()), samples + len(other)
    return {"samples": samples, "deviating": deviating, "bound": round(upper_bound(deviating, samples), 5)}


def upper_bound(hits: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The largest share of which as few hits as these are still as likely as ``1 - confidence`` (Clopper, Pearson)."""
    if hits >= of:
        return 1.0
    low, high = hits / of, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if _at_most(hits, of, share) > 1 - confidence else (low, share)
    return high


def _at_most(hits: int, of: int, share: float) -> float:
    """Probability of so many hits or fewer."""
    if share >= 1:
        return 0.0
    logs = [
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        + (k * math.log(share) if k else 0.0) + (of - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))
