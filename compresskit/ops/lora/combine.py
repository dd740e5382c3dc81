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
        raise UsageError("`rank` is for svd, ties and dare: cat has the sum of all ranks")
    if not all(map(math.isfinite, weights)):
        raise UsageError(f"`weights` {' '.join(map(str, weights))}: finite numbers were expected")
    base = _common_base(adapters)
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
    """The hash of the base of plain LoRA adapters; None where none of them tells."""
    known = {adapter.base for adapter in adapters if adapter.base is not None}
    if len(known) > 1:
        raise InputError(
            "the adapters were trained on different bases: hash mismatch", "combine adapters of one and the same model"
        )
    for adapter in adapters:
        if adapter.kind != "LORA" or any(name.endswith("magnitude_vector") for name in adapter.tensors):
            raise InputError(f"{adapter.source} is not a plain LoRA adapter; only those can be combined")
    return next(iter(known), None)


def _targets(adapters: Sequence[AdapterFile], layers: list[str]) -> Any:
    given = [{key: adapter.config.get(key) for key in ("target_modules", *_OF_LAYERS)} for adapter in adapters]
    alike = all(one == given[0] for one in given) and not any(given[0][key] for key in _OF_LAYERS)
    return given[0]["target_modules"] if alike else f"(?:{'|'.join(map(re.escape, sorted(layers)))})"


def _one(
    layer: str, adapters: Sequence[AdapterFile], weights: Sequence[float], method: str, rank: int | None, density: float
) -> Factors:
    found = _factors_of(layer, adapters, weights)
    if method in ("cat", "svd"):
        down = torch.cat([d for d, _, _ in found])
        up = torch.cat([w * u for _, u, w in found], 1)
        return (down, up) if method == "cat" else _cut(down, up, rank or max(len(d) for d, _, _ in found))
    u, s, vh = torch.linalg.svd(_settled(found, method, density), full_matrices=False)
    return _factors(u, s, vh, rank or max(len(d) for d, _, _ in found), *found[0][:2])


def _factors_of(
    layer: str, adapters: Sequence[AdapterFile], weights: Sequence[float]
) -> list[tuple[Tensor, Tensor, float]]:
    """Both factors of a layer, the second one scaled, and the weight of the adapter, for each that has it."""
    found = []
    for adapter, weight in zip(adapters, weights, strict=True):
        down, up = adapter.tensors.get(f"{layer}.{_A}"), adapter.tensors.get(f"{layer}.{_B}")
        if down is not None and up is not None:
            found.append((down, up * scale_of(adapter.config, layer, down.shape[0]), weight))
    if not found:
        raise InputError(f"the adapters lack a factor of '{layer}': damaged")
    if len({(d.shape[1:], len(u)) for d, u, _ in found}) > 1:
        raise InputError(f"the adapters are for layers of different shapes: '{layer}'", "combine adapters of one model")
    return found


def _settled(found: Sequence[tuple[Tensor, Tensor, float]], method: str, density: float) -> Tensor:
    """What the adapters change together, their conflicts settled."""
    peft_library()
    from peft.utils import merge_utils

    settle = merge_utils.ties if method == "ties" else merge_utils.dare_linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it finds a density of 1 worth telling
        changes = [u.flatten(1) @ d.flatten(1) for d, u, _ in found]
        change: Tensor = settle(changes, torch.tensor([w for _, _, w in found]), density)
    return change


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
