"""What methods would save of a model, counted on what they make of it: units, tokens, attention, exact merging.

Nothing is estimated: each is applied to a copy, or for a while, and its products and parameters are counted. Time is
another matter, and measured by the commands themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compresskit.errors import InputError
from compresskit.ops.macs import count_macs
from compresskit.ops.share.tie import alike
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute import merged, sparse
from compresskit.ops.substitute.firing import without
from compresskit.ops.substitute.fold import fold
from compresskit.ops.substitute.merging import padded_to

Progress = Callable[[str, int, int], None]
WINDOW, SHARE = 64, 0.125
"""Tokens on either side that attention is narrowed to; share of the tokens that is merged in each block of a text."""
ALIKE = 0.95
"""Cosine of the weights of layers that could be one."""
_PIECES = 16
"""One of so many tokens is merged in each block of a model of one length."""
_LARGEST = 100_000_000
"""Parameters above which no copy is made, and no layers are compared."""
_SAMPLES = 2


@dataclass(frozen=True)
class Inputs:
    """What a model takes.

    Attributes:
        texts: Token ids.
        free: Of any length.
    """

    texts: bool
    free: bool


@torch.no_grad()
def savings(module: nn.Module, data: CalibrationData, inputs: Inputs, seed: int, progress: Progress) -> dict[str, Any]:
    """What methods would save that need no choice but a common one.

    Args:
        module: In eval mode; as before afterwards.
        data: With batches.
        inputs: What the model takes.
        seed: Of the trial of cuts.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        By method, None where it doesn't apply: ``fold`` (``layers`` that would be merged) and ``units`` (``never`` and
        ``always`` that would go), with the shares of ``macs`` and ``parameters`` saved; ``tokens`` (``tokens`` of a
        sample, ``options``) and ``attention`` (``tokens``, ``window``, ``from``: the tokens from which on it always
        takes fewer products), with the share of ``products`` saved, those of attention's scores and sums too; ``tie``
        (``layers`` whose weights are like those of an earlier one, ``least``: by this cosine) with the share of
        ``parameters``. Large models are not copied, so nothing is known of ``fold``, ``units`` and ``tie``.
    """
    largest = max(data.batches, key=lambda batch: len(next(iter(batch.values()))))
    made = replace(data, example={name: tensor[:_SAMPLES] for name, tensor in largest.items()})
    found: dict[str, Any] = {"fold": None, "units": None, "tie": None}
    if sum(p.numel() for p in module.parameters()) <= _LARGEST:
        found |= {**_exact(module, made, seed, progress), "tie": _tied(module)}
    return found | {
        "tokens": _tokens(module, made, inputs),
        "attention": _attention(module, made),
    }


def _exact(module: nn.Module, data: CalibrationData, seed: int, progress: Progress) -> dict[str, Any]:
    """Layers merged, and then units without use."""
    whole = copy.deepcopy(module)
    folded, _ = fold(whole, run=data.run)
    between = copy.deepcopy(whole)
    fired = without(whole, data, lambda _name: "", seed, progress)
    layers = sum(len(one.gone) for one in folded)
    units = {"never": fired.found.never, "always": fired.found.always}
    return {
        "fold": {"layers": layers, **_saved(module, between, data)} if layers else None,
        "units": units | _saved(between, whole, data) if any(units.values()) else None,
    }


def _saved(before: nn.Module, after: nn.Module, data: CalibrationData) -> dict[str, float]:
    macs = [sum(count_macs(m, data.example).values()) for m in (before, after)]
    own = [sum(p.numel() for p in m.parameters()) for m in (before, after)]
    return {"macs": _share(*macs), "parameters": _share(*own)}


def _share(before: float, after: float) -> float:
    return round(1 - after / before, 4) if before else 0.0


def _tokens(module: nn.Module, data: CalibrationData, inputs: Inputs) -> dict[str, Any] | None:
    """Similar tokens merged along the blocks."""
    try:
        run = merged.find(module, data, first=int(inputs.texts), windows=inputs.free)
    except InputError:
        return None
    count = max(1, run.tokens // _PIECES)
    layers = run.sharing(SHARE, _everywhere) if inputs.free else run.merging(count, _everywhere)
    before = products(module, data)
    with merged.merged(module, run, layers):
        after = products(module, data)
    options = ["--share", f"{SHARE:g}"] if inputs.free else ["--tokens", str(count)]
    return {"tokens": run.tokens, "options": options, "products": _share(before, after)}


def _tied(module: nn.Module) -> dict[str, Any] | None:
    """Layers that could have the weights of others."""
    gone = [name for group in alike(module, ALIKE) for name in group[1:]]
    own = sum(p.numel() for name in gone for p in module.get_submodule(name).parameters())
    whole = sum(p.numel() for p in module.parameters())
    return {"layers": len(gone), "least": ALIKE, "parameters": _share(whole, whole - own)} if gone else None


def _everywhere(_name: str) -> bool:
    return True


def _attention(module: nn.Module, data: CalibrationData) -> dict[str, Any] | None:
    """Attention in a window."""
    try:
        known = sparse.find(module, data)
    except InputError:
        return None
    first = min(2 * WINDOW, max(fact.everywhere for fact in known.values()))
    layers = {name: replace(fact, window=WINDOW, everywhere=first) for name, fact in known.items()}
    before = products(module, data)
    with sparse.sparse(module, layers):
        after = products(module, data)
    tokens = max(fact.tokens for fact in known.values())
    return {"tokens": tokens, "window": WINDOW, "from": _pays_from(first), "products": _share(before, after)}


def _pays_from(first: int) -> int:
    """The number of tokens from which on attention in a window always takes fewer products.

    A block of queries sees three blocks of keys and the first tokens, which hear all.
    """
    most = 64 * WINDOW
    return 1 + max(t for t in range(most) if padded_to(t, WINDOW) * (3 * WINDOW + first) + first * t >= t * t)


def products(module: nn.Module, data: CalibrationData) -> float:
    """Multiply-accumulates of the example: those with weights, and those of activations with each other."""
    with _Products() as counted:
        weighted = sum(count_macs(module, data.example).values())
    return float(weighted + counted.total)


class _Products(TorchFunctionMode):
    """Counts products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name == "scaled_dot_product_attention":
            query, key, value = (*args, *(kwargs or {}).values())[:3]
            self.total += math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif name in ("matmul", "bmm") and not any(isinstance(a, nn.Parameter) for a in args) and _matrices(args):
            self.total += out.numel() * args[0].shape[-1]
        return out


def _matrices(args: Any) -> bool:
    return all(isinstance(a, Tensor) and a.dim() > 1 for a in args[:2])
