"""A share of the latency, measured: candidates are exported and timed against the original."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from compresskit.errors import UsageError
from compresskit.model import InputSpec
from compresskit.stage import Context

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_TRIES = 5
SEQUENCE = 128
"""Tokens of a sample of text."""
T = TypeVar("T")


@dataclass(frozen=True)
class Choices(Generic[T]):
    """What can be timed.

    Attributes:
        least: The smallest share of multiply-accumulates there is.
        at: From a share to the choice for it, and the share that it comes to.
        build: From a choice to the module.
        smallest: What the smallest share has: ``narrowest widths``.
        hint: What to do where even that takes longer.
    """

    least: float
    at: Callable[[float], tuple[T, float]]
    build: Callable[[T], nn.Module]
    smallest: str
    hint: str = "give more than that"


def within_latency(
    original: nn.Module,
    inputs: tuple[InputSpec, ...],
    target: float,
    ctx: Context,
    choices: Choices[T],
    *,
    sequence: int = SEQUENCE,
) -> tuple[T, list[tuple[float, float]]]:
    """The choice whose model takes at most a share of the original's time for one sample under onnxruntime.

    The share of multiply-accumulates is searched by halving, timing each result.

    Args:
        original: The module that the share is of.
        inputs: Of the model.
        target: Share of the original's median latency.
        ctx: Where to put the candidates.
        choices: From the smallest on.
        sequence: Length of text.

    Returns:
        The choice; and all that was timed, as shares of MACs and of the time, the chosen last.

    Raises:
        UsageError: The smallest share takes longer.
    """
    from compresskit.exporter.checked import export_checked
    from compresskit.exporter.parity import ParityCheck

    before = ctx.work / "latency-original.onnx"
    export_checked(original, inputs, before, ParityCheck(seed=ctx.seed, data=ctx.data))
    low, high = choices.least, 1.0
    timed: dict[float, tuple[float, T]] = {}
    for number in range(_TRIES + 1):
        share = low if number == 0 else (low + high) / 2
        chosen, reached = choices.at(share)
        if reached not in timed:
            candidate = choices.build(chosen)
            timed[reached] = _ratio(candidate, before, inputs, ctx, f"latency-{number}", sequence), chosen
        ctx.progress("time candidates", number + 1, _TRIES + 1)
        ratio = timed[reached][0]
        if number == 0 and ratio > target:
            raise UsageError(
                f"`target_latency` {target:g} can't be met: {ratio:.2f} was measured at the {choices.smallest}",
                choices.hint,
            )
        low, high = (share, high) if ratio <= target else (low, share)
    best = max(reached for reached, (ratio, _) in timed.items() if ratio <= target)
    order = [*(reached for reached in timed if reached != best), best]
    return timed[best][1], [(reached, timed[reached][0]) for reached in order]


def share_of_model(
    original: nn.Module, other: nn.Module, inputs: tuple[InputSpec, ...], ctx: Context, *, sequence: int = SEQUENCE
) -> float:
    """How long a model takes for one sample under onnxruntime, as a share of the original's time.

    Args:
        original: The model that the share is of.
        other: Takes the same.
        inputs: Of both.
        ctx: Where to put both.
        sequence: Length of text.
    """
    from compresskit.exporter.checked import export_checked
    from compresskit.exporter.parity import ParityCheck

    before = ctx.work / "guard-original.onnx"
    export_checked(original, inputs, before, ParityCheck(seed=ctx.seed, data=ctx.data))
    return _ratio(other, before, inputs, ctx, "guard-other", sequence)


def share_of_time(layer: nn.Module, other: nn.Module, shape: tuple[int, ...], ctx: Context, name: str) -> float:
    """How long another module takes in the place of a layer, as a share of the layer's time.

    Args:
        layer: Takes one tensor.
        other: Takes and gives the same.
        shape: Of the tensor.
        ctx: Where to put both.
        name: Of the files.
    """
    from compresskit.exporter.checked import export_checked
    from compresskit.exporter.parity import ParityCheck

    dtype = str(next(layer.parameters()).dtype).removeprefix("torch.")
    inputs = (InputSpec("x", dtype, ("batch", *shape[1:])),)
    before = ctx.work / f"{name}-layer.onnx"
    export_checked(layer, inputs, before, ParityCheck(seed=ctx.seed))
    return _ratio(other, before, inputs, ctx, f"{name}-other")


class TimesByShape:
    """Shares of time, each pair of a layer and what replaces it measured once for all layers of its shape."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: dict[Hashable, float] = {}

    def share(self, key: Hashable, shape: tuple[int, ...], pair: Callable[[], tuple[nn.Module, nn.Module]]) -> float:
        """See :func:`share_of_time`.

        Args:
            key: What decides the time: equal keys are measured once.
            shape: Of the input.
            pair: Gives the layer and the other module.
        """
        if key not in self._known:
            layer, other = pair()
            self._known[key] = share_of_time(layer, other, shape, self._ctx, f"guard-{len(self._known)}")
        return self._known[key]


def _ratio(
    module: nn.Module,
    before: Path,
    inputs: tuple[InputSpec, ...],
    ctx: Context,
    name: str,
    sequence: int = SEQUENCE,
) -> float:
    from compresskit.benchmark.run import Plan as Timing
    from compresskit.benchmark.run import Spec, bench
    from compresskit.exporter.checked import export_checked
    from compresskit.exporter.parity import ParityCheck

    path = ctx.work / f"{name}.onnx"
    export_checked(module, inputs, path, ParityCheck(seed=ctx.seed))
    sizes = {"sequence": sequence}
    specs = [
        Spec(title, file, threads=ctx.threads, inputs=inputs, sizes=sizes)
        for title, file in (("original", before), ("candidate", path))
    ]
    measured = bench(specs, seed=ctx.seed, plan=Timing(rounds=5, processes=3, more=0))
    return 1 / next(m.value for m in measured if m.name == "speedup")
