"""Which experts of a mixture are used, and how much each gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.candidates import mask_of

Progress = Callable[[str, int, int], None]


@dataclass
class _Used:
    """Of each expert: tokens that were sent to it, and the sum of their gates."""

    tokens: Tensor
    gates: Tensor
    seen: int = 0


def mixtures(module: nn.Module) -> list[str]:
    """The layers of fused experts (Mixtral, Qwen3-MoE and others of transformers), by name."""
    return [
        name
        for name, layer in module.named_modules()
        if type(layer).__name__.endswith("Experts") and isinstance(getattr(layer, "num_experts", None), int)
    ]


@torch.no_grad()
def experts(module: nn.Module, data: CalibrationData, progress: Progress) -> list[dict[str, Any]]:
    """How tokens are spread over the experts of each mixture.

    Args:
        module: In eval mode.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        A row a mixture: ``name``, ``experts``, ``tokens``, ``share`` (of the tokens that go to each), ``gate`` (mean
        weight where it is used), ``unused`` and ``effective`` (experts that would be used alike: the exponential of the
        entropy of their shares).
    """
    names = mixtures(module)
    if not names:
        return []
    found: dict[str, _Used] = {}
    keep: Tensor | None = None

    def hook(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {**dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)), **kwargs}
            index, gates = given.get("top_k_index"), given.get("top_k_weights")
            if not isinstance(index, Tensor) or not isinstance(gates, Tensor):
                return
            if keep is not None and keep.numel() == len(index):
                index, gates = index[keep.flatten()], gates[keep.flatten()]
            _add(found, name, int(layer.num_experts), index, gates)  # type: ignore[arg-type]

        return note

    hooks = [module.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in names]
    try:
        for done, batch in enumerate(data.batches, 1):
            keep = mask_of(batch)
            data.forward(module, batch)
            progress("look at experts", done, len(data.batches))
    finally:
        for handle in hooks:
            handle.remove()
    return [_row(name, used) for name, used in found.items()]


def _add(found: dict[str, _Used], name: str, count: int, index: Tensor, gates: Tensor) -> None:
    used = found.setdefault(name, _Used(torch.zeros(count), torch.zeros(count)))
    chosen = index.flatten()
    inside = chosen < count  # transformers sends what is dropped to one behind the last
    used.tokens += torch.bincount(chosen[inside], minlength=count)
    used.gates.index_add_(0, chosen[inside], gates.flatten()[inside].float())
    used.seen += len(index)


def _row(name: str, used: _Used) -> dict[str, Any]:
    share = used.tokens / max(1, used.seen)
    spread = used.tokens / used.tokens.sum().clamp_min(1)
    entropy = -float((spread * spread.clamp_min(1e-30).log()).sum())
    return {
        "name": name,
        "experts": len(share),
        "tokens": used.seen,
        "share": [round(float(s), 4) for s in share],
        "gate": [round(float(g), 4) for g in used.gates / used.tokens.clamp_min(1)],
        "unused": int((used.tokens == 0).sum()),
        "effective": round(math.exp(entropy), 2),
    }
