"""Which layers are replaced at which ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compresskit.errors import UsageError
from compresskit.facts.factorize import Kind
from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.factorize.candidates import Candidate, FactorizeSettings, Found, Option, Unit, find
from compresskit.ops.factorize.chain import Factorized
from compresskit.ops.factorize.cp import Cp
from compresskit.ops.factorize.metric import Metric
from compresskit.ops.factorize.output_gradients import output_gradients
from compresskit.ops.factorize.spatial import Spatial
from compresskit.ops.factorize.svd import Svd
from compresskit.ops.factorize.tucker import Tucker
from compresskit.ops.prune.allocate import by_loss
from compresskit.ops.prune.score import moments_of
from compresskit.ops.quantize.sensitivity import Trial
from compresskit.ops.shrinking import CalibrationData

Progress = Callable[[str, int, int], None]
_MEASURED = 3
"""Ranks of a layer that are measured; the others go by what is known of the spectrum."""
_NOTHING = 1e-9
"""Share of the energy below which what is measured is rounding: it says nothing of other ranks."""
_FEW = 32
"""Samples that single layers are measured on."""


class Algorithm(Protocol):
    """A weight taken apart.

    Attributes:
        total: What would be lost without the layer: its squared size in the metric.
    """

    total: float

    def lost(self, ranks: Sequence[int]) -> float:
        """Squared error that these ranks leave, in the metric."""
        ...

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Weights of the layers, in their order."""
        ...


ALGORITHMS: dict[Kind, Callable[[Tensor, Metric], Algorithm]] = {
    "svd": Svd,
    "tucker": Tucker,
    "spatial": Spatial,
    "cp": Cp,
}


Choice = dict[str, Option]
"""Layer name to what takes its place; layers that aren't in it stay."""


@dataclass
class FactorizePlan:
    """What can be replaced, and what is lost by it; the methods give the choice for a target.

    Attributes:
        found: Layers and their options.
        metrics: In which norm errors of each layer count.
        lost: By layer and option what is lost: of the model's output where that was measured, else of the weight's own
            energy.
        share: By layer and option the energy that is lost, 0 to 1.
        notes: What a user should know.
    """

    module: nn.Module
    settings: FactorizeSettings
    found: Found
    metrics: dict[str, Metric]
    taken: dict[tuple[str, Kind], Algorithm]
    lost: dict[str, dict[Option, float]]
    share: dict[str, dict[Option, float]]
    notes: list[str] = field(default_factory=list)

    def replacement(self, name: str, option: Option) -> Factorized:
        """The layers in the place of one."""
        layer = next(c.layer for c in self.found.candidates if c.name == name)
        return Factorized(layer, option.kind, option.ranks).fill(
            self.taken[name, option.kind].factors(option.ranks), layer.bias
        )

    def least(self, unit: Unit) -> float:
        """The share that is left with the smallest ranks."""
        saved = sum(c.cost(unit) - min(o.cost(unit) for o in c.options) for c in self.found.candidates)
        return 1 - saved / max(1, self.found.total[unit])

    def share_of(self, choice: Mapping[str, Option], unit: Unit) -> float:
        """The share of the weights or products of all Linear layers and convolutions that a choice leaves."""
        costs = {c.name: c.cost(unit) for c in self.found.candidates}
        saved = sum(costs[name] - option.cost(unit) for name, option in choice.items())
        return 1 - saved / max(1, self.found.total[unit])

    def within(self, target: float, unit: Unit, option: str = "`budget`") -> Choice:
        """The choice that loses least for a share of the weights or products.

        Raises:
            UsageError: The share can't be met; says what can.
        """
        least = self.least(unit)
        if least > target + 1e-9:
            raise UsageError(
                f"{option} {target:g} can't be met: with the smallest ranks {least:.3f} of the {unit} of all Linear "
                "layers and convolutions remains",
                f"give {least + 5e-4:.3f} or more, or `round_to` 1",
            )
        byprice: dict[str, dict[int, Option]] = {}
        losses: dict[str, dict[int, float]] = {}
        for c in self.found.candidates:
            prices: dict[int, Option] = {}
            for o in c.options:
                known = prices.get(o.cost(unit))
                if known is None or self.lost[c.name][o] < self.lost[c.name][known]:
                    prices[o.cost(unit)] = o
            byprice[c.name] = prices
            losses[c.name] = {c.cost(unit): 0.0, **{p: self.lost[c.name][o] for p, o in prices.items()}}
        allowed = {name: sorted(known, reverse=True) for name, known in losses.items()}
        rest = self.found.total[unit] - sum(max(prices) for prices in allowed.values())
        chosen, _ = by_loss(allowed, losses, _Prices(rest, self.found.total[unit]), target, ahead=1 << 16)
        return {name: byprice[name][price] for name, price in chosen.items() if price in byprice[name]}

    def keeping(self, energy: float) -> Choice:
        """The cheapest option of each layer that keeps a share of the squared singular values; others stay."""
        choice: Choice = {}
        for c in self.found.candidates:
            enough = [o for o in c.options if self.share[c.name][o] <= 1 - energy + 1e-12]
            if enough:
                choice[c.name] = min(enough, key=lambda o: (o.macs * o.params, self.share[c.name][o]))
            else:
                self.found.skipped[c.name] = f"no rank that takes less than it does keeps {energy:g} of its energy"
        return choice

    def without(self, layers: Mapping[str, str]) -> None:
        """Leave layers as they are, for the reasons given."""
        self.found.candidates[:] = [c for c in self.found.candidates if c.name not in layers]
        self.found.skipped.update(layers)

    def at_rank(self) -> Choice:
        """Each layer at the one rank that was asked for, in the way that loses least."""
        return {c.name: min(c.options, key=lambda o: (self.lost[c.name][o], o.macs)) for c in self.found.candidates}


@dataclass(frozen=True)
class _Prices:
    rest: int
    total: int

    def share(self, widths: Mapping[str, int], /) -> float:
        return (self.rest + sum(widths.values())) / max(1, self.total)


@torch.no_grad()
def plan(
    module: nn.Module, data: CalibrationData, settings: FactorizeSettings, progress: Progress, *, measured: bool = True
) -> FactorizePlan:
    """Find out what can be replaced, and what each choice loses.

    Args:
        module: In eval mode; not changed.
        data: What it is run on.
        settings: What the user asked for.
        progress: Called from time to time as ``progress(what, done, total)``.
        measured: Measure on the data what the model's output loses: for targets that are split over layers.

    Raises:
        UsageError: The model is quantized, a glob matches nothing, or the rank is above a matrix's.
        InputError: The model has no Linear layer or convolution.
    """
    found = find(module, data.run, settings)
    notes: list[str] = []
    names = [c.name for c in found.candidates]
    inner: dict[str, Tensor] = {}
    outer: dict[str, Tensor] = {}
    if data.batches and settings.weighting != "plain" and names:
        moments = moments_of(module, names, data)
        inner = {name: m.gram[0].double() for name, m in moments.items()}
        if settings.weighting == "both":
            try:
                outer = output_gradients(
                    module, names, data.batches, data.forward, progress, scores=data.scores, seed=settings.seed
                )
            except RuntimeError as error:
                what = str(error).partition("\n")[0]
                notes.append(
                    f"errors are weighted by the layers' inputs only, because the model gives no gradients ({what})"
                )
    metrics = {name: Metric(inner.get(name), outer.get(name)) for name in names}
    taken: dict[tuple[str, Kind], Algorithm] = {}
    share: dict[str, dict[Option, float]] = {}
    for done, c in enumerate(found.candidates, 1):
        share[c.name] = {}
        for o in c.options:
            if (c.name, o.kind) not in taken:
                taken[c.name, o.kind] = ALGORITHMS[o.kind](c.layer.weight, metrics[c.name])
            algorithm = taken[c.name, o.kind]
            share[c.name][o] = algorithm.lost(o.ranks) / max(algorithm.total, 1e-30)
        progress("decompose layers", done, len(found.candidates))
    made = FactorizePlan(module, settings, found, metrics, taken, share, share, notes)
    if measured and data.batches and names:
        made.lost = _measured(made, data, progress)
    return made


def _measured(made: FactorizePlan, data: CalibrationData, progress: Progress) -> dict[str, dict[Option, float]]:
    """What the model's output loses by each option: measured for a few of them, the others in between.

    Between two that were measured, what is lost by energy lost is on a line: energies alone are right up to a factor
    that changes slowly.
    """
    trial = Trial(made.module, _few(data.batches), data.forward, scores=data.scores)
    found: dict[str, dict[Option, float]] = {}
    plans = {(c.name, kind): _some(c, kind, made) for c in made.found.candidates for kind in c.full}
    total, done = sum(map(len, plans.values())), 0
    for c in made.found.candidates:
        found[c.name] = {}
        for kind in c.full:
            points: dict[float, float] = {}
            for o in plans[c.name, kind]:
                merged = made.replacement(c.name, o).merged()
                points[made.share[c.name][o]] = trial.distance({c.name: merged})
                done += 1
                progress("measure layers at lower ranks", done, total)
            at = sorted(p for p in points if p > _NOTHING) or [1.0]
            ratios = [points.get(p, 0.0) / p for p in at]
            for o in c.options:
                if o.kind == kind:
                    p = made.share[c.name][o]
                    found[c.name][o] = p * float(np.interp(p, at, ratios))
    return found


def _some(c: Candidate, kind: Kind, made: FactorizePlan) -> list[Option]:
    """Options of a kind that are evenly apart, of those that nothing cheaper beats."""
    best: list[Option] = []
    for o in sorted((o for o in c.options if o.kind == kind), key=lambda o: (-o.params, made.share[c.name][o])):
        while best and made.share[c.name][best[-1]] >= made.share[c.name][o]:
            best.pop()
        best.append(o)
    at = {round(i * (len(best) - 1) / max(1, _MEASURED - 1)) for i in range(_MEASURED)} if best else set()
    return [best[i] for i in sorted(at)]


def _few(batches: Sequence[Batch]) -> list[Batch]:
    """Some samples of a batch in the middle, in whose order lengths may rise."""
    middle = batches[len(batches) // 2]
    return [{name: tensor[:_FEW] for name, tensor in middle.items()}]
