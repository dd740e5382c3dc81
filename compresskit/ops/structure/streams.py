"""What stands between the blocks of a model: its rank, what a block changes of it, how alike tokens and layers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.ops.calibration.activation_stream import replaced
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.samples import places_of
from compresskit.ops.substitute.candidates import mask_of
from compresskit.ops.substitute.recorder import placed

Progress = Callable[[str, int, int], None]
TWINS = 0.9
"""Cosine from which on two tokens are taken to say the same."""
_TOKENS = 256
"""Tokens of a sample that are compared."""
_PAIRS = 10
"""Pairs of blocks that are told."""
_ENERGY = 0.99


@dataclass
class _Stream:
    """Sums over places in float64, of a block's output."""

    count: int = 0
    total: Tensor | float = 0.0
    gram: Tensor | float = 0.0
    cosine: float = 0.0
    kept: int = 0
    pictures: bool = False
    twins: list[float] = field(default_factory=list)
    nearest: list[float] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def streams(
    module: nn.Module, blocks: dict[str, int | str], data: CalibrationData, progress: Progress
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """What can be told of each block's output, and which blocks are most alike.

    Args:
        module: In eval mode.
        blocks: Names, and where the input stands among the arguments of each.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        By block ``width``, ``rank`` (effective rank of the centred output: the exponential of the entropy of its
        spectrum, Roy and Vetterli 2007), ``rank99`` (directions that hold 99 % of the variance), ``cosine`` (of output
        and input, mean over places; None where shapes differ) and, where a sample has several ``places`` (tokens or
        pixels), ``nearest`` (mean cosine of a place to the most similar other one of its sample) and ``twins`` (share
        of places for which that is 0.9 or more). Then the pairs of blocks that are most alike: ``blocks``, ``outputs``
        (linear CKA of the samples' mean outputs) and ``weights`` (cosine of all parameters; None where shapes differ).
    """
    found = {name: _Stream() for name in blocks}
    for done, batch in enumerate(data.batches, 1):
        make = partial(_watching, module, blocks, found, mask_of(batch))
        with replaced(module, list(blocks), make):
            data.forward(module, batch)
        progress("look at blocks", done, len(data.batches))
    return {name: _told(stream) for name, stream in found.items()}, _alike(module, found)


def _watching(
    module: nn.Module, blocks: dict[str, int | str], found: dict[str, _Stream], keep: Tensor | None, name: str
) -> Any:
    own = module.get_submodule(name).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = _rows(placed(blocks[name], args, kwargs))
        before = None if given is None else given.clone()
        out = own(*args, **kwargs)
        first = next(tensors_in(out))
        after = _rows(first)
        if after is not None:
            found[name].pictures = first.dim() == 4
            _add(found[name], before, after, keep)
        return out

    return forward


def _rows(x: Tensor) -> Tensor | None:
    """``(samples, places, channels)``; None for what has no such form."""
    if not x.is_floating_point() or x.dim() < 2:
        return None
    return x.flatten(2).mT if x.dim() == 4 else x.unsqueeze(1) if x.dim() == 2 else x if x.dim() == 3 else None


def _add(stream: _Stream, before: Tensor | None, after: Tensor, keep: Tensor | None) -> None:
    mask = places_of(after, keep)
    flat = after.flatten(0, 1) if mask is None else after[mask]
    part = flat.float()
    stream.count += len(part)
    stream.total = stream.total + part.double().sum(0)
    stream.gram = stream.gram + (part.mT @ part).double()
    if before is not None and before.shape == after.shape:
        given = before.flatten(0, 1) if mask is None else before[mask]
        stream.cosine += float(F.cosine_similarity(given, flat, dim=-1).sum())
        stream.kept += len(flat)
    for row, sample in enumerate(after):
        own = sample if mask is None else sample[mask[row]]
        stream.means.append(own.mean(0))
        if len(own) > 1:
            _compare(stream, own[:_TOKENS])


def _compare(stream: _Stream, tokens: Tensor) -> None:
    """How alike the tokens of a sample are."""
    unit = F.normalize(tokens.float(), dim=-1)
    near = (unit @ unit.mT).fill_diagonal_(-1).max(1).values
    stream.nearest.append(float(near.mean()))
    stream.twins.append(float((near >= TWINS).float().mean()))


def _told(stream: _Stream) -> dict[str, Any]:
    if not stream.count:
        return {}
    mean = torch.as_tensor(stream.total) / stream.count
    covariance = torch.as_tensor(stream.gram) / stream.count - torch.outer(mean, mean)
    values = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
    shares = values / values.sum().clamp_min(1e-300)
    entropy = -float((shares * shares.clamp_min(1e-300).log()).sum())
    told: dict[str, Any] = {
        "width": len(values),
        "rank": round(math.exp(entropy), 1),
        "rank99": int((shares.cumsum(0) < _ENERGY).sum()) + 1,
        "cosine": round(stream.cosine / stream.kept, 4) if stream.kept else None,
    }
    if stream.nearest:
        count = len(stream.nearest)
        told |= {
            "places": "pixels" if stream.pictures else "tokens",
            "nearest": round(math.fsum(stream.nearest) / count, 4),
            "twins": round(math.fsum(stream.twins) / count, 4),
        }
    return told


def _alike(module: nn.Module, found: dict[str, _Stream]) -> list[dict[str, Any]]:
    """The pairs that are most alike."""
    means = {}
    for name, stream in found.items():
        if len(stream.means) > 2:
            x = torch.stack(stream.means).double()
            means[name] = x - x.mean(0)
    pairs: list[dict[str, Any]] = [
        {
            "blocks": [a, b],
            "outputs": round(_cka(means[a], means[b]), 4),
            "weights": _weights(module.get_submodule(a), module.get_submodule(b)),
        }
        for a, b in combinations(means, 2)
    ]
    return sorted(pairs, key=lambda pair: -pair["outputs"])[:_PAIRS]


def _cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019) of two sets of centred rows."""
    cross = (x.mT @ y).square().sum()
    return float(cross / ((x.mT @ x).norm() * (y.mT @ y).norm()).clamp_min(1e-300))


def _weights(one: nn.Module, other: nn.Module) -> float | None:
    """Cosine of the parameters of two blocks, in their order."""
    pairs: Sequence[tuple[Tensor, Tensor]] = list(zip(one.parameters(), other.parameters(), strict=False))
    same = len(pairs) == sum(1 for _ in one.parameters()) == sum(1 for _ in other.parameters())
    if not pairs or not same or any(a.shape != b.shape for a, b in pairs):
        return None
    dot = math.fsum(float((a.double() * b.double()).sum()) for a, b in pairs)
    norms = [math.fsum(float(p.double().square().sum()) for p in side) for side in zip(*pairs, strict=True)]
    return round(dot / max(math.sqrt(norms[0] * norms[1]), 1e-300), 4)
