"""One more output of a sentence-transformers model: the vector of a text, pooled from those of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.runtimes.torch import flatten
from compresskit.usage import EMBEDDING, Pooling, Usage


@contextmanager
def pooling(module: nn.Module, usage: Usage) -> Iterator[None]:
    """Within it the module, and copies of it, give ``sentence_embedding`` too, where the usage says how.

    Args:
        module: Called with ``attention_mask`` as a keyword; stays as it is afterwards.
        usage: Of the model.
    """
    if not usage.pooling:
        yield
        return

    def hook(_module: nn.Module, _args: Any, given: dict[str, Any], output: Any) -> Any:
        outputs, mask = flatten(output), given.get("attention_mask")
        hidden = next((value for value in outputs.values() if value.dim() == 3), None)
        if hidden is None or mask is None or EMBEDDING in outputs:
            return output
        vector = torch.cat([pooled(hidden, mask, mode) for mode in usage.pooling], dim=-1)
        return {**outputs, EMBEDDING: F.normalize(vector, dim=-1) if usage.unit else vector}

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def pooled(hidden: Tensor, mask: Tensor, mode: Pooling) -> Tensor:
    """The vector of each text; as :func:`compresskit.quality.embedding.pooled`.

    Args:
        hidden: ``(n, L, width)``.
        mask: ``(n, L)``, 0 for padding.
        mode: One of them.

    Returns:
        ``(n, width)``.
    """
    if mode in ("cls", "lasttoken"):
        place = mask.to(torch.int32)
        if mode == "lasttoken":
            place = place * torch.arange(1, mask.shape[1] + 1, dtype=torch.int32, device=mask.device)
        at = place.argmax(dim=1).reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, at).squeeze(1)
    real = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "max":
        return torch.where(real != 0, hidden, torch.finfo(torch.float32).min).amax(dim=1)
    if mode == "weightedmean":
        first = mask.to(torch.int32).argmax(dim=1)
        steps = torch.arange(1, mask.shape[1] + 1, device=mask.device) - first.unsqueeze(-1)
        real = real * steps.unsqueeze(-1).to(hidden.dtype)
    total, count = (hidden * real).sum(dim=1), real.sum(dim=1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)
