"""``substitute.patches``: a vision transformer cuts its images into larger patches, which are fewer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.substitute import PatchesFacts, PatchFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import TargetLatency
from compresskit.stages.whole_model import ChangedFlow

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.patches import Patches

_SAMPLES = 4


class SubstitutePatches(ChangedFlow):
    """Give a vision transformer larger patches: fewer tokens in all blocks.

    The patch embedding and the positions are resampled; images keep their size. The accuracy usually needs training:
    `epochs` trains the result against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "patches"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = PatchesFacts

    patch_size: Annotated[
        int | None, Field(ge=2, le=512, description="Pixels a side of the new patches; must divide the image.")
    ] = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for replacing the patches: none (size), or a lower time of the whole model, "
            "measured on this machine (latency)."
        ),
    ] = "latency"

    @model_validator(mode="after")
    def _one_target(self) -> SubstitutePatches:
        if self.patch_size is not None and self.target_latency is not None:
            raise UsageError("`patch_size` and `target_latency`: give one of them")
        return self

    def run(self, model: Model, ctx: Context) -> Model:
        """Give a module larger patches, in place.

        Raises:
            UsageError: There is no target, or it can't be met.
            InputError: The model has no patches that can be larger, or gets no faster.
        """
        from compresskit.ops.macs import calling
        from compresskit.ops.substitute.patches import find, resample

        if self.patch_size is None and self.target_latency is None:
            raise UsageError(
                "no target is given. Give one of `patch_size`, `target_latency`", "for example `patch_size` 32"
            )
        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=_SAMPLES, size=_SAMPLES, rows=_SAMPLES)
        with calling(module):
            here = _Here(model, data, ctx, find(module, data))
            size, facts = self._chosen(here)
            facts |= self._guarded(here, size, facts)
            facts["left"] = {"macs": round(here.macs(size), 4)}
            resample(module, here.patches, size)
        patches = here.patches
        about = f"patches of {size} pixels a side in place of {patches.size}"
        fact = PatchFacts(size=size, image=list(patches.image), positions=list(patches.positions), about=about)
        facts |= {
            "layers": {patches.name: to_json(fact)},
            "patches": [patches.count(patches.size), patches.count(size)],
        }
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, _SAMPLES)
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] = [*self._notes(facts, about, model), *trained.pop("notes", [])]
        return self.recorded(model, facts | trained)

    def _chosen(self, here: _Here) -> tuple[int, dict[str, Any]]:
        """The size of the patches, and what was measured for it.

        Raises:
            UsageError: The image can't be cut so.
            InputError: It can't be cut into larger patches at all, or the model doesn't work with them.
        """
        from compresskit.ops.substitute.patches import check

        known = here.patches
        if not known.sizes:
            raise InputError(
                f"images of {known.image[0]} × {known.image[1]} pixels can't be cut into larger patches than "
                f"{known.size} × {known.size}"
            )
        size = known.sizes[0] if self.patch_size is None else self.patch_size
        if size not in known.sizes:
            raise UsageError(
                f"`patch_size` {size}: patches of {known.size} pixels can become larger ones that divide "
                f"images of {known.image[0]} × {known.image[1]}",
                f"give one of {', '.join(map(str, known.sizes))}",
            )
        check(here.model.module, known, size, here.data)
        return (size, {}) if self.target_latency is None else here.in_time(self.target_latency)

    def _guarded(self, here: _Here, size: int, facts: dict[str, Any]) -> dict[str, Any]:
        """The share of the original's time, which must be below 1."""
        if self.guard == "size" or "timed" in facts:
            return {}
        time, count = here.time(size), here.patches.count(here.patches.size)
        self.check_faster(time, f"larger patches gain nothing with {count} of them", "more and smaller patches")
        return {"time": round(time, 4)}

    def _notes(self, facts: dict[str, Any], about: str, model: Model) -> list[str]:
        before, after = facts["patches"]
        left = 100 * facts["left"]["macs"]
        notes = [f"{about}: {before} become {after}; {left:.1f} % of the multiply-accumulates remain"]
        return notes + self.use_notes(model, facts.get("time"), "patches of another size")

    @classmethod
    def replay(cls, module: nn.Module, facts: PatchesFacts, tensors: Tensors) -> Tensors:
        """Give a freshly built module layers of the shapes that larger patches have."""
        from compresskit.ops.substitute.patches import replay

        replay(module, facts)
        return tensors


@dataclass(frozen=True)
class _Here:
    """A model with the patches that it has."""

    model: Model
    data: CalibrationData
    ctx: Context
    patches: Patches

    def macs(self, size: int) -> float:
        """Share of the original's multiply-accumulates."""
        from compresskit.ops.macs import count_macs
        from compresskit.ops.substitute.patches import resampled

        module, example = self.model.module, self.data.example
        whole = sum(count_macs(module, example).values())
        with resampled(module, self.patches, size):
            return sum(count_macs(module, example).values()) / max(1, whole)

    def in_time(self, target: float) -> tuple[int, dict[str, Any]]:
        """The smallest patches for a share of the time."""
        from compresskit.stages.shared_latency import Choices, within_latency

        shares = {size: self.macs(size) for size in self.patches.sizes}

        def at(share: float) -> tuple[int, float]:
            size = next((size for size, own in shares.items() if own <= share), self.patches.sizes[-1])
            return size, shares[size]

        choices = Choices(min(shares.values()), at, self.built, "largest patches")
        size, timed = within_latency(self.model.module, self.model.card.inputs, target, self.ctx, choices)
        times = [[round(n, 4) for n in pair] for pair in timed]
        return size, {"timed": times, "time": times[-1][1]}

    def built(self, size: int) -> nn.Module:
        """A copy of the model with patches of another size."""
        from compresskit.ops.substitute.patches import resample

        module = copy.deepcopy(self.model.module)
        resample(module, self.patches, size)
        return module

    def time(self, size: int) -> float:
        """Share of the original's time."""
        from compresskit.stages.shared_latency import share_of_model

        return share_of_model(self.model.module, self.built(size), self.model.card.inputs, self.ctx)
