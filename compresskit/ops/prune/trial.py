"""Groups are believed only after a cut was tried: masked and cut models have to compute the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune.cut import Kept, cut, mask
from compresskit.ops.prune.graph import Group

TOLERANCE = 1e-5
"""Largest difference between masked and cut, relative to the largest output."""


def proven(
    module: nn.Module, run: Callable[[nn.Module], Any], groups: Sequence[Group], seed: int = 0
) -> tuple[list[Group], dict[str, str]]:
    """The groups that can be cut without changing more than the channels that go, and why the others can't.

    Half of the units of all groups are cut on a copy; where that fails, the groups are halved until the culprits are
    found: those whose channels are mixed by a normalization, or whose number is written in the model's code.

    Args:
        module: In eval mode; not changed.
        run: Calls a module with an example input.
        groups: To be tried.
        seed: Of the choice of units.

    Returns:
        Groups in the order given, and group name to reason.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = {g.name: sorted(torch.randperm(g.units, generator=generator)[: -(-g.units // 2)].tolist()) for g in groups}
    good: list[Group] = []
    bad: dict[str, str] = {}

    def add(part: Sequence[Group]) -> None:
        tried = [*good, *part]
        reason = apart(module, run, tried, {g.name: halves[g.name] for g in tried})
        if not reason:
            good.extend(part)
        elif len(part) == 1:
            bad[part[0].name] = reason
        else:
            add(part[: len(part) // 2])
            add(part[len(part) // 2 :])

    if groups:
        add(groups)
    order = {g.name: i for i, g in enumerate(groups)}
    return sorted(good, key=lambda g: order[g.name]), bad


@torch.no_grad()
def apart(module: nn.Module, run: Callable[[nn.Module], Any], groups: Sequence[Group], kept: Kept) -> str:
    """How the cut model differs from the masked one; empty when it doesn't."""
    masked, smaller = copy.deepcopy(module), copy.deepcopy(module)
    mask(masked, groups, kept)
    wanted = _floats(run(masked))
    try:
        cut(smaller, groups, kept)
        found = _floats(run(smaller))
    except Exception as error:  # the user's forward, on shapes that its author never saw
        return f"the model's code depends on its width: {str(error).partition(chr(10))[0] or type(error).__name__}"
    if [t.shape for t in wanted] != [t.shape for t in found]:
        return "the shape of the model's output depends on it"
    difference = max((float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True)), default=0.0)
    size = max((float(a.abs().max()) for a in wanted), default=0.0)
    if difference <= TOLERANCE * size:
        return ""
    return f"its channels are mixed on the way: without some of them the others change (by {difference:.2g})"


def _floats(out: Any) -> list[Tensor]:
    return [t.double() for t in tensors_in(out) if t.is_floating_point() and t.numel()]
