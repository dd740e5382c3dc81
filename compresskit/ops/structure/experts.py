"""Which experts of a mixture are used, and how much each gives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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
    found: dict[str, _Used] = {}

    def note(name: str, sent: Sent) -> None:
        _add(found, name, int(module.get_submodule(name).num_experts), sent.chosen, sent.gates)  # type: ignore[arg-type]

    for done, batch in enumerate(data.batches if mixtures(module) else (), 1):
        with watching(module, mask_of(batch), note):
            data.forward(module, batch)
        progress("look at experts", done, len(data.batches))
    return [_row(name, used) for name, used in found.items()]


class Sent(NamedTuple):
    """What a mixture's experts are given, without padding.

    Attributes:
        x: ``(tokens, hidden)``.
        chosen: int64 ``(tokens, per_token)``: the experts of each token.
        gates: ``(tokens, per_token)``: their weights.
    """

    x: Tensor
    chosen: Tensor
    gates: Tensor


@contextlib.contextmanager
def watching(module: nn.Module, mask: Tensor | None, note: Callable[[str, Sent], None]) -> Iterator[None]:
    """See what the experts of each mixture are given.

    Args:
        module: With mixtures.
        mask: True for the tokens that count; None for all.
        note: Called with a mixture's name and what is sent to its experts, before they compute.
    """

    def before(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)), **kwargs}
        x, index, gates = (given.get(key) for key in ("hidden_states", "top_k_index", "top_k_weights"))
        if not (isinstance(x, Tensor) and isinstance(index, Tensor) and isinstance(gates, Tensor)):
            return
        sent = Sent(x.reshape(-1, x.shape[-1]), index, gates)
        if mask is not None and mask.numel() == len(index):
            sent = Sent(*(tensor[mask.flatten()] for tensor in sent))
        note(name, sent)

    with contextlib.ExitStack() as stack:
        for name in mixtures(module):
            hook = module.get_submodule(name).register_forward_pre_hook(partial(before, name), with_kwargs=True)
            stack.callback(hook.remove)
        yield


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
