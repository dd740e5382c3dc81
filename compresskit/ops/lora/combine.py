"""Two adapters as one: the sum of what they change, exactly or after their conflicts are settled.

``cat`` and ``svd`` are sums. ``ties`` is "TIES-Merging" (Yadav et al., 2023, arXiv:2306.01708), ``dare`` "Language
Models are Super Mario" (Yu et al., 2024, arXiv:2311.03099), both by PEFT's functions. They work on the whole change
``B A`` of a layer, not on its factors, since signs of factors mean nothing alone; the result is cut to a rank by SVD.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compresskit.errors import InputError, UsageError
from compresskit.ops.lora.folder import AdapterFile, scale_of
from compresskit.ops.lora.injected import peft_library

METHODS = ("cat", "svd", "ties", "dare")
_A, _B = "lora_A.weight", "lora_B.weight"
_OF_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")
_OF_ONE = ("rank_pattern", "alpha_pattern", *_OF_LAYERS)
"""What a config says of one adapter's layers only."""
Factors = tuple[Tensor, Tensor]


def combine(
    adapters: Sequence[AdapterFile],
    weights: Sequence[float],
    method: str,
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """One adapter of several, in PEFT's form.

    Args:
        adapters: Of the kind LoRA, for one base.
        weights: One for each.
        method: One of :data:`METHODS`.
        rank: Of the result; the highest of the adapters' without. ``cat`` has the sum of all.
        density: Share of changes that ``ties`` and ``dare`` keep, above 0, at most 1.
        seed: Of what ``dare`` drops.

    Returns:
        Config, tensors and base hash, as :func:`~compresskit.ops.lora.folder.write_adapter` takes them.

    Raises:
        InputError: An adapter is of another kind, or they are for different bases or layers of different shapes.
        UsageError: ``rank`` with ``cat``.
        MachineError: PEFT isn't installed, which ties and dare need.
    """
    if method == "cat" and rank is not None:
        raise UsageError("--rank is for svd, ties and dare: cat has the sum of all ranks")
    base = _common_base(adapters)
    for adapter in adapters:
        if adapter.kind != "LORA" or any(name.endswith("magnitude_vector") for name in adapter.tensors):
            raise InputError(f"{adapter.source} is no plain LoRA, and only those can be combined")
    if not all(map(math.isfinite, weights)):
        raise UsageError(f"--weights {' '.join(map(str, weights))}: finite numbers were expected")
    torch.manual_seed(seed)
    layers = list(dict.fromkeys(name for adapter in adapters for name in adapter.layers()))
    if not layers:
        raise InputError("the adapters hold no layer")
    factors = {layer: _one(layer, adapters, weights, method, rank, density) for layer in layers}
    most = max(len(down) for down, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in factors.items():
        # One rank for all: PEFT's patterns of ranks go by the ends of names, which several layers may share.
        room = most - len(down)
        tensors[f"{layer}.{_A}"] = torch.cat([down, down.new_zeros(room, *down.shape[1:])])
        tensors[f"{layer}.{_B}"] = torch.cat([up, up.new_zeros(len(up), room, *up.shape[2:])], 1)
    config = {key: value for key, value in adapters[0].config.items() if key not in _OF_ONE}
    config |= {
        "r": most, "lora_alpha": most, "use_rslora": False, "init_lora_weights": True, "lora_dropout": 0.0,
        "target_modules": _targets(adapters, layers),
    }  # fmt: skip
    return config, tensors, base


def _common_base(adapters: Sequence[AdapterFile]) -> str | None:
    known = {adapter.base for adapter in adapters if adapter.base is not None}
    if len(known) > 1:
        raise InputError(
            "the adapters were trained on different bases: hash mismatch", "combine adapters of one and the same model"
        )
    return next(iter(known), None)


def _targets(adapters: Sequence[AdapterFile], layers: list[str]) -> Any:
    given = [{key: adapter.config.get(key) for key in ("target_modules", *_OF_LAYERS)} for adapter in adapters]
    alike = all(one == given[0] for one in given) and not any(given[0][key] for key in _OF_LAYERS)
    return given[0]["target_modules"] if alike else f"(?:{'|'.join(map(re.escape, sorted(layers)))})"


def _one(
    layer: str, adapters: Sequence[AdapterFile], weights: Sequence[float], method: str, rank: int | None, density: float
) -> Factors:
    found: list[Factors] = []
    amounts: list[float] = []
    for adapter, weight in zip(adapters, weights, strict=True):
        if f"{layer}.{_A}" in adapter.tensors and f"{layer}.{_B}" in adapter.tensors:
            down, up = adapter.tensors[f"{layer}.{_A}"], adapter.tensors[f"{layer}.{_B}"]
            found.append((down, up * scale_of(adapter.config, layer, down.shape[0])))
            amounts.append(weight)
    if not found:
        raise InputError(f"the adapters lack a factor of '{layer}': damaged")
    first_down, first_up = found[0]
    if any(d.shape[1:] != first_down.shape[1:] or u.shape[0] != first_up.shape[0] for d, u in found):
        raise InputError(f"the adapters are for layers of different shapes: '{layer}'", "combine adapters of one model")
    if method in ("cat", "svd"):
        down = torch.cat([d for d, _ in found])
        up = torch.cat([w * u for w, (_, u) in zip(amounts, found, strict=True)], 1)
        if method == "cat":
            return down, up
        return _cut(down, up, rank or max(len(d) for d, _ in found))
    changes = [u.flatten(1) @ d.flatten(1) for d, u in found]
    peft_library()
    from peft.utils import merge_utils

    settle = merge_utils.ties if method == "ties" else merge_utils.dare_linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it finds a density of 1 worth telling
        change = settle(changes, torch.tensor(amounts), density)
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    return _factors(u, s, vh, rank or max(len(d) for d, _ in found), first_down, first_up)


def _cut(down: Tensor, up: Tensor, rank: int) -> Factors:
    """The product's best approximation of a rank, without making the product."""
    q_up, r_up = torch.linalg.qr(up.flatten(1).double())
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    return _factors(q_up @ u, s, vh @ q_down.T, rank, down, up)


def _factors(u: Tensor, s: Tensor, vh: Tensor, rank: int, down: Tensor, up: Tensor) -> Factors:
    """Factors of a rank in the shapes of others."""
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    first = (root.unsqueeze(1) * vh[:rank]).float().reshape(rank, *down.shape[1:])
    return first, (u[:, :rank] * root).float().reshape(up.shape[0], rank, *up.shape[2:])
