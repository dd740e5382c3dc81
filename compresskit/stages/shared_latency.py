"""Widths that keep a share of the latency, measured: candidates are exported and timed against the original."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from compresskit.errors import UsageError
from compresskit.model import InputSpec
from compresskit.stage import Context

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from compresskit.ops.prune.structured import Plan, Seen

_TRIES = 5
_SEQUENCE = 128


def within_latency(
    made: Plan,
    original: nn.Module,
    seen: Seen,
    base: dict[str, float],
    inputs: tuple[InputSpec, ...],
    target: float,
    ctx: Context,
) -> tuple[dict[str, list[int]], list[tuple[float, float]]]:
    """The units to keep, so that one sample takes at most a share of the original's time under onnxruntime.

    The share of multiply-accumulates is searched by halving, each time by timing what comes of it.

    Args:
        made: What can be cut.
        original: The module that the share is of.
        seen: What the module is run on.
        base: What the original has.
        inputs: Of the model.
        target: Share of the original's median latency.
        ctx: Where to put the candidates.

    Returns:
        Group name to the units that stay; and all that was timed, as shares of MACs and of the time, the chosen last.

    Raises:
        UsageError: The narrowest widths take longer.
    """
    from compresskit.export.checked import export_checked

    cost = made.cost("macs", base, seen.example)
    before = ctx.work / "latency-original.onnx"
    export_checked(original, inputs, before, seed=ctx.seed)
    low, high = made.least(cost), 1.0
    timed: dict[float, tuple[float, dict[str, list[int]]]] = {}
    for number in range(_TRIES + 1):
        share = low if number == 0 else (low + high) / 2
        kept, reached = made.at(share, cost)
        if reached not in timed:
            timed[reached] = _ratio(made, kept, before, inputs, ctx, number), kept
        ctx.progress("time candidates", number + 1, _TRIES + 1)
        ratio = timed[reached][0]
        if number == 0 and ratio > target:
            raise UsageError(
                f"--target-latency {target:g} can't be met: {ratio:.2f} was measured at the narrowest widths",
                "give more than that, or --round-to 1",
            )
        low, high = (share, high) if ratio <= target else (low, share)
    chosen = max(reached for reached, (ratio, _) in timed.items() if ratio <= target)
    order = [*(reached for reached in timed if reached != chosen), chosen]
    return timed[chosen][1], [(reached, timed[reached][0]) for reached in order]


def _ratio(
    made: Plan, kept: dict[str, list[int]], before: Path, inputs: tuple[InputSpec, ...], ctx: Context, number: int
) -> float:
    from compresskit.bench.run import Plan as Timing
    from compresskit.bench.run import Spec, bench
    from compresskit.export.checked import export_checked
    from compresskit.ops.prune.cut import cut

    smaller = copy.deepcopy(made.module)
    cut(smaller, made.groups, kept)
    path = ctx.work / f"latency-{number}.onnx"
    export_checked(smaller, inputs, path, seed=ctx.seed)
    sizes = {"sequence": _SEQUENCE}
    specs = [
        Spec(name, file, threads=ctx.threads, inputs=inputs, sizes=sizes)
        for name, file in (("original", before), ("candidate", path))
    ]
    measured = bench(specs, seed=ctx.seed, plan=Timing(rounds=5, processes=3, more=0))
    return 1 / next(m.value for m in measured if m.name == "speedup")
