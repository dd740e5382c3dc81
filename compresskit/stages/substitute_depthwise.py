"""``substitute.depthwise``: convolutions of each channel by itself, and a 1×1 behind them."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.substitute import DepthwiseFacts, SeparableFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData

_BATCH = 32


class SubstituteDepthwise(Recovery):
    """Replace convolutions by depthwise ones and a 1×1, made of their singular vectors and fitted on unlabelled `data`.

    The accuracy usually needs training: `epochs` trains the result against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "depthwise"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    needs: ClassVar = ("calibration",)
    facts: ClassVar = SeparableFacts

    multiplier: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            description="Depthwise multiplier: windows for each input channel, as that many depthwise convolutions.",
        ),
    ] = 2
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for replacing a convolution: fewer multiply-accumulates (size), or also a lower "
            "time, measured per layer on this machine (latency)."
        ),
    ] = "latency"
    include: Include = ()
    exclude: Exclude = ()
    samples: Samples = 512

    def run(self, model: Model, ctx: Context) -> Model:
        """Replace convolutions of a module in place.

        Raises:
            UsageError: There are no data, or a glob matches nothing.
            InputError: No convolution can be replaced, or the data don't fit.
        """
        from compresskit.ops.calibration.trace import trace
        from compresskit.ops.macs import calling
        from compresskit.ops.substitute.separate import separate

        if ctx.data is None:
            raise UsageError("fitting layers needs data", "give `data` FILE")
        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=1)
        with calling(module):
            found = trace(module, partial(data.run, module))
            names, skipped = self._eligible(module, list(found.once()))
            times: dict[str, float] = {}
            if self.guard == "latency":
                times = self._times(module, names, data, ctx)
                slow = {n: f"no faster: {t:.2f} of its time under onnxruntime" for n, t in times.items() if t >= 1}
                names, skipped = [n for n in names if n not in slow], skipped | slow
            if not names:
                why = listing([f"{name}: {reason}" for name, reason in skipped.items()], 2)
                raise InputError(f"no convolution of this model can be made depthwise ({why})")
            fitted = separate(module, names, self.multiplier, found, data, ctx.progress)
        facts: dict[str, Any] = {
            "layers": {name: self._fact(name, times) for name in names},
            "refit": fitted,
            "calibration": calibration(ctx.data, self.samples),
            "notes": [
                f"{len(names)} convolutions became depthwise, fitted on {min(self.samples, len(ctx.data))} samples of "
                f"{portable(ctx.data.name)}: the output error fell from {fitted['before']:.3g} to {fitted['after']:.3g}"
            ],
        }
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] += trained.pop("notes", [])
        return self.recorded(model, facts | trained, skipped)

    def _fact(self, name: str, times: dict[str, float]) -> dict[str, Any]:
        time = times.get(name)
        fact = DepthwiseFacts(multiplier=self.multiplier, time=None if time is None else round(time, 4))
        return to_json(fact) | {"about": f"depthwise, multiplier {self.multiplier}"}

    def _eligible(self, module: nn.Module, called: list[str]) -> tuple[list[str], dict[str, str]]:
        """The convolutions that may become depthwise, and why the others don't."""
        from torch import nn

        from compresskit.ops.globs import check_globs, left_out
        from compresskit.ops.substitute.depthwise import why_not

        layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
        check_globs(layers, (*self.include, *self.exclude))
        skipped = {}
        for name, layer in layers.items():
            once = "" if name in called else "it isn't called once"
            why = left_out(name, self.include, self.exclude) or once or why_not(layer, self.multiplier)
            if why:
                skipped[name] = why
        return [name for name in layers if name not in skipped], skipped

    def _times(self, module: nn.Module, names: list[str], data: CalibrationData, ctx: Context) -> dict[str, float]:
        """Share of each convolution's time that its replacement takes."""
        from compresskit.ops.substitute.alone import arguments_of
        from compresskit.ops.substitute.separate import made
        from compresskit.stages.shared_latency import TimesByShape

        def pair(name: str, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
            return layer, made(module, name, self.multiplier).eval()

        times, found = TimesByShape(ctx), {}
        for done, name in enumerate(names, 1):
            layer = module.get_submodule(name)
            given = arguments_of(layer, partial(data.run, module))[0][0]
            shape = tuple(given.shape)
            found[name] = times.share((shape, str(layer)), shape, partial(pair, name, layer))
            ctx.progress("time layers", done, len(names))
        return found

    @classmethod
    def replay(cls, module: nn.Module, facts: SeparableFacts, tensors: Tensors) -> Tensors:
        """Put empty layers in the place of convolutions."""
        from compresskit.ops.substitute.depthwise import replay

        replay(module, facts.layers)
        return tensors
