"""Which replacements a target takes: the least loss for a share of the multiply-accumulates, or of the latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from compresskit.errors import UsageError
from compresskit.model import InputSpec
from compresskit.stage import Context
from compresskit.stages.shared_latency import Choices, within_latency

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.substitute.choose import Priced

    P = TypeVar("P", bound=Priced)
else:
    P = TypeVar("P")


@dataclass
class Picked(Generic[P]):
    """What was chosen, and what the report says of it."""

    chosen: list[P]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Among(Generic[P]):
    """What a target chooses from.

    Attributes:
        tried: The replacements.
        total: Multiply-accumulates of the model.
        count: Most parts that are replaced; None for all.
        part: What is replaced, in a word.
        why: Why others aren't replaced, for an error.
    """

    tried: Sequence[P]
    total: float
    count: int | None
    part: str
    why: str

    def of_budget(self, budget: float) -> Picked[P]:
        """Those that keep a share of the multiply-accumulates.

        Raises:
            UsageError: All together keep more.
        """
        from compresskit.ops.substitute.choose import by_cost, most, saved_macs

        chosen = by_cost(self.tried, (1 - budget) * self.total, saved_macs, self.count)
        if not chosen:
            least = 1 - most(self.tried, saved_macs, self.count) / self.total
            raise UsageError(
                f"`budget` {budget:g} can't be met: with every {self.part} replaced that can be {least:.3f} of the "
                f"multiply-accumulates remain{self.why}",
                f"give {least + 5e-4:.3f} or more",
            )
        return Picked(chosen)

    def in_time(
        self,
        target: float,
        original: nn.Module,
        inputs: tuple[InputSpec, ...],
        ctx: Context,
        build: Callable[[list[P]], nn.Module],
    ) -> Picked[P]:
        """Those with which the model takes a share of its time.

        Args:
            target: The share.
            original: The model.
            inputs: Of the model.
            ctx: Where candidates are put.
            build: From replacements to the model with them.

        Raises:
            UsageError: With all of them it takes longer.
        """
        from compresskit.ops.substitute.choose import by_cost, most, saved_time

        def at(share: float) -> tuple[list[P], float]:
            chosen = by_cost(self.tried, (1 - share) * self.total, saved_time, self.count)
            return chosen, 1 - sum(map(saved_time, chosen)) / self.total

        least = 1 - most(self.tried, saved_time, self.count) / self.total + 1e-9
        choices = Choices(least, at, build, f"most {self.part}s replaced")
        chosen, timed = within_latency(original, inputs, target, ctx, choices)
        note = f"one sample took {timed[-1][1]:.3f} of the original's time under onnxruntime"
        return Picked(chosen, {"timed": [[round(n, 4) for n in pair] for pair in timed]}, [note])
