"""Experts of a mixture that are left out, or merged into those that stay.

Experts are ranked by what they add: the mean over the tokens that are sent to them of the gate times the norm of their
output, after Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression" (2025). Merging takes
the mean of an expert and those that are most like it, weighted by the tokens that they get, after Li et al., "Merge,
Then Compress" (2024), without their alignment of neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.structure.experts import Sent, watching
from compresskit.ops.substitute.candidates import mask_of

Score = Literal["reap", "total", "frequency", "random"]
Progress = Callable[[str, int, int], None]
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What a config calls the number of experts."""


@dataclass
class Use:
    """What was seen of a mixture: of each expert its tokens, and the sum of gate times norm of its output."""

    tokens: Tensor
    weighed: Tensor

    def scores(self, by: Score, seed: int) -> Tensor:
        """How much each expert is worth, ``(experts,)``."""
        if by == "random":
            return torch.rand(len(self.tokens), generator=torch.Generator().manual_seed(seed))
        if by == "total":
            return self.weighed
        return self.tokens if by == "frequency" else self.weighed / self.tokens.clamp_min(1)


def key_of(module: nn.Module, names: Sequence[str]) -> str:
    """What the config calls the number of experts.

    Args:
        module: Of transformers.
        names: Its mixtures.

    Raises:
        InputError: There is no mixture, or its config has no such number.
    """
    if not names:
        raise InputError(
            "this model has no mixture of experts", "route `method` exits takes classifiers of any architecture"
        )
    counts = {int(getattr(module.get_submodule(name), "num_experts")) for name in names}  # noqa: B009
    for key in _COUNTS:
        if counts == {getattr(module.config, key, None)}:
            return key
    raise InputError(f"the config of {type(module).__name__} has no number of experts that holds for all layers")


def router_of(module: nn.Module, name: str) -> nn.Module:
    """The part beside a mixture's experts whose rows choose among them.

    Raises:
        InputError: There is none that is known.
    """
    experts = module.get_submodule(name)
    parent = module.get_submodule(name.rpartition(".")[0])
    count = experts.num_experts
    for part in parent.children():
        weight = getattr(part, "weight", None)
        if part is not experts and isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) == count:
            return part
    raise InputError(f"the router of '{name}' isn't known", "a weight with a row for each expert is expected beside it")


@torch.no_grad()
def used(module: nn.Module, batches: Sequence[Batch], forward: Forward, progress: Progress) -> dict[str, Use]:
    """What each expert of each mixture adds, on calibration data.

    Args:
        module: In eval mode; not changed.
        batches: Padding is left out.
        forward: Calls the module.
        progress: Called as ``progress(what, done, total)``.
    """
    found: dict[str, Use] = {}

    def note(name: str, sent: Sent) -> None:
        layer: Any = module.get_submodule(name)
        count = int(layer.num_experts)
        use = found.setdefault(name, Use(torch.zeros(count), torch.zeros(count)))
        for expert in torch.unique(sent.chosen).tolist():
            rows, places = (sent.chosen == expert).nonzero(as_tuple=True)
            if expert >= count:
                continue
            one = torch.full((len(rows), 1), expert, dtype=sent.chosen.dtype)
            out = type(layer).forward(layer, sent.x[rows], one, torch.ones(len(rows), 1, dtype=sent.gates.dtype))
            use.tokens[expert] += len(rows)
            use.weighed[expert] += (sent.gates[rows, places].float() * out.float().norm(dim=-1)).sum()

    for done, batch in enumerate(batches, 1):
        with watching(module, mask_of(batch), note):
            forward(module, batch)
        progress("rank experts", done, len(batches))
    return found


@torch.no_grad()
def keep_experts(module: nn.Module, name: str, kept: Sequence[int], merged: Tensor | None = None) -> None:
    """Leave only some experts of a mixture, in place.

    Args:
        module: Holds it.
        name: Of the fused experts.
        kept: Those that stay, in order.
        merged: ``(kept, experts)``, the weights of the means that take the place of those that stay; None: they stay
            as they are.
    """
    experts, router = module.get_submodule(name), router_of(module, name)
    count, rows = int(experts.num_experts), torch.tensor(list(kept))  # type: ignore[arg-type]
    for part in (experts, router):
        for leaf, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None or tensor.dim() == 0 or len(tensor) != count:
                continue
            mean = merged is not None and part is experts and tensor.is_floating_point()
            new = torch.einsum("ke,e...->k...", merged.to(tensor.dtype), tensor) if mean else tensor[rows]  # type: ignore[union-attr]
            if leaf in part._parameters:
                part._parameters[leaf] = nn.Parameter(new.clone(), requires_grad=tensor.requires_grad)
            else:
                part._buffers[leaf] = new.clone()
        for key in ("num_experts", "n_routed_experts", "out_features"):
            if getattr(part, key, None) == count:
                setattr(part, key, len(kept))


def merging(router: nn.Module, use: Use, kept: Sequence[int]) -> Tensor:
    """The weights of the means: each expert goes to the one that stays whose row of the router is most like its own.

    Args:
        router: Of the mixture.
        use: Tells how many tokens each expert gets.
        kept: Those that stay.

    Returns:
        ``(kept, experts)``, rows that add up to 1.
    """
    rows = F.normalize(router.get_parameter("weight").detach().float(), dim=1)
    to = (rows @ rows[list(kept)].mT).argmax(1)
    to[list(kept)] = torch.arange(len(kept))
    weights = torch.zeros(len(kept), len(rows))
    weights[to, torch.arange(len(rows))] = use.tokens.clamp_min(1e-3)
    return weights / weights.sum(1, keepdim=True)
