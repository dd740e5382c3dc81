"""What methods have in common that put cheaper layers in the place of one, the last of them fitted."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError, listing
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Budget, Exclude, Include, Samples, TargetLatency
from compresskit.stages.recovery import Recovery
from compresskit.stages.shared_latency import TimesByShape
from compresskit.stages.shared_targets import Among, Picked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.data.source import Source
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.parts import Parts
    from compresskit.ops.substitute.separate import Replacement

_BATCH = 32
_NOT_NEEDED = "other layers lose less for the target"


class SubstituteParts(Recovery):
    """Put cheaper layers in the place of one; a method says which."""

    kind: ClassVar = SUBSTITUTE
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    needs: ClassVar = ("calibration",)
    became: ClassVar[str]
    """What layers are afterwards: ``depthwise``."""
    part: ClassVar[str] = "layer"
    """What is replaced: ``convolution``, or ``layer`` for Linear layers too."""

    count: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of layers to replace, those first whose replacement changes the output least; with "
            "another target, the most. (all)",
        ),
    ] = None
    budget: Budget = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for replacing a layer: fewer multiply-accumulates (size), or also a lower "
            "time, measured per layer on this machine (latency)."
        ),
    ] = "latency"
    include: Include = ()
    exclude: Exclude = ()
    samples: Samples = 512

    @model_validator(mode="after")
    def _one_target(self) -> SubstituteParts:
        if self.budget is not None and self.target_latency is not None:
            raise UsageError("`budget` and `target_latency`: give one of them")
        return self

    @abstractmethod
    def why_not(self, layer: nn.Module) -> str:
        """Why a layer can't be replaced; empty where it can."""

    @abstractmethod
    def made(self, layer: Any, columns: Tensor | None = None) -> Parts:
        """What replaces a layer.

        Args:
            layer: The layer.
            columns: Second moments of its inputs.
        """

    @abstractmethod
    def fact(self, layer: nn.Module) -> dict[str, Any]:
        """What is recorded of a layer, apart from what was measured."""

    def moments(self, module: nn.Module, names: list[str], data: CalibrationData) -> dict[str, Tensor]:
        """Second moments of the inputs of layers, where the method makes use of them."""
        return {}

    def run(self, model: Model, ctx: Context) -> Model:
        """Replace layers of a module in place.

        Raises:
            UsageError: There are no data, a glob matches nothing, or the target can't be met.
            InputError: No layer can be replaced, or the data don't fit.
        """
        from compresskit.ops.calibration.trace import trace
        from compresskit.ops.macs import calling, count_macs
        from compresskit.ops.substitute.separate import separate

        if ctx.data is None:
            raise UsageError("fitting layers needs data", "give `data` FILE")
        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=1)
        with calling(module):
            found = trace(module, partial(data.run, module))
            here = _Here(module, data, ctx, *self._eligible(module, list(found.once())))
            if self.guard == "latency" or self.target_latency is not None:
                self._time(here)
            if not here.names:
                why = listing([f"{name}: {reason}" for name, reason in here.skipped.items()], 2)
                raise InputError(f"no {self.part} of this model can be made {self.became} ({why})")
            columns = self.moments(module, here.names, data)
            made = {n: self.made(module.get_submodule(n), columns.get(n)) for n in here.names}
            picked, losses = self._picked(made, here, model)
            here.skipped |= dict.fromkeys((n for n in made if n not in picked.chosen), _NOT_NEEDED)
            layers = {n: self.fact(module.get_submodule(n)) for n in picked.chosen}
            before = sum(count_macs(module, data.example).values())
            fitted = separate(module, {n: made[n] for n in picked.chosen}, found, data, ctx.progress)
            left = sum(count_macs(module, data.example).values()) / max(1, before)
        for name, fact in layers.items():
            measured = {"time": here.times.get(name), "loss": losses.get(name)}
            fact |= {key: float(f"{value:.4g}") for key, value in measured.items() if value is not None}
        facts: dict[str, Any] = {
            **picked.facts,
            "layers": layers,
            "share": {"macs": round(left, 4)},
            "refit": fitted,
            "calibration": calibration(ctx.data, self.samples),
            "notes": [self._told(len(layers), left, fitted, ctx.data), *picked.notes],
        }
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] += trained.pop("notes", [])
        if model.card.arch.kind == "transformers":
            facts["notes"].append(f"transformers alone cannot load layers that became {self.became}; compresskit can")
        return self.recorded(model, facts | trained, here.skipped)

    def _told(self, count: int, left: float, fitted: dict[str, Any], data: Source) -> str:
        what = f"{count} {self.part}{'' if count == 1 else 's'} became {self.became}"
        return (
            f"{what}, fitted on {min(self.samples, len(data))} samples of {portable(data.name)}; {100 * left:.1f} % of "
            f"the multiply-accumulates remain; the output error fell from {fitted['before']:.3g} to "
            f"{fitted['after']:.3g}"
        )

    def _eligible(self, module: nn.Module, called: list[str]) -> tuple[list[str], dict[str, str]]:
        """The layers that may be replaced, and why the others can't be."""
        from torch import nn

        from compresskit.ops.globs import check_globs, left_out

        kinds = nn.Conv2d if self.part == "convolution" else (nn.Conv2d, nn.Linear)
        layers = {name: part for name, part in module.named_modules() if isinstance(part, kinds)}
        check_globs(layers, (*self.include, *self.exclude))
        skipped = {}
        for name, layer in layers.items():
            once = "" if name in called else "it isn't called once"
            why = left_out(name, self.include, self.exclude) or once or self.why_not(layer)
            if why:
                skipped[name] = why
        return [name for name in layers if name not in skipped], skipped

    def _time(self, here: _Here) -> None:
        """Measure the share of each layer's time that its replacement takes; those that gain nothing stay."""
        from compresskit.ops.substitute.alone import arguments_of

        def pair(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
            return layer, self.made(layer).eval()

        times, names = TimesByShape(here.ctx), here.names
        for done, name in enumerate(names, 1):
            layer = here.module.get_submodule(name)
            args, kwargs = arguments_of(layer, partial(here.data.run, here.module))
            shape = tuple((args or tuple(kwargs.values()))[0].shape)
            here.times[name] = times.share((shape, str(layer)), shape, partial(pair, layer))
            here.ctx.progress("time layers", done, len(names))
        slow = {n: f"no faster: {t:.2f} of its time under onnxruntime" for n, t in here.times.items() if t >= 1}
        here.skipped |= slow
        here.names = [n for n in names if n not in slow]

    def _picked(self, made: dict[str, Parts], here: _Here, model: Model) -> tuple[Picked[Any], dict[str, float]]:
        """The names of the layers that are replaced; and what the output loses by each, where that was measured.

        Without a target all are.
        """
        from compresskit.ops.macs import count_macs
        from compresskit.ops.packed.modules import set_module
        from compresskit.ops.substitute.choose import by_count, saved_time
        from compresskit.ops.substitute.separate import replacements

        if self.count is None and self.budget is None and self.target_latency is None:
            return Picked(list(made)), {}
        tried = replacements(here.module, made, here.times, here.data, here.ctx.progress)
        total = float(max(1, sum(count_macs(here.module, here.data.example).values())))
        why = f" ({listing([f'{n}: {r}' for n, r in here.skipped.items()], 2)})" if here.skipped else ""
        among = Among(tried, total, self.count, self.part, why)

        def build(chosen: list[Replacement]) -> nn.Module:
            smaller = copy.deepcopy(here.module)
            for c in chosen:
                set_module(smaller, c.name, copy.deepcopy(made[c.name]))
            return smaller

        if self.target_latency is not None:
            picked = among.in_time(self.target_latency, here.module, model.card.inputs, here.ctx, build)
        elif self.budget is not None:
            picked = among.of_budget(self.budget)
        else:
            picked = Picked(by_count(tried, self.count or 1, saved_time))
            if len(picked.chosen) < (self.count or 1):
                raise UsageError(
                    f"`count` {self.count}: {len(picked.chosen)} {self.part}s of this model can be made "
                    f"{self.became}{why}",
                    f"give a smaller `count`{', or `guard` size' if self.guard == 'latency' else ''}",
                )
        taken = {c.name for c in picked.chosen}
        losses = {c.name: c.loss for c in tried if c.name in taken}
        return Picked([n for n in made if n in taken], picked.facts, picked.notes), losses


@dataclass
class _Here:
    """A model with the layers that may be replaced, and their times."""

    module: nn.Module
    data: CalibrationData
    ctx: Context
    names: list[str]
    skipped: dict[str, str]
    times: dict[str, float] = field(default_factory=dict)
